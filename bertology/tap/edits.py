"""Is what edits return of the right shape, and which are open now? Sums in files name the edits of their model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ..anatomy.sites import Anatomy
from ..errors import ShapeError

_open: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()


@contextmanager
def noted(anatomy: Anatomy, edit: Any) -> Iterator[None]:
    """Note an edit while the `with` lasts: values that tell it from others, such as the gates."""
    # A module inside is found from a model and from what wraps it.
    place = anatomy.sites[0].place if anatomy.sites else anatomy.model
    _open.setdefault(place, []).append(edit)
    try:
        yield
    finally:
        _open[place] = [one for one in _open[place] if one is not edit]
        if not _open[place]:
            del _open[place]


def edits_of(model: nn.Module) -> list[Any]:
    """What tells the edits that are open now from others, in the order in which they were opened at each place."""
    return [edit for module in model.modules() for edit in _open.get(module, ())] if len(_open) else []


def same_shape(new: Any, old: Tensor, where: object, what: str = "") -> Tensor:
    """What an edit returned, in the type of what it was given. Raises `ShapeError` for another shape."""
    if not isinstance(new, Tensor) or new.shape != old.shape:
        got = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise ShapeError(
            f"edit must return a tensor of the shape that it was given, {list(old.shape)} ({what}{where}), got {got}"
        )
    return new if new.dtype is old.dtype else new.to(old.dtype)
