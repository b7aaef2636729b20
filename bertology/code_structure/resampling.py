"""What is the mean score over snippets, and how would it move with other snippets?"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import DataError
from ..results.statistics import redrawn

Average = Literal["macro", "micro"]


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
    draws = [(times @ above) / (times @ below) for times in redrawn(examples, resamples, seed)]
    return torch.cat(draws).view(resamples, *matched.shape[:-1])
