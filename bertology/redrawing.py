"""How would a figure move, had other examples been drawn?

The bootstrap over examples: a figure that is made of sums over examples is made again of as many, drawn anew.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .errors import DataError

CELLS = 10_000_000
"""How many numbers are drawn, or looked through, at a time, at most."""


def redrawn(examples: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """[draw, example] float64, some draws at a time: how often each example is taken. Sums are `times @ values`."""
    generator, size = torch.Generator().manual_seed(seed), max(1, CELLS // examples)
    for start in range(0, resamples, size):
        drawn = torch.randint(examples, (min(size, resamples - start), examples), generator=generator)
        times = torch.zeros(drawn.shape, dtype=torch.float64)
        yield times.scatter_add_(1, drawn, torch.ones((), dtype=torch.float64).expand(drawn.shape))


def ends(draws: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """The ends of the percentile interval, over the first axis, of the draws that are no NaN if they are nearly all.

    Raises `DataError` for a level that is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise DataError(f"level is the share of intervals that hold the truth, between 0 and 1, got {level}")
    few = draws.isnan().to(torch.float64).mean(0) >= 0.05
    # torch finds quantiles of some millions of numbers at a time.
    columns, size = draws.reshape(len(draws), -1), max(1, CELLS // len(draws))
    parts = [columns[:, start : start + size] for start in range(0, columns.shape[1], size)]
    low, high = (
        torch.cat([part.nanquantile(q, 0) for part in parts]).view(few.shape).masked_fill(few, torch.nan)
        for q in ((1 - level) / 2, (1 + level) / 2)
    )
    return low, high
