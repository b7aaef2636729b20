"""Heat maps of heads, and heads as points over their layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DataError, ShapeError, checked, described, how_many, need
from .axes import Scale, axes_of, main_field, names_along
from .canvas import COLOURS as COLOURS
from .canvas import MARKERS as MARKERS
from .canvas import (
    MISSING,
    AxesT,
    canvas,
    colour_of,
    common_title,
    finished,
    headline,
    marker_of,
    set_title,
    side_legend,
)
from .canvas import empty_figure as empty_figure
from .canvas import new_figure as new_figure
from .canvas import width_of as width_of
from .canvas import written as written
from .head_map import OTHER as OTHER
from .head_map import head_map as head_map
from .result import Result, draws

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
"""The marks of significance: below each p-value, and in words beside the colours."""
LEAST_P = 1e-4
"""Where the colours of p-values end: smaller ones are equally dark."""


@draws(Result)
def draw_heatmap(
    result: Result, *, field: str | None = None, ax: AxesT | None = None, path: str | Path | None = None
) -> AxesT:
    """Draw the heat map of a `[layer, head]` field, by default the first: what `plot` draws of most results.

    Of a `[layer]` field, by default the one that a result without heads is about, a point for each layer is drawn.
    """
    by_layer = _field_by_layer(result, field)
    if by_layer is not None:
        return _draw_by_layer(result, by_layer, ax, path)
    name = check_field(result, field)
    figure, (axes,) = canvas(ax, *size_of_map(getattr(result, name)))
    heatmap(result, axes, field=field)
    return finished(figure, ax, path)


def size_of_map(values: Tensor) -> tuple[float, float]:
    """The width and the height, in inches, of a heat map of values [layer, ...]."""
    rows, columns = values.shape
    return min(16, max(6.4, 0.3 * columns + 2.4)), min(24, max(4, 0.27 * rows + 1.2))


def _field_by_layer(result: Result, field: str | None) -> str | None:
    """The `[layer]` field that is drawn, if it is one."""
    declared = axes_of(type(result))
    if field is None and any(axes.names == ("layer", "head") for axes in declared.values()):
        return None
    name = main_field(type(result)) if field is None else field
    there = name in declared and declared[name].names == ("layer",) and isinstance(getattr(result, name), Tensor)
    return name if there else None


def _draw_by_layer(result: Result, name: str, ax: AxesT | None, path: str | Path | None) -> AxesT:
    """Draw a value for each layer, joined within a stack."""
    figure, (axes,) = canvas(ax, width_of(result.labels))
    told = result._heading()
    title = headline(result, told if name == main_field(type(result)) else f"{told}: {name}")
    series = {name: getattr(result, name)[:, None]}
    layer_points(axes, series, result.labels, unit=unit_of(result, name), title=title, legend=False)
    if axes_of(type(result))[name].scale == "signed":
        axes.axhline(0, color="0.5", linewidth=0.8)
        axes.margins(y=0.1)
        axes.autoscale(axis="y")
    return finished(figure, ax, path)


def heatmap(result: Result, axes: Axes, *, field: str | None = None, title: str | None = None) -> None:
    """Draw a field of a result with two axes, layers first; layer 0 at the bottom, pruned heads grey.

    By default the first `[layer, head]` field. Fields with a sign have 0 in the middle of their colours, and p-values a
    logarithmic scale with marks of significance.
    """
    name = check_field(result, field)
    values: Tensor = getattr(result, name)
    declared = axes_of(type(result))[name]
    axis = declared.names[1]
    image = layer_cells(axes, values, result.labels, axis, names_along(result, axis), scale=declared.scale)
    set_title(axes, title or headline(result, f"{result._heading()}: {name}"))
    label = unit_of(result, name)
    if declared.scale == "p-value":
        _mark(axes, values)
        label += "\n" + ", ".join(f"{stars} below {p:g}" for p, stars in reversed(STARS))
    below = declared.scale == "p-value" and bool((values < LEAST_P).any())
    axes.figure.colorbar(image, ax=axes, label=label, extend="min" if below else "neither")


def check_field(result: Result, field: str | None) -> str:
    """The field that is drawn. Raises `DataError` if no heat map can be drawn of it, and says what can be."""
    if not isinstance(result, Result):
        raise DataError(f"wanted a result of a measure to draw, got {described(result)}")
    kind = type(result)
    declared = {name: axes.names for name, axes in axes_of(kind).items() if isinstance(getattr(result, name), Tensor)}
    pairs = [name for name, names in declared.items() if names[:1] == ("layer",) and len(names) == 2]
    heads = [name for name in pairs if declared[name][1] == "head"]
    if field in pairs or (field is None and heads):
        return field or heads[0]
    if field is not None:
        told = f"has no [layer, head] field {field}: it has {', '.join(heads) or 'none'}"
    else:
        told = f"has no picture: {_undeclared(result) or result.instead_of_plot}"
    others = f"; plot(field=...) draws {', '.join(pairs)}" if pairs and not heads else ""
    raise DataError(f"{kind.__name__} {told}{others}")


def _undeclared(result: Result) -> str:
    """What to do where a class of the user's own declares no axes; empty for other results."""
    tensors = [f.name for f in fields(result) if isinstance(getattr(result, f.name), Tensor)]
    if axes_of(type(result)) or not tensors:
        return ""
    return f"declare the axes of its fields, such as {tensors[0]}: Annotated[Tensor, axes('layer head')]"


