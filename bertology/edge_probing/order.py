"""In which order does a model solve its tasks, and do two models agree on it?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..data.metrics import spearman
from ..errors import DataError, checked, need
from .layer_statistics import LayerStatistics


@dataclass(frozen=True)
class OrderAgreement:
    """How well two orders of the same tasks agree."""

    spearman: float
    """Spearman's rank correlation, -1 to 1; ties get their mean rank."""
    kendall: float
    """Kendall's τ_b, -1 to 1: the pairs of tasks in the same order less those in the opposite order, normalized."""
    p: float
    """Two-sided p-value of τ under a random order; exact for tasks without ties."""
    tasks: tuple[str, ...]
    """The tasks that have an expected layer in both, in the order of the first."""
    left_out: tuple[str, ...]
    """The other tasks: they are only in one of the two, or have no expected layer."""


@checked
def order_of(tasks: Mapping[str, LayerStatistics | float]) -> list[str]:
    """The names of tasks by their expected layer, the lowest first; tasks without one are last, in the given order.

    The values are statistics, or expected layers as floats, such as those of a paper.

        >>> order_of({"coreference": 9.5, "winograd": float("nan"), "parts of speech": 3.4})
        ['parts of speech', 'coreference', 'winograd']
    """
    layers = {name: layer_of(one) for name, one in tasks.items()}
    return sorted(layers, key=lambda name: math.inf if math.isnan(layers[name]) else layers[name])


@checked
def order_agreement(
    one: Mapping[str, LayerStatistics | float], other: Mapping[str, LayerStatistics | float]
) -> OrderAgreement:
    """Compare the orders of tasks by their expected layers in two models, or in a model and a paper (extra `stats`).

    Tasks that are only in one of the two, or have no expected layer there, are left out. Raises `DataError` if fewer
    than two tasks are left, or if all of them have the same expected layer.

        >>> mine = {"POS": 1.8, "entities": 2.5, "SRL": 2.4, "coreference": 3.6}
        >>> paper = {"POS": 3.4, "entities": 4.6, "SRL": 6.5, "coreference": 9.5}
        >>> round(order_agreement(mine, paper).spearman, 2)
        0.8
    """
    layers = [{name: layer_of(value) for name, value in tasks.items()} for tasks in (one, other)]
    known = [name for name in order_of(one) if name in other and not any(math.isnan(each[name]) for each in layers)]
    left_out = tuple(name for name in dict.fromkeys([*one, *other]) if name not in known)
    first, second = (torch.tensor([each[name] for name in known], dtype=torch.float64) for each in layers)
    if len(known) < 2 or any(bool((x == x[0]).all()) for x in (first, second)):
        raise DataError(
            "wanted two or more tasks with different expected layers, got in both: "
            f"{', '.join(known) or 'none'}; left out: {', '.join(left_out) or 'none'}"
        )
    tau = need("scipy.stats", extra="stats").kendalltau(first.numpy(), second.numpy())
    return OrderAgreement(spearman(first, second), float(tau.statistic), float(tau.pvalue), tuple(known), left_out)


@checked
def layer_table(tasks: Mapping[str, LayerStatistics]) -> str:
    """Statistics of several tasks as a table in Markdown, in the order of `order_of`.

    KL is in bits. With several seeds the table has means over seeds. Raises `DataError` for no tasks, and for tasks of
    models of different depth.

        >>> from bertology.edge_probing import layer_statistics
        >>> print(layer_table({"POS": layer_statistics(torch.tensor([0.5, 0.8, 0.9]))}))
        | task | F1 at layer 0 | F1 at layer 2 | expected layer | K(Δ) | centre of gravity | K(s) |
        |---|---|---|---|---|---|---|
        | POS | 50.0 | 90.0 | 1.25 | 0.19 |  |  |
    """
    ends = f"F1 at layer 0 | F1 at layer {last_layer(tasks)}"
    lines = [f"| task | {ends} | expected layer | K(Δ) | centre of gravity | K(s) |", f"|{'---|' * 7}"]
    for name in order_of(tasks):
        one = tasks[name]
        f1 = [f"{100 * one.f1[:, layer].mean():.1f}" for layer in (0, -1)]
        of_f1 = [_number(x, "undefined") for x in (one.expected_layer, one.kl_of_differential)]
        of_mix = [_number(x, "") for x in (one.centre_of_gravity, one.kl_of_mix)]  # empty if it was not given
        cells = [name, *f1, *of_f1, *of_mix]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def last_layer(tasks: Mapping[str, LayerStatistics]) -> int:
    """The last layer L of all tasks. Raises `DataError` when it differs between tasks, and for no tasks."""
    depths = {name: one.f1.shape[1] - 1 for name, one in tasks.items()}
    if len(set(depths.values())) != 1:
        depths_found = ", ".join(f"{name} of {depth}" for name, depth in depths.items())
        raise DataError(f"wanted tasks of models with the same number of layers, got {depths_found or 'no tasks'}")
    return next(iter(depths.values()))


def layer_of(one: LayerStatistics | float) -> float:
    """The expected layer of statistics, or the float itself; NaN if there is none."""
    return one.expected_layer if isinstance(one, LayerStatistics) else float(one)


def _number(x: float, otherwise: str) -> str:
    return otherwise if math.isnan(x) else f"{x:.2f}"
