"""Null models: shuffled attention, and attention that knows positions alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertology.code_structure.leaf_maps import visible
from bertology.code_structure.masks import (
    HighAttention,
    OffsetMeans,
    attention_mask,
    cat_counts,
    distance_mask,
    overlap,
    positional,
    shuffled,
    slanted,
)
from bertology.errors import DataError, ShapeError
from oracles import cat as oracles

pytestmark = pytest.mark.any_transformers

few = settings(max_examples=50)
seeds = st.integers(0, 2**31)


def maps_of(seed, leaves, heads=2):
    return torch.rand(heads, leaves, leaves, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seeds, st.integers(1, 8), st.booleans())
@few
def test_shuffling_moves_values_and_makes_none(seed, leaves, causal):
    attention, valid = maps_of(seed, leaves), visible(leaves) if causal else None
    found = shuffled(attention, snippet=seed, valid=valid)
    counts = torch.ones(leaves, leaves, dtype=torch.bool) if valid is None else valid
    assert torch.equal(found[:, ~counts], attention[:, ~counts])
    assert torch.equal(found[:, counts].sort().values, attention[:, counts].sort().values)


def test_each_snippet_is_shuffled_in_its_own_way():
    attention = maps_of(0, 6)
    state = torch.get_rng_state()
    one = shuffled(attention, snippet=3)
    assert torch.equal(one, shuffled(attention, snippet=3))
    assert not torch.equal(one, shuffled(attention, snippet=4))
    assert not torch.equal(one, shuffled(attention, snippet=3, seed=1))
    assert not torch.equal(shuffled(attention, snippet=0, seed=1), shuffled(attention, snippet=1, seed=0))
    assert torch.equal(torch.get_rng_state(), state)


@given(seeds, st.integers(1, 8), st.booleans())
@few
def test_a_shuffled_mask_is_the_mask_of_the_shuffled_map(seed, leaves, causal):
    attention, valid = maps_of(seed, leaves), visible(leaves) if causal else None
    high = attention_mask(attention, valid=valid)
    mask = shuffled(high.mask, snippet=seed, valid=valid)
    assert torch.equal(mask, attention_mask(shuffled(attention, snippet=seed, valid=valid), valid=valid).mask)


@given(seeds, st.integers(1, 8), st.booleans())
@few
def test_to_shuffle_distances_is_to_shuffle_attention_the_other_way_round(seed, leaves, causal):
    attention, valid = maps_of(seed, leaves), visible(leaves) if causal else None
    places = torch.arange(leaves * leaves).view(leaves, leaves)
    order = shuffled(places, snippet=seed, valid=valid).flatten()
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    high, near = attention_mask(attention, valid=valid), distance_mask(maps_of(seed + 1, leaves, 1)[0], valid=valid)
    turned = HighAttention(high.mask.flatten(-2)[:, back].view(high.mask.shape), high.blank)
    one, other = overlap(high, shuffled(near, snippet=seed, valid=valid)), overlap(turned, near)
    assert torch.equal(one.matched, other.matched)
    assert torch.equal(one.either, other.either)


@pytest.mark.parametrize("causal", [False, True])
def test_shuffled_attention_scores_a_seventh(causal):
    """Within Monte-Carlo error, on distances without ties; where ties leave fewer pairs near, less."""
    leaves, valid = 40, visible(40) if causal else None
    distance = maps_of(1, leaves, 1)[0]
    attention = torch.exp(-10 * distance)  # scores 1 as it stands
    assert torch.equal(*cat_counts(attention, distance, valid=valid))
    near, high = distance_mask(distance, valid=valid), attention_mask(attention, valid=valid)
    scores = []
    for number in range(300):
        mask = shuffled(high.mask, snippet=number, valid=valid)
        matched, either = overlap(HighAttention(mask, high.blank), near)
        scores.append(matched / either)
    scores = torch.stack(scores)
    assert abs(scores.mean() - 1 / 7) < 4 * scores.std() / 300**0.5
    ties = (distance * 4).ceil()  # 1 to 4, and none below the first quartile but for luck
    tied, either = cat_counts(shuffled(attention, snippet=0), ties.clamp_min(2))
    assert tied / either == 0


@given(seeds, st.lists(st.integers(1, 7), min_size=1, max_size=4), st.booleans())
@few
def test_means_by_offset_equal_loops(seed, lengths, causal):
    maps = [maps_of(seed + i, leaves) for i, leaves in enumerate(lengths)]
    valid = [visible(leaves) if causal else None for leaves in lengths]
    check_means(maps, valid, maps)


def check_means(maps, valid, given):
    means = OffsetMeans()
    for one, counts in zip(maps, valid, strict=True):
        means.add(one, valid=counts)
    longest = max(one.shape[-1] for one in maps)
    found = means.map(longest)
    for head in range(2):
        expected = oracles.offset_means([one[head] for one in given], valid)
        for i in range(longest):
            for j in range(longest):
                assert found[head, i, j].item() == pytest.approx(expected.get(j - i, 0), abs=1e-12)


def test_loops_tell_means_of_other_maps_apart():
    maps = [maps_of(0, 5), maps_of(1, 3)]
    check_means(maps, [None, None], maps)
    with pytest.raises(AssertionError):
        check_means(maps, [None, None], [one.mT for one in maps])  # the sign of an offset matters
    with pytest.raises(AssertionError):
        check_means(maps, [None, None], [maps[0], maps[1] + 1e-9])


@given(seeds, st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(0, 5))
@few
def test_any_split_of_the_snippets_gives_the_same(seed, lengths, first):
    whole, one, other = OffsetMeans(), OffsetMeans(), OffsetMeans()
    for i, leaves in enumerate(lengths):
        for means in (whole, one if i < first else other):
            means.add(maps_of(seed + i, leaves))
    one.merge(other)
    assert torch.equal(one.pairs, whole.pairs)
    torch.testing.assert_close(one.total, whole.total, atol=1e-12, rtol=0)


@given(seeds, st.integers(1, 9), st.booleans())
@few
def test_positional_attention_is_its_own_null(seed, leaves, causal):
    """Exactly: the mean of equal weights in single precision, summed up in double, is that weight."""
    by = torch.rand(2, 2 * leaves - 1, generator=torch.Generator().manual_seed(seed))
    place = torch.arange(leaves)
    attention, valid = by[:, place - place[:, None] + leaves - 1], None
    if causal:
        attention, valid = attention.tril(), visible(leaves)
    assert torch.equal(positional(attention, valid=valid), attention)
    pooled = OffsetMeans()
    for _ in range(2):
        pooled.add(attention, valid=valid)
    assert torch.equal(pooled.map(leaves, dtype=torch.float32), attention)


def test_positions_explain_local_attention_and_no_other():
    place = torch.arange(30)
    offset = (place - place[:, None]).abs()
    local = torch.exp(-offset.float() / 3)
    assert cat_counts(positional(local), offset) == cat_counts(local, offset)
    blocks = torch.rand(30, 30, generator=torch.Generator().manual_seed(0))  # knows pairs, not offsets
    matched, either = cat_counts(positional(blocks), blocks.neg())
    assert cat_counts(blocks, blocks.neg()) == (225, 225)
    assert matched / either < 0.3


def test_columns_by_offset():
    x = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    assert slanted(x).tolist() == [[0, 0, 1, 2, 3], [0, 4, 5, 6, 0], [7, 8, 9, 0, 0]]
    assert slanted(torch.ones(2, 1, 1)).tolist() == [[[1]], [[1]]]
    assert slanted(torch.ones(2, 0, 0)).shape == (2, 0, 0)


def test_nulls_check_their_maps():
    with pytest.raises(ShapeError, match=r"wanted maps \[\.\.\., leaf, leaf\], got \[2, 3\]"):
        shuffled(torch.ones(2, 3), snippet=0)
    with pytest.raises(ShapeError, match=r"valid must be \[3, 3\] bool"):
        positional(torch.ones(3, 3), valid=torch.ones(3, 3))
    broken = torch.ones(3, 3)
    broken[0, 2] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        positional(broken)
    positional(broken, valid=visible(3))
    means = OffsetMeans()
    with pytest.raises(DataError, match="map of 2 leaves, but the longest snippet that was added has 0"):
        means.map(2)
    means.add(torch.ones(3, 3))
    with pytest.raises(DataError, match="map of 4 leaves, but the longest snippet that was added has 3: add a"):
        means.map(4)
    with pytest.raises(ShapeError, match=r"wanted \[\] maps, got \[2\]"):
        means.add(torch.ones(2, 3, 3))
