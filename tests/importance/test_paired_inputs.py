"""Inputs are paired by example and by position, and what is no pair is an error."""

# oracle: plain hooks at the positions of one example

from functools import partial

import pytest
import torch
import transformers

from bertology import activation_patching, attention_maps, capture, dissect_mlps, hidden_states
from bertology.errors import DataError
from bertology.metrics import logit_difference
from helpers.patching import difference, one, places, two
from helpers.small_models import VIT
from helpers.zoo import BY_NAME, batch


def test_positions_count_real_tokens_and_may_differ():
    model = BY_NAME["llama"].build("lm")
    clean, corrupted = two((6, 4), "left")
    longer = batch((7, 5), labels=False, side="left", seed=4)
    found = activation_patching(model, clean, longer, metric=logit_difference(5, 6), positions=[(2, 3), (-1, -1)])
    for row, length in enumerate((6, 4)):
        source, base = one(clean, row), one(longer, row)
        for number, (place, heads) in enumerate(places(model)):
            theirs = []
            hook = place.register_forward_pre_hook(lambda _, args, keep=theirs: keep.append(args[0]))
            with torch.no_grad():
                model(**source)
            hook.remove()
            for head in range(heads):

                def put_in(_, args, head=head, length=length, other=theirs[0]):
                    x, mine = args[0].clone(), slice(4 * head, 4 * head + 4)
                    x[:, 3, mine], x[:, length, mine] = other[:, 2, mine], other[:, length - 1, mine]
                    return (x,)

                hook = place.register_forward_pre_hook(put_in)
                with torch.no_grad():
                    expected = difference(model(**base), 5, 6)
                hook.remove()
                assert found.patched[number, head, row].item() == pytest.approx(expected, abs=1e-9)
    same = activation_patching(model, clean, corrupted, metric=logit_difference(5, 6), positions=[2], by_token=True)
    assert same.tokens == ("2",)
    torch.testing.assert_close(same.token_effect[..., 0], same.effect)


def test_inputs_that_are_no_pairs():
    model, (clean, corrupted) = BY_NAME["gpt2"].build("lm"), two()
    patch = partial(activation_patching, model, metric=logit_difference(9, 8))
    with pytest.raises(DataError, match="example 1 of a batch has 3 tokens in one text and 4 in the other"):
        patch(clean, two((6, 3, 5))[0])
    with pytest.raises(DataError, match="padded alike"):
        patch(clean, two(side="left")[1])
    with pytest.raises(DataError, match="the same examples in the same order, got 3 and 2"):
        patch(clean, two((6, 4))[1])
    with pytest.raises(DataError, match="only one of them has batch 1"):
        patch([clean, clean], corrupted)
    with pytest.raises(DataError, match="there is no difference of which a patch could restore a share"):
        patch(clean, clean)


def with_own_positions(kind):
    """A model that sets prompts before the text, or reads it into a number of vectors of its own."""
    torch.manual_seed(0)
    if kind == "cpmant":
        config = transformers.CpmAntConfig(
            vocab_size=40, hidden_size=16, num_attention_heads=4, dim_head=4, dim_ff=24, num_hidden_layers=2,
            prompt_length=3, position_bias_num_buckets=8, position_bias_max_distance=16, segment_types=8,
        )  # fmt: skip
        return transformers.CpmAntForCausalLM(config).double().eval()
    config = transformers.PerceiverConfig(
        vocab_size=40, num_latents=6, d_latents=16, d_model=16, num_blocks=1, num_self_attends_per_block=1,
        num_self_attention_heads=4, num_cross_attention_heads=4, qk_channels=16, v_channels=16,
        max_position_embeddings=8,
    )  # fmt: skip
    return transformers.PerceiverForMaskedLM(config).double().eval()


# oracle: a plain hook on a down projection
def test_positions_are_those_of_the_text_and_not_of_prompts_before_it():
    model, seen = with_own_positions("cpmant"), []
    clean, corrupted = ({"input_ids": torch.tensor([[5, name, 7, 9]])} for name in (6, 8))
    metric = lambda outputs, batch: outputs.logits[:, -1, 3]  # noqa: E731
    found = activation_patching(model, clean, corrupted, metric=metric, parts="mlps", positions=[1], by_token=True)
    mlp = dissect_mlps(model).sites[0].projection
    hook = mlp.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    with torch.no_grad():
        model(**clean)
    hook.remove()

    def at_the_name(module, args, output):
        output = output.clone()
        output[:, 3 + 1] = seen[0][:, 3 + 1]
        return output

    hook = mlp.register_forward_hook(at_the_name)
    with torch.no_grad():
        expected = metric(model(**corrupted), corrupted)
    hook.remove()
    torch.testing.assert_close(found.patched[0], expected)
    assert (expected - found.corrupted).abs() > 1e-9
    whole = activation_patching(model, clean, corrupted, metric=metric, parts="mlps", by_token=True)
    torch.testing.assert_close(whole.token_effect[0, 1], found.effect[0])


