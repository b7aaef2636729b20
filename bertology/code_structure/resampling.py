"""What is the mean score over snippets, and how would it move with other snippets?"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import DataError

Average = Literal["macro", "micro"]
CELLS = 10_000_000
"""How many numbers the bootstrap draws at a time, at most."""


def cat_mean(matched: Tensor, either: Tensor, *, average: Average = "macro") -> Tensor:
    """[...]: the score of counts [..., example]: the mean of matched / either, or the two summed up, over snippets.

    A snippet of which `either` is 0 is left out. NaN of none. Raises `DataError` for another average.

        >>> import torch
        >>> counts = torch.tensor([1, 0, 3]), torch.tensor([2, 0, 4])
        >>> cat_mean(*counts).item(), cat_mean(*counts, average="micro").item()
        (0.625, 0.6666666666666666)
    """
    above, below = _parts(matched, either, average)
    return above.sum(-1) / below.sum(-1)


def _parts(matched: Tensor, either: Tensor, average: Average) -> tuple[Tensor, Tensor]:
    """[..., example] twice: what the sums over snippets are divided of which a score is made."""
    matched, either = matched.to(torch.float64), either.to(torch.float64)
    if average == "micro":
        return matched, either
    if average != "macro":
        raise DataError(f"average must be 'macro' or 'micro', got {average!r}")
    return matched / either.clamp_min(1), (either > 0).to(torch.float64)


def bootstrap(matched: Tensor, either: Tensor, average: Average, resamples: int, seed: int) -> Tensor:
    """[draw, ...]: the score over as many snippets drawn anew; counts of as many share the draws."""
    examples = matched.shape[-1]
    if resamples < 1 or examples < 1:
        raise DataError(f"the bootstrap draws 1 or more times of 1 or more snippets, got {resamples} and {examples}")
    above, below = (x.reshape(-1, examples).T for x in _parts(matched, either, average))
    generator, size, draws = torch.Generator().manual_seed(seed), max(1, CELLS // examples), []
    for start in range(0, resamples, size):
        drawn = torch.randint(examples, (min(size, resamples - start), examples), generator=generator)
        times = torch.zeros(drawn.shape, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones((), dtype=torch.float64).expand(drawn.shape))
        draws.append((times @ above) / (times @ below))
    return torch.cat(draws).view(resamples, *matched.shape[:-1])


def ends(draws: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """The ends of the percentile interval, over the first axis, of the draws that are no NaN if they are nearly all."""
    if not 0 < level < 1:
        raise DataError(f"level is the share of intervals that hold the truth, between 0 and 1, got {level}")
    few = draws.isnan().to(torch.float64).mean(0) >= 0.05
    # torch finds quantiles of some millions of numbers at a time.
    columns, size = draws.flatten(1), max(1, CELLS // len(draws))
    parts = [columns[:, start : start + size] for start in range(0, columns.shape[1], size)]
    low, high = (
        torch.cat([part.nanquantile(q, 0) for part in parts]).view(few.shape).masked_fill(few, torch.nan)
        for q in ((1 - level) / 2, (1 + level) / 2)
    )
    return low, high
