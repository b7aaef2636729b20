"""What is public, and what is in the rooms, found by importing everything."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import bertology
import bertology.code_structure
import bertology.edge_probing
import bertology.syntax

SUITES = (bertology, bertology.syntax, bertology.edge_probing, bertology.code_structure)
PACKAGE = Path(bertology.__file__).parent
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def public_functions(modules: Iterable[ModuleType] = SUITES) -> list[tuple[ModuleType, str, Callable[..., Any]]]:
    """[(module, name, function)] of all functions that are exported."""
    exports = [(module, name, getattr(module, name)) for module in modules for name in module.__all__]
    return [export for export in exports if inspect.isfunction(export[2])]


def required(function: Callable[..., Any]) -> set[str]:
    """The parameters without a default."""
    parameters = inspect.signature(function).parameters.values()
    return {one.name for one in parameters if one.default is one.empty}


def takes_a_model(function: Callable[..., Any]) -> bool:
    """Whether a parameter is a model, or makes one."""
    parameters = inspect.signature(function).parameters.values()
    return any(one.name == "model" or "nn.Module" in str(one.annotation) for one in parameters)


def accumulators() -> set[type[bertology.Accumulator]]:
    """All measures over a data set that the package defines."""
    for module in pkgutil.walk_packages(bertology.__path__, "bertology."):
        importlib.import_module(module.name)
    found, to_ask = set(), [bertology.Accumulator]
    while to_ask:
        below = to_ask.pop().__subclasses__()
        found |= set(below)
        to_ask += below
    return {one for one in found if one.__module__.startswith("bertology.") and not inspect.isabstract(one)}