def layer_cells(
    axes: Axes, values: Tensor, labels: Sequence[str], axis: str, names: Sequence[Any] | None, top: float | None = None,
    scale: Scale = "plain",
) -> Any:  # fmt: skip
    """A cell for each element of `values [layer, axis]`, layer 0 at the bottom; cells without a value are grey."""
    values = values.detach().cpu().double()
    axes.set_facecolor(MISSING)
    image = axes.imshow(values.numpy(), origin="lower", aspect="auto", **colours_of(values, top, scale))
    axes.set_xlabel(axis)
    axes.set_ylabel("layer")
    axes.set_yticks(_places(len(labels)), labels=[labels[row] for row in _places(len(labels))])
    axes.tick_params(length=2)
    if names is None:
        axes.set_xticks(_places(values.shape[1]))
    else:
        told = [str(name) for name in names]
        axes.set_xticks(range(len(told)), labels=told, rotation=90 if sum(map(len, told)) > 40 else 0, parse_math=False)
    return image


def colours_of(values: Tensor, top: float | None, scale: Scale) -> dict[str, Any]:
    """The colour map, and the values at its ends.

    0 is in the middle where there are signs; shares go from 0 to 1; p-values have a logarithm.
    """
    there = values[values.isfinite()]
    if scale == "p-value":
        return {"cmap": "Blues_r", "norm": need("matplotlib.colors", extra="plot").LogNorm(LEAST_P, 1)}
    if scale == "share":
        return {"cmap": "viridis", "vmin": 0, "vmax": 1}
    if scale == "signed" or (there < 0).any():
        edge = top or (there.abs().max().item() if there.numel() else 0.0) or 1.0
        return {"cmap": "RdBu", "vmin": -edge, "vmax": edge}
    return {"cmap": "viridis", "vmin": None if top is None else 0, "vmax": top}


def _places(many: int) -> range:
    """The positions that have a number beside them: all, or every other, fourth, eighth ... of many."""
    return range(0, many, max(1, 2 ** max(0, (many - 1).bit_length() - 5)))


def _mark(axes: Axes, p: Tensor) -> None:
    """Write the marks of significance into the cells of p-values."""
    for row, column in (p <= STARS[-1][0]).nonzero().tolist():
        stars = next(stars for limit, stars in STARS if p[row, column] <= limit)
        dark = p[row, column] < 0.02
        axes.text(
            column, row, stars, ha="center", va="center_baseline", color="white" if dark else "black", fontsize="small"
        )


def head_cells(
    axes: Axes, values: Tensor, labels: Sequence[str], top: float | None = None, scale: Scale = "plain"
) -> Any:
    """A cell for each head of `values [layer, head]`, layer 0 at the bottom."""
    return layer_cells(axes, values, labels, "head", None, top, scale)


def head_panels(
    panels: Mapping[str, Tensor], labels: Sequence[str], *, unit: str, title: str = "", scale: Scale = "plain",
    ax: AxesT | None = None, path: str | Path | None = None,
) -> AxesT:  # fmt: skip
    """A heat map of heads for each name, `{name: [layer, head]}`, on one scale."""
    layers, heads = next(iter(panels.values())).shape
    size = (len(panels) * (0.3 * heads + 0.6) + 1.6, max(3.2, 0.32 * layers + 1.2))
    figure, every = canvas(ax, *size, shape=(1, len(panels)), sharey=True)
    top = max(values.nan_to_num(0).abs().max().item() for values in panels.values())
    for axes, (name, values) in zip(every, panels.items(), strict=True):
        image = head_cells(axes, values, labels, top, scale)
        axes.set_title(name, fontsize="medium", parse_math=False)
        axes.set_ylabel("layer" if axes is every[0] else "")
    figure.colorbar(image, ax=list(every), label=unit)
    common_title(figure, ax, title)
    return finished(figure, ax, path)


