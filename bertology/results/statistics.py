"""The bootstrap over examples, standard errors, and confidence intervals of proportions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist

import torch
from torch import Tensor

from ..errors import DataError

CELLS = 10_000_000
"""The most elements that are drawn, or searched for quantiles, at a time."""


def check_resamples(resamples: int) -> None:
    """Raise `DataError` unless the bootstrap draws at least once."""
    if resamples < 1:
        raise DataError(f"resamples, the number of bootstrap draws, must be 1 or more, got {resamples}")


def bootstrap_draws(examples: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """[draw, example] int64, some draws at a time: the indices of the examples of each draw, with replacement.

    Raises `DataError` for fewer than 1 resamples, and where there are no examples.
    """
    check_resamples(resamples)
    if examples < 1:
        raise DataError("the bootstrap draws from 1 example or more, got none")
    generator, size = torch.Generator().manual_seed(seed), max(1, CELLS // examples)
    for start in range(0, resamples, size):
        yield torch.randint(examples, (min(size, resamples - start), examples), generator=generator)


def bootstrap_sums(*values: Tensor, resamples: int, seed: int) -> list[Tensor]:
    """[draw, ...] float64 for each of the values [..., example] float64: their sums over the examples of each draw.

    All values share the draws, which are those of `bootstrap_draws`.
    """
    examples = values[0].shape[-1]
    columns = [x.reshape(math.prod(x.shape[:-1]), examples).T for x in values]
    parts = []
    for drawn in bootstrap_draws(examples, resamples, seed):
        times = torch.zeros(drawn.shape, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones((), dtype=torch.float64).expand(drawn.shape))
        parts.append([times @ x for x in columns])
    joined = (torch.cat(part) for part in zip(*parts, strict=True))
    return [sums.view(resamples, *x.shape[:-1]) for sums, x in zip(joined, values, strict=True)]


def percentile_interval(draws: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """The lower and the upper end of the percentile interval over the first axis. NaN draws do not count.

    Both ends are NaN where 1 draw in 20 or more is NaN.

    Raises `DataError` for a level that is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise DataError(f"level is the share of intervals that hold the truth, between 0 and 1, got {level}")
    few = draws.isnan().to(torch.float64).mean(0) >= 0.05
    # torch can compute quantiles of only some millions of elements at a time.
    columns, size = draws.reshape(len(draws), -1), max(1, CELLS // len(draws))
    parts = [columns[:, start : start + size] for start in range(0, columns.shape[1], size)]
    low, high = (
        torch.cat([part.nanquantile(q, 0) for part in parts]).view(few.shape).masked_fill(few, torch.nan)
        for q in ((1 - level) / 2, (1 + level) / 2)
    )
    return low, high


def standard_error(values: Tensor) -> Tensor:
    """[...]: the standard error of the mean of `values [..., example]`; infinite for one example."""
    many = values.shape[-1]
    return values.std(-1) / many**0.5 if many > 1 else torch.full_like(values[..., 0], torch.inf)


def standard_error_of_sums(mean: Tensor, mean_square: Tensor, examples: int) -> Tensor:
    """The same for values of which only the mean and the mean square are known."""
    spread = variance_of_sums(mean, mean_square)
    return (spread / (examples - 1)).sqrt() if examples > 1 else torch.full_like(mean, torch.inf)


def variance_of_sums(mean: Tensor, mean_square: Tensor) -> Tensor:
    """The variance of values of which only the mean and the mean square are known, not below 0 by rounding."""
    return (mean_square - mean.square()).clamp_min(0)


Interval = tuple[float, float]


def wilson_interval(right: int, total: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share: of `right` in `total`. NaN if `total` is 0.

    As `scipy.stats.binomtest(right, total).proportion_ci(level, "wilson")`, of which tables need one for each row, also
    where scipy is not installed.

    >>> [round(end, 3) for end in wilson_interval(8, 10)]
    [0.49, 0.943]
    """
    if total == 0:
        return math.nan, math.nan
    z = _quantile(level)
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def gain_interval(only_one: int, only_other: int, total: int, level: float = 0.95) -> Interval:
    """How much more often one is right than the other, on the same items: the interval of Agresti and Min (2005).

    `only_one` and `only_other` count the items on which one of the two is right and the other is not. Wald's interval,
    with half an item added to each cell of the table of both: if there are few items, full agreement proves little.
    NaN if `total` is 0.

    >>> [round(end, 3) for end in gain_interval(30, 10, 100)]
    [0.079, 0.313]
    """
    if total == 0:
        return math.nan, math.nan
    one, other, many = only_one + 0.5, only_other + 0.5, total + 2
    gain = (one - other) / many
    half = _quantile(level) * math.sqrt(((one + other) / many - gain**2) / many)
    return max(-1.0, gain - half), min(1.0, gain + half)


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise DataError(f"level is a share between 0 and 1, such as 0.95, got {level!r}")
    return NormalDist().inv_cdf((1 + level) / 2)
