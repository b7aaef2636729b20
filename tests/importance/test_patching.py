"""Patching is what plain hooks give, one head at a time; its estimate is its derivative, and exact where all is linear.

# oracle: patched, attributed
"""

from functools import partial

import pytest
import torch
import transformers as t
from torch import nn

from bertology import (
    HeadPatching,
    LayerPatching,
    Result,
    activation_patching,
    attribution_patching,
    dissect,
    prune_heads,
)
from bertology.errors import DataError
from bertology.metrics import logit_difference, probability
from helpers.pruning import seq2seq
from helpers.trees import wordpiece_tokenizer
from helpers.zoo import BY_NAME, FAMILIES, VOCAB, batch
from laws.laws import check_leaves_model_alone
from oracles import patching as oracle

EQUAL = {"rtol": 1e-9, "atol": 1e-9}
PROJECTIONS = ("attention.output.dense", "attention.dense", "attention.out_lin", "o_proj", "attn.c_proj")
ONES = [family for family in FAMILIES if family.name != "albert"]  # whose one module runs in both layers


def places(model):
    return [(module, 4) for name, module in model.named_modules() if name.endswith(PROJECTIONS)]


def two(lengths=(6, 4, 5), side="right"):
    """Inputs that differ in the third token of each text."""
    clean = batch(lengths, labels=False, side=side)
    corrupted = {name: x.clone() for name, x in clean.items()}
    for row, length in enumerate(lengths):
        start = 0 if side == "right" else max(lengths) - length
        clean["input_ids"][row, start + 2], corrupted["input_ids"][row, start + 2] = 7 + row, 11 + row
    return clean, corrupted


def one(texts, row):
    """One example without its padding."""
    real = texts["attention_mask"][row].bool()
    return {name: x[row : row + 1, real] for name, x in texts.items()}


def difference(outputs, right=1, wrong=0):
    logits = outputs.logits[0, -1] if outputs.logits.dim() == 3 else outputs.logits[0]
    return (logits[right] - logits[wrong]).item()


# DistilBERT of transformers 4 takes no positions.
@pytest.mark.filterwarnings("ignore:padding (before|changes):UserWarning")
@pytest.mark.parametrize("family", ONES, ids=lambda f: f.name)
def test_equals_plain_hooks(family):
    model, (clean, corrupted) = family.build(), two()
    found = activation_patching(model, clean, corrupted, metric=logit_difference(1, 0))
    for row in range(3):
        expected = oracle.patched(model, places(model), one(corrupted, row), one(clean, row), difference)
        torch.testing.assert_close(found.patched[..., row], expected, **EQUAL)
        assert not torch.allclose(found.patched[..., row], expected.flip(1), rtol=1e-6, atol=1e-6)
    gap = found.clean.mean() - found.corrupted.mean()
    torch.testing.assert_close(found.effect, (found.patched.mean(-1) - found.corrupted.mean()) / gap)
    assert found.gap == pytest.approx(gap.item())


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_the_estimate_is_the_derivative(name):
    model, (clean, corrupted) = BY_NAME[name].build(), two()
    found = attribution_patching(model, clean, corrupted, metric=logit_difference(1, 0))
    for row in range(3):
        # Llama's norms compute in float32: a small step would drown in rounding.
        step = 1e-3 if name == "llama" else 1e-5
        expected = oracle.attributed(model, places(model), one(corrupted, row), one(clean, row), difference, step)
        near = {"rtol": 0.01, "atol": 2e-3} if name == "llama" else {"rtol": 1e-5, "atol": 1e-7}
        torch.testing.assert_close(found.patched[..., row] - found.corrupted[row], expected, **near)


