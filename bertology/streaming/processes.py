"""Work that the processes of torch.distributed share: agreement before sums are merged, and names from all data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.distributed import GroupMember, ProcessGroup

from ..data.batches import Batches, BatchesOrTexts
from ..errors import DataError, described
from ..tap.private_api import library_versions
from .accumulator import Accumulator
from .identity import config_settings, weights_checksum

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Merge = Literal["all", "none"] | ProcessGroup
"""Whose sums are merged: those of all processes of `torch.distributed`, of a group of them, or of none but this one."""
_sharing: ContextVar[Merge] = ContextVar("_sharing", default="all")


def merges(function: F) -> F:
    """Decorate a measure with a keyword argument `merge`: these processes share the work while it runs.

    Raises `DataError` for what is neither "all" nor "none" nor a group, and for a group that this process is not in.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with sharing(kwargs.get("merge", "all")):
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


@contextmanager
def sharing(merge: Any) -> Iterator[None]:
    """Share work with these processes inside; "all" are all that share the work around it."""
    if merge is GroupMember.NON_GROUP_MEMBER:
        raise DataError(
            "this process is not in the group that merge= names: measure in the processes of the group only"
        )
    named = isinstance(merge, str) and merge in ("all", "none")
    if not named and not isinstance(merge, ProcessGroup):
        raise DataError(
            f"merge takes 'all', 'none' or a group of torch.distributed.new_group(), got {described(merge)}"
        )
    before = _sharing.set(_sharing.get() if named and merge == "all" else merge)
    try:
        yield
    finally:
        _sharing.reset(before)


def _group() -> ProcessGroup | None:
    merge = _sharing.get()
    return None if isinstance(merge, str) else merge


def processes() -> int:
    """How many processes share the data: those of `torch.distributed`, of a group of them, or 1."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()) or _sharing.get() == "none":
        return 1
    return torch.distributed.get_world_size(_group())


def process() -> int:
    """The place of this process among those that share the data, from 0."""
    return torch.distributed.get_rank(_group()) if processes() > 1 else 0


def gathered(value: Any) -> list[Any]:
    """The values of all processes that share the data, in their order."""
    if processes() == 1:
        return [value]
    values: list[Any] = [None] * processes()
    torch.distributed.all_gather_object(values, value, group=_group())
    return values


def _number(place: int) -> int:
    """The number among all processes of one that shares the data."""
    group = _group()
    return place if group is None else torch.distributed.get_global_rank(group, place)


def _told(place: int) -> str:
    """One of the processes that share the data, in words."""
    every = f" of {processes()}" if _group() is None else f", one of {processes()} in a group,"
    return f"process {_number(place)}{every}"


def raise_together(error: Exception | None) -> None:
    """Raise the error of one process on all of them, so that none waits for one that is gone."""
    told = gathered(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    failed = [rank for rank, message in enumerate(told) if message is not None]
    if failed:
        raise DataError(f"{_told(failed[0])} failed, so nothing is merged: {told[failed[0]]}")


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
                f"{_told(rank)} differs from process {_number(0)} in the {other[0]}: their sums do not belong "
                "together. Pass the same model and measures in every process, and to each its share of the batches; or "
                "pass merge='none', and nothing is merged"
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
                "Subset(data, range(rank, len(data), processes)), without a sampler; or shard_batches(batches)"
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
