"""How well does a model do under many sets of gates, each by itself?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy.dissect import dissect
from .anatomy.sites import Anatomy
from .branching import Branches, Seen
from .data.batches import Batch, Batches, check_repeatable, model_arguments, without_labels
from .data.losses import ExampleLoss, example_losses, find_loss, loss_name
from .data.metrics import Metric, find_metric, metric_name
from .errors import DataError
from .measures.head_means import head_means
from .results.result import Result
from .scoring import INVERSE_LOSS, predictions
from .streaming.accumulate import Accumulator, accumulate
from .tap import uncached
from .tap.gates import StandIns, check_replacement, replacement_name

NAN = float("nan")


@dataclass(frozen=True, eq=False, repr=False)
class VariantScores(Result):
    """How well a model does as it is, in row 0, and under each set of gates, in the rows after it."""

    scores: Tensor
    """[variant]: the metric."""
    losses: Tensor
    """[variant, example]: every example's loss."""
    logits: Tensor
    """[variant, row, label]: what the metric saw; empty for a metric of losses."""
    truths: Tensor
    """[row]: the labels."""
    example_of: Tensor
    """[row], int64: which example a row belongs to."""
    present: Tensor
    """[layer, head], bool: which heads there are."""
    ran: Tensor
    """[layer], bool: which layers ran at all."""
    metric: str
    """What was measured."""
    labels: tuple[str, ...]
    """[layer]: as in every result."""

    def laid_out(self, values: Tensor) -> Tensor:
        """[layer, head, ...] of [variant, ...], where each head has a variant: NaN where no head is, or none ran."""
        wide = values[1:].to(torch.promote_types(values.dtype, torch.float32))
        laid = wide.new_full((*self.present.shape, *values.shape[1:]), NAN)
        laid[self.present] = wide
        laid[~self.ran] = NAN
        return laid


