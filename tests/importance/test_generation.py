import copy
import math

import pytest
import torch

from bertology import (
    EntropyAccumulator,
    Head,
    accumulate,
    attention_entropy,
    head_ablation,
    prune_heads,
    pruning_curve,
    score,
    sole_head_ablation,
)
from bertology.errors import DataError
from bertology.importance.score import GenerationAccumulator
from bertology.metrics import GenerationMetric, bleu
from helpers.generation import END, bart, texts
from helpers.zoo import BY_NAME, batch


def overlap(generated, references):
    """The share of generated tokens that are in the reference: any function of token ids will do."""
    shares = [
        sum(t in theirs for t in ours) / max(1, len(ours)) for ours, theirs in zip(generated, references, strict=True)
    ]
    return sum(shares) / len(shares)


METRIC = GenerationMetric(overlap, max_new_tokens=10)


def by_hand(model, batches):
    """Slow twin: generate one example at a time, and cut by hand."""
    generated, references = [], []
    for one in batches:
        for ids, mask, labels in zip(one["input_ids"], one["attention_mask"], one["labels"], strict=True):
            there = int(mask.sum())
            out = model.generate(input_ids=ids[None, :there], max_new_tokens=10, do_sample=False)[0].tolist()[1:]
            generated.append(out[: out.index(END)] if END in out else out)
            references.append(labels[: there - 1].tolist())
    return overlap(generated, references)


def without(heads):
    model = bart()
    prune_heads(model, heads)
    return by_hand(model, texts())


def test_score_generates():
    model = bart()
    found = score(model, texts(), metric=METRIC)
    assert (found.value, found.metric, found.examples) == (pytest.approx(by_hand(model, texts())), "overlap", 5)
    assert 0 < found.value < 1


@pytest.mark.parametrize("ablate", [head_ablation, sole_head_ablation])
def test_ablation_equals_generation_without_the_heads(ablate):
    found = ablate(bart(), texts(), metric=METRIC)
    assert found.metric == "overlap"
    scores = found.scores if ablate is sole_head_ablation else found.change + found.base
    expected = torch.tensor(
        [[without([(row, head if ablate is head_ablation else 1 - head)]) for head in range(2)] for row in range(6)],
        dtype=torch.float64,
    )
    torch.testing.assert_close(scores.double(), expected)
    assert len(set(expected.flatten().tolist())) > 3
    spoiled = expected.clone()
    spoiled[5, 0] += 0.1
    with pytest.raises(AssertionError):
        torch.testing.assert_close(scores.double(), spoiled)


def test_losses_of_an_ablation_are_those_of_labels():
    found, plain = (head_ablation(bart(), texts(), metric=metric) for metric in (METRIC, "inverse_loss"))
    assert torch.equal(found.loss_change, plain.loss_change)
    assert found.significance("bootstrap", of="loss").p.shape == (6, 2)
    with pytest.raises(
        DataError, match="'overlap' is a metric of generated texts, which were not kept: take of='loss'"
    ):
        found.significance("bootstrap")


def test_generating_disturbs_no_other_measure():
    model = bart()
    alone = attention_entropy(model, texts())
    entropy, generated = accumulate(model, texts(), EntropyAccumulator(), GenerationAccumulator(METRIC))
    assert torch.equal(entropy.mean, alone.mean)
    assert generated.value == score(model, texts(), metric=METRIC).value


def test_means_replace_heads_while_generating():
    from bertology import ablated, head_means

    model = bart()
    found = head_ablation(model, texts(), metric=METRIC, replace="mean")
    with ablated(model, [Head(1, 0, "cross")], replace=head_means(model, texts()).values):
        expected = score(model, texts(), metric=METRIC).value
    assert found.stack("cross").change[1, 0] + found.base == pytest.approx(expected)
    with pytest.raises(DataError, match="replace='resample' is not possible with a GenerationMetric"):
        head_ablation(model, texts(), metric=METRIC, replace="resample")


def test_a_curve_of_what_is_generated():
    model = bart()
    before = copy.deepcopy(model.state_dict())
    curve = pruning_curve(model, texts(), metric=METRIC, only="cross", amount=2)
    assert curve.scores[0] == pytest.approx(by_hand(model, texts()))
    off = [(row, head) for row, head in (curve.gates[0] - curve.gates[1]).nonzero().tolist()]
    assert curve.scores[1] == pytest.approx(without(off))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_bleu():
    """METHODS has no closed form but the definition: one n-gram precision of each order, and a brevity penalty."""
    metric = bleu(lambda ids: " ".join(map(str, ids)), tokenize="none", max_new_tokens=10)
    ours, theirs = [[3, 4, 5, 6, 7]], [[3, 4, 5, 6, 8, 9]]
    precisions = [4 / 5, 3 / 4, 2 / 3, 1 / 2]
    expected = 100 * math.prod(precisions) ** 0.25 * math.exp(1 - 6 / 5)
    assert metric.metric(ours, theirs) == pytest.approx(expected)
    assert metric.metric(theirs, theirs) == 100
    assert score(bart(), texts(), metric=metric).metric == "bleu"


def test_merging_is_appending():
    model, (one, other) = bart(), texts()
    halves = [GenerationAccumulator(METRIC) for _ in range(2)]
    for half, data in zip(halves, ({name: x[:, :8] for name, x in one.items()}, other), strict=True):
        accumulate(model, data, half)
    merged = halves[0].merge(halves[1].state()).compute()
    assert merged.examples == 5
    assert merged.value == pytest.approx(
        score(model, [{n: x[:, :8] for n, x in one.items()}, other], metric=METRIC).value
    )


def test_errors():
    with pytest.raises(DataError, match="needs an encoder-decoder model that generates.*got BertForSequence"):
        score(BY_NAME["bert"].build(), batch(), metric=METRIC)
    with pytest.raises(DataError, match="needs labels in every batch: they are the references"):
        score(bart(), [{name: x for name, x in one.items() if name != "labels"} for one in texts()], metric=METRIC)
    several = GenerationMetric(overlap, max_new_tokens=3, num_beams=2, num_return_sequences=2)
    with pytest.raises(DataError, match="generate returned 4 sequences for 2 examples"):
        score(bart(), texts(), metric=several)
    with pytest.raises(DataError, match="goes over the batches several times"):
        head_ablation(bart(), iter(texts()), metric=METRIC)
