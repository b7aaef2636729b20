"""Whether a model is as it was when something was found out about it.

To find the heads of a model takes about as long as a forward pass of a small one. What was found is kept for as long as
the model lives, and is used again where nothing has changed of what it was found from. Modules are held weakly: what is
kept holds no model, and no module that was taken out of one, in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import fields, replace
from itertools import chain, compress
from operator import methodcaller
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from .modules import KeptOutline, Outline, attributes_of, configs_of
from .names import NAMES, PRUNED_NAME
from .sites import Anatomy, Site, Stack

_PLAIN = frozenset((bool, int, float, str, type(None)))
# Which mode a module is in says nothing of its heads.
_MODE = "training"
Part = TypeVar("Part", Site, Stack)


class Said:
    """What modules and configs say of themselves in numbers and words, and which heads were pruned.

    To compare a thousand attributes in a loop would take as long as some layers do: lists of them are compared.
    """

    def __init__(self, owners: Iterable[Any]) -> None:
        held = list(map(_held_by, owners))
        self._names = list(chain.from_iterable(held))
        self._many = list(map(len, held))
        values = list(chain.from_iterable(map(_values, held)))
        self._types = list(map(type, values))
        numbered = zip(self._names, self._types, strict=True)
        self._is_said = [kind in _PLAIN and name != _MODE for name, kind in numbered]
        self._said = list(compress(values, self._is_said))
        self._pruned = list(map(copy, map(_pruned, held)))

    def is_said_by(self, owners: Iterable[Any]) -> bool:
        """Whether these say the same."""
        held = list(map(_held_by, owners))
        values = list(chain.from_iterable(map(_values, held)))
        return (
            list(map(len, held)) == self._many
            and list(map(type, values)) == self._types
            and list(compress(values, self._is_said)) == self._said
            and list(chain.from_iterable(held)) == self._names
            and list(map(_pruned, held)) == self._pruned
        )


_values, _pruned = methodcaller("values"), methodcaller("get", PRUNED_NAME)


def _held_by(owner: Any) -> Mapping[str, Any]:
    if isinstance(owner, nn.Module):
        return vars(owner)
    return owner if isinstance(owner, Mapping) else attributes_of(owner) or {"": owner}


class _Kept:
    """What was found, with all that it was found from."""

    def __init__(self, anatomy: Anatomy, outline: Outline) -> None:
        numbers = {module: number for number, module in reversed(list(enumerate(outline.modules)))}
        self._outline, self._names = KeptOutline(outline), list(NAMES)
        parents = {child: module for module in outline.modules for child in module.children()}
        owners = {
            part
            for site in anatomy.sites
            for part in (site.attention, parents.get(site.attention), site.projection, site.record)
            if part is not None
        }
        self._owners = sorted(numbers[owner] for owner in owners)
        self._said = Said(self._speakers(outline))
        self._sites = [_packed(site, numbers) for site in anatomy.sites]
        self._stacks = [_packed(stack, numbers) for stack in anatomy.stacks]
        self._unmeasured = dict(anatomy.unmeasured)

    def fits(self, outline: Outline) -> bool:
        """Whether a model with this outline is as it was."""
        return self._outline.fits(outline) and self._names == NAMES and self._said.is_said_by(self._speakers(outline))

    def _speakers(self, outline: Outline) -> list[Any]:
        """The modules that were asked, and all configs."""
        return [*map(outline.modules.__getitem__, self._owners), *configs_of(outline.modules)]

    def anatomy(self, model: nn.Module, modules: list[nn.Module]) -> Anatomy:
        """The anatomy of a model that has these modules."""
        sites = tuple(_unpacked(Site, one, modules) for one in self._sites)
        stacks = tuple(_unpacked(Stack, one, modules) for one in self._stacks)
        return Anatomy(model, sites, stacks, dict(self._unmeasured), list(dict.fromkeys(modules)))


class _Packed(NamedTuple):
    """The fields of a part of an anatomy: those that hold no module, and the numbers of modules of those that do."""

    plain: dict[str, Any]
    modules: dict[str, int]
    several: dict[str, tuple[int, ...]]


def _packed(part: Site | Stack, numbers: dict[nn.Module, int]) -> _Packed:
    packed = _Packed({}, {}, {})
    for name in (field.name for field in fields(part)):
        value = getattr(part, name)
        if isinstance(value, nn.Module):
            packed.modules[name] = numbers[value]
        elif isinstance(value, tuple) and any(isinstance(one, nn.Module) for one in value):
            packed.several[name] = tuple(numbers[one] for one in value)
        else:
            packed.plain[name] = value
    return packed


def _unpacked(kind: type[Part], packed: _Packed, modules: list[nn.Module]) -> Part:
    several = {name: tuple(modules[one] for one in numbers) for name, numbers in packed.several.items()}
    part = object.__new__(kind)  # a frozen dataclass sets its fields one by one, which takes most of the time
    part.__dict__.update(packed.plain)
    part.__dict__.update({name: modules[number] for name, number in packed.modules.items()})
    part.__dict__.update(several)
    return part


_kept: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def kept_anatomy(model: nn.Module, find: Callable[[nn.Module], Anatomy]) -> Anatomy:
    """The anatomy of a model: as it was found before where the model is as it was, else found now."""
    outline, kept = Outline.of(model), _kept.get(model)
    if kept is not None and kept.fits(outline):
        return kept.anatomy(model, outline.modules)
    anatomy = find(model)
    _kept[model] = _Kept(anatomy, outline)
    return replace(anatomy, modules=list(dict.fromkeys(outline.modules)))
