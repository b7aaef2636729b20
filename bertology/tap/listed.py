"""Which models are as they were when their modules were listed.

A measure lists the modules of a model, and nothing takes one out or puts another one in until it is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from ..anatomy.modules import each_module
from ..anatomy.sites import Anatomy

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


def modules_of(anatomy: Anatomy) -> Sequence[nn.Module]:
    """All modules of a model, each once, as they are now."""
    modules = anatomy.modules
    return modules if modules is not None and is_as_listed(anatomy.model, modules) else each_module(anatomy.model)
