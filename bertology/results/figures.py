"""Heat maps, heads over the layers and on a map, and the style that all pictures share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..anatomy.sites import Head
from ..errors import DataError, HeadError, ShapeError, checked, described, need, writable
from .axes import axes_of, names_along
from .result import Result, draws

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; markers also differ, for print without colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKERS = "os^DvPX*"
_GREY = "#c4c4c4"
OTHER = "other"
_SMALL = 6.5  # of a head's name on a map, in points


def empty_figure(**options: Any) -> Figure:
    """An empty figure (extra `plot`) that notebooks show as a picture, also without pyplot and its switches."""
    figure: Figure = need("matplotlib.figure", extra="plot").Figure(**options)
    # IPython asks objects for a method of this name. A subclass could only be made where matplotlib is installed.
    setattr(figure, "_repr_png_", partial(_png, figure))  # noqa: B010
    return figure


def _png(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def new_figure(width: float = 6.4, height: float = 4.0) -> Figure:
    """An empty figure of this size in inches (extra `plot`)."""
    return empty_figure(figsize=(width, height), layout="constrained")


@draws(Result)
def draw_heatmap(result: Result, *, field: str | None = None, path: str | Path | None = None) -> Figure:
    """Draw the heat map of a `[layer, head]` field, by default the first: what `plot` draws of most results."""
    check_field(result, field)
    figure = new_figure()
    heatmap(result, figure.subplots(), field=field)
    return written(figure, path)


def heatmap(result: Result, axes: Axes, *, field: str | None = None, title: str | None = None) -> None:
    """Draw a field of a result with two axes, layers first; layer 0 at the bottom, pruned heads white.

    By default the first `[layer, head]` field.
    """
    name = check_field(result, field)
    values: Tensor = getattr(result, name)
    axis = axes_of(type(result))[name].names[1]
    image = layer_cells(axes, values, result.labels, axis, names_along(result, axis))
    axes.set_title(title or f"{words_of(type(result).__name__)}: {name}")
    axes.figure.colorbar(image, ax=axes, label=_unit(result, name))


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
        told = f"has no picture: {result.instead_of_plot}"
    others = f"; plot(field=...) draws {', '.join(pairs)}" if pairs and not heads else ""
    raise DataError(f"{kind.__name__} {told}{others}")


def layer_cells(
    axes: Axes, values: Tensor, labels: Sequence[str], axis: str, names: Sequence[str] | None, top: float | None = None
) -> Any:
    """A cell for each element of `values [layer, axis]`, layer 0 at the bottom."""
    image = axes.imshow(
        values.detach().cpu().double().numpy(), origin="lower", aspect="auto", cmap="viridis",
        vmin=None if top is None else 0, vmax=top,
    )  # fmt: skip
    axes.set_xlabel(axis)
    axes.set_ylabel("layer")
    axes.set_yticks(range(values.shape[0]), labels=labels)
    if names is None:
        axes.set_xticks(range(values.shape[1]))
    else:
        axes.set_xticks(range(len(names)), labels=names, rotation=90 if sum(map(len, names)) > 40 else 0)
    return image


def head_cells(axes: Axes, values: Tensor, labels: Sequence[str], top: float | None = None) -> Any:
    """A cell for each head of `values [layer, head]`, layer 0 at the bottom."""
    return layer_cells(axes, values, labels, "head", None, top)


def head_panels(
    panels: Mapping[str, Tensor], labels: Sequence[str], *, unit: str, title: str = "", path: str | Path | None = None
) -> Figure:
    """A heat map of heads for each name, `{name: [layer, head]}`, on one scale."""
    layers, heads = next(iter(panels.values())).shape
    figure = new_figure(len(panels) * (0.3 * heads + 0.6) + 1.6, max(3.2, 0.32 * layers + 1.2))
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    top = max(values.nan_to_num(0).max().item() for values in panels.values())
    for axes, (name, values) in zip(every, panels.items(), strict=True):
        image = head_cells(axes, values, labels, top)
        axes.set_title(name, fontsize="medium")
        axes.set_ylabel("layer" if axes is every[0] else "")
    figure.colorbar(image, ax=list(every), label=unit)
    figure.suptitle(title)
    return written(figure, path)


@checked
def over_layers(
    series: Mapping[str, Tensor],
    labels: Sequence[str],
    *,
    unit: str,
    title: str | None = None,
    level: tuple[str, Tensor | float] | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw a point for each head over its layer, and a line through the layers' means (extra `plot`).

    The pictures 2 and 4 of Clark et al. (2019). Heads that are not there have no point, layers without any a gap, and
    the line breaks between stacks.

    Args:
        series: `{name: [layer, head]}`, each in a colour and a shape of its own.
        labels: the names of the layers, a result's `labels`.
        unit: what the values are, beside the axis.
        title: above the picture.
        level: a name, and a number or one a layer [layer], drawn as a dashed line: ("uniform", math.log(128)).
        path: the file to which the picture is also written.

    Raises `ShapeError` for values of other shapes, `DataError` where there is nothing to draw.

        >>> axes = over_layers({"entropy": torch.rand(2, 4)}, ["0", "1"], unit="nats").axes[0]
        >>> len(axes.collections[0].get_offsets())
        8
    """
    figure = new_figure(width_of(labels))
    layer_points(figure.subplots(), series, labels, unit=unit, title=title, level=level)
    return written(figure, path)


