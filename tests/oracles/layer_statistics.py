"""Slow twins of the statistics over layers, in loops written from the equations; layers are lists, layer 0 first.

Tenney et al. (2019), §3 and §4.1, and the online code of Voita and Titov (2020).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence


def differential(f1: Sequence[float]) -> list[float]:
    """Eq 3: Δ of layers 1 to L, the score of the probe up to a layer less that of the one below."""
    found = []
    for layer in range(1, len(f1)):
        found.append(f1[layer] - f1[layer - 1])
    return found


def expected_layer(f1: Sequence[float]) -> float:
    """Eq 4: Σ ℓ Δ_ℓ / Σ Δ_ℓ, ℓ from 1, Δ as it is."""
    above = below = 0.0
    for layer, added in enumerate(differential(f1), 1):
        above += layer * added
        below += added
    return above / below


def expected_layer_by_parts(f1: Sequence[float]) -> float:
    """METHODS A1, Abel's sum: (L F_L - Σ_{ℓ<L} F_ℓ) / (F_L - F_0)."""
    last = len(f1) - 1
    total = last * f1[last]
    for layer in range(last):
        total -= f1[layer]
    return total / (f1[last] - f1[0])


def centre_of_gravity(mix: Sequence[float]) -> float:
    """Eq 2: Σ ℓ s_ℓ, ℓ from 0."""
    total = 0.0
    for layer, weight in enumerate(mix):
        total += layer * weight
    return total


def kl_from_uniform(shares: Sequence[float]) -> float:
    """§3, K(★) = KL(★ ‖ Uniform) in bits; 0 log 0 = 0."""
    total = 0.0
    for share in shares:
        if share > 0:
            total += share * math.log2(share / (1 / len(shares)))
    return total


def kl_of_differential(f1: Sequence[float]) -> float:
    """K(Δ): negative Δ count as 0, and the rest is made to sum to 1."""
    clipped = [max(added, 0.0) for added in differential(f1)]
    return kl_from_uniform([added / sum(clipped) for added in clipped])


def mean_top(p: Sequence[Sequence[float]]) -> float:
    """§4.1: the mean over layers of P^(ℓ)(label | s1, s2), of the label where it is highest; p is [layer][label]."""
    means = []
    for label in range(len(p[0])):
        total = 0.0
        for layer in range(len(p)):
            total += p[layer][label]
        means.append(total / len(p))
    return max(means)


def flips(p: Sequence[Sequence[float]]) -> int:
    """How many layers have another top label than the one below; p is [layer][label]."""
    count = 0
    for below, above in itertools.pairwise(p):
        if max(range(len(below)), key=below.__getitem__) != max(range(len(above)), key=above.__getitem__):
            count += 1
    return count


def movement(p: Sequence[Sequence[float]]) -> float:
    """Half of all that probabilities change from layer to layer; p is [layer][label]."""
    total = 0.0
    for below, above in itertools.pairwise(p):
        for one, other in zip(below, above, strict=True):
            total += abs(other - one) / 2
    return total


def online_code(
    examples: Sequence[int], ends: Sequence[int], uniform: Callable[[int], float], probability: Callable[..., float]
) -> float:
    """Bits of the uniform code of the first block, and -log₂ p(y | x) of each later example, by a model of those
    before its block: `probability(seen, example)`."""
    total = 0.0
    for example in examples[: ends[0]]:
        total += uniform(example)
    for start, end in itertools.pairwise(ends):
        seen = list(examples[:start])
        for example in examples[start:end]:
            total -= math.log2(probability(seen, example))
    return total
