"""Work that the processes of torch.distributed share: agreement before sums are merged, and names from all data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import nn
from torch.distributed import GroupMember, ProcessGroup

from ..anatomy.divided import has_processes
from ..data.batches import Batches, BatchesOrTexts
from ..data.rows import length_of
from ..errors import DataError, described, how_many
from ..tap import divided_over, whole_weights
from ..tap.private_api import library_versions
from .accumulator import Accumulator
from .identity import config_settings, edits_identity, weights_checksum
from .named_axes import without_names

F = TypeVar("F", bound=Callable[..., Any])
Merge = Literal["all", "none"] | ProcessGroup
"""Whose sums are merged: those of all processes of `torch.distributed`, of a group of them, or of none but this one."""
_sharing: ContextVar[Merge] = ContextVar("_sharing", default="all")


def merges(function: F) -> F:
    """Decorate a measure with a keyword argument `merge`: these processes share the work while it runs.

    An error in one of them, also one in the arguments, is raised in all of them. A part of the data whose sums are
    written to a file (`save=`, `shard=`) is not shared.
    Raises `DataError` for what is neither "all" nor "none" nor a group, and for a group that this process is not in.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        merge = kwargs.get("merge", "all")
        apart = any(kwargs.get(name) is not None for name in ("save", "shard"))
        if merge is GroupMember.NON_GROUP_MEMBER:
            check_merge(merge)
        # An error in `merge` itself is raised in all processes.
        known = merge if _is_merge(merge) else "all"
        with sharing("none" if apart else known), _told_to_all(function.__name__), ExitStack() as undo:
            check_merge(merge)
            _bring_weights(args[0] if args else kwargs.get("model"), undo)
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def _bring_weights(model: Any, undo: ExitStack) -> None:
    """Bring the weights of a model together that are divided over the processes, once all of them are here."""
    over = divided_over(model) if isinstance(model, nn.Module) else set()
    if not over:
        return
    here = [_number(place) for place in range(processes())] if processes() > 1 else [torch.distributed.get_rank()]
    if not over.issubset(here):
        raise DataError(
            f"the weights of this {type(model).__name__} are divided over {how_many(len(over), 'process')}, which must "
            "all measure it together: leave out merge=, shard= and save=, or measure before the model is divided"
        )
    gathered(None, "divided weights")
    whole_weights(model, undo)


def _is_merge(merge: Any) -> bool:
    return isinstance(merge, ProcessGroup) or (isinstance(merge, str) and merge in ("all", "none"))


def check_merge(merge: Any) -> None:
    """Raise `DataError` for what is neither "all" nor "none" nor a group of processes with this one."""
    if merge is GroupMember.NON_GROUP_MEMBER:
        raise DataError(
            "this process is not in the group that merge= names: measure in the processes of the group only"
        )
    if not _is_merge(merge):
        raise DataError(
            f"merge takes 'all', 'none' or a group of torch.distributed.new_group(), got {described(merge)}"
        )


@contextmanager
def sharing(merge: Any) -> Iterator[None]:
    """Share work with these processes inside; "all" are all that share the work around it."""
    check_merge(merge)
    before = _sharing.set(_sharing.get() if isinstance(merge, str) and merge == "all" else merge)
    try:
        yield
    finally:
        _sharing.reset(before)


def _group() -> ProcessGroup | None:
    merge = _sharing.get()
    return None if isinstance(merge, str) else merge


def processes() -> int:
    """How many processes share the data: those of `torch.distributed`, of a group of them, or 1."""
    if not has_processes() or _sharing.get() == "none":
        return 1
    return torch.distributed.get_world_size(_group())


def process() -> int:
    """The place of this process among those that share the data, from 0."""
    return torch.distributed.get_rank(_group()) if processes() > 1 else 0


def gathered(value: Any, what: str) -> list[Any]:
    """The values of all processes that share the data, in their order.

    Args:
        value: that of this process.
        what: what it is, in words: all processes must be at the same step.

    Raises `DataError` where one of them has failed, is at another step, or has ended.
    """
    return [value] if processes() == 1 else [one.value for one in _exchanged(what, value)]


class _Call:
    """A call of a measure in which processes share the work."""

    def __init__(self, name: str, merge: Merge) -> None:
        self.name, self.merge = name, merge
        self.failed = False  # and all processes know it


class _Told(NamedTuple):
    """What one process tells the others: the call, how far it is, and a value or its error."""

    call: str
    step: str
    value: Any = None
    error: str | None = None


_call: ContextVar[_Call | None] = ContextVar("_call", default=None)
_END = "the end"


