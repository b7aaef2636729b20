"""The inputs of plain scaled dot product attention, and its scores of single keys."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Plain(NamedTuple):
    """The inputs of plain scaled dot product attention."""

    query: Tensor
    """[batch, head, query, dim]"""
    key: Tensor
    """[batch, head or group, key, dim]"""
    value: Tensor
    """[batch, head or group, key, width]"""
    mask: Tensor | None
    """[batch or 1, head or 1, query or 1, key], added to the scores."""
    causal: bool
    """Whether a query sees only the keys up to its own position, without a mask that says so."""
    scale: float = 1.0
    """What scores are multiplied by."""

    def masked(self, rows: slice, keys: slice) -> Tensor | None:
        """[batch, head, query, key]: the mask of a tile, as a view, with a lowest value in the place of -inf."""
        if self.mask is None:
            return None
        mask = self.mask if self.mask.shape[2] == 1 else self.mask[:, :, rows]
        # Of a tile that a query does not see at all, -inf would make NaN.
        mask = mask[..., keys].clamp_min(torch.finfo(mask.dtype).min)
        return mask.expand(*self.query.shape[:2], rows.stop - rows.start, -1)

    def score_at(self, keys: Tensor) -> Tensor:
        """[batch, head, query]: each query's score of one key, whose position is given as [batch or 1, query]."""
        batch, _, queries, dim = self.query.shape
        places = keys[:, None, :, None].expand(batch, self.key.shape[1], queries, dim)
        wide = torch.promote_types(self.query.dtype, torch.float32)
        chosen = self.key.gather(2, places).to(wide)[:, :, None]
        each = self.query.to(wide).reshape(batch, self.key.shape[1], -1, queries, dim)
        score = self.scale * (each * chosen).sum(-1).flatten(1, 2)
        if self.mask is not None:
            mask = self.mask.expand(batch, -1, queries, -1)
            places = keys[:, None, :, None].expand(batch, mask.shape[1], queries, 1)
            score = score + mask.gather(3, places).squeeze(3)
        if self.causal:
            score = score.masked_fill(keys[:, None] > torch.arange(queries, device=keys.device), -torch.inf)
        return score

    def corner(self, rows: slice, keys: slice) -> Tensor | None:
        """[query, query]: what hides later keys, where the last keys of a tile are at the positions of its queries."""
        if not self.causal or keys.stop <= rows.start:
            return None
        return causal_mask(rows, rows, self.query)


def causal_mask(rows: slice, keys: slice, like: Tensor) -> Tensor:
    """[query, key]: what hides later keys from queries, in the type of another tensor."""
    shape = (rows.stop - rows.start, keys.stop - keys.start)
    lowest = max(torch.finfo(like.dtype).min, torch.finfo(torch.float32).min)
    return like.new_full(shape, lowest).triu_(1 + rows.start - keys.start)
