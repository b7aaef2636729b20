"""Faithfulness is what the loop over `ablated` models gives, and agreement is that of sets."""

from itertools import combinations

import pytest
import torch

from bertology import (
    Result,
    ablated,
    dissect,
    faithfulness,
    head_ablation,
    head_agreement,
    head_importance,
    head_means,
    prune_heads,
    score,
)
from bertology.errors import DataError
from helpers.ablation import rest, several
from helpers.pruning import seq2seq
from helpers.towers import qwen2_vl
from helpers.zoo import BY_NAME, batch

# oracle: the loop over ablated models, and sets of Python


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_equals_the_loop(name):
    model, kept = BY_NAME[name].build(), [(0, 1), (1, 2), (1, 3)]
    found = faithfulness(model, several(), kept, metric="inverse_loss", replace="zero", random_sets=3)

    def loss(off):
        with ablated(model, off):
            return 1 / score(model, several(), metric="inverse_loss").value

    none, some, whole = loss(rest(model, [])), loss(rest(model, kept)), loss([])
    assert found.of_loss == pytest.approx((some - none) / (whole - none), rel=1e-6)
    assert found.value == pytest.approx((1 / some - 1 / none) / (1 / whole - 1 / none), rel=1e-6)
    assert found.of_loss != pytest.approx((loss(kept) - none) / (whole - none), rel=1e-3)
    assert found.size == 3
    assert [(head.layer, head.head) for head in found.heads()] == kept
    low, high = found.interval(resamples=200)
    assert low <= found.of_loss <= high


def test_all_heads_and_none():
    model = BY_NAME["bert"].build()
    every = rest(model, [])
    for replace in ("zero", "mean"):
        whole = faithfulness(model, several(), every, metric="inverse_loss", replace=replace, random_sets=2)
        assert whole.of_loss == pytest.approx(1)
        torch.testing.assert_close(whole.random, torch.ones(2).double())
        assert whole.p == 1
        none = faithfulness(model, several(), [], metric="inverse_loss", replace=replace, random_sets=2)
        assert none.value == pytest.approx(0)
        torch.testing.assert_close(none.random_of_loss, torch.zeros(2).double())


def test_pruned_heads_and_several_stacks(tmp_path):
    model = BY_NAME["gpt2"].build()
    prune_heads(model, {0: [1, 2]})
    found = faithfulness(model, several(), ["L0H0", "L1H1"], metric="inverse_loss")
    assert found.kept.isnan().equal(~dissect(model).present)
    assert len(found.random) == 20
    found.save(tmp_path / "faithfulness.safetensors")
    assert Result.load(tmp_path / "faithfulness.safetensors") == found
    labels = torch.tensor([[4, 5, 6, 1], [7, 1, -100, -100], [8, 9, 1, -100]])
    inputs = {**batch(labels=False), "labels": labels}
    pair = faithfulness(seq2seq("t5"), inputs, ["XL0H1", "EL1H0"], metric="inverse_loss", replace="zero")
    assert pair.size == 2


def test_agreement_of_sets():
    model = BY_NAME["bert"].build()
    results = [head_importance(model, one) for one in several()]
    found = head_agreement(results, 3)
    sets = [{place.head for place in one.top(3)} for one in results]
    for (i, one), (j, other) in combinations(enumerate(sets), 2):
        assert found.jaccard[i, j].item() == pytest.approx(len(one & other) / len(one | other))
    ways = [len({0, 1, 2} & set(some)) / len({0, 1, 2} | set(some)) for some in combinations(range(8), 3)]
    assert found.chance == pytest.approx(sum(ways) / len(ways))
    assert found.share.sum().item() == pytest.approx(3)
    assert found.jaccard.diagonal().tolist() == [1, 1, 1]
    assert found.mean_jaccard <= 1
    assert -1 <= found.mean_correlation <= 1
    same = head_agreement([results[0], results[0]], 2)
    assert same.mean_correlation == pytest.approx(1) == same.mean_jaccard


def test_mistakes():
    model, one = BY_NAME["bert"].build(), head_importance(BY_NAME["bert"].build(), batch())
    with pytest.raises(DataError, match="with all heads and without any, so faithfulness is not defined"):
        faithfulness(model, batch(), [(0, 1)], metric=lambda logits, labels: 1.0)
    with pytest.raises(DataError, match="head_agreement compares two results or more, got 1"):
        head_agreement([one], 2)
    with pytest.raises(DataError, match="size must be from 1 to 7"):
        head_agreement([one, one], 8)
    with pytest.raises(DataError, match=r"has no \[layer, head\] field 'labels'"):
        head_agreement([one, one], 2, field="labels")
    with pytest.raises(DataError, match="of one measure and of one model"):
        head_agreement(
            [one, head_importance(seq2seq("t5"), {**batch(labels=False), "labels": torch.ones(3, 2).long()})], 2
        )


def test_a_metric_that_changes_nothing_is_not_advised_again():
    model = BY_NAME["bert"].build()
    with pytest.raises(DataError, match="inverse_loss is .* use another metric, or more data"):
        faithfulness(
            model, batch(), [(0, 0)], metric="inverse_loss", random_sets=0,
            loss=lambda outputs, batch: outputs.logits[:, 0] * 0 + 1,
        )  # fmt: skip


def test_heads_of_a_tower_that_does_not_run_have_no_mean_to_be_replaced_by():
    model, ids = qwen2_vl(), torch.randint(3, 40, (4, 6))
    inputs = {"input_ids": ids, "labels": ids}
    text = [site.row for site in dissect(model).sites if site.stack == "decoder"]
    found = faithfulness(model, inputs, [(text[0], 1)], metric="inverse_loss", random_sets=0)
    off = [(row, head) for row in text for head in range(4) if (row, head) != (text[0], 1)]
    with ablated(model, off, replace=head_means(model, inputs).values):
        some = score(model, inputs, metric="inverse_loss").value
    assert found.scores[1] == pytest.approx(some, rel=1e-6)
    changes = head_ablation(model, inputs, metric="inverse_loss", replace="mean").change
    assert changes[text].isfinite().all()
    assert changes.isnan().any()
