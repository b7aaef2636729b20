"""Batches for several passes, which must all see the same examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from ..anatomy.names import IDS_ARGUMENT, LABELS_ARGUMENT, MASK_ARGUMENT
from ..data.batches import IGNORED, Batch, Batches, check_repeatable
from ..errors import DataError, how_many


def same_data(batches: Batches, *, why: str) -> Batches:
    """The batches, for passes that raise `DataError` at their end if they saw other examples than the first pass.

    The order of the examples and their padding may change, as in a DataLoader that shuffles. Raises `DataError` for
    batches that can be read once only.

        >>> import torch
        >>> batches = same_data([{"input_ids": torch.ones(2, 3)}], why="a curve")
        >>> len(list(batches)), len(list(batches))
        (1, 1)
    """
    check_repeatable(batches, why=why)
    once = isinstance(batches, (Mapping, _SameData)) or not isinstance(batches, Iterable)
    return batches if once else _SameData(batches, why)


class _SameData:
    def __init__(self, batches: Any, why: str) -> None:
        self._batches, self._why = batches, why
        self._first: tuple[int, int, int] | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_batches" not in vars(self):
            raise AttributeError(name)
        return getattr(self._batches, name)

    def __iter__(self) -> Iterator[Batch]:
        seen = (0, 0, 0)
        for batch in self._batches:
            if isinstance(batch, Mapping):
                mine = _counts(batch)
                seen = (seen[0] + mine[0], seen[1] + mine[1], seen[2] + mine[2])
            yield batch
        first, self._first = self._first, seen
        if first is not None and first != seen:
            told = (
                f"{how_many(first[0], 'example')}, then {seen[0]}"
                if first[0] != seen[0]
                else f"other ones of {how_many(seen[0], 'example')}"
            )
            raise DataError(
                f"{self._why} goes over the batches several times, and they changed in between: it saw {told}. Pass a "
                "list of batches, or a data set that gives the same examples each time"
            )


def _counts(batch: Batch) -> tuple[int, int, int]:
    """How many examples there are, and the sums of their tokens and labels, whatever their order and padding."""
    tensors = [x for x in batch.values() if isinstance(x, Tensor) and x.dim() > 0]
    ids, mask, labels = (batch.get(name) for name in (IDS_ARGUMENT, MASK_ARGUMENT, LABELS_ARGUMENT))
    tokens = 0
    if isinstance(ids, Tensor):
        fits = isinstance(mask, Tensor) and mask.shape == ids.shape
        tokens = int((ids * (mask != 0) if fits else ids).sum())
    truths = 0
    if isinstance(labels, Tensor) and not labels.is_floating_point():
        truths = int((labels * (labels != IGNORED)).sum())
    return len(tensors[0]) if tensors else 0, tokens, truths
