"""Edits in parts of a model that run again in the backward pass (gradient checkpointing).

Such a part runs once without its activations being kept, and again when `backward` needs them, which may be after the
`with` of an edit. It must then run under the edits of its first run, and under no others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .function_mode import readers
from .private_api import current_modes, push_mode, running_modules, wrap_checkpoints

Restored = Callable[[], AbstractContextManager[Any]]
"""Puts back, for a `with`, what an edit knew at the moment that it was made."""


class Edit:
    """An edit that is open: its model, how its hooks are set, and how to note what it knows, such as its counts."""

    def __init__(self, model: nn.Module, place: Callable[[ExitStack], None], note: Callable[[], Restored]) -> None:
        self.model, self.place, self.note, self.is_open = model, place, note, True
        self._thread = threading.current_thread()

    def may_be_of_this_run(self) -> bool:
        """Whether what runs in this thread may be its model: another thread may run another model meanwhile.

        Its hooks would be set again for that one, and would act on what the thread of the edit runs at that moment.
        """
        if self._thread is threading.current_thread():
            return True
        running = list(running_modules())
        return not running or any(_is_in(one, self.model) or _is_in(self.model, one) for one in running)


def _is_in(part: nn.Module, whole: nn.Module) -> bool:
    return any(part is one for one in whole.modules())


class _Running(threading.local):
    edits: tuple[Edit, ...] | None = None
    first_runs = 0


_running = _Running()
_open: list[Edit] = []
_lock = threading.Lock()
_wrapping = ExitStack()
_holders = 0


def recomputing() -> bool:
    """Whether a part of a model is running again."""
    return _running.edits is not None


def applies(edit: Edit | None) -> bool:
    """Whether an edit is meant for what runs now. A reader, which is no edit, saw the first run already."""
    return _running.edits is None or edit in _running.edits


def keep_for_recomputation(edit: Edit, undo: ExitStack) -> None:
    """Let parts that run while `undo` is open run under this edit again, whenever that is."""
    watch_recomputation(undo)
    _open.append(edit)
    undo.callback(_close, edit)


def _close(edit: Edit) -> None:
    edit.is_open = False
    _open.remove(edit)


def watch_recomputation(undo: ExitStack) -> None:
    """See which parts run again, while `undo` is open."""
    global _holders
    with _lock:
        if not _holders:
            wrap_checkpoints(_both_runs, _second_run, _first_run, _wrapping)
        _holders += 1
    undo.callback(_unwrap)


def _unwrap() -> None:
    global _holders
    with _lock:
        _holders -= 1
        if not _holders:
            _wrapping.close()


@contextmanager
def _first_run() -> Iterator[None]:
    _running.first_runs += 1
    try:
        yield
    finally:
        _running.first_runs -= 1


def of_first_run(call: Callable[..., Any]) -> Callable[..., Any]:
    """A reader that reads a part that runs twice only once, although torch compares what both runs keep."""

    def called(*args: Any) -> Any:
        if _running.edits is None and not _running.first_runs:
            return call(*args)
        if recomputing():
            return None
        with saved_tensors_hooks(Tensor.detach, lambda x: x):
            return call(*args)

    return called


def reader_of_first_run(read: Callable[..., Any]) -> Callable[..., Any]:
    """`of_reader(of_first_run(read))` in one call: a pass on a short text pays for each call of each layer."""

    def called(*args: Any) -> Any:
        if _running.edits is not None:
            return None
        readers.running += 1
        try:
            if not _running.first_runs:
                return read(*args)
            with saved_tensors_hooks(Tensor.detach, lambda x: x):
                return read(*args)
        finally:
            readers.running -= 1

    return called


def _both_runs(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is given now, and called for its first run and for the second."""
    again, ran = _second_run(function), False

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal ran
        if ran:
            return again(*args, **kwargs)
        ran = True
        return function(*args, **kwargs)

    return run


def _second_run(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose first run is now, and that is called for the second."""
    edits = _running.edits
    if edits is None:
        edits = tuple(edit for edit in tuple(_open) if edit.may_be_of_this_run())
    noted = [(edit, edit.note()) for edit in edits]
    modes = [mode for mode in current_modes() if getattr(mode, "runs_again", False)]

    def run(*args: Any, **kwargs: Any) -> Any:
        with _under(noted, modes):
            return function(*args, **kwargs)

    return run


@contextmanager
def _under(noted: list[tuple[Edit, Restored]], modes: list[Any]) -> Iterator[None]:
    """Run under the edits of the first run, as they were then, and under no others."""
    before = _running.edits
    with ExitStack() as undo:
        watch_recomputation(undo)
        for edit, restored in noted:
            undo.enter_context(restored())
            if not edit.is_open:
                edit.place(undo)
        for mode in modes:  # `backward` itself is a function that they saw; a mode of a closed tap does nothing
            if mode not in current_modes():
                push_mode(mode, undo)
        _running.edits = tuple(edit for edit, _ in noted)
        try:
            yield
        finally:
            _running.edits = before
