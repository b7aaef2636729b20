"""Which tests run, and in which order?"""

from __future__ import annotations

from collections.abc import Collection

import pytest

from laws.taps import EVERY


def is_wanted(item: pytest.Item, everything: bool, families: Collection[str] | None) -> bool:
    """Not wanted are tests marked any_transformers, unless everything is, and tests of families other than these."""
    if not everything and item.get_closest_marker("any_transformers"):
        return False
    parameters = item.callspec.id.split("-") if hasattr(item, "callspec") else []
    return families is None or not EVERY.keys() & set(parameters) - set(families)


def slow_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Start each worker's share, a stretch of the list, with its part of the slow tests.

    The tests of a file that is marked one_worker are not parted: they share what takes long to make.
    """
    groups: dict[str, list[pytest.Item]] = {}
    rest = []
    for item in items:
        if item.get_closest_marker("one_worker"):
            groups.setdefault(str(item.path), []).append(item)
        elif item.get_closest_marker("slow"):
            groups[item.nodeid] = [item]
        else:
            rest.append(item)
    shares: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for group in groups.values():
        min(shares, key=len).extend(group)
    size = -(-len(items) // workers)
    for share in shares:
        missing = max(0, size - len(share))
        share += rest[:missing]
        del rest[:missing]
    return [item for share in (*shares, rest) for item in share]
