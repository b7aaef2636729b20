"""What are the maps of attention over windows? Worked out densely: all scores, and a mask of who sees whom."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

BANDED = ("LongformerSelfAttention", "LEDEncoderSelfAttention", "LongT5LocalAttention")


def dense_map(model: Any, site: Any, batch: Any) -> Tensor:
    """[batch, head, query, key] of one layer, without global tokens."""
    given: dict[str, Any] = {}

    def look(module: Any, args: Any, kwargs: Any) -> None:
        given.update(inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments)

    hook = site.attention.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        model(**batch)
    hook.remove()
    hidden, attention = given["hidden_states"], site.attention
    query, key = (
        layer(hidden).unflatten(-1, (site.width, site.dim)).transpose(1, 2) for layer in (site.query, site.key)
    )
    places = torch.arange(hidden.shape[1])
    apart = places - places[:, None]
    if hasattr(attention, "block_len"):
        first = next(m for m in model.encoder.modules() if getattr(m, "has_relative_attention_bias", False))
        buckets = first._relative_position_bucket(
            apart,
            num_buckets=first.relative_attention_num_buckets,
            max_distance=first.relative_attention_max_distance,
        )
        scores = query @ key.transpose(2, 3) + first.relative_attention_bias(buckets).permute(2, 0, 1)
        near, real = apart.abs() < attention.block_len, batch["attention_mask"].bool()
    else:
        scores = query @ key.transpose(2, 3) / site.dim**0.5
        near, real = apart.abs() <= attention.one_sided_attn_window_size, ~given["is_index_masked"]
    scores = scores.masked_fill(~(near & real[:, None, None]), torch.finfo(torch.float32).min)
    return scores.float().softmax(-1)
