"""Which records go into which part?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import groupby

from ...errors import DataError


def parts_of(texts: Sequence[tuple[str, ...]], sizes: Sequence[float], seed: int | None) -> list[list[int]]:
    """The numbers of the records of each part, rising; neighbours with the same words are in one part.

    Raises `DataError` for sizes that leave a part empty.

        >>> parts_of([("a",), ("b",), ("b",), ("c",)], [0.5], None)
        [[0, 1, 2], [3]]
    """
    wanted = [_many(size, len(texts)) for size in sizes]
    groups = [list(group) for _, group in groupby(range(len(texts)), lambda place: texts[place])]
    if seed is not None:
        random.Random(seed).shuffle(groups)
    parts: list[list[int]] = [[] for _ in range(len(sizes) + 1)]
    now = 0
    for group in groups:
        while now < len(wanted) and len(parts[now]) >= wanted[now]:
            now += 1
        parts[now] += group
    if not all(parts):
        raise DataError(
            f"{len(texts)} records cannot be split into {', '.join(map(str, sizes))} and a rest: a part would be "
            "empty: wanted shares below 1, or numbers of records, that leave some (neighbours with the same words stay "
            "together)"
        )
    return [sorted(part) for part in parts]


def _many(size: float, records: int) -> int:
    if isinstance(size, float) and 0 < size < 1:
        return max(1, round(size * records))
    if isinstance(size, int) and not isinstance(size, bool) and size >= 1:
        return size
    raise DataError(f"a part's size must be a share between 0 and 1 or a number of records, got {size!r}")
