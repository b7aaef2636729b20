"""Pictures of pruning curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError, checked, described
from ..results.figures import new_figure, written
from ..results.result import draws
from .curve import PruningCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@draws(PruningCurve)
def draw_curve(result: PruningCurve, *, path: str | Path | None = None) -> Figure:
    """Draw one pruning curve in a figure of its own."""
    figure = new_figure()
    curve(result, figure.subplots())
    return written(figure, path)


def curve(result: PruningCurve, axes: Axes, *, title: str | None = None) -> None:
    """Draw the score against the share of heads that are gone, with the threshold where there is one."""
    if not isinstance(result, PruningCurve):
        raise DataError(f"curve draws a PruningCurve, as pruning_curve returns it, got {described(result)}")
    total = result.heads_left[0].item()
    gone = 100 * (1 - result.heads_left.double() / total)
    axes.plot(gone.numpy(), result.scores.numpy(), marker="o")
    if result.threshold is not None:
        level = result.threshold * result.scores[0].item()
        axes.axhline(level, linestyle="--", color="grey", label=f"{result.threshold:.0%} of the whole model's score")
        axes.legend()
    axes.set_xlabel(f"heads silenced, % of {total}")
    axes.set_ylabel(result.metric)
    axes.set_title(title or "Pruning curve")
    axes.grid(alpha=0.3)


@checked
def curves(
    results: Sequence[PruningCurve],
    *,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw several curves of one metric over the share of heads that are left, and write them to `path` if given.

    `labels` name them; by default what ranked the heads, with the seed and the stack where there is one.
    Raises `DataError` for no curves, and for curves of several metrics.
    """
    metrics = {result.metric for result in results}
    if len(metrics) != 1:
        raise DataError(f"curves on one plot must be of one metric, got {', '.join(sorted(metrics)) or 'no curve'}")
    if labels is not None and len(labels) != len(results):
        raise DataError(f"labels must be one for each of {len(results)} curves, got {len(labels)}")
    figure = new_figure()
    axes = figure.subplots()
    for result, label in zip(results, labels or map(_ranked_by, results), strict=True):
        left = 100 * result.heads_left.double() / result.heads_left[0]
        axes.plot(left.numpy(), result.scores.numpy(), marker="o", markersize=3, label=label)
    axes.set_xlim(102, -2)  # from the whole model, on the left, to none of it
    axes.set_xlabel("heads left, %")
    axes.set_ylabel(metrics.pop())
    axes.set_title(title or "Pruning curves")
    axes.grid(alpha=0.3)
    axes.legend()
    return written(figure, path)


def _ranked_by(result: PruningCurve) -> str:
    seed = "" if result.seed is None else f" (seed {result.seed})"
    return f"{result.by}{seed}{f', {result.only}' if result.only else ''}"
