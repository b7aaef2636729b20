"""How well can a task be solved from the layers up to each one?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ...errors import DataError
from ...results.result import Result
from ...results.statistics import ends, redrawn
from ..layers.statistics import LayerStatistics, layer_statistics
from .counting import micro_f1

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, eq=False, repr=False)
class LayerScores(Result):
    """F1 of cumulative probes: the one at layer l reads layers 0 to l.

    Layer 0 is the lexical one, layer l what comes out of the model's l-th block: that of heads in layer l - 1.
    """

    _by_layer: ClassVar = ()

    f1: Tensor
    """[seed, layer], 0 to 1: micro-F1 over all decisions about the labels that count, p >= 1/2 being a yes. 0 where no
    yes is right, also where there is none at all."""
    mix: Tensor
    """[seed, layer]: the mixing weights s of the probe that reads all layers, 1 together."""
    gamma: Tensor
    """[seed]: its factor γ."""
    tp: Tensor
    """[seed, layer, example] int32: labels that count and were predicted rightly, in each record that was scored."""
    fp: Tensor
    """[seed, layer, example] int32: those that were predicted and are not true."""
    fn: Tensor
    """[seed, layer, example] int32: those that are true and were not predicted."""
    label_tp: Tensor
    """[seed, layer, label]: as `tp`, for each label over all records, also for labels that do not count."""
    label_fp: Tensor
    """[seed, layer, label]: as `fp`."""
    label_fn: Tensor
    """[seed, layer, label]: as `fn`."""
    steps: Tensor
    """[seed, layer]: how many steps each probe was trained for."""
    best_steps: Tensor
    """[seed, layer]: after how many of them it was at its best."""
    validation_f1: Tensor
    """[seed, layer, validation]: F1 at each validation during training; NaN after a probe stopped."""
    losses: Tensor
    """[seed, layer, validation]: the mean training loss before each validation; NaN after a probe stopped."""
    stopped: tuple[tuple[str, ...], ...]
    """[seed, layer]: why each probe stopped: its "patience" or its "learning rate" ran out, or all "validations" were
    made: then it may not have been done."""
    seeds: tuple[int, ...]
    """[seed]: of initial weights and dropout."""
    label_names: tuple[str, ...]
    """[label]"""
    counted: tuple[str, ...]
    """The labels that count in F1."""
    targets: int
    """How many targets were scored."""
    settings: str
    """The settings of training."""
    labels: tuple[str, ...]
    """[layer]: `0`, `1` ..."""

    def __str__(self) -> str:
        lines = [f"F1 of {self.targets} targets at layers 0 to {self.labels[-1]}"]
        for seed, row in zip(self.seeds, self.f1.tolist(), strict=True):
            lines.append(f"seed {seed}: " + " ".join(f"{100 * f1:.1f}" for f1 in row))
        why = [one for seed in self.stopped for one in seed]
        if "validations" in why:
            lines.append(f"{why.count('validations')} of {len(why)} probes used up all validations: more may help them")
        if (self.f1 == 0).any():
            lines.append("where F1 is 0 no yes was right: a probe may have stopped before it said any, validate later")
        return "\n".join(lines)

    def statistics(self) -> LayerStatistics:
        """At which layers the task is solved: differential scores, expected layer, centre of gravity."""
        return layer_statistics(self.f1, self.mix)

    def label_f1(self) -> Tensor:
        """[seed, layer, label]: F1 of each label alone; NaN for one that is neither true nor predicted anywhere."""
        cells = self.label_tp, self.label_fp, self.label_fn
        return micro_f1(*cells).masked_fill(torch.stack(cells).sum(0) == 0, torch.nan)

    def bootstrap(self, resamples: int = 1000, *, seed: int = 0) -> Tensor:
        """[draw, seed, layer]: F1 over as many records drawn anew; a draw takes the same records for all probes.

        So any number that is computed of F1, such as the expected layer, can be computed of each draw. Records are
        drawn, not targets, since the targets of one text are alike.
        """
        if resamples < 1:
            raise DataError(f"resamples is how often the bootstrap draws, 1 or more, got {resamples}")
        cells = torch.stack([self.tp, self.fp, self.fn]).flatten(0, 2).double()
        pooled = [times @ cells.T for times in redrawn(cells.shape[1], resamples, seed)]
        tp, fp, fn = torch.cat(pooled).view(resamples, 3, *self.f1.shape).unbind(1)
        return micro_f1(tp, fp, fn)

    def interval(self, level: float = 0.95, *, resamples: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
        """The lower and the upper ends of F1, [seed, layer] each: the percentile interval of `bootstrap`.

        It says how F1 would move with other records to score on, the trained probes being what they are.
        """
        return ends(self.bootstrap(resamples, seed=seed), level)

    def layer_interval(self, level: float = 0.95, *, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """The lower and the upper ends of the expected layer, the mean over seeds: the interval of `bootstrap`.

        Both are NaN where more than one draw in twenty has no expected layer: what is left would look too sure.
        """
        draws = self.bootstrap(resamples, seed=seed)
        layers = layer_statistics(draws.flatten(0, 1)).expected_layers.view(draws.shape[:2]).mean(1)
        known = layers[~layers.isnan()]
        if len(known) < 0.95 * len(layers):
            return math.nan, math.nan
        low, high = ends(known, level)
        return low.item(), high.item()
