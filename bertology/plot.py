"""Pictures by hand: any result, heat maps, pruning curves, heads over layers, on a map or on two data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import checked
from .importance import figures as _figures  # noqa: F401 (registers its pictures)
from .pruning.figures import curve, curves
from .results.figures import head_map, heatmap, over_layers
from .results.result import Result
from .results.scatter import head_scatter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curve", "curves", "draw", "head_map", "head_scatter", "heatmap", "over_layers"]


@checked
def draw(
    result: Result, *, field: str | None = None, relation: str | None = None, path: str | Path | None = None
) -> Figure:
    """Draw a result in the picture that fits it, and write it to `path` if one is given (extra `plot`).

    This is the same as `result.plot(...)`. Patterns are drawn as points over the layers, distances between heads as a
    map (extra `syntax`), and a pruning curve as a curve. Dependencies are drawn as two heat maps of accuracies, and a
    view of one head as lines between words. Scores of edge probes and their statistics are bars over the layers, and
    trajectories of one record are a strip for each label. CAT-scores are lines over the layers, and heads of relations
    in code are one map for each relation. All other results are drawn as a heat map of their first `[layer, head]`
    field.

    Args:
        result: what a measure returned.
        field: draw the heat map of this `[layer, head]` field.
        relation: draw only the accuracies of this relation (for `DependencyHeads`).
        path: the file to which the picture is also written.

    Raises `DataError` for a field or a relation that the result does not have.
    """
    options: dict[str, Any] = {} if relation is None else {"relation": relation}
    return result.plot(field=field, path=path, **options)
