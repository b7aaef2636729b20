"""Plain attention and the statistics of its rows by fused kernels, which keep no map.

A fused kernel returns, beside its output A(q, k, v), the logarithm L of each row's sum of exponentials. With scores
s = τ q·k the entropy of a row is L - Σ p·s = L - τ q·A(q, k, k); its weight of one key is exp(s - L); its sums over
keys are A(q, k, columns). The mean distance is i - A(q, k, positions) where query i sees no later key; elsewhere a
second, causal call gives the share and the mean position of the keys up to i. The largest weight alone needs the
scores, block by block, but neither a softmax nor a product with values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .plain_inputs import Plain
from .private_api import fused_attention
from .row_statistics import RowStatistics, Wanted, attention_entropies
from .tiled_attention import TILE_QUERIES

# The memory of a block of scores, of which the largest are taken.
SCORE_BYTES = 32 * 2**20
HALVES = (torch.float16, torch.bfloat16)
# The mean error, in nats, of an entropy in half precision that is always let pass; and how many times the eager
# function's, measured on so few rows. On random inputs it is 0.4 to 1.05 times that.
_FINE, _TIMES = 1e-3, 1.5
_ROWS = 8


def attend_fused(plain: Plain, wanted: Wanted) -> tuple[Tensor, RowStatistics] | None:
    """[batch, query, head, width]: the output; and the statistics of all rows. None where no fused kernel gives them.

    In half precision a mean position is too coarse for distances, and is not given.
    """
    lowest = max(torch.finfo(plain.query.dtype).min, torch.finfo(torch.float32).min) / 8
    if (wanted.distance and plain.query.dtype in HALVES) or not _hides_or_shows(plain, lowest):
        return None
    found = fused_attention(*plain)
    if found is None:
        return None
    output, top = found
    batch, heads, queries, keys = *plain.query.shape[:3], plain.key.shape[2]
    # A query that sees no key looks at all of them alike, as in eager functions.
    blind = top < lowest

    def at(places: Tensor) -> Tensor:
        return (plain.score_at(places) - top).exp().masked_fill(blind, 1 / keys)

    entropy = largest = sums = distance = None
    if wanted.entropy:
        entropy = (top - _mean_score(plain)).clamp_min(0).masked_fill(blind, math.log(keys))
    if wanted.largest:
        largest = (_largest_scores(plain) - top).exp().clamp_max(1).masked_fill(blind, 1 / keys)
    if wanted.columns is not None:
        sums = _sums(plain, wanted.columns[:, None].to(plain.value))
    if wanted.distance:
        distance = _distance(plain, top, blind)
    shape = (batch, heads, queries, keys)
    statistics = RowStatistics(shape, output.device, at, entropy, largest, distance, sums)
    return output.transpose(1, 2), statistics


def _hides_or_shows(plain: Plain, lowest: float) -> bool:
    """Whether the mask hides a key or shows it, and adds nothing else to a score."""
    if plain.mask is None:
        return True
    return all(bool(((row == 0) | (row <= lowest)).all()) for row in torch.split(plain.mask, TILE_QUERIES, 2))


def _mean_score(plain: Plain) -> Tensor:
    """[batch, head, query]: Σ p·s over the keys that a query sees.

    The mean key is computed from what is left of the keys without their mean over the text, so that the rounding of
    half precision is that of smaller numbers.
    """
    wide = torch.promote_types(plain.query.dtype, torch.float32)
    middle = plain.key.to(wide).mean(2, keepdim=True)
    around = _call(plain, (plain.key.to(wide) - middle).to(plain.key.dtype))[0]
    groups = plain.query.shape[1] // plain.key.shape[1]
    mean_key = around.to(wide) + middle.repeat_interleave(groups, 1)
    return plain.scale * (plain.query.to(wide) * mean_key).sum(-1)


def _call(plain: Plain, value: Tensor, *, causal: bool | None = None) -> tuple[Tensor, Tensor]:
    """What the kernel returns for other values, where it is known to run."""
    found = fused_attention(*plain._replace(value=value, causal=plain.causal if causal is None else causal))
    assert found is not None
    return found


def _sums(plain: Plain, columns: Tensor) -> Tensor:
    """[batch, head, query, column]: A(q, k, columns); as many columns in a call as a key has numbers."""
    columns = columns.expand(plain.key.shape[0], plain.key.shape[1], -1, -1)
    return torch.cat([_call(plain, some.contiguous())[0] for some in torch.split(columns, plain.key.shape[3], -1)], -1)


def _distance(plain: Plain, top: Tensor, blind: Tensor) -> Tensor:
    """[batch, head, query]: Σ_j p_ij |i - j|."""
    queries, keys = plain.query.shape[2], plain.key.shape[2]
    position = torch.arange(max(queries, keys), device=top.device).to(plain.value.dtype)
    column = (position[:keys] / keys)[None, None, :, None]  # small numbers round less
    query = position[:queries]
    mean = _sums(plain, column)[..., 0] * keys
    if plain.causal:
        return (query - mean).clamp_min(0)
    values = column.expand(*plain.key.shape[:3], 1).contiguous()
    before, top_before = _call(plain, values, causal=True)
    share = (top_before - top).exp()
    # Of a query that sees no key, or none up to its own: the former weighs all keys alike, and so those before it.
    share = torch.where(blind, (query + 1).clamp_max(keys) / keys, share.clamp(0, 1))
    earlier = (before[..., 0] * keys).nan_to_num()
    left = share * (query - earlier)
    right = (mean - share * earlier) - (1 - share) * query
    return (left + right).clamp_min(0)


def _largest_scores(plain: Plain) -> Tensor:
    """[batch, head, query]: each query's largest score, from blocks of scores."""
    batch, heads, queries, keys = *plain.query.shape[:3], plain.key.shape[2]
    groups = plain.key.shape[1]
    query, key = plain.query.reshape(batch, groups, -1, queries, plain.query.shape[3]), plain.key[:, :, None].mT
    size = max(1, SCORE_BYTES // max(1, batch * heads * keys * plain.query.element_size()))
    found = []
    for start in range(0, queries, size):
        rows = slice(start, min(start + size, queries))
        end = min(rows.stop, keys) if plain.causal else keys
        scores = ((query[:, :, :, rows] * plain.scale) @ key[..., :end]).flatten(1, 2)
        mask = plain.masked(rows, slice(0, end))
        if mask is not None:
            scores += mask
        corner = plain.corner(rows, slice(0, end))
        if corner is not None:
            scores[..., rows.start :] += corner[:, : end - rows.start]
        found.append(scores.amax(-1))
    return torch.cat(found, -1)


def is_fine_in_half(plain: Plain, weigh: Callable[[Plain], Tensor]) -> bool:
    """Whether entropies by a fused kernel in half precision are as exact as those of the eager function's weights.

    Proved on the last queries of the first example, which see all keys.
    """
    query, key, value = plain.query[:1, :, -_ROWS:], plain.key[:1], plain.value[:1]
    some = Plain(query, key, value, None, False, plain.scale)
    found = attend_fused(some, Wanted(entropy=True))
    if found is None or found[1].entropy is None:
        return False
    scores = some.scale * query.float() @ key.float().repeat_interleave(query.shape[1] // key.shape[1], 1).mT
    exact = attention_entropies(scores.softmax(-1))
    ours, theirs = ((one - exact).abs().mean() for one in (found[1].entropy, attention_entropies(weigh(some))))
    return float(ours) <= max(_TIMES * float(theirs), _FINE)
