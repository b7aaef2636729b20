"""Pictures of patching, of importance through training, of neurons, of cut attention, and of sets of heads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.tokens import label_of
from ..results.canvas import AxesT, canvas, common_title, finished, headline, set_title, shades, side_legend
from ..results.figures import colours_of, layer_cells, layer_points, size_of_map, unit_of, width_of
from ..results.result import draws
from ..results.views import rounded
from .edge_ablation import EdgeAblation
from .faithfulness import Faithfulness
from .importance_through_training import ImportanceSeries
from .neuron_importance import NeuronImportance
from .patching_results import LayerPatching

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PARTS = {"attentions": "the attention of each layer", "blocks": "each block", "mlps": "each MLP"}
_FEW_STEPS = 12
"""The most training steps of which each has its number beside a map."""


@draws(LayerPatching)
def draw_layer_patching(result: LayerPatching, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw the effect of each layer at each token as a map, or else that of each layer as a line."""
    title = headline(result, f"Effect of {_PARTS.get(result.parts, result.parts)}, put into the {result.into} run")
    unit = unit_of(result, "token_effect")
    if result.token_effect is None:
        figure, (axes,) = canvas(ax, width_of(result.labels))
        layer_points(axes, {"effect": result.effect[:, None]}, result.labels, unit=unit, title=title, legend=False)
        axes.axhline(0, color="0.5", linewidth=0.8)
        return finished(figure, ax, path)
    figure, (axes,) = canvas(ax, *size_of_map(result.token_effect))
    names = None if result.tokens is None else [label_of(token) for token in result.tokens]
    image = layer_cells(axes, result.token_effect, result.labels, "token", names, scale="signed")
    set_title(axes, title)
    axes.figure.colorbar(image, ax=axes, label=unit)
    return finished(figure, ax, path)


