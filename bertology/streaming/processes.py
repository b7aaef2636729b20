"""Work that the processes of torch.distributed share: agreement before sums are merged, and names from all data."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any, TypeVar

import torch
from torch import nn

from ..data.batches import Batches, BatchesOrTexts
from ..errors import DataError
from ..tap.private_api import library_versions
from .accumulator import Accumulator
from .identity import config_settings, weights_checksum

T = TypeVar("T")


def processes() -> int:
    """How many processes share the data: those of `torch.distributed`, or 1."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return torch.distributed.get_world_size()


def process() -> int:
    """The number of this process, from 0."""
    return torch.distributed.get_rank() if processes() > 1 else 0


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in their order."""
    if processes() == 1:
        return [value]
    values: list[Any] = [None] * processes()
    torch.distributed.all_gather_object(values, value)
    return values


def raise_together(error: Exception | None) -> None:
    """Raise the error of one process on all of them, so that none waits for one that is gone."""
    told = gathered(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    failed = [rank for rank, message in enumerate(told) if message is not None]
    if failed:
        raise DataError(f"process {failed[0]} of {len(told)} failed, so nothing is merged: {told[failed[0]]}")


def values_of_all(find: Callable[[], T]) -> list[T]:
    """What each process finds in its share of the data, in their order. An error in one of them is raised in all."""
    if processes() == 1:
        return [find()]
    found, error = None, None
    try:
        found = find()
    except Exception as raised:
        error = raised
    raise_together(error)
    return gathered(found)


def skipped_in(batches: Batches) -> int:
    """How many examples the batches of all processes leave out."""
    return sum(gathered(len(getattr(batches, "skipped", ()))))


def check_same_work(model: nn.Module, accumulators: Sequence[Accumulator]) -> None:
    """Raise `DataError` in all processes unless they measure the same with the same model."""
    mine = {
        "versions of torch and transformers": library_versions(),
        "model": (type(model).__qualname__, weights_checksum(model), repr(sorted(config_settings(model).items()))),
        "measures": [type(accumulator).__qualname__ for accumulator in accumulators],
        "settings or names of the measures": [_settings(accumulator) for accumulator in accumulators],
    }
    every = gathered(mine)
    for rank, theirs in enumerate(every):
        other = [name for name in theirs if theirs[name] != every[0][name]]
        if other:
            raise DataError(
                f"process {rank} of {len(every)} differs from process 0 in the {other[0]}: their sums do not belong "
                "together. Pass the same model and measures in every process, and to each its share of the batches"
            )


def _settings(accumulator: Accumulator) -> str:
    try:
        return accumulator.described()
    except DataError:
        return ""  # what cannot be identified cannot be compared either


def check_sampler(batches: Batches) -> None:
    """Raise `DataError` for a DataLoader whose sampler gives some examples twice, to make all shares equally long."""
    batch_sampler = getattr(batches, "batch_sampler", None)
    for sampler in (getattr(batches, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)):
        repeated = _repeated(sampler)
        if repeated:
            raise DataError(
                f"the {type(sampler).__name__} of the DataLoader gives {repeated} to two processes, so that all have "
                "equally many, and what is counted twice changes every figure. Give each process its own share: "
                "Subset(data, range(rank, len(data), processes)), without a sampler"
            )


def _repeated(sampler: Any) -> str:
    """What a sampler gives twice, in words; empty if it gives everything once."""
    shares, data = getattr(sampler, "num_replicas", None), getattr(sampler, "dataset", None)
    if isinstance(shares, int) and isinstance(data, Sized) and not getattr(sampler, "drop_last", False):
        more = -len(data) % shares
        return f"{more} of {len(data)} examples" if more else ""
    shares, inner = getattr(sampler, "num_processes", None), getattr(sampler, "batch_sampler", None)
    if isinstance(shares, int) and isinstance(inner, Sized) and getattr(sampler, "even_batches", False):
        size, count = getattr(inner, "batch_size", None) or 1, len(getattr(inner, "sampler", ()))
        if not getattr(inner, "drop_last", False) and (len(inner) % shares or count % size):
            return "some examples"
    return ""


def check_counts(seen: int, batches: BatchesOrTexts) -> None:
    """Raise `DataError` if no process had a batch, or if all together saw more examples than their data set has.

    Args:
        seen: how many examples, or items of the data set, this process saw.
        batches: its batches.
    """
    data = getattr(batches, "dataset", None)
    size = len(data) if isinstance(data, Sized) else None
    told = gathered((seen, size))
    total = sum(count for count, _ in told)
    if total == 0:
        raise DataError("no batches in any process: wanted an iterable of mappings of model arguments in one or more")
    shared = {size for _, size in told}
    # Where a process saw all of its data set, that is its share.
    if len(shared) == 1 and size is not None and size < total and all(count < size for count, _ in told):
        raise DataError(
            f"the processes saw {total} examples together, their data set has {size}: some came twice. Give each "
            "process its own share of the data"
        )
