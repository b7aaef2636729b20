"""Heads' means are over real tokens, however the data is batched."""

import pytest
import torch

from bertology import ablated, dissect, head_means, head_outputs, prune_heads
from bertology.errors import DataError
from bertology.measures.head_means import MeansAccumulator
from bertology.streaming.accumulate import accumulate
from helpers.ablation import several
from helpers.zoo import BY_NAME, batch, each_alone
from laws.laws import check_leaves_model_alone

# oracle: a loop over texts and tokens, `slow`.


def slow(model, batches):
    """[layer, head, dim]: sums over every real token, one by one."""
    total, count = 0, 0
    for one in batches:
        outputs = head_outputs(model, {k: v for k, v in one.items() if k != "labels"}).values
        for row, text in enumerate(one["attention_mask"]):
            for token, real in enumerate(text.tolist()):
                if real:
                    total, count = total + outputs[:, row, token], count + 1
    return total / count


# DistilBERT of transformers 4 takes no positions.
@pytest.mark.filterwarnings("ignore:padding before the text changes:UserWarning")
@pytest.mark.parametrize("side", ["right", "left"])
def test_equals_the_loop(family, side):
    model, batches = family.build(), several(side)
    found = head_means(model, batches)
    torch.testing.assert_close(found.values, slow(model, batches))
    assert found.tokens.tolist() == [30, 30]
    careless = torch.cat([head_outputs(model, b).values.flatten(1, 2) for b in batches], 1).mean(1)
    assert not torch.allclose(careless, found.values)


def test_batches_change_nothing():
    model, texts = BY_NAME["llama"].build(), batch((7, 4, 5))
    torch.testing.assert_close(head_means(model, each_alone(texts)).values, head_means(model, texts).values)


def test_merged_is_measured_at_once():
    model, batches = BY_NAME["bert"].build(), several()
    parts = [MeansAccumulator() for _ in range(2)]
    for part, data in zip(parts, (batches[:1], batches[1:]), strict=True):
        accumulate(model, data, part)
    merged = MeansAccumulator().zero(dissect(model)).merge(parts[1].state()).merge(parts[0].state())
    torch.testing.assert_close(merged.compute().values, head_means(model, batches).values)


def test_pruned_heads_have_no_mean():
    model = BY_NAME["bert"].build()
    whole = head_means(model, batch()).values
    prune_heads(model, {0: [1]})
    found = head_means(model, batch()).values
    assert found[0, 1].isnan().all()
    torch.testing.assert_close(found[0, [0, 2, 3]], whole[0, [0, 2, 3]])
    with ablated(model, {0: [2]}, replace=found), torch.no_grad():
        assert model(**batch()).logits.isfinite().all()


def test_leaves_the_model_alone(family):
    check_leaves_model_alone(family.build(), lambda model: head_means(model, [batch(), batch((3, 6))]))


def test_errors():
    with pytest.raises(DataError, match="no batches"):
        head_means(BY_NAME["bert"].build(), [])
