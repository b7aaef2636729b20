"""The modules of a model, listed in little time: a small call pays for each walk over all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple
from weakref import ref

from torch import Tensor, nn

from .forward_source import children_of, weights_of


def each_module(model: nn.Module) -> list[nn.Module]:
    """All modules of a model, each once, in the order of `model.modules()`."""
    found: dict[nn.Module, None] = {}
    _add(model, found)
    return list(found)


# No function inside of another: one that calls itself is a cycle, which would keep all modules until it is collected.
def _add(module: nn.Module, found: dict[nn.Module, None]) -> None:
    if module not in found:
        found[module] = None
        for child in children_of(module).values():
            _add(child, found)


def each_weight(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The parameters and buffers of modules; one that several of them share is there several times."""
    return [x for module in modules for x in weights_of(module)]


def with_attribute(modules: list[nn.Module], name: str) -> list[nn.Module]:
    """Those of the modules that hold an attribute themselves: a wrapper that hands on those of another does not.

    To ask a module for an attribute that it does not have takes torch some microseconds.
    """
    return [module for module in modules if name in vars(module) or hasattr(type(module), name)]


def configs_of(modules: list[nn.Module]) -> list[Any]:
    """The configs of these modules, each once."""
    configs: dict[int, Any] = {id(module.config): module.config for module in with_attribute(modules, "config")}
    return list(configs.values())


class Outline(NamedTuple):
    """The modules of a model in the order of their paths, with their types and the names of their children."""

    modules: list[nn.Module]
    types: list[type]
    children: list[tuple[str, ...]]

    @classmethod
    def of(cls, model: nn.Module) -> Outline:
        """The outline of a model as it is now; a module that is known by two names is there twice."""
        outline = cls([], [], [])
        outline._add(model)
        return outline

    def _add(self, module: nn.Module) -> None:
        named = children_of(module)
        self.modules.append(module)
        self.types.append(type(module))
        self.children.append(tuple(named))
        for child in named.values():
            self._add(child)


class KeptOutline:
    """An outline that holds no module in memory."""

    def __init__(self, outline: Outline) -> None:
        self._parts = [ref(module) for module in outline.modules]
        self._types, self._children = outline.types, outline.children

    def fits(self, outline: Outline) -> bool:
        """Whether these are the same modules, in the same places, with the same types."""
        return (
            outline.children == self._children
            and outline.types == self._types
            and outline.modules == [part() for part in self._parts]
        )
