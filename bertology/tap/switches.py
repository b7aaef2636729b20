"""How does a setting that several taps turn come back to what it was, in whatever order they end?

Taps may be opened and closed by generators and in threads, and one config may belong to several models.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

_lock = threading.Lock()
# {(id of the owner, attribute): (owner, value at first, {who turned it: to what})}
_turned: dict[tuple[int, str], tuple[Any, Any, dict[object, Any]]] = {}


def turn(owner: Any, name: str, value: Any, undo: ExitStack) -> None:
    """Set an attribute while `undo` is open. Of several, the last that is open holds; after all, what was there."""
    key, who = (id(owner), name), object()
    with _lock:
        _turned.setdefault(key, (owner, getattr(owner, name), {}))[2][who] = value
        setattr(owner, name, value)
    undo.callback(_turn_back, key, who)


def _turn_back(key: tuple[int, str], who: object) -> None:
    with _lock:
        owner, before, values = _turned[key]
        del values[who]
        if not values:
            del _turned[key]
        setattr(owner, key[1], next(reversed(values.values()), before))
