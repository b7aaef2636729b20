"""The base class of all results: saving, loading, printing, and the registry of pictures.

Every measure returns a frozen dataclass with this mixin: it prints itself, saves itself to one safetensors file
(tensors as tensors, the rest as JSON in the header; no pickle), knows the labels of its layers, and becomes a pandas
frame, a numpy array or plain Python values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, TypeVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..anatomy.sites import Head, HeadScore, LayerLabels
from ..errors import DataError, all_finite, checked, how_many, shown
from . import frames, heads, views
from .axes import axes_of
from .canvas import AxesT
from .fields import Fields, about_fields
from .files import check_fields, damaged, read_file, write_file

if TYPE_CHECKING:
    from pandas import DataFrame

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


def _options(picture: Callable[..., Any]) -> list[str]:
    """The options of a picture; its first argument is the result."""
    return list(inspect.signature(picture).parameters)[1:]


class PlotOptions(TypedDict, total=False):
    """The options of `Result.plot`. Each result takes those of its own picture."""

    path: str | Path | None
    average: Literal["macro", "micro"]
    example: int
    head: Any
    kind: Literal["all", "pronoun", "proper", "nominal"]
    layer: int | None
    layout: Literal["columns", "arcs"]
    name: str
    relation: str | None
    stack: str | None
    threshold: float
    title: str | None
    words: bool


class Result(Fields):
    """Mixin of all results: `save`, `load`, `stack`, `plot`, `to_frame`, `to_dict`, `top`, printing.

    A field declares its axes in its annotation, `Annotated[Tensor, axes("layer head")]`; `stack`, printing, frames and
    pictures read them. Two results are equal (`==`) if they are of one class and hold the same values, where NaN equals
    NaN; `allclose` compares them within a tolerance. `numpy.asarray` gives the values of the field that a result is
    about, and `result["L5H3"]` the value of one head.
    """

    _kinds: ClassVar[dict[str, type[Result]]] = {}
    instead_of_plot: ClassVar[str] = "print it, or draw its fields with matplotlib"
    """What to call where a result has no picture."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Result._kinds[cls.__name__] = cls

    @checked
    def save(self, path: str | Path) -> None:
        """Write the result to one safetensors file.

        Raises `DataError` for a path that cannot be a file, and for a name that ends as a file of another format does,
        such as `.csv`: `to_frame().to_csv(path)` writes a table.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.labels == () and any(f.name == "labels" and f.default == () for f in fields(self)):
            del values["labels"]  # captures of earlier versions have none
        for f in about_fields(self):
            counted = f.name == "n_examples" and values[f.name] == values.get("examples")
            if values[f.name] == f.default or counted:
                del values[f.name]  # as in files of earlier versions
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
        return replace(self, **cut)

    @checked
    def plot(self, *, field: str | None = None, ax: AxesT | None = None, **options: Unpack[PlotOptions]) -> AxesT:
        """Draw the result (extra `plot`): the picture that its class has registered with `draws`.

        `field` names a `[layer, head]` field, of which a heat map is drawn instead. `ax` are matplotlib axes to draw
        in, or a list of them for a picture of several panels. The other options are those of the registered picture;
        each of them takes `path`, the file to which the picture is also written.

        Returns a matplotlib figure, which notebooks show where it is the value of a cell; or the axes that were given.
        """
        given: dict[str, Any] = {**options, **({} if ax is None else {"ax": ax})}
        if field is not None:
            picture, given = _pictures[Result], {"field": field, **given}
        else:
            picture = next(_pictures[kind] for kind in type(self).__mro__ if kind in _pictures)
        for name in given:
            if name not in _options(picture):
                raise _no_option(type(self), name, given[name], _options(picture))
        return picture(self, **given)

    @checked
    def to_frame(self, field: str | None = None) -> DataFrame:
        """A pandas frame in long form (extra `frames`): a row for each cell, a column for each axis.

        Without `field` it holds the field that the result is about, and those with the same axes. Pruned heads are NaN.
        Raises `DataError` for a field that is not there.
        """
        return frames.to_frame(self, field)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values: tensors as nested lists."""
        return frames.to_dict(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return frames.to_array(self, dtype, copy)

    @checked
    def allclose(self, other: Result, *, rtol: float = 1e-5, atol: float = 1e-8) -> bool:
        """Whether another result is of the same class and holds the same values within a tolerance; NaN equals NaN.

        Which model was measured, and on how many examples, does not count.
        """
        return frames.same(self, other, rtol=rtol, atol=atol)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Result):
            return NotImplemented
        return frames.same(self, other, rtol=0, atol=0) and all(
            getattr(self, f.name) == getattr(other, f.name) for f in about_fields(self)
        )

    def __hash__(self) -> int:
        return hash((type(self).__name__, tuple(self.labels)))  # equal results have equal labels

    def __getitem__(self, head: str | Head | tuple[int, int]) -> float:
        return heads.value_of(self, head)

    @checked
    def top(self, n: int = 5, *, field: str | None = None) -> list[HeadScore]:
        """The `n` heads with the highest values, highest first, each with its value.

        By default of the `[layer, head]` field that the result is about. Pruned heads are never among them.
        """
        return heads.ranked(self, n, field, descending=True)

    @checked
    def bottom(self, n: int = 5, *, field: str | None = None) -> list[HeadScore]:
        """The `n` heads with the lowest values, lowest first, each with its value: `prune_heads` takes them."""
        return heads.ranked(self, n, field, descending=False)

    def __str__(self) -> str:
        return views.as_text(self)

    def __repr__(self) -> str:
        return views.as_repr(self)

    def _repr_html_(self) -> str:
        return views.as_html(self)


