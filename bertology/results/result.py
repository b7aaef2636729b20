"""The base class of all results: saving, loading, printing, and the registry of pictures.

Every measure returns a frozen dataclass with this mixin: it prints itself, saves itself to one safetensors file
(tensors as tensors, the rest as JSON in the header; no pickle), and knows the labels of its layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..anatomy.sites import LayerLabels
from ..errors import DataError, checked
from .axes import FieldAxes, axes_of
from .files import check_fields, damaged, read_file, write_file

Self = TypeVar("Self", bound="Result")
F = TypeVar("F", bound=Callable[..., Any])


_SUITES = "bertology.syntax, bertology.edge_probing or bertology.code_structure"
_pictures: dict[type, Callable[..., Any]] = {}


def draws(kind: type) -> Callable[[F], F]:
    """Register a function as the picture of a class of results."""

    def register(picture: F) -> F:
        _pictures[kind] = picture
        return picture

    return register


def _options(picture: Callable[..., Any]) -> set[str]:
    """The options of a picture; its first argument is the result."""
    return set(list(inspect.signature(picture).parameters)[1:])


class Result:
    """Mixin of all results: `save`, `load`, `stack`, `plot`, printing.

    A field declares its axes in its annotation, `Annotated[Tensor, axes("layer head")]`; `stack`, printing and pictures
    read them.
    """

    _kinds: ClassVar[dict[str, type[Result]]] = {}
    labels: tuple[str, ...]
    instead_of_plot: ClassVar[str] = "print it, or draw its fields with matplotlib"
    """What to call where a result has no picture."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Result._kinds[cls.__name__] = cls

    @checked
    def save(self, path: str | Path) -> None:
        """Write the result to one safetensors file. Raises `DataError` for a path that cannot be a file."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        if self.labels == () and any(f.name == "labels" and f.default == () for f in fields(self)):  # type: ignore[arg-type]
            del values["labels"]  # captures of earlier versions have none
        write_file(path, type(self).__name__, values, getattr(self.labels, "stack", ""))

    @classmethod
    @checked
    def load(cls: type[Self], path: str | Path) -> Self:
        """Read a result that `save` wrote; `Result.load` reads any kind.

        Raises `DataError` when there is no such file, when it holds something else, and when it is damaged.
        """
        about, values = read_file(path)
        kind = Result._kinds.get(about.get("result", ""))
        if kind is None or not issubclass(kind, cls):
            found = about.get("result", "no result of this library")
            unknown = kind is None and "result" in about
            hint = f": if it is one of {_SUITES}, import that first" if unknown else ""
            raise DataError(f"wanted a {cls.__name__} in {path}, found {found}{hint}")
        if "stack" in about and isinstance(values.get("labels"), tuple):
            values["labels"] = LayerLabels(values["labels"], about["stack"])
        try:
            values = kind._of_this_version(values)
            check_fields(kind, values)
            return kind(**values)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise damaged(path, str(error)) from error

    @classmethod
    def _of_this_version(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The fields in a file; a class whose fields have changed translates those of files of earlier versions."""
        return values

    @checked
    def stack(self: Self, name: str) -> Self:
        """Only the layers of one stack, "encoder", "decoder" or "cross"; the whole if the model has this one alone."""
        rows = [row for row, label in enumerate(self.labels) if label.rpartition(".")[0] == name]
        stacks = sorted({label.rpartition(".")[0] for label in self.labels} - {""})
        own = getattr(self.labels, "stack", None)
        if own is not None and own == name:
            return self
        if not rows:
            only = "it is of one stack, take it as it is" if own is None else f"it has {own}"
            raise DataError(f"no stack {name!r} in this result: {'it has ' + ', '.join(stacks) if stacks else only}")
        cut: dict[str, Any] = {"labels": tuple(self.labels[row] for row in rows)}
        for field, axes in axes_of(type(self)).items():
            if "layer" in axes.names:
                cut[field] = _taken(getattr(self, field), axes.names.index("layer"), rows)
        return replace(self, **cut)  # type: ignore[type-var]

    @checked
    def plot(self, *, field: str | None = None, **options: Any) -> Any:
        """Draw the result (extra `plot`): the picture that its class has registered with `draws`.

        `field` names a `[layer, head]` field, of which a heat map is drawn instead. The other options are those of the
        registered picture; each of them takes `path`, the file to which the picture is also written.
        """
        if field is not None:
            picture, options = _pictures[Result], {"field": field, **options}
        else:
            picture = next(_pictures[kind] for kind in type(self).__mro__ if kind in _pictures)
        for name in options.keys() - _options(picture):
            kinds = sorted(kind.__name__ for kind, other in _pictures.items() if name in _options(other))
            raise DataError(
                f"{name}={options[name]!r} is for {', '.join(kinds) or 'no result'}, got {type(self).__name__}"
            )
        return picture(self, **options)

    def __str__(self) -> str:
        lines, declared = [type(self).__name__], axes_of(type(self))
        heads = any(axes.names == ("layer", "head") for axes in declared.values())
        for f in _shown(self):
            value = getattr(self, f.name)
            axes = declared.get(f.name, FieldAxes(()))
            if isinstance(value, dict):
                lines.append(f"{f.name}: {_shapes(value)}")
            elif axes.names[:1] == ("layer",) and len(axes.names) == 2:
                lines += [f"{f.name} {axes}:", _table(value, self.labels, names_on(self, axes.names[1]))]
            elif isinstance(value, Tensor):
                lines.append(f"{f.name}: {list(value.shape)} {str(value.dtype).removeprefix('torch.')}")
                if axes.names[:2] == ("layer", "head") and axes.names[2:] == ("class",) and not heads:
                    for place, name in enumerate(names_on(self, "class") or ()):
                        lines += [f"{f.name} of {name} [layer, head]:", _table(value[..., place], self.labels)]
            elif f.name != "labels" and value is not None:
                lines.append(f"{f.name}: {value}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        shown = []
        for f in _shown(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                shown.append(f"{f.name}={list(value.shape)}")
            elif isinstance(value, dict):
                shown.append(f"{f.name}={_shapes(value)}")
            elif f.name != "labels" and value is not None:
                shown.append(f"{f.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _shown(result: Result) -> list[Field[Any]]:
    """The fields in the order of the text: those that a class shares with others are keyword-only, and come last."""
    return sorted(fields(result), key=lambda f: f.kw_only)  # type: ignore[arg-type, return-value]


def _shapes(tensors: dict[str, Tensor]) -> str:
    return "{" + ", ".join(f"{name}: {list(x.shape)}" for name, x in tensors.items()) + "}"


def _taken(values: Any, axis: int, rows: list[int]) -> Any:
    """Some rows along an axis of a tensor, of the tensors of a dictionary, or of tuples in tuples."""
    if isinstance(values, dict):
        return {name: _taken(x, axis, rows) for name, x in values.items()}
    if isinstance(values, Tensor):
        return values.index_select(axis, torch.tensor(rows, device=values.device))
    return tuple(_taken(part, axis - 1, rows) for part in values) if axis else tuple(values[row] for row in rows)


def names_on(result: Result, axis: str) -> tuple[str, ...] | None:
    """The names along an axis, which a field of the result holds; None if they are only numbered."""
    for name, declared in axes_of(type(result)).items():
        value = getattr(result, name)
        if declared.names == (axis,) and isinstance(value, tuple):
            return value
    return None


def _table(values: Tensor, labels: tuple[str, ...], names: tuple[str, ...] | None = None) -> str:
    """A row for each layer of `values [layer, ...]`, a column for each position on the other axis."""
    rows = [["", *(names or map(str, range(values.shape[1])))]]
    for label, row in zip(labels, values.tolist(), strict=True):
        rows.append([label, *("" if v != v else f"{v:.4g}" for v in row)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


def finite(values: Tensor, there: Tensor, what: str) -> Tensor:
    """[layer, head]: the values, NaN where no head is. Raises `DataError` where a head's value is not finite."""
    broken = (there & ~values.isfinite()).nonzero().tolist()
    if broken:
        row, head = broken[0]
        raise DataError(
            f"{what} is {values[row, head].item()} for {len(broken)} heads, the first at layer {row}, head {head}: "
            "look for NaN or overflow in the model's weights and outputs"
        )
    return values.masked_fill(~there, float("nan"))


def cpu64(x: Tensor) -> Tensor:
    """A float64 copy on the CPU: what results over a data set hold."""
    return x.detach().to("cpu").to(torch.float64)