@pytest.mark.parametrize("parts", ["heads", "mlps", "blocks"])
def test_no_token_is_named_where_positions_are_no_tokens(parts):
    model = with_own_positions("perceiver")
    clean, corrupted = ({"input_ids": torch.tensor([[5, name, 7, 9]])} for name in (6, 8))
    for positions, by_token in (([1], False), (None, True)):
        with pytest.raises(DataError, match="positions cannot be matched to tokens"):
            activation_patching(
                model, clean, corrupted, metric=lambda outputs, batch: outputs.logits[:, -1, 3], parts=parts,
                positions=positions, by_token=by_token,
            )  # fmt: skip


def test_positions_of_one_of_two_towers():
    text = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
            "vocab_size": 40, "max_position_embeddings": 16, "eos_token_id": 2}  # fmt: skip
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=VIT)).eval()
    pixels = torch.randn(2, 3, 8, 8)
    clean, corrupted = (
        {"input_ids": torch.tensor([[1, name, 6, 2], [1, name, 9, 2]]), "pixel_values": pixels} for name in (5, 7)
    )
    metric = lambda outputs, batch: outputs.logits_per_text.diagonal()[: len(batch["input_ids"])]  # noqa: E731
    with pytest.raises(DataError, match="choose the stack with only="):
        activation_patching(model, clean, corrupted, metric=metric, parts="mlps", by_token=True)
    found = activation_patching(model, clean, corrupted, metric=metric, parts="mlps", by_token=True, only="text_model")
    assert found.token_effect.shape == (2, 4)
    torch.testing.assert_close(found.token_effect[:, 0], torch.zeros(2).double(), atol=1e-5, rtol=0)
    assert found.token_effect[0, 1].abs() > 1e-3


@pytest.mark.parametrize("parts", ["heads", "mlps"])
def test_images_without_text_have_no_positions_of_tokens(parts):
    model = transformers.BeitForImageClassification(transformers.BeitConfig(**VIT, use_relative_position_bias=True))
    clean, corrupted = ({"pixel_values": torch.randn(2, 3, 8, 8)} for _ in range(2))
    options = {"metric": lambda outputs, batch: outputs.logits[:, 0], "parts": parts}
    assert activation_patching(model, clean, corrupted, **options).effect.isfinite().all()
    with pytest.raises(DataError, match="the encoder has no mask"):
        activation_patching(model, clean, corrupted, positions=[0], **options)


@pytest.mark.parametrize("positions", [[1, 1], [1, -5], [(1, 2), (1, 3)], [(2, 1), (3, 1)]])
@pytest.mark.parametrize("into", ["clean", "corrupted"])
def test_a_token_is_named_once(positions, into):
    model, (clean, corrupted) = BY_NAME["bert"].build(), two((6, 6))
    options = {"metric": logit_difference(1, 0), "positions": positions, "into": into}
    mine = [one if isinstance(one, int) else one[into == "corrupted"] for one in positions]
    if len({place % 6 for place in mine}) == 1:
        with pytest.raises(DataError, match="are the same token of text 0: name each token once"):
            activation_patching(model, clean, corrupted, **options)
    else:
        assert activation_patching(model, clean, corrupted, **options).effect.isfinite().all()


def test_positions_that_are_captured_are_not_those_of_prompts():
    model, inputs = with_own_positions("cpmant"), {"input_ids": torch.tensor([[5, 6, 7, 9]])}
    found = capture(model, inputs, hidden=True, maps=True, positions=[1, -1])
    torch.testing.assert_close(found.hidden.values, hidden_states(model, inputs).values[:, :, [1, 3]])
    # The maps have the prompts' rows, too.
    torch.testing.assert_close(found.maps.values, attention_maps(model, inputs).values[:, :, :, [3 + 1, 3 + 3]])
