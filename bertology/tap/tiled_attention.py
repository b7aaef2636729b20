"""Plain attention and the statistics of its rows, tile by tile in the processor's cache, without any map.

A tile is a block of queries and a block of keys of one head. Its softmax is taken alone, and tiles of the same queries
are joined by their largest scores and their sums of exponentials, as in flash attention: the cost of a tile does not
depend on the length of the text, and the time goes into the two products that attention consists of. The entropy comes
from the scores: H = ln z - Σ p·s, with scores s from which the largest was subtracted and z = Σ exp(s).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .plain_inputs import Plain
from .row_statistics import RowStatistics, Wanted, distances

# The queries and keys of a tile. Measured on a core with a cache of 1 MiB, 12 heads of 64, 4,096 tokens, in
# times of flash attention: 1.39 so; 1.48 with 512 keys, 1.77 with 2,048; 1.61 with 128 queries, 1.81 with 64.
TILE_QUERIES, TILE_KEYS = 256, 1024


@dataclass
class _Part:
    """What is known of some queries from some of the keys: all [batch, head, query], or with a last axis."""

    top: Tensor
    """The largest score."""
    total: Tensor
    """Σ exp(score - top)."""
    means: Tensor
    """[batch, head, query, column]: weighted means over the keys of the values, of columns that are asked for, of the
    scores (less the largest), and of distances."""

    def joined(self, other: _Part, scores: int | None) -> _Part:
        """With other keys; `scores` is the column of the scores, whose means depend on what is subtracted."""
        top = torch.maximum(self.top, other.top)
        parts = []
        for part in (self, other):
            lower = part.top - top
            if scores is not None:
                part.means[..., scores] += lower
            parts.append((part.total * lower.exp(), part.means))
        (mine, my_means), (its, its_means) = parts
        total = mine + its
        return _Part(top, total, my_means * (mine / total)[..., None] + its_means * (its / total)[..., None])


def attend_in_tiles(plain: Plain, wanted: Wanted) -> tuple[Tensor, RowStatistics]:
    """[batch, query, head, width]: the output of plain attention; and the statistics of all rows of its map."""
    batch, heads, queries, _ = plain.query.shape
    keys, width = plain.key.shape[2], plain.value.shape[3]
    plain = plain._replace(query=plain.query * plain.scale, scale=1.0)
    if wanted.columns is not None:
        # A product with more columns costs less than one more product.
        columns = wanted.columns[:, None].to(plain.value).expand(-1, plain.value.shape[1], -1, -1)
        value = torch.cat([plain.value, columns], -1)
        plain = plain._replace(value=value)
    every = plain.value.shape[3]
    output = plain.value.new_empty(batch, queries, heads, width)
    top, total = (plain.query.new_empty(batch, heads, queries) for _ in range(2))
    more = plain.query.new_empty(batch, heads, queries, every - width + wanted.entropy + wanted.distance)
    for start in range(0, queries, TILE_QUERIES):
        rows = slice(start, min(start + TILE_QUERIES, queries))
        part = _attend_rows(plain, rows, wanted)
        output[:, rows] = part.means[..., :width].transpose(1, 2)
        top[:, :, rows], total[:, :, rows], more[:, :, rows] = part.top, part.total, part.means[..., width:]
    columns_end = every - width

    def at(keys: Tensor) -> Tensor:
        return (plain.score_at(keys) - top).exp() / total

    return output, RowStatistics(
        (batch, heads, queries, keys), output.device, at,
        (total.log() - more[..., columns_end]).clamp_min(0) if wanted.entropy else None,
        1 / total if wanted.largest else None,
        more[..., -1] if wanted.distance else None,
        more[..., :columns_end] if wanted.columns is not None else None,
    )  # fmt: skip


def _attend_rows(plain: Plain, rows: slice, wanted: Wanted) -> _Part:
    """Join the tiles of some queries."""
    end = min(rows.stop, plain.key.shape[2]) if plain.causal else plain.key.shape[2]
    scores = plain.value.shape[3] if wanted.entropy else None
    found: _Part | None = None
    for start in range(0, end, TILE_KEYS):
        part = _attend_tile(plain, rows, slice(start, min(start + TILE_KEYS, end)), wanted)
        found = part if found is None else found.joined(part, scores)
    assert found is not None
    return found


def _attend_tile(plain: Plain, rows: slice, keys: slice, wanted: Wanted) -> _Part:
    """Attend with one tile of every head, one after the other: the tile stays in the cache."""
    (batch, heads), many, every = plain.query.shape[:2], rows.stop - rows.start, plain.value.shape[3]
    mask, corner = plain.masked(rows, keys), plain.corner(rows, keys)
    query, key, value = plain.query[:, :, rows], plain.key[:, :, keys].mT, plain.value[:, :, keys]
    top, total = (plain.query.new_empty(batch, heads, many) for _ in range(2))
    means = plain.query.new_empty(batch, heads, many, every + wanted.entropy + wanted.distance)
    scores, weights = (plain.query.new_empty(many, keys.stop - keys.start) for _ in range(2))
    far = _Distances(plain.query, rows, keys) if wanted.distance else None
    for b in range(batch):
        for h in range(heads):
            group = h * key.shape[1] // heads
            torch.mm(query[b, h], key[b, group], out=scores)
            if mask is not None:
                scores += mask[b, h]
            if corner is not None:
                scores[:, -many:] += corner
            scores -= torch.amax(scores, -1, out=top[b, h])[:, None]
            torch.softmax(scores, -1, out=weights)
            # The weight of the largest score is 1 / Σ exp(score - largest).
            torch.amax(weights, -1, out=total[b, h])
            mean = means[b, h]
            torch.mm(weights, value[b, group], out=mean[:, :every])
            if wanted.entropy:
                torch.sum(scores.mul_(weights), -1, out=mean[:, every])
            if far is not None:
                mean[:, -1] = far.mean(weights)
    return _Part(top, total.reciprocal_(), means)


class _Distances:
    """The distances between the queries and the keys of a tile."""

    def __init__(self, like: Tensor, rows: slice, keys: slice) -> None:
        self._later = keys.start >= rows.stop  # all keys come after all queries
        self._each = distances(rows, keys, like) if not self._later and keys.stop > rows.start else None
        # From the first key of the tile: small numbers are exact.
        self._query = torch.arange(rows.start - keys.start, rows.stop - keys.start, device=like.device).to(like.dtype)
        self._key = torch.arange(keys.stop - keys.start, device=like.device).to(like.dtype)

    def mean(self, weights: Tensor) -> Tensor:
        """[query]: the mean distance under the weights `[query, key]`, whose rows sum to 1."""
        if self._each is not None:
            return (weights * self._each).sum(-1)
        position = torch.mv(weights, self._key)
        return position - self._query if self._later else self._query - position
