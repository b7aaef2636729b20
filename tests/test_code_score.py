"""CAT-scores: masks, leaf maps, counts, and what is made of them."""

import numpy as np
import oracles_cat
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertology import Result
from bertology.code_structure.cat_results import CHANCE, CatGain, CatScores, cat_mean, scores_of
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

few = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**31)


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
    expected = [oracles_cat.cat_counts(x, distance, quantile, valid) for x in (attention if given is None else given)]
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
@settings(deadline=None, max_examples=300)
def test_quantiles_are_those_of_numpy(values, quantile):
    x = torch.tensor([values, values[::-1]], dtype=torch.float64)
    expected = np.quantile(x.numpy(), quantile, axis=-1, method="linear")
    assert linear_quantile(x, quantile).tolist() == expected.tolist()


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40), st.sampled_from([0.25, 0.5, 0.75]))
@settings(deadline=None, max_examples=200)
def test_quantiles_of_single_precision_are_those_of_numpy(values, quantile):
    x = torch.tensor(values, dtype=torch.float32)
    expected = np.quantile(x.numpy(), quantile, method="linear")
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
    with pytest.raises(ShapeError, match=r"attention is of \[6, 6\] leaves, distances of \[5, 5\]"):
        cat_counts(attention, distance[:5, :5])
    with pytest.raises(ShapeError, match=r"valid must be \[6, 6\] bool, got \[6, 6\] torch.float32"):
        cat_counts(attention, distance, valid=torch.ones(6, 6))
    with pytest.raises(DataError, match="the share of pairs that are high, and near, from 0 to 1, got 25"):
        cat_counts(attention, distance, quantile=25)
    with pytest.raises(DataError, match="wanted a quantile from 0 to 1 of some entries, got 0.5 of 0"):
        linear_quantile(torch.zeros(2, 0), 0.5)


# Leaf maps.


def check_map(attention, leaf_of, leaves, causal=False, spoil=0.0):
    values, kept = token_map(attention, leaf_of, leaves, causal=causal)
    for one, x in zip(attention, values, strict=True):
        expected, expected_kept = oracles_cat.token_map(one, leaf_of, causal)
        torch.testing.assert_close(x, torch.tensor(expected, dtype=x.dtype).view(x.shape) + spoil, atol=1e-12, rtol=0)
        assert kept.tolist() == expected_kept


@given(seeds, st.lists(st.integers(-3, 4), max_size=9), st.booleans())
@few
def test_leaf_maps_equal_loops(seed, leaf_of, causal):
    attention = torch.rand(2, len(leaf_of), len(leaf_of), generator=torch.Generator().manual_seed(seed)).double()
    if causal:
        leaf_of, attention = sorted(leaf_of), attention.tril()
    check_map(attention, leaf_of, 5, causal)
    if any(leaf >= 0 for leaf in leaf_of):
        with pytest.raises(AssertionError):
            check_map(attention, leaf_of, 5, causal, spoil=1e-6)


def test_one_token_a_leaf_is_the_restricted_map():
    attention = torch.rand(2, 6, 6)
    values, kept = token_map(attention, [-1, 2, -3, 0, 3, -1], 5)
    assert kept.tolist() == [0, 2, 3]
    assert torch.equal(values, attention[:, [3, 1, 4]][:, :, [3, 1, 4]])


@given(seeds, st.integers(1, 5), st.integers(0, 4))
@few
def test_a_token_that_is_there_twice_leaves_means_unchanged(seed, copies, which):
    attention = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    again = [*range(5), *[which] * copies]
    values = token_map(attention[:, again][:, :, again], again, 5).values
    torch.testing.assert_close(values, attention, atol=1e-12, rtol=0)


def test_leaf_maps_check_their_tokens():
    x = torch.rand(2, 3, 3)
    with pytest.raises(ShapeError, match=r"\[\.\.\., token, token\] over the 2 tokens of leaf_of, got \[2, 3, 3\]"):
        token_map(x, [0, 1], 2)
    with pytest.raises(DataError, match="leaf_of names leaf 2, but there are 2, counted from 0"):
        token_map(x, [0, 1, 2], 2)
    with pytest.raises(DataError, match="must come in the order of their leaves"):
        token_map(x, [1, 0, 2], 3, causal=True)


# Scores.


def counted(seed=0, layers=2, heads=3, examples=30):
    generator = torch.Generator().manual_seed(seed)
    either = torch.randint(1, 40, (layers, heads + 1, examples), generator=generator)
    either[0, 0, 3] = either[1, 2, 4:] = 0  # left out; and nearly all of one head
    matched = (either * torch.rand(either.shape, generator=generator)).long()
    return matched, either


def made(counts, **options):
    matched, either = counts
    names = tuple(f"f{i}" for i in range(matched.shape[-1]))
    labels = tuple(map(str, range(len(matched))))
    counts = matched[:, 0], either[:, 0], matched[:, 1:], either[:, 1:]
    return scores_of(*counts, names=names, labels=labels, **options)


def check_scores(scores, counts):
    for layer in range(2):
        for row in range(4):
            macro, micro, used = oracles_cat.scores(*(x[layer, row].tolist() for x in counts))
            found = (
                (scores.macro[layer], scores.micro[layer], scores.used[layer]) if row == 0 else
                (scores.head_macro[layer, row - 1], scores.head_micro[layer, row - 1], scores.head_used[layer, row - 1])
            )  # fmt: skip
            assert [x.item() for x in found] == pytest.approx([macro, micro, used], abs=1e-12)


def test_scores_equal_loops():
    counts = counted()
    scores = made(counts)
    check_scores(scores, counts)
    assert scores.skipped.tolist() == [1, 0]
    assert scores.head_used[1, 1] == 4
    spoiled = counts[0].clone()
    spoiled[1, 2, 0] += 1
    with pytest.raises(AssertionError):
        check_scores(scores, (spoiled, counts[1]))