@checked
def over_layers(
    series: Mapping[str, Tensor],
    labels: Sequence[str],
    *,
    unit: str,
    title: str | None = None,
    level: tuple[str, Tensor | float] | None = None,
    errors: Mapping[str, Tensor] | None = None,
    ax: AxesT | None = None,
    path: str | Path | None = None,
) -> AxesT:
    """Draw a point for each head over its layer, and a line through the layers' means (extra `plot`).

    The pictures 2 and 4 of Clark et al. (2019). Heads that are not there have no point, layers without any a gap, and
    the line breaks between stacks.

    Args:
        series: `{name: [layer, head]}`, each in a colour and a shape of its own.
        labels: the names of the layers, a result's `labels`.
        unit: what the values are, beside the axis.
        title: above the picture.
        level: a name, and a number or one a layer [layer], drawn as a dashed line: ("uniform", math.log(128)).
        errors: `{name: [layer, head]}`, how far the error bars of these series reach on either side.
        ax: axes to draw in, in the place of a new figure.
        path: the file to which the picture is also written.

    Returns the figure, or the axes that were given.

    Raises `ShapeError` for values of other shapes, `DataError` where there is nothing to draw.

        >>> axes = over_layers({"entropy": torch.rand(2, 4)}, ["0", "1"], unit="nats").axes[0]
        >>> len(axes.collections[0].get_offsets())
        8
    """
    figure, (axes,) = canvas(ax, width_of(labels))
    layer_points(axes, series, labels, unit=unit, title=title, level=level, errors=errors)
    return finished(figure, ax, path)


def layer_points(
    axes: Axes,
    series: Mapping[str, Tensor],
    labels: Sequence[str],
    *,
    unit: str,
    title: str | None = None,
    level: tuple[str, Tensor | float] | None = None,
    errors: Mapping[str, Tensor] | None = None,
    legend: bool = True,
) -> None:
    """`over_layers`, on existing axes; without a legend where the title and the axis say what is drawn."""
    for name, values in series.items():
        if values.dim() != 2 or len(values) != len(labels):
            raise ShapeError(
                f"{name!r} must be [layer, head] with a row for each of {how_many(len(labels), 'label')}, got "
                f"{list(values.shape)}"
            )
    # With a cache or in cross attention all values of a pattern can be NaN.
    there = {name: x.detach().cpu().double() for name, x in series.items() if not x.isnan().all()}
    if not there:
        raise DataError(f"nothing to draw: {', '.join(series) or 'no series'} without any value")
    step = 0.6 / max(4, len(there))
    for number, (name, values) in enumerate(there.items()):
        colour, marker = colour_of(number), marker_of(number)
        rows, heads = (~values.isnan()).nonzero().T
        aside = rows + step * (number - (len(there) - 1) / 2)
        axes.scatter(
            aside, values[rows, heads], 14, color=colour, marker=marker, alpha=0.55, linewidths=0, clip_on=False
        )
        if errors and name in errors:
            reach = errors[name].detach().cpu().double()[rows, heads].numpy()
            axes.errorbar(
                aside, values[rows, heads], reach, fmt="none", ecolor=colour, elinewidth=0.7, alpha=0.5, clip_on=False
            )
        for stack in _stacks(labels):
            axes.plot(stack, values[stack].nanmean(1).numpy(), color=colour, linewidth=1.6)
        axes.plot([], [], color=colour, marker=marker, markersize=4.5, label=name)  # what the legend shows
    if level is not None:
        _level(axes, *level, labels)
    rotation = 90 if max(map(len, labels)) > 3 or len(labels) > 26 else 0
    axes.set_xticks(range(len(labels)), labels=labels, rotation=rotation)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    if all(x.nan_to_num(0).min() >= 0 for x in there.values()):
        highest = max(x.nan_to_num(0).max().item() for x in there.values())
        axes.set_ylim(0, max(axes.get_ylim()[1], 1.05 * highest))
    axes.set_xlabel("layer")
    axes.set_ylabel(unit)
    set_title(axes, title or "")
    axes.grid(axis="y", alpha=0.3)
    if legend:
        side_legend(axes)


def _stacks(labels: Sequence[str]) -> list[list[int]]:
    """The rows of each stack."""
    found: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        found.setdefault(label.rpartition(".")[0], []).append(row)
    return list(found.values())


def _level(axes: Axes, name: str, level: Tensor | float, labels: Sequence[str]) -> None:
    values = torch.as_tensor(level, dtype=torch.float64).detach().cpu()
    if values.dim() > 1 or values.numel() not in (1, len(labels)):
        raise ShapeError(f"level {name!r} must be a number or [layer] = [{len(labels)}], got {list(values.shape)}")
    if values.dim() == 0:
        axes.axhline(values.item(), linestyle="--", color="grey", label=name)
    else:
        axes.plot(range(len(labels)), values.expand(len(labels)).numpy(), linestyle="--", color="grey", label=name)


def unit_of(result: Result, field: str) -> str:
    """What the values of a field are, with their unit, beside the colours or the axis."""
    how = getattr(result, "normalization", None)
    unit = axes_of(type(result))[field].label or field
    metric = getattr(result, "metric", None)
    if isinstance(metric, str) and metric not in ("", "<lambda>"):
        unit = unit.replace("the metric", metric)
    return {"layer": "share of the layer's l2 norm", "all": "0 least, 1 most important"}.get(how or "", unit)