@pytest.mark.parametrize("into", ["corrupted", "clean"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_causal_models_by_token(into, side):
    model, (clean, corrupted) = BY_NAME["gpt2"].build("lm"), two((5, 5), side)
    metric = logit_difference([9, 8], 4)
    found = activation_patching(model, clean, corrupted, metric=metric, by_token=True, into=into)
    assert list(found.token_effect.shape) == [2, 4, 5]
    base, source = (corrupted, clean) if into == "corrupted" else (clean, corrupted)
    ends = [getattr(found, "corrupted" if into == name else "clean").mean() for name in ("corrupted", "clean")]
    expected = torch.zeros(2, 2, 4, 5, dtype=torch.float64)
    for row, right in enumerate((9, 8)):
        measure = partial(difference, right=right, wrong=4)
        for token in range(5):
            expected[row, ..., token] = oracle.patched(
                model, places(model), one(base, row), one(source, row), measure, [token]
            )
    torch.testing.assert_close(found.token_effect, (expected.mean(0) - ends[0]) / (ends[1] - ends[0]), **EQUAL)
    # To first order the tokens add up to the whole.
    near = attribution_patching(model, clean, corrupted, metric=metric, by_token=True, into=into)
    torch.testing.assert_close(near.token_effect.sum(-1), near.effect, **EQUAL)


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
    torch.testing.assert_close(same.token_effect[..., 0], same.effect)


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


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_decoders(name):
    model = seq2seq(name)
    clean, corrupted = two()
    labels = torch.tensor([[4, 5, 6], [7, 8, -100], [8, 9, 3]])
    clean["labels"] = labels
    metric = logit_difference(9, 8, position=0)
    found = activation_patching(model, clean, corrupted, metric=metric)
    assert list(found.effect.shape) == [6, 4]
    near = attribution_patching(model, clean, corrupted, metric=metric)
    assert (found.stack("cross").effect.abs() > 1e-9).all()
    assert (near.stack("encoder").effect.abs() > 1e-9).all()
    blocks = activation_patching(model, clean, corrupted, metric=metric, parts="blocks")
    # The decoder begins with the same tokens in both runs, and ends with all that came from the encoder.
    effect = dict(zip(blocks.labels, blocks.effect.tolist(), strict=True))
    assert effect["encoder.0"] == pytest.approx(1) == effect["decoder.2"]
    assert effect["decoder.0"] == pytest.approx(0, abs=1e-9)
    with pytest.raises(DataError, match="say with only="):
        activation_patching(model, clean, corrupted, metric=metric, by_token=True)
    some = activation_patching(model, clean, corrupted, metric=metric, positions=[2], only="encoder")
    assert some.effect[2:].isnan().all()
    assert some.effect[:2].isfinite().all()
    by_loss = activation_patching(model, clean, corrupted, metric="loss", only="cross")
    assert by_loss.metric == "loss"


def test_masked_models_read_the_mask():
    model, (clean, corrupted), tokenizer = BY_NAME["bert"].build("lm"), two((5, 4)), wordpiece_tokenizer()
    tokenizer.mask_token = "cat"
    masked = tokenizer.mask_token_id
    for texts in (clean, corrupted):
        texts["input_ids"][texts["input_ids"] == masked] = masked + 1
        texts["input_ids"][:, 1] = masked
    found = activation_patching(model, clean, corrupted, metric=probability(9), tokenizer=tokenizer)
    with torch.no_grad():
        expected = model(**clean).logits[:, 1].softmax(-1)[:, 9]
    torch.testing.assert_close(found.clean, expected)
    same = activation_patching(model, clean, corrupted, metric=probability(9, position=1))
    torch.testing.assert_close(same.patched, found.patched)
    with pytest.raises(DataError, match="pass tokenizer= for the masked token, or position="):
        activation_patching(model, clean, corrupted, metric=probability(9))


def test_metrics():
    model, (clean, corrupted) = BY_NAME["bert"].build(), two()
    clean["labels"] = torch.tensor([0, 1, 1])
    model.config.label2id = {"good": 1, "bad": 0}
    named = activation_patching(model, clean, corrupted, metric=logit_difference("good", "bad"))
    given = activation_patching(
        model, clean, corrupted, metric=lambda outputs, batch: outputs.logits[:, 1] - outputs.logits[:, 0]
    )
    torch.testing.assert_close(named.patched, given.patched, **EQUAL)
    loss = activation_patching(model, clean, corrupted, metric="loss")
    right = activation_patching(model, clean, corrupted, metric=probability([0, 1, 1]))
    torch.testing.assert_close(loss.patched, -right.patched.log(), **EQUAL)


def test_chosen_and_pruned_heads():
    model, (clean, corrupted) = BY_NAME["gpt2"].build(), two()
    prune_heads(model, {0: [1, 2]})
    metric = logit_difference(1, 0)
    whole = activation_patching(model, clean, corrupted, metric=metric)
    assert whole.effect.isnan().equal(~dissect(model).present)
    some = activation_patching(model, clean, corrupted, metric=metric, heads=["L0H3", (1, 2)])
    assert some.effect.isfinite().nonzero().tolist() == [[0, 3], [1, 2]]
    torch.testing.assert_close(some.effect[0, 3], whole.effect[0, 3], **EQUAL)
    near = attribution_patching(model, clean, corrupted, metric=metric, heads={1: [2]})
    both = attribution_patching(model, clean, corrupted, metric=metric)
    torch.testing.assert_close(near.effect[1, 2], both.effect[1, 2])
    assert both.effect.isnan().equal(~dissect(model).present)
    assert -1 <= whole.correlation(both) <= 1


def test_batches_change_nothing():
    model, (clean, corrupted) = BY_NAME["llama"].build(), two((5, 5, 5, 5))
    metric = logit_difference([1, 0, 1, 0], [0, 1, 0, 1])
    halves = [
        [{n: x[rows] for n, x in texts.items()} for rows in (slice(3), slice(3, 4))] for texts in (clean, corrupted)
    ]
    for function in (activation_patching, attribution_patching):
        whole = function(model, clean, corrupted, metric=metric, by_token=True)
        parts = function(model, *halves, metric=metric, by_token=True)
        torch.testing.assert_close(whole.patched, parts.patched, **EQUAL)
        torch.testing.assert_close(whole.token_effect, parts.token_effect, **EQUAL)


def test_texts_need_no_batches(minilm):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(minilm) for kind in (AutoModelForMaskedLM, AutoTokenizer))
    texts = ["birds [MASK] songs.", "wolves [MASK] a lot."], ["birds [MASK] nests.", "wolves [MASK] a wall."]
    found = attribution_patching(model, *texts, metric=logit_difference("sing", "build"), tokenizer=tokenizer)
    assert found.n_examples is None
    assert found.examples == 2
    with pytest.raises(DataError, match=r"one token of the vocabulary, but 'warbled' is \['war"):
        attribution_patching(model, *texts, metric=probability("warbled"), tokenizer=tokenizer)


def test_images():
    torch.manual_seed(0)
    config = t.ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, image_size=8,
                         patch_size=4, num_labels=3)  # fmt: skip
    model = t.ViTForImageClassification(config).double().eval()
    clean, corrupted = ({"pixel_values": torch.randn(2, 3, 8, 8).double()} for _ in range(2))
    found = activation_patching(model, clean, corrupted, metric=logit_difference(1, 0), parts="blocks")
    torch.testing.assert_close(found.effect, torch.ones(3).double())
    with pytest.raises(DataError, match=r"have no mask \[batch, token\]"):
        activation_patching(model, clean, corrupted, metric=logit_difference(1, 0), by_token=True)


