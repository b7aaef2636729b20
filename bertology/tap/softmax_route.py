"""The route to attention maps through the softmax inside an attention module, for models off the attention interface.

While such a module runs, its one softmax over keys is watched, and scaled dot product attention is split into
that softmax and its product with the values. Each map is freed as soon as it was read. Longformer and LED keep, for
each query, the weights of the keys in a window around it, and LongT5 those of its own block and its neighbours: these
bands are written to the positions of their keys, with 0 at all keys that a query does not see.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy.names import ANY_GLOBAL_ARGUMENT, GLOBAL_ARGUMENT, MASKED_ARGUMENT, STATES_ARGUMENT
from ..anatomy.oddities import oddities_of
from ..anatomy.sites import Anatomy
from ..errors import UnknownAnatomy, how_many
from .function_mode import Pass, Watching
from .map_reader import Reading
from .torch_attention import open_torch_attention


def is_banded(attention: nn.Module) -> bool:
    """Whether this is attention over windows whose maps can be laid out."""
    return oddities_of(attention).bands != ""


def lay_bands(attention: nn.Module, softmaxes: list[Tensor], args: Any, kwargs: Any) -> Tensor | None:
    """[batch, head, query, key]: the map from all softmaxes of one pass, or None where they are not as expected."""
    given = inspect.signature(type(attention).forward).bind(attention, *args, **kwargs).arguments
    if oddities_of(attention).bands == "blocks":
        return _of_blocks(softmaxes, given[STATES_ARGUMENT].shape[1])
    return _of_windows(attention, softmaxes, given)


def _of_blocks(softmaxes: list[Tensor], tokens: int) -> Tensor | None:
    """The map from one softmax [batch, block, head, query, key of three blocks]."""
    if len(softmaxes) != 1 or softmaxes[0].dim() != 5 or softmaxes[0].shape[-1] != 3 * softmaxes[0].shape[-2]:
        return None
    weights = softmaxes[0]
    blocks, length = weights.shape[1], weights.shape[3]
    first_keys = torch.arange(blocks, device=weights.device).repeat_interleave(length) * length
    bands = rearrange(weights, "batch block head query key -> batch head (block query) key")
    return _laid(bands, first_keys, before=length)[:, :, :tokens, :tokens]


def _of_windows(attention: Any, softmaxes: list[Tensor], given: dict[str, Any]) -> Tensor | None:
    """The map from a softmax [batch, query, head, key of the window]; where some tokens are global, from [batch, query,
    head, global key, then key of the window] and one over all keys for global queries, [batch * head, query, key]."""
    side = attention.one_sided_attn_window_size
    is_global, masked = given[GLOBAL_ARGUMENT], given[MASKED_ARGUMENT]
    most = int(is_global.sum(1).max()) if given[ANY_GLOBAL_ARGUMENT] else 0
    shapes = [(*masked.shape, attention.num_heads, most + 2 * side + 1)]
    if most:
        shapes.append((masked.shape[0] * attention.num_heads, most, masked.shape[1]))
    if [tuple(x.shape) for x in softmaxes] != shapes:
        return None
    weights = rearrange(softmaxes[0], "batch query head key -> batch head query key")
    first_keys = torch.arange(masked.shape[1], device=weights.device)
    laid = _laid(weights[..., most:], first_keys, before=side)
    if most:
        of_global = rearrange(softmaxes[1], "(batch head) query key -> batch head query key", batch=masked.shape[0])
        example, token = is_global.nonzero(as_tuple=True)
        number = is_global.cumsum(1)[example, token] - 1
        laid = laid.clone()
        laid[example, :, :, token] = weights[example, :, :, number]
        laid[example, :, token] = of_global[example, :, number].to(laid.dtype)
    return laid.masked_fill((masked & ~is_global)[:, None, :, None], 0.0)


def _laid(bands: Tensor, first_keys: Tensor, before: int) -> Tensor:
    """[batch, head, query, key] of bands whose first key is `before` keys before `first_keys`."""
    queries, width = bands.shape[-2:]
    keys = first_keys[:, None] + torch.arange(width, device=bands.device)
    whole = bands.new_zeros(*bands.shape[:-1], queries + 2 * max(before, width))
    return whole.scatter(-1, keys.expand(bands.shape), bands)[..., before : before + queries]


SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
PRODUCTS = (torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__)


def watch_softmax(anatomy: Anatomy, reading: Reading, undo: ExitStack) -> None:
    """Give the maps of these sites to the reader, while `undo` is open."""
    open_torch_attention(reading.calls.modules, undo)
    _ReadingSoftmax(reading).watch(reading.calls.modules, undo)


class WatchingSoftmax(Watching):
    """Sees the weights of every softmax of the attention module that is running."""

    def weigh(self, now: Pass, weights: Tensor, axis: Any) -> Tensor:
        """The weights that the attention uses in the place of these, a softmax over `axis`."""
        raise NotImplementedError

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        now = self.now
        if now is None:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _attend(lambda weights: self.weigh(now, weights, -1), *args, **kwargs)
        output = func(*args, **kwargs)
        if func in SOFTMAX:
            return self.weigh(now, output, kwargs.get("dim", args[1] if len(args) > 1 else None))
        return output


class _ReadingSoftmax(WatchingSoftmax):
    """Gives the maps of each pass to a reader."""

    def __init__(self, reading: Reading) -> None:
        super().__init__(reading.calls.next)
        self.reading = reading

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        now, output = self.now, super().__torch_function__(func, types, args, kwargs)
        if now is not None and self.reading.arriving is not None and now.seen and not now.values:
            if func is F.scaled_dot_product_attention:
                now.values.append((kwargs or {})["value"] if len(args) < 3 else args[2])
            elif func in PRODUCTS and len(args) == 2 and _is_map(args[0], now.seen[-1]):
                now.values.append(args[1])
        return output

    def weigh(self, now: Pass, weights: Tensor, axis: Any) -> Tensor:
        laid = weights if is_banded(now.site.attention) else four_axes(weights, axis, len(now.site.kept))
        if laid is None:
            return weights
        now.seen.append(laid)
        # A gradient of the map is of what the attention goes on with: of a view beside it there would be none.
        return laid.reshape(weights.shape) if self.reading.whole and laid is not weights else weights

    def end(self, ended: Pass, args: Any, kwargs: Any) -> None:
        site, maps = ended.site, ended.seen
        kind = type(site.attention).__name__
        if is_banded(site.attention):
            if self.reading.whole and any(x.requires_grad for x in maps):
                raise UnknownAnatomy(
                    f"the attention of {site.label} ({kind}) is over windows, and its map is laid out of them: no "
                    "gradient of the map is known"
                )
            laid = lay_bands(site.attention, maps, args, kwargs)
            if laid is None:
                raise UnknownAnatomy(f"the softmaxes of {site.label} ({kind}) are not over windows")
            self._give(ended, laid)
            return
        odd = oddities_of(site.attention)
        if len(maps) != odd.softmaxes and odd.unmapped:
            raise UnknownAnatomy(f"the attention of {site.label} ({kind}) {odd.unmapped}")
        if len(maps) != odd.softmaxes:
            raise UnknownAnatomy(
                f"the attention of {site.label} ({kind}) took {how_many(len(maps), 'softmax')} over [batch, head, "
                f"query, key], wanted {odd.softmaxes}: its maps cannot be read"
            )
        self._give(ended, maps[odd.map_number])

    def _give(self, ended: Pass, weights: Tensor) -> None:
        rows, value = slice(0, weights.shape[2]), ended.values[0] if ended.values else None
        self.reading.give(ended.site, self.reading.weighed(ended.site, weights, rows, value), rows)


def _is_map(x: Any, weights: Tensor) -> bool:
    """Whether a factor of a product is, by its shape, the weights that were seen before, perhaps in another type."""
    return isinstance(x, Tensor) and x.shape[-2:] == weights.shape[-2:] and x.numel() == weights.numel()


def four_axes(weights: Tensor, axis: Any, heads: int) -> Tensor | None:
    """[batch, head, query, key] of a softmax over keys, or None."""
    if axis not in (-1, weights.dim() - 1):
        return None
    if weights.dim() == 4 and weights.shape[1] == heads:
        return weights
    if weights.dim() == 3 and weights.shape[0] % heads == 0:
        return rearrange(weights, "(batch head) query key -> batch head query key", head=heads)
    return None


def _attend(
    weigh: Callable[[Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot product attention as torch documents it, with what `weigh` returns for its weights."""
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
    # A query that sees no key (padding before a text) gets 0, as torch gives it: NaN would reach all later layers.
    weights = F.softmax(scores, dim=-1).masked_fill((scores == -math.inf).all(-1, keepdim=True), 0.0)
    return F.dropout(weigh(weights), dropout_p) @ value
