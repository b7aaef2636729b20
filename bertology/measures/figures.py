"""Pictures of attention patterns, of gradients, and of the distances between heads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..results.axes import axes_of
from ..results.figures import head_map, head_panels, layer_points, new_figure, width_of, written
from ..results.result import draws
from .gradients import AttentionGradients
from .head_distances import HeadDistances
from .patterns import AttentionPatterns

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@draws(HeadDistances)
def draw_distances(result: HeadDistances, *, path: str | Path | None = None) -> Figure:
    """Draw a map on which heads with similar attention are close to each other (extra `syntax`)."""
    return head_map(result.embed(2), result.heads, title="Heads whose attention is alike", path=path)


@draws(AttentionPatterns)
def draw_patterns(result: AttentionPatterns, *, path: str | Path | None = None) -> Figure:
    """Draw how much attention goes to each place, and to each class of tokens if there are classes."""
    places = {name: getattr(result, name) for name in ("previous", "next", "self", "first")}
    classes = {name: result.attention_to(name) for name in result.classes[:-1]}  # the last is all others
    panels = {"to a place": places}
    if not all(values.isnan().all() for values in classes.values()):
        panels["to a class of tokens"] = classes
    figure = new_figure(width_of(result.labels), 3.6 * len(panels))
    for axes, (title, series) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
        layer_points(axes, series, result.labels, unit="share of the attention", title=f"Attention {title}")
    return written(figure, path)


@draws(AttentionGradients)
def draw_gradients(result: AttentionGradients, *, path: str | Path | None = None) -> Figure:
    """Draw the gradients to each class of tokens: a heat map per class, on the same scale."""
    panels = {f"to {name}: values": result.gradient_to(name) for name in result.classes}
    unit = axes_of(AttentionGradients)["values"].unit or ""
    return head_panels(panels, result.labels, unit=unit, title="Attention gradients", path=path)
