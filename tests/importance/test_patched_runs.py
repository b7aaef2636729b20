"""What patched runs must give, whatever the model: nothing from itself, and everything from all of a layer."""

# oracle: the model with the other input, and the same model with linear layers alone

import pytest
import torch
import transformers
from torch import nn

from bertology import (
    LayerPatching,
    activation_patching,
    attribution_patching,
    dissect_mlps,
    head_attribution,
)
from bertology.errors import UnknownAnatomy
from bertology.metrics import logit_difference
from helpers.patching import EQUAL, difference, one, places, two
from helpers.zoo import BY_NAME, FAMILIES
from oracles import patching as oracle


def test_a_patch_from_the_same_input_changes_nothing():
    model, (clean, corrupted) = BY_NAME["bert"].build(), two()
    corrupted["input_ids"][1] = clean["input_ids"][1]
    for parts in ("heads", "attentions", "blocks"):
        for function in (activation_patching, attribution_patching):
            found = function(model, clean, corrupted, metric=logit_difference(1, 0), parts=parts)
            torch.testing.assert_close(found.patched[..., 1], found.corrupted[1].expand(found.patched.shape[:-1]))
            assert not torch.allclose(found.patched[..., 0], found.corrupted[0].expand(found.patched.shape[:-1]))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_all_positions_of_a_block_carry_everything(family):
    model, (clean, corrupted) = family.build("lm"), two()
    metric = logit_difference(9, 8, position=-1)
    found = activation_patching(model, clean, corrupted, metric=metric, parts="blocks", by_token=False)
    assert found.labels == ("0", "1", "2")
    torch.testing.assert_close(found.patched, found.clean.expand(3, 3), **EQUAL)
    torch.testing.assert_close(found.effect, torch.ones(3).double(), **EQUAL)
    assert type(found) is LayerPatching


def test_integrated_gradients_are_complete():
    model, (clean, corrupted) = BY_NAME["gpt2"].build("lm"), two((5, 4))
    metric = logit_difference(9, 8)
    errors = []
    for steps in (0, 8, 64):
        found = attribution_patching(model, clean, corrupted, metric=metric, parts="blocks", steps=steps)
        errors.append((found.patched[0] - found.clean).abs().max().item())
    assert errors[2] < 0.02 * abs(found.gap)
    assert errors[2] < errors[1] / 4 < errors[0]


def linear_after_the_last_attention():
    """A GPT-2 whose logits are linear in the heads of its last layer."""
    model = BY_NAME["gpt2"].build("lm")
    model.transformer.ln_f = nn.Identity()
    with torch.no_grad():
        model.transformer.h[-1].mlp.c_proj.weight.zero_()
    return model


@pytest.mark.parametrize("steps", [0, 3])
def test_the_estimate_is_exact_where_the_rest_is_linear(steps):
    model, (clean, corrupted) = linear_after_the_last_attention(), two()
    metric = logit_difference(9, 8)
    ran = activation_patching(model, clean, corrupted, metric=metric)
    near = attribution_patching(model, clean, corrupted, metric=metric, steps=steps)
    torch.testing.assert_close(near.patched[-1], ran.patched[-1], **EQUAL)
    assert not torch.allclose(near.patched[0], ran.patched[0], rtol=1e-4)
    # Linear parts add up: all heads of the layer together are the sum of its heads.
    whole = activation_patching(model, clean, corrupted, metric=metric, parts="attentions")
    torch.testing.assert_close(whole.effect[-1], ran.effect[-1].sum(), **EQUAL)


def test_an_attention_is_all_its_heads_at_once():
    model, (clean, corrupted) = BY_NAME["bert"].build(), two()
    metric = logit_difference(1, 0)
    found = activation_patching(model, clean, corrupted, metric=metric, parts="attentions", by_token=False)
    place, _ = places(model)[1]
    for row in range(3):
        # With one head that is as wide as the layer.
        expected = oracle.patched(model, [(place, 1)], one(corrupted, row), one(clean, row), difference)
        torch.testing.assert_close(found.patched[1, row], expected[0, 0], **EQUAL)
    heads = attribution_patching(model, clean, corrupted, metric=metric)
    whole = attribution_patching(model, clean, corrupted, metric=metric, parts="attentions")
    torch.testing.assert_close(heads.effect.sum(1), whole.effect, **EQUAL)


SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
# MLPs whose outputs lie otherwise than [batch, token, hidden], or are changed in place, or come with something else.
MLPS = {
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 4, "d_inner": 24},
    "squeezebert": {"intermediate_size": 24, "embedding_size": 16},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 32},
    "falcon": {"parallel_attn": True, "new_decoder_architecture": False, "multi_query": True},
    "ibert": {"intermediate_size": 24, "max_position_embeddings": 32},
}


def with_mlps(kind):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **MLPS[kind]})
    model = transformers.AutoModel.from_config(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    return model


def of_last_token(outputs, texts):
    """[batch]: a number of the last real token, wherever padding is."""
    x, place = outputs.last_hidden_state, torch.arange(1, texts["attention_mask"].shape[1] + 1)
    last = (texts["attention_mask"] * place).argmax(1)
    return x[torch.arange(len(x)), last].tanh() @ torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)


def run_with(model, down, texts, change=None):
    """The number of one text with what a down projection returns changed, and what it returned before."""
    seen = []

    def after(module, args, output):
        whole = output if isinstance(output, torch.Tensor) else output[0]
        seen.append(whole.detach().clone())
        new = whole if change is None else change(whole.clone())
        return new if whole is output else (new, *output[1:])

    hook = down.register_forward_hook(after)
    with torch.no_grad():
        number = of_last_token(model(**texts), texts)
    hook.remove()
    return number, seen[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", MLPS)
def test_mlps_are_patched_as_by_hand_however_their_outputs_lie(kind, frozen):
    model, (clean, corrupted) = with_mlps(kind).requires_grad_(not frozen), two((6, 4))
    ran = activation_patching(model, clean, corrupted, metric=of_last_token, parts="mlps")
    near = attribution_patching(model, clean, corrupted, metric=of_last_token, parts="mlps")
    token = activation_patching(model, clean, corrupted, metric=of_last_token, parts="mlps", positions=[2])
    for mlp in dissect_mlps(model).sites:
        down = mlp.projection
        for row in range(2):
            mine, other = one(corrupted, row), one(clean, row)
            (base, before), (_, theirs) = run_with(model, down, mine), run_with(model, down, other)
            torch.testing.assert_close(run_with(model, down, mine, lambda x, y=theirs: y.clone())[0][0],
                                       ran.patched[mlp.row, row], **EQUAL)  # fmt: skip
            ends = [run_with(model, down, mine, lambda x, y=theirs - before, s=sign: x + s * 1e-5 * y)[0]
                    for sign in (1, -1)]  # fmt: skip
            slope = base + (ends[0] - ends[1]) / 2e-5
            torch.testing.assert_close(near.patched[mlp.row, row], slope[0], rtol=1e-5, atol=1e-5)
            axis = {"xlnet": 0, "squeezebert": 2, "opt": 0}.get(kind, 1)

            def at_two(x, theirs=theirs, axis=axis):
                x.select(axis, 2).copy_(theirs.select(axis, 2))
                return x

            expected = run_with(model, down, mine, at_two)[0][0]
            torch.testing.assert_close(token.patched[mlp.row, row], expected, **EQUAL)
            assert mlp.row or abs(expected - base[0]) > 1e-6


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_computes_its_own_gradients_is_refused():
    config = transformers.ReformerConfig(
        vocab_size=40, hidden_size=16, attention_head_size=4, num_attention_heads=4, feed_forward_size=24, num_buckets=4,
        attn_layers=["local", "local"], axial_pos_shape=[4, 4], axial_pos_embds_dim=[8, 8], max_position_embeddings=16,
        local_attn_chunk_length=8,
    )  # fmt: skip
    model, (clean, corrupted) = transformers.ReformerModel(config).eval(), two((6, 6))
    for parts in ("heads", "attentions", "mlps"):
        with pytest.raises(UnknownAnatomy, match="without gradients"):
            attribution_patching(model, clean, corrupted, metric=of_last_token, parts=parts)


@pytest.mark.parametrize("measure", ["patching", "attribution"])
def test_gradients_in_inference_mode_are_those_outside(measure):
    model, (clean, corrupted) = BY_NAME["gpt2"].build("lm"), two()

    def values():
        if measure == "attribution":
            return head_attribution(model, clean).values
        return attribution_patching(model, clean, corrupted, metric=logit_difference(1, 0), steps=2).effect

    expected = values()
    with torch.inference_mode():
        torch.testing.assert_close(values(), expected)
