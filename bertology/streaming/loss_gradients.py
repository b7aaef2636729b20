"""Measures of gradients of a loss: those of one pass that have one loss share its backward pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ..data.batches import Batch
from ..data.losses import ExampleLoss, example_losses
from ..errors import UnknownAnatomy
from .accumulator import Accumulator


class LossGradientAccumulator(Accumulator):
    """A measure of the gradients of the losses of examples: say of what, in `points`, and add them in `add_gradients`.

    The losses are those of the model's own task, or of the function `_own`.
    """

    needs_gradient = True
    _own: ExampleLoss | None = None

    @abstractmethod
    def points(self) -> list[Tensor]:
        """The tensors to which the gradients of a batch's losses are taken, after the forward pass."""

    @abstractmethod
    def add_gradients(self, found: Sequence[Tensor | None], batch: Batch) -> None:
        """Add what a batch brought: the gradient of each of the points, None for one that the loss does not reach."""

    @abstractmethod
    def detached(self) -> UnknownAnatomy:
        """The error for a loss without a gradient."""

    def update(self, batch: Batch, outputs: Any) -> None:
        """Run one backward pass, to these points only."""
        take_gradients([self], batch, outputs, keeps_graph=self.keeps_graph)


def take_gradients(
    measures: Sequence[LossGradientAccumulator], batch: Batch, outputs: Any, *, keeps_graph: bool
) -> None:
    """Run one backward pass for measures that have the same loss."""
    assert measures[0]._loss is not None
    losses = example_losses(measures[0]._loss, outputs, batch)
    for measure in measures:
        measure.check_values(losses)
    loss = losses.sum()
    if not loss.requires_grad:
        raise measures[0].detached()
    points = [measure.points() for measure in measures]
    wanted = [x for some in points for x in some]
    found = torch.autograd.grad(loss, wanted, retain_graph=keeps_graph, allow_unused=True) if wanted else ()
    start = 0
    for measure, some in zip(measures, points, strict=True):
        measure.add_gradients(found[start : start + len(some)], batch)
        start += len(some)


def _is_shared(accumulator: Accumulator) -> TypeGuard[LossGradientAccumulator]:
    """Whether the backward pass of an accumulator may be that of others: it has no `update` of its own."""
    own = type(accumulator).update
    return isinstance(accumulator, LossGradientAccumulator) and own is LossGradientAccumulator.update


def update_all(accumulators: Sequence[Accumulator], batch: Batch, outputs: Any) -> None:
    """Update accumulators with the outputs of a batch: those of gradients of one loss in one backward pass."""
    shared: dict[int, list[LossGradientAccumulator]] = {}
    last = {id(one._own): one for one in accumulators if _is_shared(one)}
    for accumulator in accumulators:
        if not _is_shared(accumulator):
            accumulator.update(batch, outputs)
            continue
        measures = shared.setdefault(id(accumulator._own), [])
        measures.append(accumulator)
        if accumulator is last[id(accumulator._own)]:
            take_gradients(measures, batch, outputs, keeps_graph=accumulator.keeps_graph)
