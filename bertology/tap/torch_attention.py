"""torch's own multi-head attention, computed in steps that hooks can see.

`nn.MultiheadAttention` multiplies its heads with the weight of its output projection without calling that module, in
one function that hides its softmax; and a `nn.TransformerEncoderLayer` in inference does not call its attention at all
(the fast path). While these modules are tapped, the fast path is off, and they compute the same in steps.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .private_api import replace_forward

# How many taps are open on each module, and what is undone when the last one closes.
_open: dict[nn.Module, tuple[int, ExitStack]] = {}
# How many taps, in all threads, hold off the fast path, and whether it was on before.
_lock = threading.Lock()
_held = 0
_before: list[bool] = []


def open_torch_attention(modules: Iterable[nn.Module], undo: ExitStack) -> None:
    """Let those of these modules that are torch's attention compute in steps, while `undo` is open."""
    found = [module for module in modules if isinstance(module, nn.MultiheadAttention)]
    hold_off_fast_path(found, undo)
    for module in found:
        count, steps = _open.get(module) or (0, ExitStack())
        if not count:
            replace_forward(module, partial(attend, module), steps)
        _open[module] = count + 1, steps
        undo.callback(_close, module)


def _close(module: nn.Module) -> None:
    count, steps = _open.pop(module)
    if count > 1:
        _open[module] = count - 1, steps
    else:
        steps.close()


def hold_off_fast_path(modules: Iterable[nn.Module], undo: ExitStack) -> None:
    """Keep torch from its fast path, if one of these modules is torch's attention, while `undo` is open."""
    global _held
    if any(issubclass(kind, nn.MultiheadAttention) for kind in set(map(type, modules))):
        with _lock:
            if not _held:
                _before.append(torch.backends.mha.get_fastpath_enabled())
                torch.backends.mha.set_fastpath_enabled(False)
            _held += 1
        undo.callback(_allow_fast_path)


def _allow_fast_path() -> None:
    global _held
    with _lock:
        _held -= 1
        if not _held:
            torch.backends.mha.set_fastpath_enabled(_before.pop())


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`nn.MultiheadAttention.forward`, with the output projection called as a module.

    `is_causal` says of the mask that is given that it is causal, and needs no work.
    """
    batched = query.dim() == 3
    query, key, value = (_batch_first(x, batched and not module.batch_first) for x in (query, key, value))
    q, k, v = _projected(module, query, key, value)
    mask = _masks(module, query, key, attn_mask, key_padding_mask)
    dropout = module.dropout if module.training else 0.0
    if need_weights:
        scores = (q * math.sqrt(1.0 / q.shape[-1])) @ k.transpose(-2, -1)
        weights = F.dropout(F.softmax(scores if mask is None else scores + mask, dim=-1), dropout)
        heads = weights @ v
    else:
        weights, heads = None, F.scaled_dot_product_attention(q, k, v, mask, dropout)
    output = module.out_proj(heads.transpose(1, 2).flatten(2))
    output = output if batched and module.batch_first else output.transpose(0, 1)
    if weights is not None and average_attn_weights:
        weights = weights.mean(1)
    return (output, weights) if batched else (output.squeeze(1), None if weights is None else weights.squeeze(0))


def _batch_first(x: Tensor, batch_second: bool) -> Tensor:
    return x.transpose(0, 1) if batch_second else x if x.dim() == 3 else x[None]


def _projected(module: Any, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """[batch, head, token, dim] of queries, keys and values, with the keys and values that the module adds."""
    joint = module.in_proj_weight
    weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight) if joint is None else joint.chunk(3)
    biases = [None] * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    projected = [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]
    added = [[], *([] if own is None else [own.expand(len(key), 1, -1)] for own in (module.bias_k, module.bias_v))]
    if module.add_zero_attn:
        added = [[], *([*some, projected[1].new_zeros(len(key), 1, module.embed_dim)] for some in added[1:])]
    whole = [torch.cat([x, *some], dim=1) for x, some in zip(projected, added, strict=True)]
    return [x.view(*x.shape[:2], module.num_heads, module.head_dim).transpose(1, 2) for x in whole]


def _masks(
    module: Any, query: Tensor, key: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None
) -> Tensor | None:
    """The two masks as one that is added to the scores; keys that the module adds are seen by all queries."""
    whole = None
    if attn_mask is not None:
        whole = _additive(attn_mask, query)
        whole = whole.view(len(query), -1, *whole.shape[1:]) if whole.dim() == 3 else whole[None, None]
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, query).reshape(-1, 1, 1, key.shape[1])
        whole = padding if whole is None else whole + padding
    more = int(module.bias_k is not None) + int(module.add_zero_attn)
    return whole if whole is None else F.pad(whole, (0, more))


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask
