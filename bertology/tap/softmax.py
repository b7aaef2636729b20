"""How is the map of an attention module seen that is not on transformers' attention interface?

While such a module runs, its one softmax over keys is watched, and scaled dot product attention is taken apart into
that softmax and its product with the values. Nothing is asked of the model, and each map is gone when it was read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..anatomy.names import MAP_NUMBERS
from ..anatomy.sites import Anatomy
from ..errors import UnknownAnatomy
from .bands import is_banded, lay_bands
from .reading import Reading
from .watching import Pass, Watching

SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


def watch_softmax(anatomy: Anatomy, reading: Reading, undo: ExitStack) -> None:
    """Give the maps of these sites to the reader, while `undo` is open."""
    _WatchingSoftmax(reading).watch(reading.calls.modules, undo)


class _WatchingSoftmax(Watching):
    """Sees every softmax of the attention module that is running."""

    def __init__(self, reading: Reading) -> None:
        super().__init__(reading.calls.next)
        self.reading = reading

    def end(self, ended: Pass, args: Any, kwargs: Any) -> None:
        site, maps = ended.site, ended.seen
        kind = type(site.attention).__name__
        if is_banded(site.attention):
            laid = lay_bands(site.attention, maps, args, kwargs)
            if laid is None:
                raise UnknownAnatomy(f"the softmaxes of {site.label} ({kind}) are not over windows")
            self.reading.give(site, laid, slice(0, laid.shape[2]))
            return
        wanted = MAP_NUMBERS.get(kind, (1, 0))
        if len(maps) != wanted[0]:
            raise UnknownAnatomy(
                f"the attention of {site.label} ({kind}) took {len(maps)} softmaxes over [batch, head, query, key], "
                f"wanted {wanted[0]}: its maps cannot be read"
            )
        weights = maps[wanted[1]]
        self.reading.give(site, weights, slice(0, weights.shape[2]))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        now = self.now
        if now is None:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            output, weights = attend(*args, **kwargs)
            now.seen.append(weights)
            return output
        output = func(*args, **kwargs)
        if func in SOFTMAX:
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            laid = output if is_banded(now.site.attention) else four_axes(output, axis, len(now.site.kept))
            if laid is not None:
                now.seen.append(laid)
        return output


def four_axes(weights: Tensor, axis: Any, heads: int) -> Tensor | None:
    """[batch, head, query, key] of a softmax over keys, or None."""
    if axis not in (-1, weights.dim() - 1):
        return None
    if weights.dim() == 4 and weights.shape[1] == heads:
        return weights
    if weights.dim() == 3 and weights.shape[0] % heads == 0:
        return rearrange(weights, "(batch head) query key -> batch head query key", head=heads)
    return None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scaled dot product attention as torch documents it, with its weights."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        mask = (
            torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(~attn_mask, -math.inf)
            if attn_mask.dtype == torch.bool
            else attn_mask
        )
        scores = scores + mask
    weights = F.softmax(scores, dim=-1)
    return F.dropout(weights, dropout_p) @ value, weights
