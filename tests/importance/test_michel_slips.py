"""Slips of the code that was released with Michel et al. 2019, or of its descendants: none of them is made here."""

import copy
import math

import pytest
import torch

from bertology import (
    ablated,
    attention_entropy,
    compare_efficiency,
    gated,
    head_importance,
    prune_heads,
    pruning_curve,
    score,
)
from bertology.pruning.curve import silence
from helpers.zoo import BY_NAME, batch, each_alone
from laws.taps import EVERY, texts
from oracles import heads as oracles


def test_slip_1_the_absolute_value_of_tokens_is_not_taken_for_that_of_examples(family):
    """Eq. 2 takes it by example, the code by token: here each is had by its name, and the second is never smaller."""
    model, inputs = family.build(), batch((7, 4, 5, 2))
    by_example, by_token = (head_importance(model, inputs, granularity=how).scores for how in ("example", "token"))
    assert (by_token >= by_example * (1 - 1e-9)).all()
    assert (by_token[0] > by_example[0] * 1.001).any()
    # The loss of a classifier sees the last layer at one token alone: there, both are the same.
    torch.testing.assert_close(by_token[-1], by_example[-1], rtol=1e-6, atol=1e-9)


def test_slip_1_both_for_tokens_that_are_all_seen():
    """With a loss at each token, the two differ in the last layer too."""
    model, inputs = BY_NAME["bert"].build("lm"), batch((7, 4, 5))
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    by_example, by_token = (head_importance(model, inputs, granularity=how).scores for how in ("example", "token"))
    assert (by_token[-1] > by_example[-1] * 1.001).any()


@pytest.mark.parametrize("granularity", ["example", "token"])
@pytest.mark.parametrize("kind", ["classifier", "lm"])
def test_slip_2_every_layer_is_divided_by_the_number_of_examples(kind, granularity):
    """The code divides by tokens in all layers but the last, also where the loss sees all tokens of it."""
    model, inputs = BY_NAME["bert"].build(kind), batch((7, 2, 5))
    if kind == "lm":
        inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    each = [head_importance(model, one, granularity=granularity).scores for one in each_alone(inputs)]
    found = head_importance(model, inputs, granularity=granularity).scores
    torch.testing.assert_close(found, torch.stack(each).mean(0))
    by_tokens = torch.stack(each).sum(0) / torch.tensor([7.0 + 2 + 5, 3])[:, None]  # the spoiled input
    assert not torch.allclose(found, by_tokens)


def test_slip_3_a_small_last_batch_weighs_as_little_as_it_holds():
    """The code's loss is a mean over the batch: examples of a batch of one weigh as much as three of a batch of three."""
    model, inputs = BY_NAME["gpt2"].build(), batch((7, 4, 5, 2))
    parts = [{name: x[rows] for name, x in inputs.items()} for rows in (slice(0, 3), slice(3, 4))]
    found = head_importance(model, parts).scores
    torch.testing.assert_close(found, head_importance(model, inputs).scores)
    whole = {name: x[:3] for name, x in inputs.items()}
    means = (head_importance(model, whole).scores + head_importance(model, parts[1]).scores) / 2
    assert not torch.allclose(found, means)


@pytest.mark.parametrize(("layers", "heads"), [(24, 16), (2, 8), (8, 2)])
def test_slip_4_layers_and_heads_are_not_swapped(layers, heads):
    """The code passes them the wrong way round, so that heads are kept in the wrong layers of BERT-large."""
    scores = torch.rand(layers, heads, dtype=torch.float64)
    gates = silence(scores, torch.ones(layers, heads), layers * heads - layers, keep=1)
    assert gates.sum(1).tolist() == [1] * layers
    assert torch.equal(gates.argmax(1), scores.argmax(1))


def test_slip_4_a_curve_of_a_model_that_is_not_square():
    model = BY_NAME["bert"].build(num_hidden_layers=5, num_attention_heads=2)
    curve = pruning_curve(model, batch(), metric="accuracy", amount=1, keep=1)
    assert curve.heads_left.tolist() == [10, 9, 8, 7, 6, 5]
    best = head_importance(model, batch()).scores.argmax(1)
    assert torch.equal(curve.gates[-1], torch.nn.functional.one_hot(best, 2).double())


def test_slip_5_heads_that_are_pruned_step_by_step_keep_their_numbers():
    """The code prunes a growing list of heads again and again, from layers that have shrunk in the meantime."""
    model, inputs = BY_NAME["bert"].build(), batch()
    curve = pruning_curve(model, inputs, metric="inverse_loss", amount=1)
    shrinking = copy.deepcopy(model)
    for before, gates, value in zip(curve.gates[:-1], curve.gates[1:], curve.scores[1:], strict=True):
        prune_heads(shrinking, [tuple(place) for place in (before - gates).nonzero().tolist()])
        assert score(shrinking, inputs, metric="inverse_loss").value == pytest.approx(value.item())


