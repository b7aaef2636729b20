"""CAT-scores: masks, leaf maps, counts, and what is made of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertology.code_structure.cat_results import CHANCE
from bertology.code_structure.leaf_maps import token_map, visible
from bertology.code_structure.masks import (
    _selected,
    attention_mask,
    cat_counts,
    distance_mask,
    linear_quantile,
    overlap,
)
from bertology.errors import DataError, ShapeError
from helpers.leaves import few, seeds
from oracles import cat as oracles

pytestmark = pytest.mark.any_transformers


def snippet(seed, leaves, heads=3, levels=0, dtype=torch.float64):
    """Attention [head, leaf, leaf] and distances as of leaves; with `levels`, attention of so many values: ties."""
    generator = torch.Generator().manual_seed(seed)
    attention = torch.rand(heads, leaves, leaves, generator=generator, dtype=torch.float64)
    if levels:
        attention = (attention * levels).floor() / levels
    step = torch.randint(1, 6, (leaves, leaves), generator=generator).triu(1)
    return attention.to(dtype), step + step.T


def check_counts(attention, distance, quantile=0.25, valid=None, given=None):
    counts = cat_counts(attention, distance, quantile=quantile, valid=valid)
    expected = [oracles.cat_counts(x, distance, quantile, valid) for x in (attention if given is None else given)]
    assert counts.matched.tolist() == [matched for matched, _ in expected]
    assert counts.either.tolist() == [either for _, either in expected]


@given(seeds, st.integers(1, 9), st.sampled_from([0, 1, 2, 5]), st.booleans(), st.sampled_from([0.25, 0.1, 0.5]))
@few
def test_counts_equal_loops(seed, leaves, levels, causal, quantile):
    attention, distance = snippet(seed, leaves, levels=levels)
    check_counts(attention, distance, quantile, visible(leaves) if causal else None)


def test_loops_tell_counts_of_other_maps_apart():
    attention, distance = snippet(0, 8)
    check_counts(attention, distance)
    spoiled = attention.clone()
    spoiled[1] = attention[1].flip(0)
    with pytest.raises(AssertionError):
        check_counts(attention, distance, given=spoiled)
    with pytest.raises(AssertionError):
        check_counts(attention, distance, valid=visible(8), given=attention.flip(-1))


@given(st.lists(st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 0.75, 1.0]) | st.floats(0, 1), min_size=1, max_size=40),
       st.floats(0, 1) | st.sampled_from([0.25, 0.75]))  # fmt: skip
@settings(max_examples=300)
def test_quantiles_are_those_of_numpy(values, quantile):
    x = torch.tensor([values, values[::-1]], dtype=torch.float64)
    expected = np.quantile(x.numpy(), quantile, axis=-1, method="linear")
    assert linear_quantile(x, quantile).tolist() == expected.tolist()


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40), st.sampled_from([0.25, 0.5, 0.75]))
@settings(max_examples=200)
def test_quantiles_of_single_precision_are_those_of_numpy(values, quantile):
    x = torch.tensor(values, dtype=torch.float32)
    expected = np.float32(np.quantile(x.numpy(), quantile, method="linear"))  # numpy 1 returns double precision
    assert linear_quantile(x, quantile).item() == expected.item()


@given(seeds, st.integers(1, 30), st.sampled_from([0, 3]))
@few
def test_other_devices_find_the_same_quantiles(seed, leaves, levels):
    """A device without numpy selects; the places around a quantile are the same."""
    values = snippet(seed, leaves, levels=levels)[0].flatten(1)
    for below in {0, values.shape[1] // 2, values.shape[1] - 1}:
        low, high = _selected(values, below)
        ordered = values.sort(-1).values
        assert torch.equal(low, ordered[:, below])
        assert torch.equal(high, ordered[:, min(below + 1, values.shape[1] - 1)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_any_precision(dtype):
    attention, distance = snippet(0, 12, dtype=dtype)
    wide = attention if dtype == torch.float64 else attention.float()
    assert cat_counts(attention, distance).matched.tolist() == cat_counts(wide, distance).matched.tolist()


# METHODS D5: closed forms.


@given(seeds, st.integers(4, 12))
@few
def test_attention_that_falls_with_distance_scores_one(seed, leaves):
    _, distance = snippet(seed, leaves)
    matched, either = cat_counts(-distance.double() + 100, distance)
    assert matched == either
    assert (matched > 0) == bool(distance_mask(distance).any())


@given(seeds, st.integers(4, 12))
@few
def test_attention_that_rises_with_distance_scores_nothing(seed, leaves):
    _, distance = snippet(seed, leaves)
    matched, either = cat_counts(distance.double(), distance)
    assert matched == 0
    assert either > 0 or leaves < 4


def test_constant_attention_matches_nothing_and_counts():
    _, distance = snippet(0, 12)
    counts = cat_counts(torch.full((12, 12), 0.3), distance)
    assert counts.matched == 0
    assert counts.either == distance_mask(distance).sum() > 0


def test_attention_of_zeros_is_left_out():
    attention, distance = snippet(0, 12)
    attention[1] = 0
    matched, either = cat_counts(attention, distance)
    assert (matched[1], either[1]) == (0, 0)
    assert (either[[0, 2]] > 0).all()
    upper = attention.triu(1)  # nothing that a decoder sees
    assert cat_counts(upper, distance, valid=visible(12)).either.tolist() == [0, 0, 0]


def test_nothing_to_count():
    assert cat_counts(torch.ones(2, 1, 1), torch.zeros(1, 1)).either.tolist() == [0, 0]
    assert cat_counts(torch.ones(2, 0, 0), torch.zeros(0, 0)).either.tolist() == [0, 0]


@given(seeds, st.integers(4, 12), st.sampled_from([0, 4]))
@few
def test_strictly_monotone_maps_and_permutations_change_nothing(seed, leaves, levels):
    # A place that is no whole number is interpolated, but the pairs above it stay the same pairs.
    attention, distance = snippet(seed, leaves, levels=levels)
    attention = (attention * 1000).round() / 1000
    counts = [cat_counts(attention, distance)]
    counts.append(cat_counts(torch.exp(3 * attention), distance))
    counts.append(cat_counts(attention, distance**2))
    order = torch.randperm(leaves, generator=torch.Generator().manual_seed(seed))
    counts.append(cat_counts(attention[:, order][:, :, order], distance[order][:, order]))
    for one in counts[1:]:
        assert torch.equal(one.matched, counts[0].matched)
        assert torch.equal(one.either, counts[0].either)


def test_independent_attention_scores_a_seventh():
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(400, 12, 12, generator=generator)
    distance = torch.rand(12, 12, generator=generator)  # no ties
    matched, either = cat_counts(attention, distance)
    scores = matched / either
    assert abs(scores.mean() - CHANCE) < 3 * scores.std() / 20 + 0.002  # few pairs: 0.144 in METHODS D3


def test_masks_can_be_shared():
    attention, distance = snippet(0, 10)
    whole = cat_counts(attention, distance)
    shared = overlap(attention_mask(attention), distance_mask(distance))
    assert torch.equal(whole.matched, shared.matched)
    assert torch.equal(whole.either, shared.either)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_attention_is_refused(bad):
    attention, distance = snippet(0, 6)
    attention[1, 2, 4] = bad
    with pytest.raises(DataError, match="1 attention weights are not finite: look for NaN or overflow"):
        cat_counts(attention, distance)
    cat_counts(attention, distance, valid=visible(6))  # an entry that does not count may hold anything
    with pytest.raises(DataError, match="not finite"):
        token_map(attention, [0, 1, 2, 3, 4, 5], 6)
    token_map(attention, [0, 1, 2, 3, -2, 4], 6)


def test_shapes_are_checked():
    attention, distance = snippet(0, 6)
    with pytest.raises(ShapeError, match=r"attention must be \[\.\.\., leaf, leaf\], got \[3, 6, 5\]"):
        cat_counts(attention[..., :5], distance)
    with pytest.raises(ShapeError, match=r"attention is over \[6, 6\] leaves, distances over \[5, 5\]"):
        cat_counts(attention, distance[:5, :5])
    with pytest.raises(ShapeError, match=r"valid must be \[6, 6\] bool, got \[6, 6\] torch.float32"):
        cat_counts(attention, distance, valid=torch.ones(6, 6))
    with pytest.raises(DataError, match="the share of pairs that are high or near, must be from 0 to 1, got 25"):
        cat_counts(attention, distance, quantile=25)
    with pytest.raises(DataError, match="wanted a quantile from 0 to 1 of some entries, got 0.5 of 0"):
        linear_quantile(torch.zeros(2, 0), 0.5)
