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

from ..anatomy.sites import Site
from ..errors import UnknownAnatomy
from .watching import Pass, Watching


def watch_products(
    attentions: list[nn.Module],
    next_site: Callable[[nn.Module], Site],
    apply: Callable[[Site, Tensor], Tensor | None],
    undo: ExitStack,
) -> None:
    """Call `apply(site, x)` for the heads [token, batch, width], and go on with what it returns, if anything."""
    _WatchingProducts(next_site, apply).watch(attentions, undo)


class _WatchingProducts(Watching):
    """Sees every product of heads with their projection."""

    def __init__(self, next_site: Callable[[nn.Module], Site], apply: Callable[[Site, Tensor], Tensor | None]) -> None:
        super().__init__(next_site)
        self.apply = apply

    def end(self, ended: Pass, args: Any, kwargs: Any) -> None:
        if len(ended.seen) != 1:
            raise UnknownAnatomy(
                f"{ended.site.path} was multiplied with heads {len(ended.seen)} times in one pass of its attention, "
                "wanted 1: attention with two streams (XLNet's target_mapping) cannot be read or edited"
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