_OWN_AXES = "draw in axes of a figure of your own, plot(ax=axes)"
_MATPLOTLIB = {
    "title": "set it on the figure, plot().axes[0].set_title(...)",
    "cmap": "set it on the figure, plot().axes[0].images[0].set_cmap(...)",
    **dict.fromkeys(("figsize", "size", "dpi", "figure", "fig"), _OWN_AXES),
}
"""What to call for options of matplotlib that not all pictures have."""


def _no_option(kind: type, name: str, value: Any, known: list[str]) -> DataError:
    """An error that names the classes whose pictures have this option, and the options of this one."""
    others = sorted(other.__name__ for other, picture in _pictures.items() if name in _options(picture))
    if name in _MATPLOTLIB:
        told = f"is no option of {kind.__name__}.plot: {_MATPLOTLIB[name]}. {kind.__name__}.plot"
    elif others:
        told = f"is for {', '.join(others)}, got {kind.__name__}, which"
    else:
        told = f"is no option of {kind.__name__}.plot, which"
    return DataError(f"{name}={shown(value)} {told} takes {', '.join(dict.fromkeys(['field', *known]))}")


def _taken(values: Any, axis: int, rows: list[int]) -> Any:
    """Some rows along an axis of a tensor, of the tensors of a dictionary, or of tuples in tuples; None stays."""
    if values is None:
        return None
    if isinstance(values, dict):
        return {name: _taken(x, axis, rows) for name, x in values.items()}
    if isinstance(values, Tensor):
        return values.index_select(axis, torch.tensor(rows, device=values.device))
    return tuple(_taken(part, axis - 1, rows) for part in values) if axis else tuple(values[row] for row in rows)


def finite(values: Tensor, there: Tensor, what: str) -> Tensor:
    """[..., layer, head]: the values, NaN where no head is. Raises `DataError` where a head's value is not finite."""
    broken = [] if all_finite(values) else (there & ~values.isfinite()).nonzero().tolist()
    if broken:
        row, head = broken[0][-2:]
        many = len({(one[-2], one[-1]) for one in broken})
        raise DataError(
            f"{what} is {values[tuple(broken[0])].item()} for {how_many(many, 'head')}, the first at layer {row}, head "
            f"{head}: look for NaN or overflow in the model's weights and outputs"
        )
    return values.masked_fill(~there, float("nan"))


def cpu64(x: Tensor) -> Tensor:
    """A float64 copy on the CPU: what results over a data set hold."""
    return x.detach().to("cpu").to(torch.float64)


def with_measured(result: Any, name: str, many: int) -> Any:
    """A result that knows its model, by name, and on how many examples that was measured."""
    if not isinstance(result, Result) or result.model_name:
        return result
    return replace(result, model_name=name, **({} if hasattr(result, "examples") else {"n_examples": many}))
