"""Which heads are patched, and in which batches, changes no number."""

# oracle: the same patches in another order

import torch

from bertology import (
    activation_patching,
    attribution_patching,
    dissect,
    prune_heads,
)
from bertology.metrics import logit_difference
from helpers.patching import EQUAL, two
from helpers.zoo import BY_NAME


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
