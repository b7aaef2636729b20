"""Torch functions that an attention module calls, seen through torch's function modes.

XLNet multiplies its heads with a bare parameter, in `torch.einsum`: while such an attention module runs, that one
product is watched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..anatomy.sites import Site
from ..errors import UnknownAnatomy, how_many
from .private_api import push_mode


class Readers(threading.local):
    """How many readers and editors are running in this thread, one inside of another."""

    running = 0


readers = Readers()


def of_reader(call: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a reader or editor, so that no `Watching` sees the torch functions that it calls itself."""

    def called(*args: Any) -> Any:
        readers.running += 1
        try:
            return call(*args)
        finally:
            readers.running -= 1

    return called


def reader_runs() -> bool:
    """Whether a reader or editor is running in this thread."""
    return readers.running > 0


class Pass(NamedTuple):
    """One pass of an attention module, and what was seen in it."""

    site: Site
    seen: list[Tensor]
    readers: int
    values: list[Tensor]
    """What weights were multiplied with, where that is looked for."""


class Watching(TorchFunctionMode):
    """Knows which of these attention modules is running when a torch function is called."""

    runs_again = True
    """Whether parts that run again in the backward pass are watched again."""

    def __init__(self, next_site: Callable[[nn.Module], Site]) -> None:
        super().__init__()
        self.next_site = next_site
        self._running: list[Pass] = []

    def watch(self, attentions: list[nn.Module], undo: ExitStack) -> None:
        """Watch while `undo` is open."""
        push_mode(self, undo)
        for attention in attentions:
            undo.callback(attention.register_forward_pre_hook(self._start).remove)
            undo.callback(attention.register_forward_hook(self._end, with_kwargs=True, always_call=True).remove)

    def _start(self, module: nn.Module, args: Any) -> None:
        self._running.append(Pass(self.next_site(module), [], readers.running, []))

    def _end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._running:
            ended = self._running.pop()
            if output is not None:  # else the module raised
                self.end(ended, args, kwargs)

    def end(self, ended: Pass, args: Any, kwargs: Any) -> None:
        """Use what was seen in a pass, when the attention module, called with these arguments, has returned."""

    @property
    def now(self) -> Pass | None:
        """The pass of an attention module that is running: None between passes, and while a reader runs."""
        last = self._running[-1] if self._running else None
        return last if last and last.readers == readers.running else None


def watch_products(
    attentions: list[nn.Module],
    next_site: Callable[[nn.Module], Site],
    apply: Callable[[Site, Tensor], Tensor | None],
    undo: ExitStack,
) -> None:
    """Call `apply(site, x)` for the heads [token, batch, width], and use what it returns, if anything, instead."""
    _WatchingProducts(next_site, apply).watch(attentions, undo)


class _WatchingProducts(Watching):
    """Sees every product of heads with their projection."""

    def __init__(self, next_site: Callable[[nn.Module], Site], apply: Callable[[Site, Tensor], Tensor | None]) -> None:
        super().__init__(next_site)
        self.apply = apply

    def end(self, ended: Pass, args: Any, kwargs: Any) -> None:
        if len(ended.seen) != 1:
            raise UnknownAnatomy(
                f"{ended.site.path} was multiplied with heads {how_many(len(ended.seen), 'time')} in one pass of its "
                "attention, wanted 1: attention with two streams (XLNet's target_mapping) cannot be read or edited"
            )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        now = self.now
        if now is None or func is not torch.einsum or args[-1] is not getattr(now.site.place, now.site.weight):
            return func(*args, **(kwargs or {}))
        equation, x, weight = args
        now.seen.append(x)
        new = self.apply(now.site, x.flatten(-2))
        return func(equation, x if new is None else new.reshape(x.shape), weight)
