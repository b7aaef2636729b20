"""How heads and neurons lie in what their projection gets, and what an MLP returns."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from ..anatomy.sites import Site
from ..errors import UnknownAnatomy

# That of nearly all models, which needs no rearrangement.
_PLAIN = "batch token width"
# The layouts, by their number of axes, of heads that most often come as [batch, token, width]: an image tower may have
# the patches of all images in one row, or keep them in rows and columns.
_OTHER_LAYOUTS = {2: "token width", 4: "batch row column width"}
# Axes that are merged with another: groups of heads, streams of tokens, rows of an image.
_FLAT = {
    "group": "batch token (group width)",
    "stream": "batch (stream token) width",
    "row": "batch (row column) width",
    "batch": "batch token width",
    "token": "1 token width",
}
_SIZED = ("group", "stream", "row")


def split_heads(site: Site, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """[batch, token, head, dim], and the elements after all heads (ConvBERT) if any, of the input of `place`."""
    flat = x if site.layout == _PLAIN and x.dim() == 3 else flattened(site, x)
    heads, dim = len(site.kept), site.dim
    batch, tokens, width = flat.shape
    rest = flat[..., heads * dim :] if width > heads * dim else None
    flat = flat if rest is None else flat[..., : heads * dim]
    return flat.reshape(batch, tokens, heads, dim), rest


def join_heads(site: Site, heads: Tensor, rest: Tensor | None, like: Tensor) -> Tensor:
    """The input of `place` in the layout of `like`, of [batch, token, head, dim] and the elements after all heads."""
    flat = heads.flatten(-2)
    if rest is None and site.layout == _PLAIN and like.dim() == 3:
        return flat
    return laid_back(site, flat if rest is None else torch.cat([flat, rest], dim=-1), like)


def flattened(site: Site, x: Tensor) -> Tensor:
    """[batch, token, width], of what lies in the layout of a site."""
    layout = _layout(site, x)
    return x if layout == _PLAIN else rearrange(x, f"{layout} -> {_flat(layout)}")


def laid_back(site: Site, flat: Tensor, like: Tensor) -> Tensor:
    """[batch, token, width] in the layout of a site, as `like` has it."""
    layout = _layout(site, like)
    if layout == _PLAIN:
        return flat
    sizes = {name: size for name, size in zip(layout.split(), like.shape, strict=True) if name in _SIZED}
    return rearrange(flat, f"{_flat(layout)} -> {layout}", **sizes)


def _layout(site: Site, x: Tensor) -> str:
    """How the heads of a site lie in `x`."""
    if site.layout == _PLAIN and x.dim() == 3:
        return _PLAIN
    if x.dim() == site.layout.count(" ") + 1:
        return site.layout
    if site.layout == _PLAIN and x.dim() in _OTHER_LAYOUTS:
        return _OTHER_LAYOUTS[x.dim()]
    raise UnknownAnatomy(f"{site.path} got {list(x.shape)}, wanted [{site.layout.replace(' ', ', ')}]")


def _flat(layout: str) -> str:
    return next(flat for name, flat in _FLAT.items() if name in layout.split())
