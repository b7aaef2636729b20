"""Pictures of the layers of several tasks, and of one sentence.

Figures 1, 2 and 3 of Tenney et al. (2019).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import DataError, checked, need
from ..results.figures import COLOURS, new_figure, written
from ..results.result import draws
from .layer_statistics import LayerStatistics
from .order import last_layer, order_of
from .scores import LayerScores
from .trajectories import LabelTrajectories

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ADDED, _MIXED = COLOURS[1], COLOURS[0]
_LIGHT, _GREY = "#9cc3de", "#777777"


@checked
def layers_of_tasks(
    tasks: Mapping[str, LayerStatistics], *, title: str | None = None, path: str | Path | None = None
) -> Figure:
    """Draw the expected layer and the centre of gravity of each task, beside its F1 (extra `plot`).

    Picture 1 of Tenney et al. (2019): tasks in the order of their expected layers, F1 in percent at layer 0 and with
    all layers. With several seeds the means, and their 95 % intervals over seeds as lines (extra `stats`).

    Args:
        tasks: `{name: statistics}`, all of models of the same depth.
        title: above the picture.
        path: where to write the picture, too.

    Raises `DataError` for no tasks, and for tasks of models of different depth.

        >>> from bertology.edge_probing import layer_statistics
        >>> axes = layers_of_tasks({"POS": layer_statistics(torch.tensor([0.5, 0.8, 0.9]))}).axes[0]
        >>> [text.get_text() for text in axes.texts]
        ['task', 'F1 at 0', 'at 2', 'POS', '50.0', '90.0', '1.25']
    """
    last = last_layer(tasks)
    size = (7.4, 0.46 * len(tasks) + 1.5)
    figure = new_figure(*size)
    axes = figure.subplots()
    _cells(axes, -0.75, "task", "F1 at 0", f"at {last}", color=_GREY, fontsize="small")
    for row, name in enumerate(order_of(tasks)):
        one = tasks[name]
        first, whole = (f"{100 * one.f1[:, layer].mean():.1f}" for layer in (0, -1))
        _cells(axes, row, name, first, whole)
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
    axes.set_title(title or "")
    patch = need("matplotlib.patches", extra="plot").Patch
    of_all = [patch(color=_MIXED, label="expected layer"), patch(color=_LIGHT, label="centre of gravity")]
    figure.legend(handles=of_all, loc="outside lower right", ncols=2, frameon=False, fontsize="small")
    return written(figure, path)


@checked
def layer_panels(
    tasks: Mapping[str, LayerStatistics],
    *,
    columns: int = 2,
    title: str | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw each task's mixing weights and differential scores over the layers (extra `plot`).

    Picture 2 of Tenney et al. (2019), tasks in the order of their expected layers, row by row. Both are shares: the
    weights sum to 1, and the differential scores are divided by the whole gain F_L - F_0, so that they do, too, where
    some may be below 0. Broken lines are the expected layer and the centre of gravity. With several seeds the means.
    Tasks without an expected layer have no differential scores in the picture.

    Args:
        tasks: `{name: statistics}`, all of models of the same depth.
        columns: how many panels are side by side.
        title: above the picture.
        path: where to write the picture, too.

    Raises `DataError` for no tasks, and for tasks of models of different depth.

        >>> from bertology.edge_probing import layer_statistics
        >>> figure = layer_panels({"POS": layer_statistics(torch.tensor([0.5, 0.8, 0.9]))})
        >>> [round(float(bar.get_height()), 2) for bar in figure.axes[0].patches]
        [0.75, 0.25]
    """
    last = last_layer(tasks)
    if columns < 1:
        raise DataError(f"columns is how many panels are side by side, 1 or more, got {columns}")
    columns = min(columns, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    size = (max(4.6, 4.6 * columns if last > 12 else 3.6 * columns), 1.55 * rows + 0.9)
    figure = new_figure(*size)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    for number, (axes, name) in enumerate(zip(panels, order_of(tasks), strict=False)):
        _panel(axes, name, tasks[name])
        axes.set_xlim(-0.7, last + 0.7)
        axes.set_xticks(_ticks(last))
        axes.tick_params(labelsize="small", labelbottom=number + columns >= len(tasks))
        axes.set_xlabel("layer" if number // columns == rows - 1 else "")
    patch = need("matplotlib.patches", extra="plot").Patch
    both = [
        patch(color=_LIGHT, label="mixing weights s; blue line: centre of gravity"),
        patch(fill=False, edgecolor=_ADDED, label="differential scores Δ, share of the gain; red line: expected layer"),
    ]
    figure.legend(handles=both, loc="outside lower center", frameon=False, fontsize="small")
    figure.supylabel("share", fontsize="medium")
    figure.suptitle(title or "")
    return written(figure, path)


@checked
def sentence_strips(
    trajectories: LabelTrajectories, *, title: str | None = None, path: str | Path | None = None
) -> Figure:
    """Draw what the probes up to each layer make of the targets in one sentence (extra `plot`).

    Picture 3 of Tenney et al. (2019): for each target a strip for each label that is true or on top at some layer, its
    probability in percent at every layer. The label on top is framed, true ones have a `+`.

    Args:
        trajectories: of one record: `label_trajectories(...).sentence(5)`, or of some of its targets (`subset`).
        title: above the picture, by default the sentence.
        path: where to write the picture, too.

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
            f"a picture is of the targets of one record, got {trajectories.targets} in {len(trajectories.words)} "
            "records: pick one with .sentence(record)"
        )
    layers = len(trajectories.labels)
    shown = [trajectories.shown(target) for target in range(trajectories.targets)]
    longest = max(len(trajectories.label_names[label]) for labels in shown for label in labels)
    size = (max(4.2, 0.34 * layers + 1.5 + 0.075 * longest), 0.3 * sum(map(len, shown)) + 0.42 * len(shown) + 1.2)
    figure = new_figure(*size)
    panels = figure.subplots(len(shown), 1, squeeze=False, sharex=True, height_ratios=[*map(len, shown)])[:, 0]
    for target, (axes, labels) in enumerate(zip(panels, shown, strict=True)):
        _strips(axes, trajectories, target, labels)
    axes.set_xticks(range(layers), labels=trajectories.labels)
    axes.set_xlabel("layer")
    patch = need("matplotlib.patches", extra="plot").Patch
    frame = patch(fill=False, edgecolor=_ADDED, linewidth=1.6, label="most probable label")
    cell = patch(color=_LIGHT, label="probability, %; + is true")
    figure.legend(handles=[cell, frame], loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    sentence = " ".join(trajectories.words[0])
    figure.suptitle(title or "\n".join(textwrap.wrap(sentence, int(13 * size[0]))), fontsize="medium")
    return written(figure, path)


def _ticks(last: int) -> range:
    return range(0, last + 1, 1 if last <= 12 else 4)


def _cells(axes: Axes, row: float, *cells: str, **style: Any) -> None:
    """Columns at the left of the axes, as names of a row; where they are is in points of print."""
    for text, place in zip(cells, (-92, -46, -8), strict=True):
        axes.annotate(
            text, (0, row), (place, 0), textcoords="offset points", ha="right", va="center", annotation_clip=False,
            **style,
        )  # fmt: skip


def _bar(axes: Axes, row: float, value: float, ends: tuple[Any, Any], colour: str) -> None:
    """A bar with its value after it, and a line over the interval if there is one."""
    axes.barh(row, value, height=0.36, color=colour)
    low, high = (end.item() for end in ends)
    if not math.isnan(low):
        axes.plot([low, high], [row, row], color="#333333", linewidth=1.2)
    _beside(axes, row, value if math.isnan(high) else max(value, high), f"{value:.2f}")


def _beside(axes: Axes, row: float, place: float, text: str) -> None:
    axes.annotate(text, (place, row), (4, 0), textcoords="offset points", va="center", fontsize="x-small")


def _panel(axes: Axes, name: str, one: LayerStatistics) -> None:
    layers, told = range(one.f1.shape[1]), [name]
    if not one.mix.isnan().any():
        axes.bar(layers, one.mix.mean(0).numpy(), width=0.8, color=_LIGHT)
        axes.axvline(one.centre_of_gravity, color=_MIXED, linestyle="--", linewidth=1)
        told.append(f"K(s) = {one.kl_of_mix:.2f} bits")
    if not math.isnan(one.expected_layer):
        added = one.differential[:, 1:].mean(0) / one.gain
        axes.bar(layers[1:], added.numpy(), width=0.8, color="none", edgecolor=_ADDED, linewidth=1.1)
        axes.axvline(one.expected_layer, color=_ADDED, linestyle="--", linewidth=1)
        told.append(f"K(Δ) = {one.kl_of_differential:.2f} bits")
    else:
        told.append("no expected layer")
    axes.axhline(0, color="#333333", linewidth=0.8)
    axes.set_title("   ".join(told), fontsize="small", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="y", nbins=4)
    if not axes.patches:
        axes.set_yticks([])


def _strips(axes: Axes, trajectories: LabelTrajectories, target: int, labels: list[int]) -> None:
    """A row for each label of a target, a column for each layer."""
    rectangle = need("matplotlib.patches", extra="plot").Rectangle
    values = trajectories.probabilities[:, target, labels].T
    axes.imshow(values.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, layer in torch.cartesian_prod(*map(torch.arange, values.shape)).tolist():
        p = values[row, layer].item()
        dark = "white" if p > 0.6 else "black"
        axes.text(layer, row, f"{100 * p:.0f}", ha="center", va="center", fontsize=7, color=dark)
    for layer, top in enumerate(trajectories.top[:, target].tolist()):
        place = (layer - 0.5, labels.index(top) - 0.5)
        axes.add_patch(rectangle(place, 1, 1, fill=False, edgecolor=_ADDED, linewidth=1.6, clip_on=False))
    named = [("+ " if trajectories.gold[target, label] else "") + trajectories.label_names[label] for label in labels]
    axes.set_yticks(range(len(labels)), labels=named)
    axes.tick_params(length=0, labelsize="small")
    axes.spines[:].set_visible(False)
    axes.set_title(trajectories.asked(target), fontsize="small", loc="left")


draws(LabelTrajectories)(sentence_strips)


@draws(LayerStatistics)
def _statistics(result: LayerStatistics, *, name: str = "", path: str | Path | None = None) -> Figure:
    return layer_panels({name: result}, path=path)


@draws(LayerScores)
def _scores(result: LayerScores, *, name: str = "", path: str | Path | None = None) -> Figure:
    return _statistics(result.statistics(), name=name, path=path)
