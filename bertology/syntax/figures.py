"""Pictures of one head over a sentence, and of dependency and coreference heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..corpora.documents import KINDS
from ..errors import DataError, checked, how_many, need
from ..results.canvas import (
    AxesT,
    axes_in,
    canvas,
    colour_of,
    empty_figure,
    finished,
    headline,
    ink,
    marker_of,
    paper,
    set_title,
    side_legend,
    width_of,
)
from ..results.figures import head_panels
from ..results.result import draws
from .coreference import DIRECTIONS as MENTION_DIRECTIONS
from .coreference import CoreferenceHeads
from .dependencies import DependencyHeads
from .head_view import THRESHOLD, Arc, HeadView
from .picks import DIRECTIONS
from .structural_probe import StructuralProbe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

# All lengths are in inches: the axes fill the figure, and their unit is an inch.
WIDEST = 5.0  # the width of the line of a weight of 1, in points
_RED, _BLUE, _GREY = "#c62828", "#0072B2", "#8a8a8a"
_LEVEL, _GAP, _EDGE, _ROW = 0.2, 0.13, 0.25, 0.2


@checked
def head_arcs(
    view: HeadView, *, threshold: float = THRESHOLD, ax: AxesT | None = None, path: str | Path | None = None
) -> AxesT:
    """Draw a sentence in one row: the head's attention as arcs above it, the gold tree below (extra `plot`).

    An arc above the sentence goes from a word to the word that it attends to; its width is the weight. A word's
    attention to itself is not drawn. Gold arcs that the head picks are red, above and below the sentence; gold arcs
    that it misses are dashed.

    Args:
        view: a result of `show_head`, or any other `HeadView`.
        threshold: attention below this weight is not drawn, unless it picks a gold head.
        ax: axes to draw in, in the place of a new figure of the size that the sentence needs.
        path: a file to write the picture to as well.

    Returns the figure, or the axes that were given.

    Raises `MissingExtra` without matplotlib.

        >>> import torch
        >>> view = HeadView(torch.tensor([[0.2, 0.8], [0.6, 0.4]]), ("Birds", "sing"), (2, 0), ("nsubj", "root"))
        >>> [patch.get_gid() for patch in head_arcs(view).axes[0].patches]
        ['attention 1 0', 'attention 0 1', 'gold 0 1']
    """
    figure, axes = _empty_axes(ax)
    arcs = view.arcs
    texts = [_word(axes, view, place) for place in range(len(view.words))]
    names = [_relation(axes, arc) for arc in arcs]
    x = _spread([_width(text) for text in texts], arcs, [_width(name) for name in names])
    for text, at in zip(texts, x, strict=True):
        text.set_position((at, 0))
    top = bottom = 0.3
    for line in view.lines(threshold):
        if line.query != line.key:
            start, end = _apart(x[line.query], x[line.key])
            height = 0.15 + 0.22 * abs(end - start) ** 0.8
            top = max(top, height + 0.2)
            style = _style(line.weight, line.right)
            tip = 3 + style["linewidth"]  # the size of the arrowhead in points, larger for wide lines
            low, peak = 0.1, 0.12 + height / 0.75
            curve = [(start, low), (start, peak), (end, peak), (end, low + tip / 80)]
            _curve(axes, curve, [1, 4, 4, 4], gid=f"attention {line.query} {line.key}", **style)
            head = {name: style[name] for name in ("color", "alpha", "zorder")}
            axes.plot(end, low + tip / 144, "v", markersize=tip, markeredgewidth=0, **head)
    for arc, name, level in zip(arcs, names, _levels(arcs), strict=True):
        start, end = _apart(x[arc.head], x[arc.dependent])
        low, bend = -0.12 - _LEVEL * level, min(0.12, abs(end - start) / 2) * (1 if end > start else -1)
        bottom = max(bottom, -low + 0.15)
        curve = [(start, -0.12), (start, low), (start + bend, low), (end - bend, low), (end, low), (end, -0.12)]
        _curve(axes, curve, [1, 3, 3, 2, 3, 3], gid=f"gold {arc.dependent} {arc.head}", **_gold(arc))
        axes.plot(end, -0.12, "^", markersize=3, color=_RED if arc.right else _GREY, markeredgewidth=0)
        name.set_position(((start + end) / 2, low))
        name.set_bbox({"facecolor": paper(), "edgecolor": "none", "pad": 0.6})
    width = x[-1] + _width(texts[-1]) / 2
    return _finished(figure, axes, view, (-_EDGE, width + _EDGE), (-bottom, top), ax, path)


@checked
def head_columns(
    view: HeadView, *, threshold: float = THRESHOLD, ax: AxesT | None = None, path: str | Path | None = None
) -> AxesT:
    """Draw a sentence in two columns, with lines from words on the left to the words they attend to (extra `plot`).

    Figure 5 of Clark et al. (2019), for sentences of any length. The width of a line is the weight. Lines that pick a
    gold head are red, gold arcs that the head misses are dashed. The arguments are those of `head_arcs`.

        >>> import torch
        >>> view = HeadView(torch.tensor([[0.25, 0.75], [0.5, 0.5]]), ("Birds", "sing"), (2, 0), ("nsubj", "root"))
        >>> [line.get_linewidth() for line in head_columns(view).axes[0].lines]
        [0.8, 1.25, 2.5, 2.5, 3.75]
    """
    figure, axes = _empty_axes(ax)
    left, right = (
        [_word(axes, view, place, ha=side) for place in range(len(view.words))] for side in ("right", "left")
    )
    width = max(map(_width, left))
    start, end = width + 0.08, width + 2.4
    rows = [-_ROW * place for place in range(len(view.words))]
    for place, y in enumerate(rows):
        left[place].set_position((width, y))
        right[place].set_position((end + 0.08, y))
    edges = [0.0, end + 0.08 + width]
    for arc in view.arcs:
        name = _relation(axes, arc)
        from_left = view.ends(arc)[0] == arc.dependent
        text = (left if from_left else right)[arc.dependent]
        beside = _width(text) + 0.1
        at = width - beside if from_left else end + 0.08 + beside
        name.set(position=(at, rows[arc.dependent]), ha="right" if from_left else "left")
        edges = [min(edges[0], at - _width(name)), max(edges[1], at + _width(name))]
        ys = [rows[place] for place in view.ends(arc)]
        axes.plot([start, end], ys, gid=f"gold {arc.dependent} {arc.head}", zorder=1, **_gold(arc))
    for line in view.lines(threshold):
        ys, gid = [rows[line.query], rows[line.key]], f"attention {line.query} {line.key}"
        axes.plot([start, end], ys, gid=gid, solid_capstyle="butt", **_style(line.weight, line.right))
    for at, what, side in ((width, "attends", "right"), (end + 0.08, "is attended to", "left")):
        _text(axes, what, size=7, color=_GREY, ha=side).set_position((at, 0.24))
    return _finished(figure, axes, view, (edges[0] - _EDGE, edges[1] + _EDGE), (rows[-1] - 0.2, 0.4), ax, path)


def _empty_axes(ax: AxesT | None) -> tuple[Any, Axes]:
    if ax is not None:
        (axes,) = axes_in(ax)
        return axes.figure, axes
    figure = empty_figure()
    return figure, figure.add_axes((0, 0, 1, 1))


def _finished(
    figure: Figure,
    axes: Axes,
    view: HeadView,
    wide: tuple[float, float],
    high: tuple[float, float],
    ax: AxesT | None,
    path: str | Path | None,
) -> AxesT:
    """Fit the size of the figure to its content, with the title above and the legend below."""
    lines = need("matplotlib.lines", extra="plot").Line2D
    handles = [lines([], [], color=_BLUE, linewidth=2, label="attention; the width is its weight")]
    if view.heads:
        handles.append(lines([], [], color=_RED, linewidth=2, label="gold arc, picked by the head"))
        handles.append(lines([], [], color=_GREY, linewidth=1, linestyle="--", label="gold arc, missed"))
    middle, half = sum(wide) / 2, max(wide[1] - wide[0], 6.2 if view.heads else 3.0) / 2
    axes.set_xlim(middle - half, middle + half)
    title = headline(view, view.title)
    above = 0.35 + 0.16 * title.count("\n")
    axes.set_ylim(high[0] - 0.35, high[1] + above)
    if ax is None:
        figure.set_size_inches(2 * half, high[1] - high[0] + 0.35 + above)
    axes.set_axis_off()
    axes.text(middle, high[1] + 0.06, title, ha="center", va="bottom", fontsize=10, parse_math=False)
    axes.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=8, borderaxespad=0.3)
    return finished(figure, ax, path)


def _word(axes: Axes, view: HeadView, place: int, ha: str = "center") -> Text:
    return _text(axes, view.words[place], size=9, color=_GREY if place in view.special else ink(), ha=ha)


def _relation(axes: Axes, arc: Arc) -> Text:
    text = _text(axes, arc.relation, size=6.5, color=_RED if arc.right else _GREY)
    text.set_fontweight("bold" if arc.right else "normal")
    return text


def _text(axes: Axes, text: str, *, size: float, color: str, ha: str = "center") -> Text:
    # With parse_math=False a dollar sign does not start a formula.
    return axes.text(0, 0, text, ha=ha, va="center", fontsize=size, color=color, parse_math=False)


def _width(text: Text) -> float:
    return float(text.get_window_extent().width) / float(text.get_figure().dpi)  # type: ignore[union-attr]


def _spread(words: Sequence[float], arcs: Sequence[Arc], names: Sequence[float]) -> list[float]:
    """The middle of each word, such that words do not touch and arcs are wider than their names."""
    x = [words[0] / 2]
    for place in range(1, len(words)):
        needs = [x[-1] + (words[place - 1] + words[place]) / 2 + _GAP]
        for arc, name in zip(arcs, names, strict=True):
            if max(arc.dependent, arc.head) == place:
                needs.append(x[min(arc.dependent, arc.head)] + name + 0.2)
        x.append(max(needs))
    return x


def _levels(arcs: Sequence[Arc]) -> list[int]:
    """The level of each arc below the words: below all shorter arcs that it overlaps."""
    levels: dict[int, int] = {}
    spans = [sorted((arc.dependent, arc.head)) for arc in arcs]
    for number in sorted(range(len(arcs)), key=lambda i: spans[i][1] - spans[i][0]):
        start, end = spans[number]
        under = [level for other, level in levels.items() if spans[other][0] < end and start < spans[other][1]]
        levels[number] = 1 + max(under, default=0)
    return [levels[number] for number in range(len(arcs))]


def _apart(start: float, end: float) -> tuple[float, float]:
    """Move both ends of an arc towards each other, so that arcs that start and end at a word do not touch."""
    aside = 0.05 if end > start else -0.05
    return start + aside, end - aside


def _curve(axes: Axes, points: Sequence[tuple[float, float]], codes: Sequence[int], **style: Any) -> None:
    path = need("matplotlib.path", extra="plot").Path(points, codes)
    axes.add_patch(need("matplotlib.patches", extra="plot").PathPatch(path, fill=False, **style))


def _style(weight: float, right: bool) -> dict[str, Any]:
    return {
        "linewidth": WIDEST * weight,
        "color": _RED if right else _BLUE,
        "alpha": 0.95 if right else min(1.0, 0.4 + weight),
        "zorder": 3 if right else 2,
    }


def _gold(arc: Arc) -> dict[str, Any]:
    return {"color": _RED if arc.right else _GREY, "linewidth": 0.8, "linestyle": "-" if arc.right else "--"}


@draws(HeadView)
def _view(
    view: HeadView, *, layout: str = "columns", threshold: float = THRESHOLD, ax: AxesT | None = None,
    path: str | Path | None = None,
) -> AxesT:  # fmt: skip
    layouts = {"columns": head_columns, "arcs": head_arcs}
    if layout not in layouts:
        raise DataError(f"layout must be {' or '.join(map(repr, layouts))}, got {layout!r}")
    return layouts[layout](view, threshold=threshold, ax=ax, path=path)


@draws(StructuralProbe)
def draw_structural_probe(result: StructuralProbe, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw both scores of each layer, that of arcs with its interval, beside a baseline."""
    figure, (axes,) = canvas(ax, width_of(result.labels))
    layers = range(len(result.labels))
    ends = [result.interval(layer) for layer in layers]
    reach = [[share - low, high - share] for share, (low, high) in zip(result.uuas.tolist(), ends, strict=True)]
    reach = [[max(0.0, each[side]) for each in reach] for side in (0, 1)]
    style = {"color": colour_of(0), "marker": marker_of(0), "markersize": 4.5}
    axes.errorbar(layers, result.uuas.numpy(), reach, elinewidth=1.1, label="UUAS, 95 % interval", **style)
    style = {"color": colour_of(1), "marker": marker_of(1), "markersize": 4.5}
    axes.plot(layers, result.spearman.numpy(), label="Spearman's ρ of distances", **style)
    axes.axhline(result.adjacent, linestyle="--", color="grey", label="UUAS of neighbours")
    axes.set_xticks(layers, labels=result.labels, rotation=90 if max(map(len, result.labels)) > 3 else 0)
    axes.set_xlabel("layer")
    axes.set_ylabel("score on the test sentences")
    axes.grid(axis="y", alpha=0.3)
    side_legend(axes)
    set_title(axes, headline(result, "Structural probe"))
    return finished(figure, ax, path)


