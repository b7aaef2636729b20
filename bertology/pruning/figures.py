"""Pictures of pruning curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import DataError, checked, described, how_many
from ..results.canvas import COLOURS, AxesT, canvas, colour_of, finished, headline, inner_legend, marker_of, set_title
from ..results.result import draws
from .curve import PruningCurve
from .neuron_curve import NeuronCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@draws(PruningCurve)
def draw_curve(result: PruningCurve, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw one pruning curve."""
    figure, (axes,) = canvas(ax)
    curve(result, axes)
    return finished(figure, ax, path)


def curve(result: PruningCurve, axes: Axes, *, title: str | None = None) -> None:
    """Draw the score against the share of heads that are gone, with the threshold where there is one."""
    if not isinstance(result, PruningCurve):
        raise DataError(f"curve draws a PruningCurve, as pruning_curve returns it, got {described(result)}")
    axes.plot(_gone(result), result.scores.numpy(), marker="o", color=COLOURS[0])
    if result.threshold is not None:
        level = result.threshold * result.scores[0].item()
        axes.axhline(level, linestyle="--", color="grey", label=f"{result.threshold:.0%} of the whole model's score")
        inner_legend(axes)
    _dress(axes, [result], title or headline(result, "Pruning curve"))


@checked
def curves(
    results: Sequence[PruningCurve | NeuronCurve],
    *,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    ax: AxesT | None = None,
    path: str | Path | None = None,
) -> AxesT:
    """Draw several curves of one metric over the share of heads that are gone, and write them to `path` if given.

    Curves of neurons, or of heads and neurons, are drawn over the share of their parameters. `labels` name them; by
    default what ranked the heads, with the seed and the stack where there is one. Returns the figure, or the axes that
    were given as `ax`.
    Raises `DataError` for no curves, for curves of several metrics, and for curves of heads beside curves of neurons.
    """
    metrics = {result.metric for result in results}
    if len(metrics) != 1:
        raise DataError(f"curves on one plot must be of one metric, got {', '.join(sorted(metrics)) or 'no curve'}")
    kinds = {_what_goes(result) for result in results}
    if len(kinds) > 1:
        raise DataError(f"curves on one plot must be of one kind, got {', '.join(sorted(kinds))}")
    if labels is not None and len(labels) != len(results):
        raise DataError(f"labels must be one for each of {how_many(len(results), 'curve')}, got {len(labels)}")
    figure, (axes,) = canvas(ax)
    for number, (result, label) in enumerate(zip(results, labels or map(_ranked_by, results), strict=True)):
        colour, marker = colour_of(number), marker_of(number)
        axes.plot(_gone(result), result.scores.numpy(), marker=marker, markersize=4, color=colour, label=label)
    _dress(axes, results, title or "Pruning curves")
    inner_legend(axes)
    return finished(figure, ax, path)


@draws(NeuronCurve)
def draw_neuron_curve(result: NeuronCurve, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw the score against the share of parameters that are gone."""
    figure, (axes,) = canvas(ax)
    axes.plot(_gone(result), result.scores.numpy(), marker="o", color=COLOURS[0])
    _dress(axes, [result], headline(result, "Pruning curve"))
    return finished(figure, ax, path)


Curve = PruningCurve | NeuronCurve


def _left(result: Curve) -> Tensor:
    return result.heads_left if isinstance(result, PruningCurve) else result.parameters_left


def _what_goes(result: Curve) -> str:
    """What is counted along a curve."""
    if isinstance(result, PruningCurve):
        return "heads silenced"
    return f"parameters of {'heads and neurons' if result.kinds == 'both' else 'neurons'} silenced"


def _gone(result: Curve) -> Any:
    """[step]: the share that is gone, in percent."""
    left = _left(result)
    return (100 - 100 * left.double() / left[0]).numpy()


def _dress(axes: Axes, results: Sequence[Curve], title: str) -> None:
    totals = {int(_left(result)[0]) for result in results}
    axes.set_xlim(-2, 102)  # from the whole model, on the left, to none of it
    axes.set_xlabel(f"{_what_goes(results[0])}, %{f' of {totals.pop():,}' if len(totals) == 1 else ''}")
    axes.set_ylabel(results[0].metric)
    axes.grid(alpha=0.3)
    set_title(axes, title)


def _ranked_by(result: Curve) -> str:
    seed = "" if result.seed is None else f" (seed {result.seed})"
    only = result.only if isinstance(result, PruningCurve) else None
    return f"{result.by}{seed}{f', {only}' if only else ''}"
