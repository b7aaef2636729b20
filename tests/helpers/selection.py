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
    """Start each worker's share, a stretch of the list, with its part of the slow tests."""
    ordered = sorted(items, key=lambda item: item.get_closest_marker("slow") is None)
    return [item for worker in range(workers) for item in ordered[worker::workers]]
