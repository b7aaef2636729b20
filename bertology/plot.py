"""What does a result look like?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .errors import DataError, need
from .measures.entropy import AttentionEntropy
from .measures.head_distances import HeadDistances
from .measures.patterns import AttentionPatterns
from .pruning.curve import PruningCurve
from .results.figures import head_map, layer_points, over_layers, width_of, written
from .results.result import Result, _pictures, draws

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curve", "curves", "draw", "head_map", "heatmap", "over_layers"]


@draws(Result)
def draw(
    result: Result, *, field: str | None = None, relation: str | None = None, path: str | Path | None = None
) -> Figure:
    """Draw a result in the picture that fits it, and write it to `path` if one is given (extra `plot`).

    Patterns are points over the layers, distances between heads a map (extra `syntax`), a pruning curve a curve,
    dependencies two heat maps of accuracies, a view of one head is lines between words, scores of edge probes and their
    statistics are bars over the layers, trajectories of one record a strip for each label, CAT-scores lines over the
    layers, heads of code's relations a map for each, and all else is a heat map of its first `[layer, head]` field.

    Args:
        result: what a measure gave.
        field: draw the heat map of this `[layer, head]` field.
        relation: of `DependencyHeads`, the accuracies of this relation alone.
        path: where to write the picture, too.

    Raises `DataError` for a field or a relation that the result does not have.
    """
    if relation is not None:
        raise DataError(f"relation={relation!r} is for DependencyHeads, got {type(result).__name__}")
    if field is None and type(result) in _pictures:
        return _pictures[type(result)](result, path=path)
    if isinstance(result, HeadDistances) and field is None:
        return head_map(result.embed(2), result.heads, title="Heads whose attention is alike", path=path)
    figure = need("matplotlib.figure", extra="plot").Figure(figsize=(6.4, 4.0), layout="constrained")
    if field is not None:
        heatmap(result, figure.subplots(), field=field)
    elif isinstance(result, PruningCurve):
        curve(result, figure.subplots())
    elif isinstance(result, AttentionPatterns):
        _patterns(result, figure)
    else:
        heatmap(result, figure.subplots())
    return written(figure, path)


def _patterns(result: AttentionPatterns, figure: Figure) -> None:
    """Where heads look: to which place, and to which class of tokens where there are some."""
    places = {name: getattr(result, name) for name in ("previous", "next", "self", "first")}
    classes = {name: result.attention_to(name) for name in result.classes[:-1]}  # the last is all others
    panels = {"to a place": places}
    if not all(values.isnan().all() for values in classes.values()):
        panels["to a class of tokens"] = classes
    figure.set_size_inches(width_of(result.labels), 3.6 * len(panels))
    for axes, (title, series) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
        layer_points(axes, series, result.labels, unit="share of the attention", title=f"Attention {title}")


def heatmap(result: Result, axes: Axes, *, field: str | None = None, title: str | None = None) -> None:
    """Draw a `[layer, head]` field of a result, by default its first; layer 0 at the bottom, pruned heads white."""
    maps = [name for name in result._by_layer if getattr(result, name).dim() == 2]
    if not maps or (field is not None and field not in maps):
        raise DataError(
            f"{type(result).__name__} has no [layer, head] field {field or ''}: it has {', '.join(maps) or 'none'}"
        )
    name = field or maps[0]
    values: Tensor = getattr(result, name)
    image = _cells(axes, values, result.labels)
    axes.set_title(title or f"{_words(type(result).__name__)}: {name}")
    axes.figure.colorbar(image, ax=axes, label=_unit(result, name))


def curve(result: PruningCurve, axes: Axes, *, title: str | None = None) -> None:
    """Draw the score against the share of heads that are gone, with the threshold where there is one."""
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
    figure = need("matplotlib.figure", extra="plot").Figure(figsize=(6.4, 4.0), layout="constrained")
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


def _cells(axes: Axes, values: Tensor, labels: Sequence[str], top: float | None = None) -> Any:
    """A cell for each head of `values [layer, head]`, layer 0 at the bottom."""
    image = axes.imshow(
        values.numpy(), origin="lower", aspect="auto", cmap="viridis", vmin=None if top is None else 0, vmax=top
    )
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    axes.set_xticks(range(values.shape[1]))
    axes.set_yticks(range(values.shape[0]), labels=labels)
    return image


def _ranked_by(result: PruningCurve) -> str:
    seed = "" if result.seed is None else f" (seed {result.seed})"
    return f"{result.by}{seed}{f', {result.only}' if result.only else ''}"


def _unit(result: Result, field: str) -> str:
    if isinstance(result, AttentionEntropy):
        return "nats"
    how = getattr(result, "normalization", None)
    return {"layer": "share of the layer's l2 norm", "all": "0 least, 1 most important"}.get(how or "", field)


def _words(name: str) -> str:
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip().capitalize()
