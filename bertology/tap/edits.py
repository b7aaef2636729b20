"""Which edits of a model are open now: sums that are written to files are of the model with these edits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ..anatomy.sites import Anatomy

_open: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()


@contextmanager
def noted(anatomy: Anatomy, edit: Any) -> Iterator[None]:
    """Note an edit while the `with` lasts: values that tell it from others, such as the gates."""
    # A module inside is found from a model and from what wraps it.
    edits = _open.setdefault(anatomy.sites[0].place if anatomy.sites else anatomy.model, [])
    edits.append(edit)
    try:
        yield
    finally:
        place = next(place for place, one in enumerate(edits) if one is edit)
        del edits[place]


def edits_of(model: nn.Module) -> list[Any]:
    """What tells the edits that are open now from others, in the order in which they were opened at each place."""
    return [edit for module in model.modules() for edit in _open.get(module, ())] if len(_open) else []
