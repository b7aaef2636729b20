"""Results as frames of pandas, as plain Python values and as one array; and whether two of them hold the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..anatomy.sites import Head
from ..errors import DataError, need
from .axes import FieldAxes, all_axes_of, axes_of, main_field, names_along, shown_name
from .fields import Fields, about_fields


def to_frame(result: Fields, field: str | None) -> Any:
    """A row for each cell of a field, a column for each of its axes, and one for each field with the same axes."""
    pandas = need("pandas", extra="frames")
    declared, kind = all_axes_of(type(result)), type(result)
    held = {name: axes for name, axes in declared.items() if isinstance(getattr(result, name), (Tensor, dict))}
    if field is not None and field not in held:
        raise DataError(f"{kind.__name__} has no field {field!r} with axes: it has {', '.join(held) or 'none'}")
    name = field or next((one for one in (main_field(kind), *held) if one in held), None)
    if name is None:
        return pandas.DataFrame(
            [{f.name: _plain(getattr(result, f.name)) for f in fields(result) if f.name != "labels"}]
        )
    axes, value = declared[name], getattr(result, name)
    if isinstance(value, dict):
        column = shown_name(name)
        parts = [pandas.DataFrame({"stack": stack, **_cells(result, axes, {column: x})}) for stack, x in value.items()]
        if not parts:
            return pandas.DataFrame(columns=["stack", *axes.names, column])
        return pandas.concat(parts, ignore_index=True)
    beside = {name: value}
    if field is None:
        same = [other for other in axes_of(kind) if other in held and declared[other].names == axes.names]
        values = {other: getattr(result, other) for other in same}
        beside |= {other: x for other, x in values.items() if isinstance(x, Tensor) and x.shape == value.shape}
    return pandas.DataFrame(_cells(result, axes, beside))


def frame_of(records: Sequence[Mapping[str, Any]]) -> Any:
    """A pandas frame (extra `frames`) with a row for each record; heads are written by their names."""
    pandas = need("pandas", extra="frames")
    return pandas.DataFrame([
        {name: str(x) if isinstance(x, Head) else x for name, x in record.items()} for record in records
    ])  # fmt: skip


def _cells(result: Fields, axes: FieldAxes, values: dict[str, Tensor]) -> dict[str, Any]:
    """{column: values}: first where each cell is, then what it holds."""
    shape = next(iter(values.values())).shape
    columns: dict[str, Any] = {}
    for axis, places in zip(axes.names, np.indices(shape), strict=True):
        column = f"other_{axis}" if axis in columns else axis
        names = names_along(result, axis)
        where = places.ravel()
        if names is not None and len(names) == shape[axes.names.index(axis)]:
            where = np.asarray(_numbers(names))[where]
        columns[column] = where
    return columns | {name: array(x).ravel() for name, x in values.items()}


def _numbers(names: tuple[Any, ...]) -> list[Any]:
    """Names as numbers where all of them are, such as layers of a model with one stack."""
    if all(isinstance(name, (int, float)) for name in names):
        return list(names)
    told = [str(name) for name in names]
    return [int(name) for name in told] if all(name.isdecimal() for name in told) else told


def array(values: Tensor) -> Any:
    """A numpy array; bfloat16, which numpy does not have, as float32."""
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def to_array(result: Fields, dtype: Any, copy: bool | None) -> Any:
    """The values of the field that a result is about. Raises `DataError` where there is no such field."""
    name, kind = main_field(type(result)), type(result).__name__
    value = getattr(result, name) if name is not None else None
    if isinstance(value, dict):
        if len(value) != 1:
            raise DataError(f"{kind} has several stacks: take .stack(name) first, of {', '.join(map(repr, value))}")
        value = next(iter(value.values()))
    if value is None:
        held = [name for name in axes_of(type(result)) if isinstance(getattr(result, name), Tensor)]
        instead = f"take one of its fields, {', '.join(held)}" if held else "take its fields, or to_dict()"
        raise DataError(f"{kind} is no one array: {instead}")
    found = array(value) if isinstance(value, Tensor) else np.asarray(value)
    if copy is False and dtype is not None and found.dtype != dtype:
        raise ValueError(f"an array of {found.dtype} is copied where {np.dtype(dtype)} is wanted")  # as numpy says it
    return np.array(found, dtype=dtype, copy=True) if copy else found.astype(dtype or found.dtype, copy=False)


def to_dict(result: Fields) -> dict[str, Any]:
    """{field: plain Python values}."""
    return {f.name: _plain(getattr(result, f.name)) for f in fields(result)}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(x) for key, x in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return [_plain(x) for x in value] if isinstance(value, (tuple, list)) else value


def same(a: Fields, b: Fields, *, rtol: float, atol: float) -> bool:
    """Whether two results are of one class and hold the same, within a tolerance; what was measured does not count."""
    shared = {f.name for f in about_fields(a)}
    return type(a) is type(b) and all(
        _close(getattr(a, f.name), getattr(b, f.name), rtol, atol) for f in fields(a) if f.name not in shared
    )


def _close(a: Any, b: Any, rtol: float, atol: float) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape:
            return False
        a, b = a.detach().cpu(), b.detach().cpu()
        return torch.allclose(a.double(), b.double(), rtol=rtol, atol=atol, equal_nan=True)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_close(a[key], b[key], rtol, atol) for key in a)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(_close(x, y, rtol, atol) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, (int, float)):
        return _close(torch.tensor(a, dtype=torch.float64), torch.tensor(float(b), dtype=torch.float64), rtol, atol)
    return bool(a == b)
