"""Sums whose axes have names that come from the data, such as the relations of a treebank, are merged by them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from .accumulator import Accumulator, Names

EXAMPLES = "example"
"""The axis of examples, each of which belongs to one part of the data; two of one name are two examples."""


def merge_by_name(
    accumulator: Accumulator, parts: Sequence[tuple[Names, Mapping[str, Tensor]]], reset: Callable[[], object]
) -> None:
    """Set an accumulator to the sums of several parts of the data, each with its names and its `state`.

    `reset` sets all its sums to 0, along the new names.
    Names that some part does not have count as 0 there. They are sorted, whoever was first; examples follow one another
    in the order of the parts. Raises `DataError` where it is not known which example is which.
    """
    names = {axis: _united(axis, [named[axis] for named, _ in parts]) for axis in parts[0][0]} if parts else {}
    if names:
        accumulator.rename(names)
    reset()
    axes = accumulator.axes()
    for named, state in parts:
        accumulator.merge({name: _spread(x, axes.get(name, ()), named, names) for name, x in state.items()})


def without_names(accumulator: Accumulator) -> Accumulator:
    """A copy that has no names from the data: what it measures beside them."""
    names = accumulator.names()
    if not names:
        return accumulator
    bare = copy.copy(accumulator)
    bare.rename(dict.fromkeys(names, ()))
    return bare


def _united(axis: str, each: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    """All names of an axis, in an order that does not depend on that of the parts, except for examples."""
    lists = list(dict.fromkeys(tuple(names) for names in each))
    if len(lists) == 1:
        return lists[0]
    if axis != EXAMPLES:
        return tuple(sorted(set().union(*lists)))
    every = tuple(name for names in each for name in names)
    twice = next((name for name in every if every.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"an example of the name {twice!r} is in several parts of the data, whose lists of examples differ: pass "
            "the list of all examples to the measure of each part, or give them names of their own"
        )
    return every


def _spread(x: Tensor, axes: Sequence[str], mine: Names, names: Names) -> Tensor:
    """A sum over the names of one part, as a sum over all names."""
    for dim, axis in enumerate(axes):
        if axis in names and tuple(mine[axis]) != names[axis]:
            place = {name: number for number, name in enumerate(names[axis])}
            places = torch.tensor([place[name] for name in mine[axis]], dtype=torch.long, device=x.device)
            whole = x.new_zeros([*x.shape[:dim], len(place), *x.shape[dim + 1 :]])
            x = whole.index_copy_(dim, places, x) if len(places) else whole
    return x
