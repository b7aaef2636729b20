"""The values of single heads in a result, and the heads with the highest and lowest values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..anatomy.sites import Head, HeadScore, each_head, head_at
from ..errors import DataError, HeadError, is_whole
from .axes import FieldAxes, all_axes_of, main_field, shown_name
from .fields import Fields


def values_of_heads(result: Fields, field: str | None) -> Tensor:
    """[layer, head]: a field with these axes, by default the one that the result is about.

    Raises `DataError` where there is none, which names those that there are.
    """
    declared = all_axes_of(type(result))
    pairs = [name for name, axes in declared.items() if axes.names == ("layer", "head")]
    name = field if field is not None else main_field(type(result))
    if name in pairs:
        values: Tensor = getattr(result, name)
        return values
    kind = type(result).__name__
    if field is not None:
        raise DataError(f"{kind} has no [layer, head] field {field!r}: it has {', '.join(pairs) or 'none'}")
    if pairs:
        raise DataError(f"{kind} has no one value for a head: name a field, one of {', '.join(pairs)}")
    if name in declared:
        about = _larger_field(name, declared[name])
    else:
        there = ", ".join(f"{other} {axes}" for other, axes in declared.items())
        about = f"it has {there or 'no values with axes'}"
    instead = f"; {result.instead_of_top}" if result.instead_of_top else ""
    raise DataError(f"{kind} has no [layer, head] field: {about}{instead}")


def _larger_field(name: str | None, axes: FieldAxes) -> str:
    """Which field there is, and how to take what belongs to one head from it."""
    shown = None if name is None else shown_name(name)
    if not {"layer", "head"} <= set(axes.names):
        return f"its {shown} is {axes}"
    one = ", ".join("0" if axis in ("layer", "head") else ":" for axis in axes.names)
    return f"its {shown} is {axes}, and {shown}[{one}] is that of head 0 of layer 0"


def value_of(result: Fields, head: Any) -> float:
    """The value of one head, given as a `Head`, a (layer, head) pair or a name such as "L5H3"; NaN if it was pruned.

    Raises `HeadError` for what is no head, and for a head that the result does not have.
    """
    values = values_of_heads(result, None)
    if is_whole(head):
        name = main_field(type(result))
        raise HeadError(f"one head is [layer, head], got [{head}]: all heads of a layer are .{name}[{head}]")
    row, number = place_of(result, head, values.shape[1])
    return values[row, number].item()


def place_of(result: Fields, head: Any, width: int) -> tuple[int, int]:
    """The row and the column of a head in a `[layer, head]` field of this width."""
    (one,) = each_head([head])
    row, number = (_row(result, one), one.head) if isinstance(one, Head) else one
    if not 0 <= row < len(result.labels):
        raise HeadError(f"layer {row} is out of range: this result has the layers {', '.join(result.labels)}")
    if not 0 <= number < width:
        raise HeadError(f"head {number} is out of range: the layers of this result have the heads 0 to {width - 1}")
    return row, number


def _row(result: Fields, head: Head) -> int:
    labels, own = result.labels, getattr(result.labels, "stack", "")
    named = [label.rpartition(".") for label in labels]
    rows = [
        row
        for row, (stack, _, layer) in enumerate(named)
        if layer == str(head.layer) and head.stack in ("", stack or own)
    ]
    if len(rows) != 1:
        what = "in several stacks; say which" if rows else "not in this result"
        raise HeadError(f"head {head} is {what}: its layers are {', '.join(labels)}")
    return rows[0]


def ranked(result: Fields, n: int, field: str | None, *, descending: bool) -> list[HeadScore]:
    """The heads with the highest or the lowest values, with those; heads of equal value in the order of the layers."""
    if not is_whole(n) or n < 1:
        raise DataError(f"n is how many heads are wanted, a whole number of 1 or more, got {n!r}")
    values = values_of_heads(result, field)
    flat = values.detach().cpu().flatten()
    there = (~flat.isnan()).nonzero().flatten() if flat.is_floating_point() else torch.arange(len(flat))
    order = there[flat[there].argsort(descending=descending, stable=True)]
    return [
        HeadScore(head_at(result.labels, *divmod(place, values.shape[1])), flat[place].item())
        for place in order[: int(n)].tolist()
    ]
