import math

import pytest
import torch
from scipy.stats import binomtest
from scipy.stats import bootstrap as scipy_bootstrap

from bertology.errors import DataError
from bertology.results import statistics
from bertology.results.statistics import (
    bootstrap_draws,
    bootstrap_sums,
    gain_interval,
    percentile_interval,
    wilson_interval,
)

pytestmark = pytest.mark.any_transformers


def test_intervals():
    """Wilson's against scipy's; the gain's against the mean and spread of paired differences."""
    for right, total in ((0, 7), (3, 7), (7, 7), (412, 1000)):
        found = binomtest(right, total).proportion_ci(method="wilson")
        assert wilson_interval(right, total) == pytest.approx((found.low, found.high))
    # Half an item more in each of the four cells: one more on which both agree, half of one for each of the two.
    pairs = torch.tensor([1.0] * 61 + [-1.0] * 21 + [0.0] * 122)  # halves
    half = 1.959964 * pairs.std(correction=0).item() / math.sqrt(102)
    middle = pairs.mean().item()
    assert gain_interval(30, 10, 100) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert gain_interval(2, 0, 2)[0] < 0  # two of two prove nothing
    assert gain_interval(0, 0, 3)[0] < 0 < gain_interval(0, 0, 3)[1]
    assert gain_interval(40, 0, 40)[1] == 1
    assert all(math.isnan(end) for end in (*wilson_interval(0, 0), *gain_interval(0, 0, 0)))
    assert wilson_interval(5, 10, 0.5)[0] > wilson_interval(5, 10, 0.99)[0]


def test_a_bootstrap_of_means_is_scipys():
    """The percentile interval of the mean of 40 numbers: as scipy's, but for the draws."""
    values = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = bootstrap_sums(values, resamples=20_000, seed=1)[0] / 40
    low, high = percentile_interval(means, 0.9)
    found = scipy_bootstrap(
        (values.numpy(),), lambda x, axis: x.mean(axis), axis=1, confidence_level=0.9, n_resamples=20_000,
        method="percentile", random_state=0,
    )  # fmt: skip
    spread = torch.from_numpy(found.standard_error)
    assert ((low - torch.from_numpy(found.confidence_interval.low)) / spread).abs().max() < 0.1
    assert ((high - torch.from_numpy(found.confidence_interval.high)) / spread).abs().max() < 0.1
    torch.testing.assert_close(means.std(0, correction=1), spread, rtol=0.03, atol=0)


def test_sums_are_those_of_a_plain_loop(monkeypatch):
    """Several values share the draws, which do not depend on how many are made at a time."""
    first, second = torch.rand(2, 3, 7, dtype=torch.float64), torch.rand(7, dtype=torch.float64)
    whole = torch.cat(list(bootstrap_draws(7, 11, 5)))
    assert whole.shape == (11, 7)
    generator = torch.Generator().manual_seed(5)
    one_by_one = torch.stack([torch.randint(7, (7,), generator=generator) for _ in range(11)])
    assert torch.equal(whole, one_by_one)
    monkeypatch.setattr(statistics, "CELLS", 21)
    assert [len(some) for some in bootstrap_draws(7, 11, 5)] == [3, 3, 3, 2]
    found = bootstrap_sums(first, second, resamples=11, seed=5)
    for values, sums in zip((first, second), found, strict=True):
        torch.testing.assert_close(sums, torch.stack([values[..., drawn].sum(-1) for drawn in one_by_one]))


def test_percentile_interval_says_nothing_where_draws_are_missing(monkeypatch):
    """NaN draws are left out where they are few, and the parts of a large table are as the whole."""
    draws = torch.rand(100, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws[:4, 0, 0], draws[:5, 0, 1] = torch.nan, torch.nan
    low, high = percentile_interval(draws, 0.8)
    torch.testing.assert_close(low[0, 0], draws[4:, 0, 0].quantile(0.1))
    torch.testing.assert_close(high[0, 0], draws[4:, 0, 0].quantile(0.9))
    assert low.isnan().tolist() == high.isnan().tolist() == [[False, True, False], [False] * 3]
    monkeypatch.setattr(statistics, "CELLS", 200)
    torch.testing.assert_close(percentile_interval(draws, 0.8), (low, high), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("level", [0, 1, -0.5])
def test_levels_are_shares(level):
    with pytest.raises(DataError, match=f"level is the share .* between 0 and 1, got {level}"):
        percentile_interval(torch.rand(3), level)


def test_the_bootstrap_wants_draws_and_examples():
    with pytest.raises(DataError, match="resamples, the number of bootstrap draws, must be 1 or more, got 0"):
        bootstrap_sums(torch.rand(3), resamples=0, seed=0)
    with pytest.raises(DataError, match="1 example or more, got none"):
        bootstrap_sums(torch.rand(0), resamples=1, seed=0)
