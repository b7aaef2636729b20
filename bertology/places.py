"""Where does a block of attention weights go?"""

from __future__ import annotations

import torch
from torch import Tensor


def places(x: Tensor, start: int, first: Tensor) -> dict[str, Tensor]:
    """{pattern: [batch, head, query]} of the attention weights `x` of the query rows from `start` on."""
    queries = torch.arange(start, start + x.shape[2], device=x.device)
    keys = torch.arange(x.shape[3], device=x.device)
    distances = (queries[:, None] - keys).abs().to(x.dtype)
    # A product of each query's row with its own distances: no third tensor of the map's size.
    distance = torch.einsum("bhqk,qk->bhq", x, distances)
    here = {name: _beside(x, queries + step) for name, step in (("previous", -1), ("next", 1), ("self", 0))}
    to_first = x.gather(3, first[:, None, None, None].expand(*x.shape[:3], 1)).squeeze(3)
    return {**here, "first": to_first, "distance": distance}


def _beside(x: Tensor, keys: Tensor) -> Tensor:
    """[batch, head, query]: each query's weight of its own key; 0 for keys beyond the text."""
    inside = (keys >= 0) & (keys < x.shape[3])
    places = keys.clamp(0, x.shape[3] - 1)[None, None, :, None].expand(*x.shape[:3], 1)
    return x.gather(3, places).squeeze(3) * inside


def by_class(x: Tensor, masks: Tensor, real: Tensor, rows: slice, device: torch.device) -> dict[str, Tensor]:
    """[batch, head, class]: the attention of the query rows of `x` to each class of keys, summed up on `device`.

    Over all real queries, over those of the class itself, and over the rest; with the number of queries in each class.
    """
    keys = masks.permute(1, 2, 0)[:, None].to(x.dtype)  # [batch, 1, key, class]
    each = (x @ keys).masked_fill(~real[:, None, :, None], 0).to(device).to(torch.float64)
    member = (masks[:, :, rows] & real).permute(1, 2, 0).to(device)  # [batch, query, class]
    inside = (each * member[:, None]).sum(2)
    total = each.sum(2)
    return {"to": total, "within": inside, "from_rest": total - inside, "members": member.sum(1)}
