"""How are heads seen whose projection is no module?

XLNet multiplies them with a bare parameter, in `torch.einsum`. While such an attention module runs, that one product is
watched.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import UnknownAnatomy
from ..site import Site


def watch_products(
    attentions: list[nn.Module],
    next_site: Callable[[nn.Module], Site],
    apply: Callable[[Site, Tensor], Tensor | None],
    undo: ExitStack,
) -> None:
    """Call `apply(site, x)` for the heads [token, batch, width], and go on with what it returns, if anything."""
    mode = _Watching(next_site, apply)
    undo.enter_context(mode)
    for attention in attentions:
        undo.callback(attention.register_forward_pre_hook(mode.start).remove)
        undo.callback(attention.register_forward_hook(mode.end, always_call=True).remove)


class _Watching(TorchFunctionMode):
    """Sees every product of heads with their projection."""

    def __init__(self, next_site: Callable[[nn.Module], Site], apply: Callable[[Site, Tensor], Tensor | None]) -> None:
        super().__init__()
        self.next_site, self.apply = next_site, apply
        self.running: Site | None = None
        self.seen = 0

    def start(self, module: nn.Module, args: Any) -> None:
        self.running, self.seen = self.next_site(module), 0

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        site, self.running = self.running, None
        if output is not None and site is not None and self.seen != 1:
            raise UnknownAnatomy(
                f"{site.path} was multiplied with heads {self.seen} times in one pass of its attention, wanted 1: "
                "attention with two streams (XLNet's target_mapping) cannot be read or edited"
            )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        site = self.running
        if site is None or func is not torch.einsum or args[-1] is not getattr(site.place, site.weight):
            return func(*args, **(kwargs or {}))
        self.seen += 1
        equation, x, weight = args
        new = self.apply(site, x.flatten(-2))
        return func(equation, x if new is None else new.reshape(x.shape), weight)
