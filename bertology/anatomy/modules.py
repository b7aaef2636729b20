"""The modules of a model, listed in little time: a small call pays for each walk over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain, compress
from operator import methodcaller
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from .forward_source import children_of, each_children_of, parameters_of, weights_of


def each_module(model: nn.Module) -> list[nn.Module]:
    """All modules of a model, each once, in the order of `model.modules()`."""
    return list(dict.fromkeys(Outline.of(model).modules))


def first_weight(model: nn.Module) -> Tensor | None:
    """The first parameter of a model, the one that `model.parameters()` begins with; None where it has none."""
    for own in parameters_of(model):
        if own is not None:
            return own
    for child in children_of(model).values():
        found = first_weight(child)
        if found is not None:
            return found
    return None


def each_weight(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The parameters and buffers of modules; one that several of them share is there several times."""
    return weights_of(modules)


def all_weights(module: nn.Module) -> list[Tensor]:
    """The parameters of a part of a model that has few modules."""
    own = [x for x in parameters_of(module) if x is not None]
    return own + [x for child in children_of(module).values() for x in all_weights(child)]


def rounding(model: nn.Module) -> float:
    """The relative difference of two numbers that is no more than the rounding of the types of a model's parameters.

    Of half precision it is that of a mean over many examples, in which roundings cancel.
    """
    types = {x.dtype for x in each_weight(each_module(model)) if x is not None and x.is_floating_point()}
    step = max((torch.finfo(dtype).eps for dtype in types), default=torch.finfo(torch.float32).eps)
    return min(4 * step, 1e-3)


def with_attribute(modules: Iterable[nn.Module], name: str) -> list[nn.Module]:
    """Those of the modules that hold an attribute themselves: a wrapper that hands on those of another does not.

    To ask a module for an attribute that it does not have takes torch some microseconds.
    """
    modules = list(modules)
    kinds = {kind for kind in set(map(type, modules)) if hasattr(kind, name)}
    held = zip(modules, map(vars, modules), strict=True)
    if not kinds:
        return [module for module, attributes in held if name in attributes]
    return [module for module, attributes in held if name in attributes or type(module) in kinds]


def configs_of(modules: Iterable[nn.Module]) -> list[Any]:
    """The configs of these modules, each once."""
    configs: dict[int, Any] = {id(module.config): module.config for module in with_attribute(modules, "config")}
    return list(configs.values())


def attributes_of(owner: Any) -> Mapping[str, Any]:
    """What an object holds: to ask a config of transformers 5 for one attribute takes it some microseconds."""
    try:
        held: Mapping[str, Any] = object.__getattribute__(owner, "__dict__")
    except AttributeError:
        return {}
    return held


class Outline(NamedTuple):
    """The modules of a model in the order of their paths, with their types and the names of their children."""

    modules: list[nn.Module]
    types: list[type]
    children: list[tuple[str, ...]]

    @classmethod
    def of(cls, model: nn.Module) -> Outline:
        """The outline of a model as it is now; a module that is known by two names is there twice."""
        kept = _outlines.get(model)
        outline = None if kept is None else kept.now()
        if outline is None:
            outline = cls([], [], [])
            outline._add(model)
            _outlines[model] = KeptOutline(outline)
        return outline

    # No function inside of another: one that calls itself is a cycle, which would keep all modules until it is
    # collected.
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
        held = each_children_of(outline.modules)
        self._names = list(chain.from_iterable(held))
        self._many = list(map(len, held))
        self._numbers = _numbers_of_children(held)

    def fits(self, outline: Outline) -> bool:
        """Whether these are the same modules, in the same places, with the same types."""
        return (
            outline.children == self._children
            and outline.types == self._types
            and outline.modules == [part() for part in self._parts]
        )

    def now(self) -> Outline | None:
        """The outline, if the modules still are in the same places, and have no other children; else None.

        This asks each module for its children, and compares lists, which takes a fraction of the time of a walk.
        """
        modules: list[Any] = [part() for part in self._parts]
        if list(map(type, modules)) != self._types:  # None is there where a module is gone
            return None
        held = each_children_of(modules)
        each = [*modules, None]  # None for a child that was left out
        if list(map(len, held)) != self._many:
            return None
        inner = list(compress(held, self._many))  # those that have children
        same = list(chain.from_iterable(inner)) == self._names and (
            list(chain.from_iterable(map(_values, inner))) == list(map(each.__getitem__, self._numbers))
        )
        return Outline(modules, self._types, self._children) if same else None


_values = methodcaller("values")


def _numbers_of_children(held: list[Mapping[str, nn.Module | None]]) -> list[int]:
    """The place in an outline of each child of each module, in their order; -1 for a child that was left out."""
    sizes = [1] * len(held)
    found: list[list[int]] = [[] for _ in held]
    for number in reversed(range(len(held))):
        after = number + 1
        for child in held[number].values():
            found[number].append(-1 if child is None else after)
            after += 0 if child is None else sizes[after]
        sizes[number] = after - number
    return [one for numbers in found for one in numbers]


_outlines: WeakKeyDictionary[nn.Module, KeptOutline] = WeakKeyDictionary()
