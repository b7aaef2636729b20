"""How sure is an accuracy?"""

from __future__ import annotations

import math
from statistics import NormalDist

Interval = tuple[float, float]


def of_share(right: int, total: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share: of `right` in `total`. NaN of nothing.

    >>> [round(end, 3) for end in of_share(8, 10)]
    [0.49, 0.943]
    """
    if total == 0:
        return math.nan, math.nan
    z = _quantile(level)
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def of_gain(only_one: int, only_other: int, total: int, level: float = 0.95) -> Interval:
    """How much more often one is right than the other, on the same items: the interval of Agresti and Min (2005).

    `only_one` and `only_other` count the items on which one of the two is right and the other is not. Wald's interval,
    with half an item added to each cell of the table of both: of few items, that all agree proves little. NaN of
    nothing.

    >>> [round(end, 3) for end in of_gain(30, 10, 100)]
    [0.079, 0.313]
    """
    if total == 0:
        return math.nan, math.nan
    one, other, many = only_one + 0.5, only_other + 0.5, total + 2
    gain = (one - other) / many
    half = _quantile(level) * math.sqrt(((one + other) / many - gain**2) / many)
    return max(-1.0, gain - half), min(1.0, gain + half)


def _quantile(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)