@draws(CoreferenceHeads)
def draw_coreference(
    result: CoreferenceHeads, *, kind: str = "all", ax: AxesT | None = None, path: str | Path | None = None
) -> AxesT:
    """Draw how often each head picks the antecedents of mentions: a heat map per direction, on the same scale.

    `kind` draws the accuracies of this kind of mentions alone. Raises `DataError` for a kind that does not exist.
    """
    if kind not in (*KINDS, "all"):
        raise DataError(f"kind must be one of {', '.join(KINDS)} or all, got {kind!r}")
    some = slice(None) if kind == "all" else [KINDS.index(kind)]
    right, mentions = result.right[some].sum(0), int(result.mentions[some].sum())
    shares = (right.double() / mentions).masked_fill(result.right[0] < 0, float("nan"))
    panels = dict(zip(MENTION_DIRECTIONS, shares, strict=True))
    told = f"{how_many(mentions, 'mention')}{'' if kind == 'all' else f', {kind}'}"
    title = headline(result, f"Coreference heads: {told}")
    return head_panels(panels, result.labels, unit="share of antecedents picked", title=title, ax=ax, path=path)


@draws(DependencyHeads)
def draw_dependencies(
    result: DependencyHeads, *, relation: str | None = None, ax: AxesT | None = None, path: str | Path | None = None
) -> AxesT:
    """Draw how often each head picks the syntactic heads of words: a heat map per direction, on the same scale.

    `relation` draws the accuracies of this relation alone; without it, the shares are of all words, with roots. Raises
    `DataError` if the result does not have the relation, and if only roots have it, whose head no attention can pick.
    """
    if relation is not None and relation not in result.relations:
        raise DataError(f"no relation {relation!r}: this result has {', '.join(result.relations)}")
    right, arcs = result.right, result.arcs
    if relation is None:
        right, arcs = right.sum(0).masked_fill(right[0] < 0, -1), arcs.sum()
    else:
        right, arcs = (x[result.relations.index(relation)] for x in (right, arcs - result.roots))
        if not arcs:
            raise DataError(f"no word has the relation {relation!r} to another word: there is no head to pick")
    shares = (right.double() / arcs).masked_fill(right < 0, float("nan"))
    title = headline(result, f"Dependency heads: {relation or 'all relations'}, {how_many(int(arcs), 'arc')}")
    panels = dict(zip(DIRECTIONS, shares, strict=True))
    return head_panels(panels, result.labels, unit="share of syntactic heads picked", title=title, ax=ax, path=path)