def layer_points(
    axes: Axes,
    series: Mapping[str, Tensor],
    labels: Sequence[str],
    *,
    unit: str,
    title: str | None = None,
    level: tuple[str, Tensor | float] | None = None,
) -> None:
    """`over_layers`, on existing axes."""
    for name, values in series.items():
        if values.dim() != 2 or len(values) != len(labels):
            raise ShapeError(
                f"{name!r} must be [layer, head] with a row for each of {len(labels)} labels, got {list(values.shape)}"
            )
    # With a cache or in cross attention all values of a pattern can be NaN.
    there = {name: x.detach().cpu().double() for name, x in series.items() if not x.isnan().all()}
    if not there:
        raise DataError(f"nothing to draw: {', '.join(series) or 'no series'} without any value")
    step = 0.6 / max(4, len(there))
    for number, (name, values) in enumerate(there.items()):
        colour, marker = COLOURS[number % len(COLOURS)], _marker(number)
        rows, heads = (~values.isnan()).nonzero().T
        aside = rows + step * (number - (len(there) - 1) / 2)
        axes.scatter(
            aside, values[rows, heads], 14, color=colour, marker=marker, alpha=0.55, linewidths=0, clip_on=False
        )
        for stack in _stacks(labels):
            axes.plot(stack, values[stack].nanmean(1).numpy(), color=colour, linewidth=1.6)
        axes.plot([], [], color=colour, marker=marker, markersize=4.5, label=name)  # what the legend shows
    if level is not None:
        _level(axes, *level, labels)
    axes.set_xticks(range(len(labels)), labels=labels, rotation=90 if max(map(len, labels)) > 3 else 0)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    if all(x.nan_to_num(0).min() >= 0 for x in there.values()):
        axes.set_ylim(bottom=0)
    axes.set_xlabel("layer")
    axes.set_ylabel(unit)
    axes.set_title(title or "")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False)


