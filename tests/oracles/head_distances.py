"""Slow twins of the distances between heads of Clark et al. (2019), §6: in loops, and as their notebook does it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def jensen_shannon(p: Sequence[float], q: Sequence[float]) -> float:
    """JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2, in nats, 0 ln 0 = 0."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        # a / m, for any a, however small: half of the smallest number there is would be 0.
        total += a / 2 * math.log(2 * a / (a + b)) if a > 0 else 0.0
        total += b / 2 * math.log(2 * b / (a + b)) if b > 0 else 0.0
    return total


def head_distances(maps: Tensor, mask: Tensor, smoothing: float = 0.0) -> Tensor:
    """[head, head]: the sum over real queries of JS, from maps [layer, batch, head, query, key] of self attention."""
    layers, batch, heads, queries, keys = maps.shape
    names = [(layer, head) for layer in range(layers) for head in range(heads)]
    out = torch.zeros(len(names), len(names), dtype=torch.float64)
    for example in range(batch):
        real = [k for k in range(keys) if mask[example, k]]

        def row(layer, head, query, example=example, real=real):
            found = [maps[layer, example, head, query, key].item() for key in real]
            return [(1 - smoothing) * p + smoothing / len(real) for p in found]

        for query in range(queries):
            if not mask[example, query]:
                continue
            rows = [row(layer, head, query) for layer, head in names]
            for i, p in enumerate(rows):
                for j, q in enumerate(rows):
                    if i != j:
                        out[i, j] += jensen_shannon(p, q)
    return out


def by_pairs(texts: Sequence[np.ndarray], smoothing: float = 0.001) -> np.ndarray:
    """[head, head]: the sum over all texts [head, query, key], each head against all, with two logarithms a weight."""
    heads = len(texts[0])
    out = np.zeros((heads, heads))
    for maps in texts:
        keys = maps.shape[2]
        for head in range(heads):
            p = (1 - smoothing) * maps[head : head + 1] + smoothing / keys
            q = (1 - smoothing) * maps + smoothing / keys
            m = (p + q) / 2
            out[head] += ((-p * np.log(m / p) - q * np.log(m / q)) / 2).sum((1, 2))
    return out