def test_a_pruned_head_has_no_score():
    matched, either = counted()
    matched[0, 2] = either[0, 2] = 0
    scores = made((matched, either))
    assert scores.head_macro[0].isnan().tolist() == scores.head_micro[0].isnan().tolist() == [False, True, False]
    low, high = scores.head_interval(resamples=50)
    assert low[0].isnan().tolist() == high[0].isnan().tolist() == [False, True, False]
    assert scores.head_used[0, 1] == 0


def test_an_interval_of_too_few_snippets_is_not_known():
    matched, either = counted()
    either[0, 1, 1:] = 0
    matched = matched.minimum(either)
    low, high = made((matched, either)).head_interval()
    assert torch.stack([low, high])[:, 0, 0].isnan().all()  # one snippet in thirty: a third of the draws are without it
    assert low[1, 1] < high[1, 1]  # four: one draw in fifty


def test_scores_are_kept(tmp_path):
    scores = made(counted(), settings="all leaves")
    scores.save(tmp_path / "scores.safetensors")
    again = Result.load(tmp_path / "scores.safetensors")
    assert isinstance(again, CatScores)
    assert torch.equal(again.head_macro, scores.head_macro)
    assert str(again) == str(scores)
    assert str(scores).startswith("CAT-scores of 30 snippets, all leaves; chance is 0.143\nlayer 0: ")
    gain = scores.beyond(made(counted(1)), resamples=20)
    gain.save(tmp_path / "gain.safetensors")
    assert isinstance(Result.load(tmp_path / "gain.safetensors"), CatGain)


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_intervals_hold_the_truth(average):
    """Of many samples of snippets, nearly as many as the level says."""
    generator = torch.Generator().manual_seed(0)
    either = torch.randint(5, 60, (100, 1, 60), generator=generator)
    ratios = torch.rand(either.shape, generator=generator) * 0.6  # 0.3 on average
    matched = (either * ratios).round().long()
    scores = made((matched.repeat(1, 2, 1), either.repeat(1, 2, 1)))
    low, high = scores.interval(0.9, average=average, resamples=300)
    assert 80 <= ((low < 0.3) & (high > 0.3)).sum() <= 98
    again = scores.interval(0.9, average=average, resamples=300)
    assert torch.equal(low, again[0])
    assert not torch.equal(low, scores.interval(0.9, average=average, resamples=300, seed=1)[0])
    head_low, head_high = scores.head_interval(0.9, average=average, resamples=300)
    torch.testing.assert_close(head_low[:, 0], low)
    torch.testing.assert_close(head_high[:, 0], high)


def test_beyond_a_null_model_is_paired():
    matched, either = counted()
    scores, null = made((matched, either)), made((matched // 2, either))
    gain = scores.beyond(null, resamples=200)
    torch.testing.assert_close(gain.gain, scores.macro - null.macro)
    torch.testing.assert_close(gain.head_gain, scores.head_macro - null.head_macro)
    assert ((gain.low < gain.gain) & (gain.gain < gain.high)).all()
    itself = scores.beyond(scores, average="micro", resamples=50)
    assert torch.stack([itself.gain, itself.low, itself.high]).eq(0).all()  # drawn apart, it would have a width
    # Narrower than if the two were drawn apart: snippets that are easy are easy for both.
    apart = (scores.interval()[1] - scores.interval()[0]) ** 2 + (null.interval()[1] - null.interval()[0]) ** 2
    assert (gain.high - gain.low < apart.sqrt()).all()


def test_beyond_takes_the_snippets_that_both_can_use():
    matched, either = counted()
    other = either.clone()
    other[0, 0, :10] = 0
    gain = made((matched, either)).beyond(made((matched * (other > 0) // 2, other)), resamples=50)
    assert gain.used.tolist() == [20, 30]
    both = slice(10, None)
    expected = cat_mean(matched[0, 0, both], either[0, 0, both]) - cat_mean(
        matched[0, 0, both] // 2, either[0, 0, both]
    )
    torch.testing.assert_close(gain.gain[0], expected)


def test_scores_check_their_counts():
    matched, either = counted()
    scores = made((matched, either))
    with pytest.raises(DataError, match="0 <= matched <= either"):
        made((either + 1, either))
    with pytest.raises(ShapeError, match=r"\[layer, example\] = \[2, 30\] twice"):
        scores_of(matched[0], either[:, 0], matched, either, names=scores.names, labels=scores.labels)
    with pytest.raises(DataError, match="scores of 30 snippets and of 20 others"):
        scores.beyond(made((matched[..., :20], either[..., :20])))
    with pytest.raises(ShapeError, match=r"\[2, 3, 30\], got \[2, 2, 30\]"):
        scores.beyond(made((matched[:, :3], either[:, :3])))
    with pytest.raises(DataError, match="average must be 'macro' or 'micro', got 'mean'"):
        scores.interval(average="mean")
    with pytest.raises(DataError, match="between 0 and 1, got 95"):
        scores.interval(95)
    with pytest.raises(DataError, match="draws 1 or more times"):
        scores.interval(resamples=0)


def test_gains_are_told_by_layer():
    matched, either = torch.tensor([[6, 5, 6, 7]]), torch.full((1, 4), 10)
    names = tuple("abcd")
    mine, none = (
        scores_of(m, either, m[:, None], either[:, None], names=names, labels=("0",)) for m in (matched, matched - 4)
    )
    told = str(mine.beyond(none))
    assert told == "layer 0: +0.4000 (95 % from +0.4000 to +0.4000) of 4 snippets; 1 of 1 heads above 0"
