"""Pictures of the layers of several tasks, and of one sentence: Figures 1, 2 and 3 of Tenney et al. (2019)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import DataError, checked, how_many, need
from ..results.canvas import (
    COLOURS,
    AxesT,
    canvas,
    common_legend,
    common_title,
    finished,
    headline,
    ink,
    set_title,
    side_legend,
    width_of,
)
from ..results.result import draws
from .code_length import CodeLength
from .layer_statistics import LayerStatistics
from .order import last_layer, order_of
from .scores import LayerScores
from .trajectories import LabelTrajectories

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ADDED, _MIXED = COLOURS[1], COLOURS[0]
_LIGHT, _GREY = "#9cc3de", "#777777"


@checked
def layers_of_tasks(
    tasks: Mapping[str, LayerStatistics],
    *,
    title: str | None = None,
    ax: AxesT | None = None,
    path: str | Path | None = None,
) -> AxesT:
    """Draw the expected layer and the centre of gravity of each task, beside its F1 (extra `plot`).

    Figure 1 of Tenney et al. (2019): tasks in the order of their expected layers, with F1 in percent at layer 0 and
    with all layers. With several seeds, the bars are means over seeds, and lines are their 95 % intervals (extra
    `stats`).

    Args:
        tasks: `{name: statistics}`; all models must have the same number of layers.
        title: the title of the picture.
        ax: axes to draw in, one for each panel, in the place of a new figure.
        path: a file to write the picture to as well.

    Returns the figure, or the axes that were given.

    Raises `DataError` for no tasks, and for models with different numbers of layers.

        >>> from bertology.edge_probing import layer_statistics
        >>> axes = layers_of_tasks({"POS": layer_statistics(torch.tensor([0.5, 0.8, 0.9]))}).axes[0]
        >>> [text.get_text() for text in axes.texts]
        ['task', 'F1 at 0', 'at 2', 'POS', '50.0', '90.0', '1.25']
    """
    last = last_layer(tasks)
    figure, (axes,) = canvas(ax, 7.4, 0.46 * len(tasks) + 1.5)
    _cells(axes, -0.75, "task", "F1 at 0", f"at {last}", color=_GREY, fontsize="small")
    for row, name in enumerate(order_of(tasks)):
        one = tasks[name]
        f1_at_0, f1_at_last = (f"{100 * one.f1[:, layer].mean():.1f}" for layer in (0, -1))
        _cells(axes, row, name, f1_at_0, f1_at_last)
        if math.isnan(one.expected_layer):
            _beside(axes, row - 0.19, 0, "no expected layer")
        else:
            _bar(axes, row - 0.19, one.expected_layer, one.interval("expected_layers"), _MIXED)
        if not math.isnan(one.centre_of_gravity):
            _bar(axes, row + 0.19, one.centre_of_gravity, one.interval("centres"), _LIGHT)
    axes.set_xlim(0, last)
    axes.set_xticks(_ticks(last))
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("layer")
    set_title(axes, title or "")
    patch = need("matplotlib.patches", extra="plot").Patch
    handles = [patch(color=_MIXED, label="expected layer"), patch(color=_LIGHT, label="centre of gravity")]
    common_legend(figure, [axes], ax, handles, "outside lower right", ncols=2, fontsize="small")
    return finished(figure, ax, path)


@checked
def layer_panels(
    tasks: Mapping[str, LayerStatistics],
    *,
    columns: int = 2,
    title: str | None = None,
    ax: AxesT | None = None,
    path: str | Path | None = None,
) -> AxesT:
    """Draw each task's mixing weights and differential scores over the layers (extra `plot`).

    Figure 2 of Tenney et al. (2019): tasks in the order of their expected layers, row by row. Both quantities are
    shares that sum to 1: the differential scores are divided by the total gain F_L - F_0; some of them may be negative.
    Dashed lines mark the expected layer and the centre of gravity. With several seeds, all values are means over seeds,
    with their standard deviations as error bars. For tasks without an expected layer, no differential scores are drawn.

    Args:
        tasks: `{name: statistics}`; all models must have the same number of layers.
        columns: the number of panels side by side.
        title: the title of the picture.
        ax: axes to draw in, one for each panel, in the place of a new figure.
        path: a file to write the picture to as well.

    Returns the figure, or the axes that were given.

    Raises `DataError` for no tasks, and for models with different numbers of layers.

        >>> from bertology.edge_probing import layer_statistics
        >>> figure = layer_panels({"POS": layer_statistics(torch.tensor([0.5, 0.8, 0.9]))})
        >>> [round(float(bar.get_height()), 2) for bar in figure.axes[0].patches]
        [0.75, 0.25]
    """
    last = last_layer(tasks)
    if columns < 1:
        raise DataError(f"columns, the number of panels side by side, must be 1 or more, got {columns}")
    columns = min(columns, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    size = (max(4.6, 4.6 * columns if last > 12 else 3.6 * columns), 1.55 * rows + 0.9)
    figure, panels = canvas(ax, *size, shape=(rows, columns), panels=len(tasks), sharex=True)
    for number, (axes, name) in enumerate(zip(panels, order_of(tasks), strict=True)):
        _panel(axes, name, tasks[name])
        axes.set_xlim(-0.7, last + 0.7)
        axes.set_xticks(_ticks(last))
        axes.tick_params(labelsize="small", labelbottom=number + columns >= len(tasks))
        axes.set_xlabel("layer" if number // columns == rows - 1 else "")
    patch = need("matplotlib.patches", extra="plot").Patch
    both = [
        patch(color=_LIGHT, label="mixing weights s; blue line: centre of gravity"),
        patch(
            fill=False, edgecolor=_ADDED, label="differential scores Δ, share of the gain; orange line: expected layer"
        ),
    ]
    common_legend(figure, panels, ax, both, "outside lower center", fontsize="small")
    if ax is None:
        figure.supylabel("share", fontsize="medium")
    common_title(figure, ax, title or "")
    return finished(figure, ax, path)


@checked
def sentence_strips(
    trajectories: LabelTrajectories,
    *,
    title: str | None = None,
    ax: AxesT | None = None,
    path: str | Path | None = None,
) -> AxesT:
    """Draw what the probes up to each layer predict for the targets in one sentence (extra `plot`).

    Figure 3 of Tenney et al. (2019). Each target has one strip for each label that is true, or that is the most
    probable label at some layer. A strip shows the label's probability in percent at every layer. A frame marks the
    most probable label at a layer, a `+` marks true labels.

    Args:
        trajectories: the trajectories of one record, `label_trajectories(...).sentence(5)`, or of some of its targets
            (`subset`).
        title: the title of the picture; by default the sentence.
        ax: axes to draw in, one for each panel, in the place of a new figure.
        path: a file to write the picture to as well.

    Returns the figure, or the axes that were given.

    Raises `DataError` for several records, and for no targets.

        >>> from bertology.edge_probing import EdgeTask, Record, Target, label_trajectories
        >>> record = Record(("Birds", "sing"), (Target((0, 1), ("NOUN",)),))
        >>> task = EdgeTask.of("pos", [record], labels=["NOUN", "VERB"])
        >>> axes = sentence_strips(label_trajectories(torch.tensor([[[0.4, 0.6]], [[0.9, 0.1]]]), task)).axes[0]
        >>> [text.get_text() for text in axes.get_yticklabels()], [text.get_text() for text in axes.texts]
        (['+ NOUN', 'VERB'], ['40', '90', '60', '10'])
    """
    if len(trajectories.words) != 1 or not trajectories.targets:
        raise DataError(
            f"wanted one or more targets of a single record, got {how_many(trajectories.targets, 'target')} in "
            f"{how_many(len(trajectories.words), 'record')}: choose a record with .sentence(record)"
        )
    layers = len(trajectories.labels)
    shown = [trajectories.shown(target) for target in range(trajectories.targets)]
    longest = max(len(trajectories.label_names[label]) for labels in shown for label in labels)
    size = (max(4.2, 0.34 * layers + 1.5 + 0.075 * longest), 0.3 * sum(map(len, shown)) + 0.42 * len(shown) + 1.2)
    figure, panels = canvas(ax, *size, shape=(len(shown), 1), sharex=True, height_ratios=[*map(len, shown)])
    for target, (axes, labels) in enumerate(zip(panels, shown, strict=True)):
        _strips(axes, trajectories, target, labels)
    panels[-1].set_xticks(range(layers), labels=trajectories.labels)
    panels[-1].set_xlabel("layer")
    patch = need("matplotlib.patches", extra="plot").Patch
    frame = patch(fill=False, edgecolor=_ADDED, linewidth=1.6, label="most probable label")
    cell = patch(color=_LIGHT, label="probability, %; +: true label")
    common_legend(figure, panels, ax, [cell, frame], "outside lower center", ncols=2, fontsize="small")
    sentence = " ".join(trajectories.words[0])
    common_title(figure, ax, title or "\n".join(textwrap.wrap(sentence, int(13 * size[0]))))
    return finished(figure, ax, path)


def _ticks(last: int) -> range:
    return range(0, last + 1, 1 if last <= 12 else 4)


def _cells(axes: Axes, row: float, *cells: str, **style: Any) -> None:
    """Write the cells of a row at the left of the axes. Their positions are in points."""
    for text, place in zip(cells, (-92, -46, -8), strict=True):
        axes.annotate(
            text, (0, row), (place, 0), textcoords="offset points", ha="right", va="center", annotation_clip=False,
            parse_math=False, **style,
        )  # fmt: skip


def _bar(axes: Axes, row: float, value: float, ends: tuple[Any, Any], colour: str) -> None:
    """Draw a bar with its value beside it, and a line for the interval if there is one."""
    axes.barh(row, value, height=0.36, color=colour)
    low, high = (end.item() for end in ends)
    if not math.isnan(low):
        axes.plot([low, high], [row, row], color=ink(), linewidth=1.2)
    _beside(axes, row, value if math.isnan(high) else max(value, high), f"{value:.2f}")


def _beside(axes: Axes, row: float, place: float, text: str) -> None:
    axes.annotate(text, (place, row), (4, 0), textcoords="offset points", va="center", fontsize="x-small")


def _panel(axes: Axes, name: str, one: LayerStatistics) -> None:
    layers, title = range(one.f1.shape[1]), [name]
    if not one.mix.isnan().any():
        axes.bar(layers, one.mix.mean(0).numpy(), width=0.8, color=_LIGHT, **_spread(one.mix, _MIXED))
        axes.axvline(one.centre_of_gravity, color=_MIXED, linestyle="--", linewidth=1)
        title.append(f"K(s) = {one.kl_of_mix:.2f} bits")
    if not math.isnan(one.expected_layer):
        added = one.differential[:, 1:].mean(0) / one.gain
        spread = _spread(one.differential[:, 1:] / one.gain, _ADDED)
        axes.bar(layers[1:], added.numpy(), width=0.8, color="none", edgecolor=_ADDED, linewidth=1.1, **spread)
        axes.axvline(one.expected_layer, color=_ADDED, linestyle="--", linewidth=1)
        title.append(f"K(Δ) = {one.kl_of_differential:.2f} bits")
    else:
        title.append("no expected layer")
    axes.axhline(0, color=ink(), linewidth=0.8)
    axes.set_title("   ".join(title), fontsize="small", loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="y", nbins=4)
    if not axes.patches:
        axes.set_yticks([])


def _spread(values: torch.Tensor, colour: str) -> dict[str, Any]:
    """The error bars of means over seeds: a standard deviation to either side, if there are several seeds."""
    if len(values) < 2:
        return {}
    return {"yerr": values.std(0).numpy(), "error_kw": {"ecolor": colour, "elinewidth": 0.9}}


def _strips(axes: Axes, trajectories: LabelTrajectories, target: int, labels: list[int]) -> None:
    """Draw a row for each label of a target, with a column for each layer."""
    rectangle = need("matplotlib.patches", extra="plot").Rectangle
    values = trajectories.probabilities[:, target, labels].T
    axes.imshow(values.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, layer in torch.cartesian_prod(*map(torch.arange, values.shape)).tolist():
        p = values[row, layer].item()
        dark = "white" if p > 0.6 else "black"
        axes.text(layer, row, f"{100 * p:.0f}", ha="center", va="center", fontsize=7, color=dark)
    for layer, top in enumerate(trajectories.top_label[:, target].tolist()):
        place = (layer - 0.5, labels.index(top) - 0.5)
        axes.add_patch(rectangle(place, 1, 1, fill=False, edgecolor=_ADDED, linewidth=1.6, clip_on=False))
    named = [("+ " if trajectories.gold[target, label] else "") + trajectories.label_names[label] for label in labels]
    axes.set_yticks(range(len(labels)), labels=named, parse_math=False)
    axes.tick_params(length=0, labelsize="small")
    axes.spines[:].set_visible(False)
    axes.set_title(trajectories.asked(target), fontsize="small", loc="left", parse_math=False)


draws(LabelTrajectories)(sentence_strips)


@draws(CodeLength)
def draw_code_length(result: CodeLength, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw the online code of each probe as a bar with its compression, beside the uniform code."""
    figure, (axes,) = canvas(ax, width_of(result.labels))
    uniform = result.uniform.sum().item()
    bars = axes.bar(range(len(result.labels)), result.online.numpy(), color=_MIXED)
    axes.bar_label(bars, [f"{times:.2f}" for times in result.compression.tolist()], fontsize="small")
    axes.axhline(uniform, linestyle="--", color="grey", label="uniform code")
    axes.set_ylim(0, 1.1 * max(uniform, result.online.max().item()))
    axes.set_xticks(range(len(result.labels)), labels=result.labels, rotation=90 if len(result.labels) > 26 else 0)
    axes.set_xlabel("probe")
    axes.set_ylabel("online code (bits)")
    side_legend(axes)
    set_title(axes, headline(result, "Online code; above each bar: compression"))
    return finished(figure, ax, path)


@draws(LayerStatistics)
def _statistics(
    result: LayerStatistics, *, name: str = "", ax: AxesT | None = None, path: str | Path | None = None
) -> AxesT:
    title = headline(result, "Mixing weights and differential scores")
    return layer_panels({name: result}, title=title, ax=ax, path=path)


@draws(LayerScores)
def _scores(result: LayerScores, *, name: str = "", ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    return _statistics(result.statistics(), name=name, ax=ax, path=path)