@checked
def head_map(
    points: Tensor,
    heads: Sequence[Head],
    *,
    groups: Mapping[str, Iterable[Head]] | None = None,
    title: str | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw heads on a plane, in the colour of their layer or of their group (extra `plot`).

    Picture 6 of Clark et al. (2019): only distances have a meaning, so no axes are drawn. Heads are named where
    there is room, with `groups` only those in one. Heads without a place (NaN) are left out.

    Args:
        points: [head, 2]: where each head is, `HeadDistances.embed(2)`.
        heads: which head each point is, in the same order.
        groups: `{name: heads}`, as `head_behaviours` gives them. A head in several has the colour of the first.
        title: above the picture.
        path: the file to which the picture is also written.

    Raises `ShapeError` for other points than one a head, `HeadError` for a head in a group that has no point,
    `DataError` where there is nothing to draw.

        >>> axes = head_map(torch.rand(2, 2), [Head(0, 0), Head(0, 1)], groups={"next": [Head(0, 1)]}).axes[0]
        >>> [text.get_text() for text in axes.get_legend().get_texts()]
        ['next (1)', 'other (1)']
    """
    if points.shape != (len(heads), 2):
        raise ShapeError(f"points must be [head, 2] = [{len(heads)}, 2], got {list(points.shape)}")
    colours, named = _coloured(heads, groups)
    placed = {
        head: point
        for head, point in zip(heads, points.detach().cpu().double(), strict=True)
        if not point.isnan().any()
    }
    if not placed:
        raise DataError("nothing to draw: no head has a place")
    figure = empty_figure(figsize=(7.6, 6.2))
    axes: Any = figure.add_axes((0.02, 0.02, 0.76, 0.93))
    where = torch.stack(list(placed.values()))
    middle, half = (where.amax(0) + where.amin(0)) / 2, (where.amax(0) - where.amin(0)).max().item() * 0.54 or 1.0
    axes.set_xlim(middle[0].item() - half, middle[0].item() + half)
    axes.set_ylim(middle[1].item() - half, middle[1].item() + half)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for number, (name, members) in enumerate(named.items()):
        here = [placed[head] for head in members if head in placed]
        if here:
            rest = name == OTHER
            marker = _marker(number) if groups is not None and not rest else "o"
            axes.scatter(
                *torch.stack(here).T, 12 if rest else 26, color=colours[name], marker=marker, linewidths=0,
                zorder=1 if rest else 2, label=f"{name} ({len(here)})",
            )  # fmt: skip
    shown = [head for name, some in named.items() for head in some if head in placed and name != OTHER]
    _name_heads(axes, placed, shown, where, 72 * 0.93 * 6.2 / (2 * half))
    axes.set_title(title or "")
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, frameon=False, ncols=1 + (len(named) > 26),
        fontsize="small",
    )  # fmt: skip
    return written(figure, path)


def written(figure: Figure, path: str | Path | None) -> Figure:
    """The figure, written to `path` if one is given."""
    if path is not None:
        with writable(path):
            figure.savefig(path, dpi=150)
    return figure


def width_of(labels: Sequence[str]) -> float:
    """How wide a picture of these layers is, in inches, its legend included."""
    return max(6.4, 0.42 * len(labels) + 2.8)


def _marker(number: int) -> str:
    # From the ninth on, colours repeat with other markers.
    return MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]


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


def _coloured(
    heads: Sequence[Head], groups: Mapping[str, Iterable[Head]] | None
) -> tuple[dict[str, Any], dict[str, list[Head]]]:
    """{group: colour} and {group: heads}, each head in one group."""
    if groups is None:
        layers = sorted({(head.stack, head.layer) for head in heads})
        named = {f"{s} layer {n}".strip(): [h for h in heads if (h.stack, h.layer) == (s, n)] for s, n in layers}
        scale = need("matplotlib", extra="plot").colormaps["viridis"].resampled(max(2, len(layers)))
        return {name: scale(number) for number, name in enumerate(named)}, named
    named, left = {}, dict.fromkeys(heads)
    for name, members in groups.items():
        wanted = list(members)
        unknown = [str(head) for head in wanted if head not in heads]
        if unknown:
            raise HeadError(f"group {name!r} has {', '.join(unknown)}, for which there is no point")
        named[name] = [head for head in dict.fromkeys(wanted) if head in left]
        left = dict.fromkeys(head for head in left if head not in named[name])
    colours: dict[str, Any] = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(named)}
    return {**colours, OTHER: _GREY}, {**named, OTHER: [*named.get(OTHER, []), *left]}


def _name_heads(axes: Axes, placed: Mapping[Head, Tensor], shown: Sequence[Head], where: Tensor, scale: float) -> None:
    """Write the names of heads beside their points where they cover nothing; `scale` is points of print a unit."""
    # All in points of print: boxes (left, bottom, right, top) that are taken, by markers and names.
    taken = torch.cat([where * scale - 3.2, where * scale + 3.2], dim=1)
    (left, right), (bottom, top) = (
        torch.tensor(x, dtype=torch.float64) * scale for x in (axes.get_xlim(), axes.get_ylim())
    )
    for head in shown:
        x, y = (placed[head] * scale).tolist()
        wide, high = 0.66 * _SMALL * len(str(head)) / 2, 1.05 * _SMALL / 2
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            # Beside the marker, which is some 3 points wide either way; on a diagonal a little nearer.
            cx, cy = x + dx * (wide + (4.2 if dy == 0 else 1.5)), y + dy * (high + (4.2 if dx == 0 else 2.5))
            box = torch.tensor([cx - wide, cy - high, cx + wide, cy + high], dtype=torch.float64)
            apart = (taken[:, :2] >= box[2:]).any(1) | (taken[:, 2:] <= box[:2]).any(1)
            if apart.all() and left < box[0] and box[2] < right and bottom < box[1] and box[3] < top:
                taken = torch.cat([taken, box[None]])
                axes.text(cx / scale, cy / scale, str(head), fontsize=_SMALL, ha="center", va="center", color="#333333")
                break


def _unit(result: Result, field: str) -> str:
    how = getattr(result, "normalization", None)
    unit = axes_of(type(result))[field].unit or field
    return {"layer": "share of the layer's l2 norm", "all": "0 least, 1 most important"}.get(how or "", unit)


def words_of(name: str) -> str:
    """The name of a class in words."""
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip().capitalize()
