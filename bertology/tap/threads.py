"""One thread at a time for each model: hooks and modes belong to the model, not to the thread that set them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..anatomy.forward_source import first_weight
from ..errors import BertologyError


@dataclass
class _Owner:
    model: Any  # kept, so that no other object gets its id
    thread: threading.Thread
    uses: int = 0


_owners: dict[int, _Owner] = {}
_lock = threading.Lock()


@contextmanager
def one_thread(model: nn.Module) -> Iterator[None]:
    """`claim` a model for this thread while the `with` lasts."""
    with ExitStack() as undo:
        claim(model, undo)
        yield


def claim(model: nn.Module, undo: ExitStack) -> None:
    """Claim a model for this thread while `undo` is open; it may be claimed several times by one thread.

    A part of a model, or a wrapper around it, counts as the same model if its first weight is the same. Raises
    `BertologyError` if another thread that is still alive has claimed it.
    """
    first = first_weight(model)
    weight, this = model if first is None else first, threading.current_thread()
    with _lock:
        owner = _owners.get(id(weight))
        if owner is None or not (owner.thread is this or owner.thread.is_alive()):
            owner = _owners[id(weight)] = _Owner(weight, this)
        if owner.thread is not this:
            raise BertologyError(
                f"this {type(model).__name__} is measured or edited by another thread ({owner.thread.name}), whose "
                "hooks would see the passes of both: measure one after the other, give each thread its own copy of the "
                "model, or use processes"
            )
        owner.uses += 1
    undo.callback(_release, owner)


def _release(owner: _Owner) -> None:
    """End a claim; a generator may be closed in another thread than the one that claimed the model."""
    with _lock:
        owner.uses -= 1
        if owner.uses == 0 and _owners.get(id(owner.model)) is owner:
            del _owners[id(owner.model)]
