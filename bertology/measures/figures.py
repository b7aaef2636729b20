"""Pictures of attention patterns, of gradients, and of the distances between heads."""

from __future__ import annotations

from pathlib import Path

from ..results.axes import axes_of
from ..results.canvas import AxesT, canvas, finished, headline, width_of
from ..results.figures import head_panels, layer_points
from ..results.head_map import head_map
from ..results.result import draws
from .gradients import AttentionGradients
from .head_distances import HeadDistances
from .patterns import AttentionPatterns


@draws(HeadDistances)
def draw_distances(result: HeadDistances, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw a map on which heads with similar attention are close to each other (extra `syntax`)."""
    title = headline(result, "Heads whose attention is alike")
    return head_map(result.embed(2), result.heads, title=title, ax=ax, path=path)


@draws(AttentionPatterns)
def draw_patterns(result: AttentionPatterns, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw how much attention goes to each place, and to each class of tokens if there are classes."""
    places = {name: getattr(result, name) for name in ("previous", "next", "self", "first")}
    classes = {name: result.attention_to(name) for name in result.classes[:-1]}  # the last is all others
    panels = {"to a place": places}
    if not all(values.isnan().all() for values in classes.values()):
        panels["to a class of tokens"] = classes
    figure, every = canvas(ax, width_of(result.labels), 3.6 * len(panels), shape=(len(panels), 1))
    for number, (axes, (title, series)) in enumerate(zip(every, panels.items(), strict=True)):
        told = f"Attention {title}" if number else headline(result, f"Attention {title}")
        layer_points(axes, series, result.labels, unit="share of the attention", title=told)
    return finished(figure, ax, path)


@draws(AttentionGradients)
def draw_gradients(result: AttentionGradients, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw the gradients to each class of tokens: a heat map per class, on the same scale."""
    panels = {f"to {name}: values": result.gradient_to(name) for name in result.classes}
    unit, title = axes_of(AttentionGradients)["values"].label, headline(result, "Attention gradients")
    return head_panels(panels, result.labels, unit=unit, title=title, ax=ax, path=path)
