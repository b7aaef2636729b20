"""Pictures of CAT-scores, and of the heads that attend to related leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import DataError, checked, need
from ..results.canvas import (
    COLOURS,
    MARKERS,
    MISSING,
    AxesT,
    canvas,
    colour_of,
    common_legend,
    common_title,
    finished,
    headline,
    ink,
    set_title,
    width_of,
)
from ..results.figures import head_cells, layer_cells
from ..results.result import draws
from ..results.views import rounded
from .cat_results import CHANCE, Average, CatComparison, CatGain
from .leaf_types import LeafTypes
from .relation_heads import RelationHeads

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHES = ((0, (1, 1.5)), (0, (5, 2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 3)))


@checked
def cat_over_layers(
    comparisons: Mapping[str, CatComparison],
    *,
    nulls: Sequence[str] | None = None,
    average: Average = "macro",
    level: float = 0.95,
    title: str | None = None,
    ax: AxesT | None = None,
    path: str | Path | None = None,
) -> AxesT:
    """Draw the CAT-scores of several languages or models over the layers, and those of null models (extra `plot`).

    Bold lines show the scores of the attention, with their intervals over snippets. Thin lines in the same colour show
    the scores of the null models. The grey line is chance, 1/7. Layers that do not read the code are left out.

    Args:
        comparisons: `{name: result of cat_scores}`. The layers of all models must have the same labels; a model may
            have fewer layers than another.
        nulls: the null models to draw; by default all.
        average: "macro", every snippet has the same weight, or "micro", every pair of leaves has.
        level: the confidence level of the intervals.
        title: the title of the picture.
        ax: axes to draw in, one for each panel, in the place of a new figure.
        path: a file to write the picture to as well.

    Returns the figure, or the axes that were given.

    Raises `DataError` for no comparisons, for a null model that is in none of them, and for models whose layers have
    different labels.

        >>> import torch
        >>> counts = torch.tensor([[[2, 3], [4, 2]], [[1, 1], [1, 1]]]), torch.full((2, 2, 2), 7)
        >>> found = CatComparison(*counts, *(x[:, :, None] for x in counts), ("attention", "shuffled"), (None, None),
        ...     ("f", "g"), 0.25, True, ("0", "1"))
        >>> [text.get_text() for text in cat_over_layers({"python": found}).legends[0].get_texts()]
        ['python', 'shuffled', 'chance, 1/7']
    """
    labels, rows = _layers(comparisons)
    available = list(dict.fromkeys(kind for one in comparisons.values() for kind in one.kinds[1:]))
    kinds = available if nulls is None else list(nulls)
    if unknown := [kind for kind in kinds if kind not in available]:
        raise DataError(f"there are no scores of {unknown[0]!r}: the null models are {', '.join(available) or 'none'}")
    figure, (axes,) = canvas(ax, width_of(labels), 4.2)
    line = need("matplotlib.lines", extra="plot").Line2D
    handles: list[Any] = []
    for number, (name, one) in enumerate(comparisons.items()):
        style = {"color": colour_of(number), "marker": MARKERS[number % len(MARKERS)]}
        _scores(axes, one, rows, average, level, 0.09 * (number - (len(comparisons) - 1) / 2), style)
        handles.append(line([], [], markersize=4.5, label=name, **style))
        for kind in [kind for kind in kinds if kind in one.kinds]:
            values = getattr(one.of(kind), average)[[row for row in rows if row < len(one.labels)]]
            dashes = _DASHES[kinds.index(kind) % len(_DASHES)]
            axes.plot(values.numpy(), color=style["color"], linewidth=1.2, linestyle=dashes, zorder=1)
    axes.axhline(CHANCE, color="#999999", linewidth=1, zorder=0)
    for place, kind in enumerate(kinds):
        dashes = _DASHES[place % len(_DASHES)]
        handles.append(line([], [], color=ink(), label=kind, linestyle=dashes, linewidth=1))
    handles.append(line([], [], color="#999999", linewidth=1, label="chance, 1/7"))
    axes.set_xticks(range(len(rows)), labels=labels, rotation=90 if max(map(len, labels)) > 3 else 0)
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer")
    axes.set_ylabel(f"CAT-score, {100 * level:g} % interval over snippets")
    set_title(axes, title or "")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    common_legend(figure, [axes], ax, handles, "outside right center")  # below the title, which may be wide
    return finished(figure, ax, path)


@checked
def relation_maps(
    found: RelationHeads, *, title: str | None = None, ax: AxesT | None = None, path: str | Path | None = None
) -> AxesT:
    """Draw how much more attention each head pays to related leaves than position explains (extra `plot`).

    There is one map for each relation, with layer 0 at the bottom and pruned heads in grey. Blue means more attention
    than to unrelated leaves at the same offset, red means less. Each map has its own scale. A frame marks the head with
    the highest gain.

    Args:
        found: a result of `relation_heads`.
        title: the title of the picture.
        ax: axes to draw in, one for each panel, in the place of a new figure.
        path: a file to write the picture to as well.

    Returns the figure, or the axes that were given.

    Raises `DataError` if no pair of any relation was compared.

        >>> import torch
        >>> from bertology.code_structure import RelationHeads
        >>> sums, pairs = torch.tensor([[[[0.6], [0.2]]]]), torch.ones(1, 1, 1, dtype=torch.int64)
        >>> found = RelationHeads(sums, 0 * sums, pairs, 0 * pairs, ("same block",), ("f",), ("0",))
        >>> relation_maps(found).axes[0].get_title()
        'same block: L0H0 +0.600'
    """
    rows = [row for row, many in enumerate(found.pairs.sum((0, 2)).tolist()) if many]
    drawn = [place for place in range(len(found.relations)) if found.pairs[place].any()]
    if not drawn:
        raise DataError(f"nothing to draw: no pair of leaves of {', '.join(found.relations)} was compared")
    gains = found.gain[:, rows]
    columns = min(2, len(drawn))
    deep = -(-len(drawn) // columns)
    size = (columns * max(3.4, 0.24 * gains.shape[2] + 1.5), deep * max(2.5, 0.24 * len(rows) + 1.2) + 0.3)
    figure, panels = canvas(ax, *size, shape=(deep, columns), panels=len(drawn))
    for axes, place in zip(panels, drawn, strict=True):
        _gains(axes, gains[place], [found.labels[row] for row in rows])
        best = found.best(found.relations[place])
        axes.set_title(
            f"{found.relations[place]}: {best.head} {rounded(best.gain, '+.3f')}", fontsize="medium", parse_math=False
        )
    common_title(figure, ax, title or headline(found, "Attention to related leaves, beyond position"))
    return finished(figure, ax, path)


def _layers(comparisons: Mapping[str, CatComparison]) -> tuple[list[str], list[int]]:
    """The labels and the rows of the layers that read the code in at least one of the models."""
    if not comparisons:
        raise DataError("nothing to draw: wanted one result of cat_scores or more, got none")
    longest = max((one.labels for one in comparisons.values()), key=len)
    for name, one in comparisons.items():
        if one.labels != longest[: len(one.labels)]:
            raise DataError(
                f"the layers of {name!r} are {', '.join(one.labels)}, those of another model {', '.join(longest)}: "
                "draw models of different architectures in different pictures"
            )
    used = {row for one in comparisons.values() for row in one.either[0].any(-1).nonzero()[:, 0].tolist()}
    if not used:
        raise DataError("nothing to draw: no layer has a score")
    return [longest[row] for row in sorted(used)], sorted(used)


def _scores(
    axes: Axes, one: CatComparison, rows: list[int], average: Average, level: float, shift: float, style: dict[str, Any]
) -> None:
    """Draw the scores of the attention over the layers, and their intervals as error bars."""
    scores, some = one.scores, [row for row in rows if row < len(one.labels)]
    values = getattr(scores, average)[some]
    low, high = (end[some] for end in scores.interval(level, average=average))
    ends = torch.stack([values - low, high - values]).clamp_min(0).nan_to_num(0)  # NaN: too few snippets
    x = torch.arange(len(some)) + shift
    axes.errorbar(x.numpy(), values.numpy(), ends.numpy(), markersize=4.5, linewidth=1.8, elinewidth=1.1, **style)


def _gains(axes: Axes, gains: torch.Tensor, labels: Sequence[str]) -> None:
    """Draw a cell for each head, and a frame around the best one."""
    edge = gains.nan_to_num(0).abs().max().item() or 1.0
    axes.set_facecolor(MISSING)
    image = axes.imshow(gains.numpy(), origin="lower", aspect="auto", cmap="RdBu", vmin=-edge, vmax=edge)
    row, head = divmod(int(gains.nan_to_num(-torch.inf).argmax()), gains.shape[1])
    frame = need("matplotlib.patches", extra="plot").Rectangle
    axes.add_patch(frame((head - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.4))
    axes.set_xticks(range(0, gains.shape[1], 1 if gains.shape[1] <= 16 else 4))
    axes.set_yticks(range(len(labels)), labels=labels)
    axes.tick_params(labelsize="small")
    axes.set_xlabel("head", fontsize="small")
    axes.set_ylabel("layer", fontsize="small")
    bar = axes.figure.colorbar(image, ax=axes)
    bar.set_label("attention beyond position", fontsize="x-small")
    bar.locator = need("matplotlib.ticker", extra="plot").MaxNLocator(4)
    bar.update_ticks()
    bar.ax.tick_params(labelsize="x-small")


draws(RelationHeads)(relation_maps)


@draws(CatComparison)
def _comparison(
    result: CatComparison, *, average: Average = "macro", title: str | None = None, ax: AxesT | None = None,
    path: str | Path | None = None,
) -> AxesT:  # fmt: skip
    title = headline(result, "CAT-scores") if title is None else title
    return cat_over_layers({result.kinds[0]: result}, average=average, title=title, ax=ax, path=path)


@draws(CatGain)
def draw_gain(result: CatGain, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw the gain of each layer with its interval, and a map of the gains of the heads."""
    width, height = max(7.4, 0.3 * result.head_gain.shape[1] + 4.4), max(3.4, 0.3 * len(result.labels) + 1)
    figure, (layers, heads) = canvas(ax, width, height, shape=(1, 2))
    rows = torch.arange(len(result.labels))
    ends = torch.stack([result.gain - result.low, result.high - result.gain]).clamp_min(0).nan_to_num(0)
    layers.errorbar(result.gain.numpy(), rows.numpy(), xerr=ends.numpy(), marker="o", color=COLOURS[0], elinewidth=1.1)
    layers.axvline(0, color="#999999", linewidth=1)
    layers.set_yticks(rows.tolist(), labels=result.labels)
    layers.set_ylabel("layer")
    layers.locator_params(axis="x", nbins=5)
    layers.set_xlabel(f"gain, {100 * result.level:g} % interval")
    image = head_cells(heads, result.head_gain, result.labels, scale="signed")
    figure.colorbar(image, ax=heads, label="gain of the head")
    common_title(figure, ax, headline(result, "CAT-scores beyond the null model"))
    return finished(figure, ax, path)


@draws(LeafTypes)
def draw_types(result: LeafTypes, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw the share of high attention of each type of leaves, in each layer."""
    figure, (axes,) = canvas(ax, max(6.4, 0.25 * len(result.types) + 2), max(3.6, 0.3 * len(result.labels) + 2))
    image = layer_cells(axes, result.share, result.labels, "type of leaf", result.types)
    set_title(axes, headline(result, "Leaf types: share"))
    figure.colorbar(image, ax=axes, label="share of pairs with high attention")
    return finished(figure, ax, path)