@draws(Faithfulness)
def draw_faithfulness(result: Faithfulness, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw which heads are kept and which are replaced."""
    figure, (axes,) = canvas(ax, *size_of_map(result.kept))
    image = layer_cells(axes, result.kept, result.labels, "head", None, scale="share")
    image.set_cmap(image.get_cmap().resampled(2))
    many = f"{result.size} of {int((~result.kept.isnan()).sum())} heads kept"
    set_title(axes, headline(result, f"Faithfulness {result.value:.2f} of {result.metric}: {many}"))
    bar = axes.figure.colorbar(image, ax=axes, ticks=[0.25, 0.75])
    bar.ax.set_yticklabels([f"replaced\n({result.replace})", "kept"])
    return finished(figure, ax, path)


@draws(NeuronImportance)
def draw_neurons(result: NeuronImportance, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw the importance of the neurons of each layer, most important first: how few of them matter."""
    figure, (axes,) = canvas(ax, 7.2, max(4.0, 0.19 * len(result.labels) + 0.9))
    for label, values, colour in zip(result.labels, result.scores, shades(len(result.labels)), strict=True):
        there = values[~values.isnan()].detach().cpu().double().sort(descending=True).values
        share = 100 * torch.arange(1, len(there) + 1) / max(1, len(there))
        axes.plot(share.numpy(), there.numpy(), color=colour, linewidth=1.4, label=label)
    if (result.scores.nan_to_num(0) > 0).any():
        axes.set_yscale("log")
    axes.set_xlim(0, 100)
    axes.set_xlabel("neurons of the layer, most important first, %")
    axes.set_ylabel(unit_of(result, "scores"))
    axes.grid(alpha=0.3)
    _legend_of_layers(axes)
    set_title(axes, headline(result, "Neuron importance"))
    return finished(figure, ax, path)


@draws(ImportanceSeries)
def draw_series(result: ImportanceSeries, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw the mean importance of each layer's heads over the steps, and how alike two steps rank the heads."""
    figure, (lines, ranks) = canvas(ax, 10.4, max(3.8, 0.19 * len(result.labels) + 1.2), shape=(1, 2))
    means = result.scores.nanmean(2).T
    for label, values, colour in zip(result.labels, means, shades(len(result.labels)), strict=True):
        lines.plot(result.steps.numpy(), values.detach().cpu().numpy(), "o-", color=colour, markersize=4, label=label)
    lines.set_ylim(bottom=0)
    lines.set_xlabel("training step")
    lines.set_ylabel("mean importance, E|g|, of a layer's heads")
    lines.grid(alpha=0.3)
    _legend_of_layers(lines)
    image = ranks.imshow(result.correlation().numpy(), origin="lower", cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    names = [str(step) for step in result.steps.tolist()]
    places = range(0, len(names), -(-len(names) // _FEW_STEPS))
    for axis in (ranks.xaxis, ranks.yaxis):
        axis.set_ticks(list(places), labels=[names[place] for place in places])
    ranks.tick_params(axis="x", rotation=90 if sum(len(names[place]) for place in places) > 30 else 0)
    ranks.set_xlabel("training step")
    ranks.set_ylabel("training step")
    figure.colorbar(image, ax=ranks, label="rank correlation of the heads")
    common_title(figure, ax, headline(result, "Head importance through training"))
    return finished(figure, ax, path)


@draws(EdgeAblation)
def draw_edges(result: EdgeAblation, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw the change of the loss for each pair of classes, and that of each layer where it was measured."""
    count, layers = len(result.classes), len(result.labels)
    panels = 2 if layers else 1
    side = max(3.4, 0.9 * count + 1.6)
    width = side + 1.4 + (max(3.4, 0.34 * count * count + 1.6) if layers else 0)
    names = 0.15 * max(map(len, result.classes)) if layers else 0  # of the pairs, written upwards
    figure, every = canvas(ax, width, max(side - 0.4, 0.27 * layers + 1.8 + names), shape=(1, panels))
    _class_cells(every[0], result)
    if layers:
        pairs = [f"{query} → {key}" for query in result.classes for key in result.classes]
        change = result.change.flatten(1)
        image = layer_cells(every[1], change, result.labels, "masked attention (query → key)", pairs, scale="signed")
        every[1].set_title("in one layer", fontsize="medium", parse_math=False)
        figure.colorbar(image, ax=every[1], label=unit_of(result, "change"))
    common_title(figure, ax, headline(result, "Loss without attention from one class to another"))
    return finished(figure, ax, path)


def _class_cells(axes: Axes, result: EdgeAblation) -> None:
    """A cell for each pair of classes, with its value and standard error."""
    values: Tensor = result.whole.detach().cpu().double()
    colours = colours_of(values, None, "signed")
    image = axes.imshow(values.numpy(), aspect="auto", **colours)
    for row, column in torch.cartesian_prod(*map(torch.arange, values.shape)).reshape(-1, 2).tolist():
        value, error = values[row, column].item(), result.stderr[row, column].item()
        dark = abs(value) > 0.6 * colours["vmax"]
        told = rounded(value, "+.2g") + (f"\n± {error:.1g}" if error < float("inf") else "")
        axes.text(column, row, told, ha="center", va="center", fontsize="small", color="white" if dark else "black")
    names = list(result.classes)
    axes.set_xticks(range(len(names)), labels=names, parse_math=False, rotation=90 if sum(map(len, names)) > 40 else 0)
    axes.set_yticks(range(len(names)), labels=names, parse_math=False)
    axes.set_xlabel("to: class of the key")
    axes.set_ylabel("from: class of the query")
    axes.set_title("in all layers", fontsize="medium")
    axes.figure.colorbar(image, ax=axes, label=unit_of(result, "whole"))


def _legend_of_layers(axes: Axes) -> None:
    """A legend beside the axes, the last layer at the top as in heat maps."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 + (len(labels) > 40)
    side_legend(axes, handles=handles[::-1], labels=labels[::-1], title="layer", fontsize="small", ncols=columns)