def test_slip_6_all_heads_of_a_layer_but_one_can_go():
    """The code's option for that always raises."""
    model, inputs = BY_NAME["bert"].build(), batch()
    for row in range(2):
        for kept in range(4):
            others = {row: [head for head in range(4) if head != kept]}
            with ablated(model, others), torch.no_grad():
                found = model(**inputs).logits
            cut = copy.deepcopy(model)
            prune_heads(cut, others)
            with torch.no_grad():
                torch.testing.assert_close(cut(**inputs).logits, found)


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_slip_7_entropies_do_not_shrink_with_the_number_of_layers(layers):
    """The code counts its tokens once for each layer: entropies come out too small by their number."""
    model = BY_NAME["bert"].build(num_hidden_layers=layers)
    for layer in model.bert.encoder.layer:
        layer.attention.self.query.weight.data.zero_()
        layer.attention.self.query.bias.data.zero_()
    mean = attention_entropy(model, batch((6, 6))).mean
    torch.testing.assert_close(mean, torch.full((layers, 4), math.log(6), dtype=torch.float64))


def test_slip_7_the_entropy_of_a_head_without_output_is_not_0():
    """The code shows 0 for heads that are masked: a silent head still attends, and one that was cut out is NaN."""
    model, inputs = BY_NAME["bert"].build(), batch()
    whole = attention_entropy(model, inputs).mean
    gates = torch.ones(2, 4)
    gates[0, 1] = 0
    with gated(model, gates):
        silent = attention_entropy(model, inputs).mean
    torch.testing.assert_close(silent[0], whole[0])
    assert silent[0, 1] > 0
    prune_heads(model, {0: [1]})
    assert attention_entropy(model, inputs).mean[0, 1].isnan()


def test_slip_8_a_timed_pass_is_one_pass(monkeypatch):
    """The code times two passes, and the copy of what came out."""
    before, after = BY_NAME["bert"].build(), BY_NAME["bert"].build()
    calls, times, now = [], [], [0.0]
    for model in (before, after):
        model.register_forward_hook(lambda *_: calls.append(None))

    def clock():
        times.append(len(calls))
        now[0] += 1
        return now[0]

    monkeypatch.setattr("bertology.pruning.efficiency.time.perf_counter", clock)
    compare_efficiency(before, after, batch(), batch_sizes=(1, 2), rounds=4, seconds=0)
    between = [stop - start for start, stop in zip(times[::2], times[1::2], strict=True)]
    assert between == [1] * (2 * (1 + 2 * 4))


def test_slip_9_gradients_are_found_where_the_caller_has_turned_them_off(family):
    """The code asks for gradients under `no_grad`, and crashes."""
    model, inputs = family.build(), batch()
    wanted = head_importance(model, inputs).scores
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert torch.equal(head_importance(model, inputs).scores, wanted)


def test_slip_10_stacks_may_be_of_different_depth_and_labels_smoothed():
    """The translation code takes the encoder's depth for all kinds of attention, and its smoothed loss is broken."""
    bart, inputs = EVERY["bart"].build(decoder_attention_heads=4), texts("bart")
    found = head_importance(bart, inputs)
    assert found.labels == ("encoder.0", "encoder.1", "decoder.0", "cross.0")
    torch.testing.assert_close(found.normalized("layer").scores.norm(dim=1), torch.ones(4, dtype=torch.float64))

    def smoothed(outputs, inputs):
        logits, labels = outputs.logits, inputs["labels"]
        each = torch.nn.functional.cross_entropy(logits.mT, labels, label_smoothing=0.1, reduction="none")
        return each.sum(1) / (labels != -100).sum(1)

    with torch.no_grad():
        ends = []
        for step in (1e-5, -1e-5):
            gates = torch.ones(4, 4, dtype=torch.float64)
            gates[3, 2] += step
            with gated(bart, gates):
                ends.append(smoothed(bart(**inputs), inputs))
    by_hand = ((ends[0] - ends[1]) / 2e-5).abs().mean()
    torch.testing.assert_close(head_importance(bart, inputs, loss=smoothed).scores[3, 2], by_hand, rtol=1e-6, atol=1e-9)


def test_slip_11_f1_is_0_where_nothing_is_found():
    """The code's F1 is NaN there, and so is the rest of its curve."""
    model, inputs = BY_NAME["bert"].build(), batch()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([1.0, 0.0]))
    assert score(model, inputs, metric="f1").value == 0
    with torch.no_grad():
        model.classifier.weight.normal_()
    assert pruning_curve(model, inputs, metric="f1", amount=2).scores.isfinite().all()


def test_the_old_scripts_slip_gradients_are_not_summed_from_batch_to_batch():
    """run_bertology.py never clears its gradients, and so takes the absolute values of running totals."""
    model, examples = BY_NAME["bert"].build(), each_alone(batch((7, 4, 5)))
    each = torch.stack([head_importance(model, one).signed for one in examples])
    found = head_importance(model, examples).scores
    torch.testing.assert_close(found, each.abs().mean(0))
    assert not torch.allclose(found, each.cumsum(0).abs().mean(0))
    expected = oracles.importance(model, examples, lambda example: model(**example).loss.item())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
