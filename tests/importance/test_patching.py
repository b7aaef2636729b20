"""Patching is what plain hooks give, one head at a time, and its estimate is its derivative."""

from functools import partial

import pytest
import torch
import transformers as t

from bertology import (
    activation_patching,
    attribution_patching,
)
from bertology.errors import DataError, UnknownAnatomy
from bertology.metrics import logit_difference, probability
from helpers.patching import EQUAL, ONES, difference, one, places, two
from helpers.pruning import seq2seq
from helpers.towers import images_in_text, joined, qwen2_vl
from helpers.trees import wordpiece_tokenizer
from helpers.zoo import BY_NAME, VOCAB
from laws.laws import check_leaves_model_alone
from oracles import patching as oracle


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
    with pytest.raises(DataError, match="pass only="):
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


def test_texts_need_no_batches(minilm):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(minilm) for kind in (AutoModelForMaskedLM, AutoTokenizer))
    texts = ["birds [MASK] songs.", "wolves [MASK] a lot."], ["birds [MASK] nests.", "wolves [MASK] a wall."]
    found = attribution_patching(model, *texts, metric=logit_difference("sing", "build"), tokenizer=tokenizer)
    assert found.n_examples == found.examples == 2
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
    with pytest.raises(DataError, match=r"has no mask \[batch, token\]"):
        activation_patching(model, clean, corrupted, metric=logit_difference(1, 0), by_token=True)


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
        ({"parts": "experts"}, "parts is 'heads'"),
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


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_mlps_are_put_in_after_the_down_projection(name):
    model, (clean, corrupted) = BY_NAME[name].build(), two()
    ends = ("output.dense", "mlp.c_proj", "down_proj")
    downs = [m for n, m in model.named_modules() if n.endswith(ends) and "attention" not in n]
    found = activation_patching(model, clean, corrupted, metric=logit_difference(1, 0), parts="mlps")
    for row in range(3):
        for number, down in enumerate(downs):
            theirs = []
            hook = down.register_forward_hook(lambda _, args, output, keep=theirs: keep.append(output))
            with torch.no_grad():
                model(**one(clean, row))
            hook.remove()
            hook = down.register_forward_hook(lambda _, args, output, other=theirs: other[0])
            with torch.no_grad():
                expected = difference(model(**one(corrupted, row)))
            hook.remove()
            assert found.patched[number, row].item() == pytest.approx(expected, abs=1e-8)
    assert found.labels == ("0", "1")


def test_mlps_with_all_tokens_in_one_row():
    config = t.OPTConfig(
        vocab_size=40, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0,
        max_position_embeddings=32, word_embed_proj_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model, (clean, corrupted) = t.OPTForCausalLM(config).double().eval(), two((5, 4))
    options = {"metric": logit_difference(9, 8), "parts": "mlps"}
    ran = activation_patching(model, clean, corrupted, **options)
    near = attribution_patching(model, clean, corrupted, **options)
    assert ran.correlation(near) > 0.9
    assert not torch.allclose(ran.patched[0], ran.corrupted)


def test_heads_of_a_tower_that_does_not_run_are_nan():
    model, ids = qwen2_vl(), torch.randint(3, 40, (2, 6))
    found = activation_patching(
        model, {"input_ids": ids}, {"input_ids": ids.flip(1)}, metric=lambda outputs, batch: outputs.logits[:, -1, 7],
        heads={0: [1]},
    )  # fmt: skip
    assert found.effect.isnan().all()
    assert found.labels[0] == "encoder.0"


@pytest.mark.parametrize("function", [activation_patching, attribution_patching])
@pytest.mark.parametrize("parts", ["attentions", "mlps", "blocks"])
def test_layers_of_a_tower_that_does_not_run_are_nan(parts, function):
    model, ids = qwen2_vl(), torch.randint(3, 40, (2, 6))
    found = function(
        model, {"input_ids": ids}, {"input_ids": ids.flip(1)}, metric=lambda outputs, batch: outputs.logits[:, -1, 7],
        parts=parts,
    )  # fmt: skip
    tower = torch.tensor([label.startswith("encoder") for label in found.labels])
    assert tower.any()
    assert torch.equal(found.effect.isnan(), tower)


def test_a_tower_that_ran_in_an_earlier_batch_has_effects():
    (pair,), ids = [joined(images_in_text())], torch.randint(3, 20, (2, 6))
    other = {**pair, "pixel_values": pair["pixel_values"].flip(0)}
    found = activation_patching(
        qwen2_vl(), [pair, {"input_ids": ids}], [other, {"input_ids": ids.flip(1)}], metric=lambda outputs, batch:
        outputs.logits[:, -1, 7], heads={0: [1]},
    )  # fmt: skip
    assert not found.effect[0, 1].isnan()


def test_a_difference_of_rounding_alone_is_refused():
    """The same texts in another order have the same mean, up to the rounding of sums."""
    model = BY_NAME["bert"].build().float()
    (clean, _), order = two((6, 6, 6)), [2, 0, 1]
    other = {name: x[order] for name, x in clean.items()}
    for factor in (1.0, 1 + 1e-7):
        metric = lambda outputs, batch, factor=factor: outputs.logits[:, 0] * factor  # noqa: E731
        with pytest.raises(DataError, match="there is no difference of which a patch could restore a share"):
            activation_patching(model, clean, other, metric=metric)


@pytest.mark.filterwarnings("ignore:padding changes:UserWarning")
@pytest.mark.parametrize("parts", ["heads", "attentions", "mlps", "blocks"])
def test_a_gradient_that_the_attention_samples_is_none_to_estimate_by(parts):
    config = t.YosoConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=32,
    )  # fmt: skip
    model, ids = t.YosoForSequenceClassification(config).eval(), torch.randint(5, 50, (2, 2, 6))
    clean, corrupted = ({"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids)
    with pytest.raises(UnknownAnatomy, match="estimates its gradient by sampling: attribution would not be exact"):
        attribution_patching(model, clean, corrupted, metric=logit_difference(0, 1), parts=parts)