def test_intervals():
    model, (clean, corrupted) = BY_NAME["gpt2"].build(), two((5,) * 6)
    metric = logit_difference(1, 0)
    found = activation_patching(model, clean, corrupted, metric=metric)
    low, high = found.interval(resamples=200)
    assert ((low <= found.effect) & (found.effect <= high)).double().mean() > 0.9
    near = attribution_patching(model, clean, corrupted, metric=metric)
    low, high = found.correlation_interval(near, resamples=200)
    assert low <= found.correlation(near) <= high + 1e-9
    with pytest.raises(DataError, match="of the same parts of one model"):
        found.correlation(activation_patching(model, clean, corrupted, metric=metric, parts="blocks"))


def test_results_are_saved_and_drawn(tmp_path):
    model, (clean, corrupted) = BY_NAME["gpt2"].build(), two((5, 5))
    for parts, kind in (("heads", HeadPatching), ("attentions", LayerPatching), ("blocks", LayerPatching)):
        found = activation_patching(model, clean, corrupted, metric=logit_difference(1, 0), parts=parts, by_token=True)
        found.save(tmp_path / "patching.safetensors")
        assert Result.load(tmp_path / "patching.safetensors") == found
        assert type(found) is kind
        found.plot()
    assert "HeadPatching" in repr(activation_patching(model, clean, corrupted, metric=probability(1)))


def test_the_model_is_left_as_it_was():
    model, (clean, corrupted) = BY_NAME["bert"].build().train(), two()
    for function in (activation_patching, attribution_patching):
        for parts in ("heads", "blocks"):
            call = partial(function, model, clean, corrupted, metric=logit_difference(1, 0), parts=parts)
            check_leaves_model_alone(model, lambda _, call=call: call())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": logit_difference(VOCAB, 1)}, "an answer must be from 0 to 39, got 40"),
        ({"metric": logit_difference([1, 2], 0)}, "one for all examples or one for each, got 2 for 3 examples"),
        ({"metric": logit_difference(" a", 0)}, "pass tokenizer= to name a token, such as ' a'"),
        ({"metric": lambda outputs, inputs: outputs.logits}, r"one value per example, \[batch\] = \[3\]"),
        ({"metric": "accuracy"}, "metric must be 'loss', logit_difference"),
        ({"parts": "neurons"}, "parts is 'heads'"),
        ({"into": "both"}, "into is 'corrupted' or 'clean'"),
        ({"only": "cross"}, "only= takes a stack of this model, 'decoder', got 'cross'"),
        ({"positions": [9]}, "position 9 is not in text 0, which has 6 tokens"),
        ({"positions": ["the"]}, "positions must be a list of whole numbers or a list of tuples"),
        ({"positions": []}, "positions= is empty"),
        ({"by_token": True}, r"by_token=True needs examples of one length, got \[4, 5, 6\] tokens"),
        ({"parts": "blocks", "heads": [(0, 1)]}, "heads= is for parts='heads'"),
    ],
)
def test_mistakes(options, words):
    model, (clean, corrupted) = BY_NAME["gpt2"].build("lm"), two()
    options = {"metric": logit_difference(9, 8), **options}
    with pytest.raises(DataError, match=words):
        activation_patching(model, clean, corrupted, **options)


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