class VariantAccumulator(Accumulator):
    """Runs every batch under many sets of gates. It runs the model by itself: no other accumulator can be beside it."""

    def __init__(
        self,
        make_gates: Callable[[Anatomy], Tensor],
        metric: str | Metric,
        loss: ExampleLoss | None = None,
        replace: Tensor | str = "zero",
        seed: int = 0,
    ) -> None:
        self._make_gates, self._own, self._replace, self._seed = make_gates, loss, replace, seed
        self._metric = None if metric == INVERSE_LOSS else find_metric(metric)
        self._name = metric_name(metric)
        self.needs_labels = loss is not None

    def zero(self, anatomy: Anatomy) -> VariantAccumulator:
        """Forget everything; find the loss before any work is done."""
        if not anatomy.present.any():
            raise DataError("there is nothing to take away: every head of this model was pruned")
        self._loss = self._own or find_loss(anatomy.model)
        self._gates = self._make_gates(anatomy)
        stand_ins = StandIns(anatomy, check_replacement(anatomy, self._replace), self._seed)
        self._branches = Branches(anatomy, stand_ins, self._inputs, self._look)
        self._kept: list[Seen] = []
        self._ran = torch.zeros(anatomy.layers, dtype=torch.bool)
        return super().zero(anatomy)

    def settings(self) -> str:
        """Metric, loss, gates and what replaces a head."""
        digest = hashlib.sha256(self._gates.numpy().tobytes())
        if isinstance(self._replace, Tensor):
            digest.update(self._replace.detach().double().cpu().numpy().tobytes())
        replaced = replacement_name(self._replace)
        return f"{self._name} {loss_name(self._own)} {replaced} {self._seed} {digest.hexdigest()}"

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Record the model's own pass."""
        with uncached(self.anatomy.model), ExitStack() as self._recording:
            self._record = self._recording.enter_context(self._branches.recorded(batch))
            yield
        del self._record

    def update(self, batch: Batch, outputs: Any) -> None:
        """Run the batch under all gates, and keep losses and logits."""
        self._recording.close()
        self._ran[list(self._record.attentions)] = True
        base = self._look(outputs, batch, 1)
        # A set of gates that changes nothing is the model as it is.
        losses, logits = (torch.cat([x] * (1 + len(self._gates))) for x in base[:2])
        for some, seen in self._branches.each(self._record, base, batch, self._gates, _numbers(outputs)):
            losses[1 + some], logits[1 + some] = seen.losses, seen.logits
        before = sum(seen.losses.shape[1] for seen in self._kept)
        self._kept.append(Seen(losses, logits, base.truths, base.example_of + before))

    def _inputs(self, batch: Batch) -> Batch:
        return model_arguments(batch) if self.needs_labels else without_labels(self.anatomy.model, batch)

    def _look(self, outputs: Any, batch: Batch, copies: int) -> Seen:
        losses = example_losses(self._loss, outputs, batch).detach().double().cpu().reshape(copies, -1)
        if self._metric is None:
            return Seen(losses, torch.empty(copies, 0), torch.empty(0), torch.empty(0, dtype=torch.long))
        found = predictions(self.anatomy.model, outputs, batch)
        logits = found.logits.detach().cpu()
        rows = len(logits) // copies
        logits = logits.reshape(copies, rows, *logits.shape[1:])
        return Seen(losses, logits, found.labels[:rows].cpu(), found.example[:rows].cpu())

    def state(self) -> dict[str, Tensor]:
        """All losses and logits so far."""
        kept = {name: torch.empty(0) for name in Seen._fields}
        if self._kept:
            axes = (1, 1, 0, 0)
            joined = (torch.cat(x, axis) for x, axis in zip(zip(*self._kept, strict=True), axes, strict=True))
            kept = dict(zip(Seen._fields, joined, strict=True))
        return super().state() | kept | {"ran": self._ran}

    def merge(self, other: dict[str, Tensor]) -> VariantAccumulator:
        """Lay the other's examples behind ours."""
        before = sum(seen.losses.shape[1] for seen in self._kept)
        if other["losses"].numel():
            seen = Seen(*(other[name] for name in Seen._fields))
            self._kept.append(seen._replace(example_of=seen.example_of + before))
        self._ran = self._ran | other["ran"]
        return super().merge(other)

    def compute(self) -> VariantScores:
        """Score the model and each of its variants."""
        state = self.state()
        losses, logits, truths, example_of = (state[name] for name in Seen._fields)
        if self._metric is None:
            scores = 1 / losses.mean(1)
        else:
            scores = torch.tensor([float(self._metric(one, truths)) for one in logits], dtype=torch.float64)
        if scores.isnan().any():
            raise DataError(f"the metric {self._name} is NaN over {losses.shape[1]} examples")
        there, labels = self.anatomy.present, self.anatomy.labels
        return VariantScores(scores, losses, logits, truths, example_of, there, self._ran, self._name, labels)


def score_variants(
    model: nn.Module,
    batches: Batches,
    make_gates: Callable[[Anatomy], Tensor],
    *,
    metric: str | Metric,
    replace: str | Tensor,
    loss: ExampleLoss | None,
    seed: int,
    checkpoint: str | Path | None,
    progress: str | None,
) -> VariantScores:
    """Score a model under sets of gates; heads' means, where they are asked for, are taken over the same data."""
    if isinstance(replace, str) and replace == "mean":
        check_repeatable(batches, why="replace='mean'")
        # Whatever is wrong shows before the means are taken.
        VariantAccumulator(make_gates, metric, loss).zero(dissect(model))
        replace = head_means(model, batches).values
    accumulator = VariantAccumulator(make_gates, metric, loss, replace, seed)
    return accumulate(model, batches, accumulator, checkpoint=checkpoint, progress=progress)[0]


def _numbers(outputs: Any) -> int:
    """How many numbers the largest of the outputs has."""
    values = outputs.values() if hasattr(outputs, "values") else [outputs]
    return max((x.numel() for x in values if isinstance(x, Tensor)), default=1)
