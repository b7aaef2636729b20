"""The modules of a model, listed in little time: a small call pays for each walk over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import chain, compress, repeat
from operator import attrgetter, contains, methodcaller, or_
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from .forward_source import children_of, each_children_of, parameters_of, spare_hook_numbers, weights_of


class Modules(list[nn.Module]):
    """The modules of a model when they were listed, with their configs at the time when these are first asked for."""

    form: Form
    """The same object for as long as these are the modules of the model, in the same places and of the same types."""

    def each_once(self) -> Modules:
        """The modules without repetition."""
        if not self.form.repeats:
            return self
        once = Modules(dict.fromkeys(self))
        once.form = self.form
        return once

    @cached_property
    def held(self) -> list[Mapping[str, Any]]:
        """The attributes that each of these modules holds itself, as they are now."""
        return list(map(_attributes, self))

    @cached_property
    def configs(self) -> list[Any]:
        """The configs of these modules, each once."""
        configs: dict[int, Any] = {id(module.config): module.config for module in self.with_config}
        return list(configs.values())

    @cached_property
    def with_config(self) -> list[Any]:
        """Those of the modules that have a config."""
        return self.with_attribute("config")

    def with_attribute(self, name: str) -> list[nn.Module]:
        """Those of the modules that hold an attribute themselves: a wrapper that hands on those of another does not.

        To ask a module for an attribute that it does not have takes torch some microseconds.
        """
        held = list(map(contains, self.held, repeat(name)))
        if any(map(contains, self.form.held_by_classes, repeat(name))):
            kinds = list(compress(self.form.kinds, map(hasattr, self.form.kinds, repeat(name))))
            return list(compress(self, map(or_, held, map(kinds.__contains__, map(type, self)))))
        return list(compress(self, held)) if True in held else []


def each_module(model: nn.Module) -> Modules:
    """All modules of a model, each once, in the order of `model.modules()`."""
    return modules_by_path(model).each_once()


def each_weight(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The parameters and buffers of modules; one that several of them share is there several times."""
    return weights_of(modules.held if isinstance(modules, Modules) else list(map(vars, modules)))


def all_weights(module: nn.Module) -> list[Tensor]:
    """The parameters of a part of a model that has few modules."""
    own = [x for x in parameters_of(module) if x is not None]
    return own + [x for child in children_of(module) for x in all_weights(child)]


def rounding(model: nn.Module) -> float:
    """The relative difference of two numbers that is no more than the rounding of the types of a model's parameters.

    Of half precision it is that of a mean over many examples, in which roundings cancel.
    """
    return min(4 * largest_eps(model), 1e-3)


def largest_eps(model: nn.Module) -> float:
    """`torch.finfo(dtype).eps` of the coarsest type among a model's parameters; that of float32 for one without any."""
    types = {x.dtype for x in each_weight(each_module(model)) if x is not None and x.is_floating_point()}
    return max((torch.finfo(dtype).eps for dtype in types), default=torch.finfo(torch.float32).eps)


def attributes_of(owner: Any) -> Mapping[str, Any]:
    """What an object holds: to ask a config of transformers 5 for one attribute takes it some microseconds."""
    try:
        held: Mapping[str, Any] = object.__getattribute__(owner, "__dict__")
    except AttributeError:
        return {}
    return held


def modules_by_path(model: nn.Module) -> Modules:
    """All modules of a model in the order of their paths, as they are now; one with two paths is there twice."""
    form = _forms.get(model)
    modules = None if form is None else form.modules()
    if modules is None:
        modules = Modules()
        _add_modules(model, modules)
        spare_hook_numbers(modules.held)
        modules.form = _forms[model] = Form(modules)
    return modules


# No function inside of another: one that calls itself is a cycle, which would keep all modules until it is collected.
def _add_modules(module: nn.Module, found: Modules) -> None:
    found.append(module)
    for child in children_of(module):
        _add_modules(child, found)


class Form:
    """How the modules of a model are put together; it holds no module in memory."""

    def __init__(self, modules: Modules) -> None:
        self.types = list(map(type, modules))
        self.kinds = list(dict.fromkeys(self.types))
        # What their classes and the bases of these hold, as it is whenever it is asked for.
        self.held_by_classes = [vars(kind) for kind in dict.fromkeys(chain.from_iterable(map(_bases, self.kinds)))]
        self.repeats = len(set(modules)) < len(modules)
        self._parts = [ref(module) for module in modules]
        held = each_children_of(modules.held)
        self._names = list(chain.from_iterable(map(_keys, held)))
        self._many = list(map(len, held))
        self._numbers = _numbers_of_children(held)

    def modules(self) -> Modules | None:
        """The modules, if they still are in the same places, and have no other children; else None.

        This asks each module for its children, and compares lists, which takes a fraction of the time of a walk.
        """
        modules = Modules([part() for part in self._parts])  # type: ignore[misc]
        modules.form = self
        if list(map(type, modules)) != self.types:  # None is there where a module is gone
            return None
        held = each_children_of(modules.held)
        each = [*modules, None]  # None for a child that was left out
        if list(map(len, held)) != self._many:
            return None
        inner = list(compress(held, self._many))  # those that have children
        same = list(chain.from_iterable(map(_keys, inner))) == self._names and (
            list(chain.from_iterable(map(_values, inner))) == list(map(each.__getitem__, self._numbers))
        )
        return modules if same else None


_bases = attrgetter("__mro__")
_keys, _values = methodcaller("keys"), methodcaller("values")  # those of TorchScript cannot be iterated over
_attributes = attrgetter("__dict__")  # `vars` takes twice as long


def _numbers_of_children(held: list[Mapping[str, nn.Module | None]]) -> list[int]:
    """The place among all modules of each child of each module, in their order; -1 for a child that was left out."""
    sizes = [1] * len(held)
    found: list[list[int]] = [[] for _ in held]
    for number in reversed(range(len(held))):
        after = number + 1
        for child in held[number].values():
            found[number].append(-1 if child is None else after)
            after += 0 if child is None else sizes[after]
        sizes[number] = after - number
    return [one for numbers in found for one in numbers]


_forms: WeakKeyDictionary[nn.Module, Form] = WeakKeyDictionary()
