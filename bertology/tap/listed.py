"""The modules of models that are measured, listed once for each measure.

A measure lists the modules of a model, and nothing takes one out or puts another one in until it is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..anatomy.modules import Modules, each_module
from ..anatomy.sites import Anatomy

_listed: list[tuple[nn.Module, Modules]] = []


@contextmanager
def as_listed(model: nn.Module, modules: Modules | None) -> Iterator[None]:
    """Take it that a model has these modules, if they are given, while the `with` lasts."""
    if modules is None:
        yield
        return
    held = (model, modules)
    _listed.append(held)
    try:
        yield
    finally:
        _listed[:] = [other for other in _listed if other is not held]


def modules_of(model: nn.Module) -> Modules:
    """All modules of a model, each once, as they are now."""
    return next((modules for other, modules in reversed(_listed) if other is model), None) or each_module(model)


def is_listed(anatomy: Anatomy) -> bool:
    """Whether the modules of a model are known to be those in which the heads were found."""
    return anatomy.modules is not None and any(modules is anatomy.modules for _, modules in _listed)