@contextmanager
def _told_to_all(name: str) -> Iterator[None]:
    """Raise the error of one process in all that share this call, so that none waits for one that is gone."""
    outer = _call.get()
    if processes() == 1 or (outer is not None and outer.merge is _sharing.get()):
        yield
        return
    call = _Call(name, _sharing.get())
    before = _call.set(call)
    try:
        yield
        _exchanged(_END)
    except Exception as error:
        if not call.failed:
            with suppress(DataError):  # the error of this process says more than that the others are gone
                _exchanged(_END, error=f"{type(error).__name__}: {error}")
        raise
    finally:
        _call.reset(before)


def _exchanged(step: str, value: Any = None, error: str | None = None) -> list[_Told]:
    """What all processes tell at this step. Raises `DataError` in all of them if one has failed, or is elsewhere."""
    call = _call.get() or _Call("", "all")
    told: list[_Told] = [_Told("", "")] * processes()
    try:
        torch.distributed.all_gather_object(told, _Told(call.name, step, value, error), group=_group())
    except RuntimeError as lost:
        call.failed = True
        raise DataError(
            f"{call.name}: no answer from the other processes at {step!r}. One of them has ended, or did not call "
            f"{call.name} before the timeout of init_process_group: look at its output. merge='none' measures in one "
            f"process alone ({lost})"
        ) from lost
    failed = [place for place, one in enumerate(told) if one.error is not None]
    apart = [place for place, one in enumerate(told) if one[:2] != told[0][:2]]
    call.failed = bool(failed or apart)
    if failed:
        raise DataError(f"{_named(failed[0])} failed, so nothing is merged: {told[failed[0]].error}")
    if apart:
        mine, theirs = told[0], told[apart[0]]
        raise DataError(
            f"{_named(apart[0])} is at {theirs.step!r} of {theirs.call}, process {_number(0)} is at {mine.step!r} of "
            f"{mine.call}: call the same function with the same arguments in every process, and give each its share of "
            "the batches; or pass merge='none', and nothing is merged"
        )
    return told


def _number(place: int) -> int:
    """The number among all processes of one that shares the data."""
    group = _group()
    return place if group is None else torch.distributed.get_global_rank(group, place)


def _named(place: int) -> str:
    """One of the processes that share the data, in words."""
    every = f" of {processes()}" if _group() is None else f", one of {processes()} in a group,"
    return f"process {_number(place)}{every}"


def skipped_in(batches: Batches) -> int:
    """How many examples the batches of all processes leave out."""
    return sum(gathered(len(getattr(batches, "skipped", ())), "examples that were left out"))


def check_same_work(model: nn.Module, accumulators: Sequence[Accumulator]) -> None:
    """Raise `DataError` in all processes unless they measure the same with the same model."""
    mine = {
        "versions of torch and transformers": library_versions(),
        "model": (type(model).__qualname__, weights_checksum(model), repr(sorted(config_settings(model).items()))),
        "edits, such as gates": edits_identity(model),
        "measures": [type(accumulator).__qualname__ for accumulator in accumulators],
        "settings of the measures": [_settings(accumulator) for accumulator in accumulators],
    }
    every = gathered(mine, "model and measures")
    for rank, theirs in enumerate(every):
        other = [name for name in theirs if theirs[name] != every[0][name]]
        if other:
            raise DataError(
                f"{_named(rank)} differs from process {_number(0)} in the {other[0]}: their sums do not belong "
                "together. Pass the same model and measures in every process, and to each its share of the batches; or "
                "pass merge='none', and nothing is merged"
            )


def _settings(accumulator: Accumulator) -> str:
    try:
        return without_names(accumulator).described()
    except DataError:
        return ""  # what cannot be identified cannot be compared either


def check_counts(seen: int, batches: BatchesOrTexts) -> None:
    """Raise `DataError` if no process had a batch, or if all together saw more examples than their data set has.

    Args:
        seen: how many examples, or items of the data set, this process saw.
        batches: its batches.
    """
    data = getattr(batches, "dataset", None)
    size = length_of(data)
    told = gathered((seen, size), "number of examples")
    total = sum(count for count, _ in told)
    if total == 0:
        raise DataError("no batches in any process: wanted an iterable of mappings of model arguments in one or more")
    shared = {size for _, size in told}
    # Where a process saw all of its data set, that is its share.
    if len(shared) == 1 and size is not None and size < total and all(count < size for count, _ in told):
        raise DataError(
            f"the processes saw {how_many(total, 'example')} together, their data set has {size}: some came twice. "
            "Give each process its own share of the data"
        )
