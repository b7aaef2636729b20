"""What do dependency heads look like?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError, need
from ..plot import _cells, heatmap
from ..results.figures import written
from ..results.result import draws
from .dependencies import DependencyHeads
from .predicting import DIRECTIONS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _dependencies(result: DependencyHeads, figure: Figure, relation: str | None) -> None:
    """How often each head picks a word's head, by what it pays and by what it gets, on one scale."""
    if relation is not None and relation not in result.relations:
        raise DataError(f"no relation {relation!r}: there are {', '.join(result.relations)}")
    right, arcs = result.right, result.arcs
    if relation is None:
        right, arcs = right.sum(0).masked_fill(right[0] < 0, -1), arcs.sum()
    else:
        right, arcs = (x[result.relations.index(relation)] for x in (right, arcs))
    shares = (right.double() / arcs).masked_fill(right < 0, float("nan"))
    figure.set_size_inches(0.62 * shares.shape[2] + 2.4, max(3.2, 0.32 * shares.shape[1] + 1.2))
    both = figure.subplots(1, 2, sharey=True)
    top = shares.nan_to_num(0).max().item()
    for axes, direction, values in zip(both, DIRECTIONS, shares, strict=True):
        image = _cells(axes, values, result.labels, top)
        axes.set_title(direction, fontsize="medium")
    both[1].set_ylabel("")
    figure.colorbar(image, ax=list(both), label="share of heads picked")
    figure.suptitle(f"Dependency heads: {relation or 'all relations'}, {int(arcs)} arcs")


@draws(DependencyHeads)
def _draw(
    result: DependencyHeads, *, field: str | None = None, relation: str | None = None, path: str | Path | None = None
) -> Figure:
    figure = need("matplotlib.figure", extra="plot").Figure(figsize=(6.4, 4.0), layout="constrained")
    if field is not None:
        heatmap(result, figure.subplots(), field=field)
    else:
        _dependencies(result, figure, relation)
    return written(figure, path)
