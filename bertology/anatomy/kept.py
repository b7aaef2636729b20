"""Whether a model is as it was when something was found out about it.

To find the heads of a model takes about as long as a forward pass of a small one. What was found is kept for as long as
the model lives, and is used again where nothing has changed of what it was found from. Modules are held weakly: what is
kept holds no model, and no module that was taken out of one, in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import fields, replace
from itertools import chain, compress
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from .modules import Modules, attributes_of, modules_by_path
from .names import NAMES, PRUNED_NAME
from .sites import Anatomy, Site, Stack

_PLAIN = frozenset((bool, int, float, str, type(None)))
# What torch keeps in every module, such as its mode, says nothing of its heads.
_OF_TORCH = frozenset(vars(nn.Module()))
Part = TypeVar("Part", Site, Stack)


class Said:
    """What modules and configs say of themselves in numbers and words, and which heads were pruned.

    To compare hundreds of attributes in a loop would take as long as a layer does: lists of them are compared.
    """

    def __init__(self, held: list[Mapping[str, Any]]) -> None:
        """With what each of them holds."""
        self._many = list(map(len, held))
        names = [[name for name in one if name not in _OF_TORCH] for one in held]
        # One name twice: of one alone, no tuple would be returned.
        self._getters = [itemgetter(some[0], *some) if some else _nothing for some in names]
        values = self._values(held)
        self._types = list(map(type, values))
        pruned = [name == PRUNED_NAME for some in names if some for name in (some[0], *some)]
        self._is_said = [one or kind in _PLAIN for one, kind in zip(pruned, self._types, strict=True)]
        self._said = list(map(copy, compress(values, self._is_said)))

    def _values(self, held: list[Mapping[str, Any]]) -> list[Any]:
        return list(chain.from_iterable([getter(one) for getter, one in zip(self._getters, held, strict=True)]))

    def is_said_by(self, held: list[Mapping[str, Any]]) -> bool:
        """Whether those that hold this say the same."""
        if list(map(len, held)) != self._many:
            return False
        try:
            values = self._values(held)
        except KeyError:
            return False
        return list(map(type, values)) == self._types and list(compress(values, self._is_said)) == self._said


def _nothing(held: Mapping[str, Any]) -> tuple[Any, ...]:
    return ()


def settings_of(modules: Modules) -> list[Mapping[str, Any]]:
    """What each config of a model holds."""
    return [one if isinstance(one, Mapping) else attributes_of(one) or {"": one} for one in modules.configs]


class _Kept:
    """What was found, with all that it was found from."""

    def __init__(self, anatomy: Anatomy, modules: Modules) -> None:
        numbers = {module: number for number, module in reversed(list(enumerate(modules)))}
        self._form, self._names = modules.form, list(NAMES)
        parents = {child: module for module in modules for child in module.children()}
        owners = {
            part
            for site in anatomy.sites
            for part in (site.attention, parents.get(site.attention), site.projection, site.record)
            if part is not None
        }
        self._owners = sorted(numbers[owner] for owner in owners)
        self._said = Said(self._held(modules))
        self._sites = [_packed(site, numbers) for site in anatomy.sites]
        self._stacks = [_packed(stack, numbers) for stack in anatomy.stacks]
        self._unmeasured = dict(anatomy.unmeasured)
        self._inside = {
            numbers[runner]: [numbers[part] for part in parts] for runner, parts in anatomy.parts_of_stacks.items()
        }

    def fits(self, modules: Modules) -> bool:
        """Whether a model with these modules is as it was."""
        return self._form is modules.form and self._names == NAMES and self._said.is_said_by(self._held(modules))

    def _held(self, modules: Modules) -> list[Mapping[str, Any]]:
        """What the modules that were asked hold, and all configs."""
        return [*map(modules.held.__getitem__, self._owners), *settings_of(modules)]

    def anatomy(self, model: nn.Module, modules: Modules) -> Anatomy:
        """The anatomy of a model that has these modules."""
        sites = tuple([_unpacked(Site, one, modules) for one in self._sites])
        stacks = tuple([_unpacked(Stack, one, modules) for one in self._stacks])
        anatomy = Anatomy(model, sites, stacks, dict(self._unmeasured), modules.each_once())
        anatomy.__dict__["parts_of_stacks"] = {
            modules[runner]: frozenset(map(modules.__getitem__, parts)) for runner, parts in self._inside.items()
        }
        return anatomy


class _Packed(NamedTuple):
    """The fields of a part of an anatomy: those that hold no module, and the numbers of modules of those that do."""

    plain: dict[str, Any]
    names: tuple[str, ...]
    modules: Callable[[Sequence[nn.Module]], tuple[nn.Module, ...]]
    several: dict[str, tuple[int, ...]]


def _packed(part: Site | Stack, numbers: dict[nn.Module, int]) -> _Packed:
    held = {field.name: getattr(part, field.name) for field in fields(part)}
    modules = {name: numbers[value] for name, value in held.items() if isinstance(value, nn.Module)}
    several = {
        name: tuple(numbers[one] for one in value)
        for name, value in held.items()
        if isinstance(value, tuple) and any(isinstance(one, nn.Module) for one in value)
    }
    plain = {name: value for name, value in held.items() if name not in modules and name not in several}
    # A site holds several modules, and so does a stack: of one number alone, no tuple would be returned.
    return _Packed(plain, tuple(modules), itemgetter(*modules.values()), several)


def _unpacked(kind: type[Part], packed: _Packed, modules: list[nn.Module]) -> Part:
    part = object.__new__(kind)
    held = part.__dict__  # a frozen dataclass sets its fields one by one, which takes most of the time
    held.update(packed.plain)
    held.update(zip(packed.names, packed.modules(modules), strict=True))
    for name, several in packed.several.items():
        held[name] = tuple(map(modules.__getitem__, several))
    return part


_kept: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def kept_anatomy(model: nn.Module, find: Callable[[nn.Module], Anatomy]) -> Anatomy:
    """The anatomy of a model: as it was found before where the model is as it was, else found now."""
    modules, kept = modules_by_path(model), _kept.get(model)
    if kept is not None and kept.fits(modules):
        return kept.anatomy(model, modules)
    anatomy = find(model)
    _kept[model] = _Kept(anatomy, modules)
    return replace(anatomy, modules=modules.each_once())
