"""The modules of models that are measured, listed once for each measure.

A measure lists the modules of a model, and nothing takes one out or puts another one in until it is done.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack

from torch import nn

from ..anatomy.modules import Modules, each_module
from ..anatomy.sites import Anatomy

_listed: list[tuple[nn.Module, Modules]] = []
_lock = threading.Lock()


def take_as_listed(model: nn.Module, modules: Modules | None, undo: ExitStack) -> None:
    """Take it that a model has these modules, if they are given, while `undo` is open."""
    if modules is not None:
        held = (model, modules)
        undo.callback(_forget, held)
        with _lock:
            _listed.append(held)


def _forget(held: tuple[nn.Module, Modules]) -> None:
    with _lock:  # what another thread lists or forgets meanwhile would come back, or be lost
        _listed[:] = [other for other in _listed if other is not held]


def modules_of(model: nn.Module) -> Modules:
    """All modules of a model, each once, as they are now."""
    return next((modules for other, modules in reversed(_listed) if other is model), None) or each_module(model)


def is_listed(anatomy: Anatomy) -> bool:
    """Whether the modules of a model are known to be those in which the heads were found."""
    return anatomy.modules is not None and any(modules is anatomy.modules for _, modules in _listed)
