"""Pictures by hand: any result, heat maps, pruning curves, heads over the layers and on a map (extra `plot`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .pruning.figures import curve, curves
from .results.figures import head_map, heatmap, over_layers
from .results.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curve", "curves", "draw", "head_map", "heatmap", "over_layers"]


def draw(
    result: Result, *, field: str | None = None, relation: str | None = None, path: str | Path | None = None
) -> Figure:
    """Draw a result in the picture that fits it, and write it to `path` if one is given (extra `plot`).

    This is `result.plot(...)`: patterns are points over the layers, distances between heads a map (extra `syntax`), a
    pruning curve a curve, dependencies two heat maps of accuracies, a view of one head lines between words, scores of
    edge probes and their statistics bars over the layers, trajectories of one record a strip for each label, CAT-scores
    lines over the layers, heads of code's relations a map for each. Everything else is a heat map of its first
    `[layer, head]` field.

    Args:
        result: what a measure returned.
        field: draw the heat map of this `[layer, head]` field.
        relation: of `DependencyHeads`, the accuracies of this relation alone.
        path: where to write the picture, too.

    Raises `DataError` for a field or a relation that the result does not have.
    """
    options: dict[str, Any] = {} if relation is None else {"relation": relation}
    return result.plot(field=field, path=path, **options)
