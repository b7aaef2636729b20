"""Does every query count alike, or every example?"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .errors import DataError

Average = Literal["query", "example"]


def check_average(average: str) -> None:
    """Raise `DataError` for an average that there is not."""
    if average not in ("query", "example"):
        raise DataError(f"average is over every 'query' alike or every 'example' alike, got {average!r}")


def folded(sums: Tensor, counts: Tensor, average: Average) -> tuple[Tensor, Tensor]:
    """What a batch adds to a sum, and to what it is divided by at last.

    Of `sums [batch, ...]` over so many queries of each example, `counts [batch, ...]`: all queries alike, or each
    example's mean. Examples without any such query are left out.
    """
    if average == "query":
        return sums.sum(0), counts.sum(0)
    counts_there = counts.clamp_min(1)
    while counts_there.dim() < sums.dim():
        counts_there = counts_there[..., None]
    return (sums / counts_there).sum(0), (counts > 0).sum(0)
