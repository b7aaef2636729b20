"""Which models are as they were when their modules were listed.

A measure lists the modules of a model, and nothing takes one out or puts another one in until it is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

_listed: list[tuple[nn.Module, Sequence[nn.Module]]] = []


@contextmanager
def as_listed(model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Take it that a model has these modules while the `with` lasts."""
    held = (model, modules)
    _listed.append(held)
    try:
        yield
    finally:
        _listed.remove(held)


def is_as_listed(model: nn.Module, modules: Sequence[nn.Module]) -> bool:
    """Whether a measure that runs has listed these modules of a model."""
    return any(held[0] is model and held[1] is modules for held in _listed)
