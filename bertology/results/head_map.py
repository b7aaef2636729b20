"""Heads as points on a plane."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..anatomy.sites import Head
from ..errors import DataError, HeadError, ShapeError, checked
from .canvas import AxesT, axes_in, colour_of, empty_figure, finished, ink, marker_of, set_title, shades, side_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY = "#a0a0a0"
OTHER = "other"
_SMALL = 6.5  # of a head's name on a map, in points


@checked
def head_map(
    points: Tensor,
    heads: Sequence[Head],
    *,
    groups: Mapping[str, Iterable[Head]] | None = None,
    title: str | None = None,
    ax: AxesT | None = None,
    path: str | Path | None = None,
) -> AxesT:
    """Draw heads on a plane, in the colour of their layer or of their group (extra `plot`).

    Picture 6 of Clark et al. (2019): only distances have a meaning, so no axes are drawn. Heads are named where
    there is room, with `groups` only those in one. Heads without a place (NaN) are left out.

    Args:
        points: [head, 2]: where each head is, `HeadDistances.embed(2)`.
        heads: which head each point is, in the same order.
        groups: `{name: heads}`, as `head_behaviours` gives them. A head in several has the colour of the first.
        title: above the picture.
        ax: axes to draw in, in the place of a new figure.
        path: the file to which the picture is also written.

    A few heads that are far from all others are left out, so that the rest can be told apart; they are named below.

    Returns the figure, or the axes that were given.

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
    figure, axes = _plane(ax)
    placed, outside = _near(placed)
    where = torch.stack(list(placed.values()))
    middle, half = (where.amax(0) + where.amin(0)) / 2, (where.amax(0) - where.amin(0)).max().item() * 0.54 or 1.0
    axes.set_xlim(middle[0].item() - half, middle[0].item() + half)
    axes.set_ylim(middle[1].item() - half, middle[1].item() + half)
    if outside:
        axes.set_xlabel(f"not shown, far from all others: {', '.join(map(str, outside))}", fontsize="small")
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for number, (name, members) in enumerate(named.items()):
        here = [placed[head] for head in members if head in placed]
        if here:
            rest = name == OTHER
            marker = marker_of(number) if groups is not None and not rest else "o"
            x, y = torch.stack(here).T
            axes.scatter(
                x.numpy(), y.numpy(), 12 if rest else 26, color=colours[name], marker=marker, linewidths=0,
                zorder=1 if rest else 2, label=f"{name} ({len(here)})",
            )  # fmt: skip
    shown = [head for name, some in named.items() for head in some if head in placed and name != OTHER]
    _name_heads(axes, placed, shown, where, 72 * _side(axes) / (2 * half))
    set_title(axes, title or "")
    side_legend(axes, ncols=1 + (len(named) > 26), fontsize="small")
    return finished(figure, ax, path)


def _plane(ax: AxesT | None) -> tuple[Any, Axes]:
    """The figure and the axes of a map: a square, and room for its legend."""
    if ax is not None:
        (axes,) = axes_in(ax)
        return axes.figure, axes
    figure = empty_figure(figsize=(7.6, 6.4))
    return figure, figure.add_axes((0.02, 0.05, 0.76, 0.85))


def _side(axes: Axes) -> float:
    """The shorter side of the axes, in inches."""
    box = axes.get_window_extent()
    return float(min(box.width, box.height) / axes.figure.dpi)


def _near(placed: dict[Head, Tensor]) -> tuple[dict[Head, Tensor], list[Head]]:
    """The heads that are drawn, and the few that are so far from the others that these would be one dot."""
    where = torch.stack(list(placed.values()))
    away = (where - where.median(0).values).abs().amax(1)
    limit = 3 * away.quantile(0.9).item()
    far = [head for head, one in zip(placed, away.tolist(), strict=True) if 0 < limit < one]
    return {head: point for head, point in placed.items() if head not in far}, far


def _coloured(
    heads: Sequence[Head], groups: Mapping[str, Iterable[Head]] | None
) -> tuple[dict[str, Any], dict[str, list[Head]]]:
    """{group: colour} and {group: heads}, each head in one group."""
    if groups is None:
        layers = sorted({(head.stack, head.layer) for head in heads})
        named = {f"{s} layer {n}".strip(): [h for h in heads if (h.stack, h.layer) == (s, n)] for s, n in layers}
        return dict(zip(named, shades(len(named)), strict=True)), named
    named, left = {}, dict.fromkeys(heads)
    for name, members in groups.items():
        wanted = list(members)
        unknown = [str(head) for head in wanted if head not in heads]
        if unknown:
            raise HeadError(f"group {name!r} has {', '.join(unknown)}, for which there is no point")
        named[name] = [head for head in dict.fromkeys(wanted) if head in left]
        left = dict.fromkeys(head for head in left if head not in named[name])
    colours: dict[str, Any] = {name: colour_of(number) for number, name in enumerate(named)}
    return {**colours, OTHER: _GREY}, {**named, OTHER: [*named.get(OTHER, []), *left]}


def _name_heads(axes: Axes, placed: Mapping[Head, Tensor], shown: Sequence[Head], where: Tensor, scale: float) -> None:
    """Write the names of heads beside their points where they cover nothing; `scale` is points of print a unit.

    A name without room is left out. adjustText leaves none out: it moves them until time is up, and with 144 heads
    hundreds of them still cover each other.
    """
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
                axes.text(cx / scale, cy / scale, str(head), fontsize=_SMALL, ha="center", va="center", color=ink())
                break
