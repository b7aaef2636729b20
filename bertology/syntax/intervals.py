"""How sure is an accuracy?"""

from __future__ import annotations

import math
from statistics import NormalDist

Interval = tuple[float, float]


def of_share(right: int, total: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share: of `right` in `total`. NaN of nothing.

    >>> of_share(8, 10)
    (0.49..., 0.94...)
    """
    if total == 0:
        return math.nan, math.nan
    z = _quantile(level)
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def of_gain(only_one: int, only_other: int, total: int, level: float = 0.95) -> Interval:
    """Wald's interval of how much more often one is right than the other, on the same items. NaN of nothing.

    `only_one` and `only_other` count the items on which one of the two is right and the other is not.

    >>> of_gain(30, 10, 100)
    (0.08..., 0.31...)
    """
    if total == 0:
        return math.nan, math.nan
    gain = (only_one - only_other) / total
    half = _quantile(level) * math.sqrt(max(0.0, (only_one + only_other) / total - gain**2) / total)
    return gain - half, gain + half


def _quantile(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)
