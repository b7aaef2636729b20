"""Slow twins of CAT-probing: Chen et al. (2022), as METHODS.md D1 has it, entry by entry."""

from __future__ import annotations

import math
from collections import Counter

from torch import Tensor


def quantile(values: list[float], q: float) -> float:
    """Between the two values around place q (n - 1), in proportion."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


def pairs_of(leaves: int, valid: Tensor | None) -> list[tuple[int, int]]:
    return [(i, j) for i in range(leaves) for j in range(leaves) if valid is None or valid[i, j]]


def cat_counts(attention: Tensor, distance: Tensor, q: float = 0.25, valid: Tensor | None = None) -> tuple[int, int]:
    """D1.5, of one map [leaf, leaf]: matched and either; 0 of 0 where the map is 0 everywhere."""
    pairs = pairs_of(len(attention), valid)
    if all(attention[i, j] == 0 for i, j in pairs):
        return 0, 0
    high = quantile([attention[i, j].item() for i, j in pairs], 1 - q)
    near = quantile([distance[i, j].item() for i, j in pairs], q)
    matched = either = 0
    for i, j in pairs:
        is_high, is_near = attention[i, j].item() > high, distance[i, j].item() < near
        matched += is_high and is_near
        either += is_high or is_near
    return matched, either


def token_map(attention: Tensor, leaf_of: list[int], causal: bool = False) -> tuple[list[list[float]], list[int]]:
    """D1.2, of one map [token, token]: the mean over the tokens of i and those of j; under `causal`, of seen pairs."""
    kept = sorted({leaf for leaf in leaf_of if leaf >= 0})
    found = []
    for i in kept:
        found.append([])
        for j in kept:
            weights = [
                attention[a, b].item()
                for a, first in enumerate(leaf_of) if first == i
                for b, second in enumerate(leaf_of) if second == j and not (causal and i == j and b > a)
            ]  # fmt: skip
            found[-1].append(sum(weights) / len(weights))
    return found, kept


def type_shares(snippets: list[tuple[Tensor, list[str]]], q: float = 0.25) -> tuple[dict[str, float], set[str]]:
    """D1.4, pooled over snippets of one map each: P of every type, and the types with more pairs than leaves."""
    high, total, leaves = Counter(), Counter(), 0
    for attention, types in snippets:
        if not attention.any():
            continue
        n = len(types)
        leaves += n
        threshold = quantile([x.item() for x in attention.flatten()], 1 - q)
        for i in range(n):
            for j in range(n):
                for kind in (types[i], types[j]):
                    total[kind] += 1
                    high[kind] += attention[i, j].item() > threshold
    return {kind: high[kind] / total[kind] for kind in total}, {kind for kind in total if total[kind] > leaves}


def scores(matched: list[int], either: list[int]) -> tuple[float, float, int]:
    """The mean over snippets of matched / either, and the two summed up; of those that are not 0 of 0."""
    used = [(m, e) for m, e in zip(matched, either, strict=True) if e]
    if not used:
        return math.nan, math.nan, 0
    return sum(m / e for m, e in used) / len(used), sum(m for m, _ in used) / sum(e for _, e in used), len(used)


def offset_means(maps: list[Tensor], valid: list[Tensor | None]) -> dict[int, float]:
    """The mean attention at every signed offset j - i, over snippets of one map each."""
    found: dict[int, list[float]] = {}
    for attention, counts in zip(maps, valid, strict=True):
        for i, j in pairs_of(len(attention), counts):
            found.setdefault(j - i, []).append(attention[i, j].item())
    return {offset: sum(weights) / len(weights) for offset, weights in found.items()}


def relation_sums(attention: Tensor, related: Tensor, valid: Tensor | None = None) -> tuple[float, float, int, int]:
    """Each related pair beside the mean of the unrelated pairs at its offset; pairs, and those without such a pair."""
    total = control = 0.0
    pairs = unmatched = 0
    every = pairs_of(len(attention), valid)
    for i, j in every:
        if not related[i, j]:
            continue
        others = [attention[a, b].item() for a, b in every if b - a == j - i and not related[a, b]]
        if not others:
            unmatched += 1
            continue
        pairs += 1
        total += attention[i, j].item()
        control += sum(others) / len(others)
    return total, control, pairs, unmatched
