"""Plain scaled dot product attention: how it is recognized, and its maps in blocks.

On long texts the maps of plain attention are computed here, in blocks that stay in the processor's cache, and their
entropy from the scores: H = ln z - Σ e·s / z with e = exp(s), z = Σ e needs no logarithm of every weight. Whether an
attention is plain is checked on a few query rows, against the model's own function, with the real queries and
with others: these show soft-capping, sinks and anything else that a model adds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..anatomy.names import DROPOUT_ARGUMENT, SCALE_ARGUMENT

# The memory that one head's block may take.
CACHE_BYTES = 4 * 2**20
_LARGE_SCORE = 40.0
# The number of query rows on which attention is checked to be plain.
PROOF_ROWS = 8
# The allowed difference between two computations, in steps of the type's precision.
_STEPS = 200


class Block(NamedTuple):
    """The result of attention for a block of query rows."""

    output: Tensor
    """[batch, query, head, dim]"""
    weights: Tensor
    """[batch, head, query, key]"""
    entropies: Tensor
    """[batch, head, query], nats"""


def is_plain(
    eager: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: dict[str, Any],
) -> bool:
    """Whether the model's own function does plain attention, proved on the last query rows of the first example.

    With the mask, and where every query sees all keys, or four: scores of 0 show a sink, large ones a soft cap.
    """
    if kwargs.get(DROPOUT_ARGUMENT) and module.training:
        return False
    query, key, value = query[:1, :, -PROOF_ROWS:], key[:1], value[:1]
    # Half precision is too coarse to tell.
    query, key, value = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (query, key, value))
    mask = None if mask is None else mask.to(query.dtype)
    last = None if mask is None else mask[:1, :, -PROOF_ROWS:] if mask.shape[-2] > 1 else mask[:1]
    none = None if mask is None else torch.zeros_like(last[:, :, :, : key.shape[2]])  # type: ignore[index]
    few = None if none is None else none[..., :4]
    large, small = _large(query, key, kwargs), torch.zeros_like(query)
    cases = [(query, key, value, last), (large, key, value, none), (small, key[:, :, :4], value[:, :, :4], few)]
    return all(_agrees(eager, module, *case, kwargs) for case in cases)


def _agrees(
    eager: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: dict[str, Any],
) -> bool:
    output, weights = eager(module, query, key, value, mask, **kwargs)
    block = attend_plainly(query, key, value, mask, kwargs)
    pairs = ((block.weights, weights), (block.output, output))
    return all(ours.shape == theirs.shape and _close(ours, theirs) for ours, theirs in pairs)


def _large(query: Tensor, key: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Random queries of the same shape, with scores so large that no soft cap leaves them as they are."""
    generator = torch.Generator().manual_seed(0)
    other = torch.randn(query.shape, generator=generator, dtype=query.dtype).to(query.device)
    largest = torch.matmul(other * scale_of(query, kwargs), repeated(key, query.shape[1]).transpose(2, 3)).abs().max()
    return other * (_LARGE_SCORE / largest.clamp_min(torch.finfo(query.dtype).tiny))


def scale_of(query: Tensor, kwargs: dict[str, Any]) -> float:
    """What scores are multiplied by."""
    scale = kwargs.get(SCALE_ARGUMENT)
    return float(query.shape[-1] ** -0.5 if scale is None else scale)


def _close(ours: Tensor, theirs: Tensor) -> bool:
    allowed = _STEPS * torch.finfo(ours.dtype).eps * max(1.0, float(theirs.abs().max()))
    return bool((ours - theirs).abs().max() <= allowed)


def attend_plainly(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> Block:
    """Scaled dot product attention of a block of query rows; keys that heads share are repeated for them.

    One head after the other, so that each one's scores stay in the cache until they are weights.
    """
    batch, heads, rows, _ = query.shape
    key, value = (repeated(x, heads) for x in (key, value))
    query = query * scale_of(query, kwargs)
    weights = query.new_empty(batch, heads, rows, key.shape[2])
    output = value.new_empty(batch, rows, heads, value.shape[3])
    entropies = query.new_empty(batch, heads, rows)
    for b in range(batch):
        for h in range(heads):
            scores = torch.matmul(query[b, h], key[b, h].T, out=weights[b, h])
            entropies[b, h] = _softmax_and_entropy(scores, _of_head(mask, b, h, key.shape[2]))
            torch.matmul(weights[b, h], value[b, h], out=output[b, :, h])
    return Block(output, weights, entropies)


def _of_head(mask: Tensor | None, b: int, h: int, keys: int) -> Tensor | None:
    """[query, key], of a mask [batch, head, query, key] in which the first axes may be 1."""
    return None if mask is None else mask[min(b, mask.shape[0] - 1), min(h, mask.shape[1] - 1), :, :keys]


def _softmax_and_entropy(scores: Tensor, mask: Tensor | None) -> Tensor:
    """[query], nats: the entropies of the softmax of `scores [query, key]`, which become weights in place."""
    if mask is not None:
        scores += mask
    scores -= scores.amax(-1, keepdim=True)
    if mask is not None:
        # A mask of -inf: 0 · -inf would be NaN.
        scores.clamp_(min=torch.finfo(scores.dtype).min)
    weights = scores.exp()
    total = weights.sum(-1)
    entropies = total.log() - scores.mul_(weights).sum(-1) / total
    torch.div(weights, total[:, None], out=scores)
    return entropies


def repeated(x: Tensor, heads: int) -> Tensor:
    """[batch, head, key, dim]: the keys or values of groups, once for each of their query heads."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)
