"""How are the maps of attention over windows laid out?

Longformer and LED keep, for each query, the weights of the keys in a window around it, and LongT5 of the block that it
is in and the two beside it. Here they are laid at their keys' places, with 0 at all keys that a query does not see.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..anatomy.names import BANDED


def is_banded(attention: nn.Module) -> bool:
    """Whether this is attention over windows whose maps can be laid out."""
    return type(attention).__name__ in BANDED


def lay_bands(attention: nn.Module, softmaxes: list[Tensor], args: Any, kwargs: Any) -> Tensor | None:
    """[batch, head, query, key]: the map out of all softmaxes of one pass, or None where they are not as expected."""
    given = inspect.signature(type(attention).forward).bind(attention, *args, **kwargs).arguments
    if BANDED[type(attention).__name__] == "blocks":
        return _of_blocks(softmaxes, given["hidden_states"].shape[1])
    return _of_windows(attention, softmaxes, given)


def _of_blocks(softmaxes: list[Tensor], tokens: int) -> Tensor | None:
    """Of one softmax [batch, block, head, query, key of three blocks]."""
    if len(softmaxes) != 1 or softmaxes[0].dim() != 5 or softmaxes[0].shape[-1] != 3 * softmaxes[0].shape[-2]:
        return None
    weights = softmaxes[0]
    blocks, length = weights.shape[1], weights.shape[3]
    first_keys = torch.arange(blocks, device=weights.device).repeat_interleave(length) * length
    bands = rearrange(weights, "batch block head query key -> batch head (block query) key")
    return _laid(bands, first_keys, before=length)[:, :, :tokens, :tokens]


def _of_windows(attention: Any, softmaxes: list[Tensor], given: dict[str, Any]) -> Tensor | None:
    """Of a softmax [batch, query, head, key of the window], and where some tokens are global, of [batch, query, head,
    global key, then key of the window] and one over all keys for global queries, [batch * head, query, key]."""
    side = attention.one_sided_attn_window_size
    is_global, masked = given["is_index_global_attn"], given["is_index_masked"]
    most = int(is_global.sum(1).max()) if given["is_global_attn"] else 0
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
