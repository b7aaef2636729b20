"""One forward pass that several readers read, with a backward pass to the head outputs where there is a loss."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.sites import Anatomy
from ..data.batches import Batch, ReadBatch, run_model
from ..data.losses import ExampleLoss, example_losses, find_loss
from ..errors import DataError, described
from ..streaming.first_example import FirstExample
from ..streaming.gradient_check import check_gradient
from ..streaming.one_batch import run
from ..tap import uncached
from ..tap.gradient_cuts import lost_gradients
from .capture_readers import HeadsReader, Reader


def chosen_loss(model: nn.Module, loss: ExampleLoss | str | None) -> ExampleLoss | None:
    """The loss that gradients are of. Raises `DataError` for what is none, `LossError` where none is known."""
    chosen = find_loss(model) if loss == "auto" else loss
    if chosen is not None and not callable(chosen):
        raise DataError(f"loss must be None, 'auto' or a function of (outputs, batch), got {described(chosen)}")
    return chosen


def run_readers(
    anatomy: Anatomy, batch: Batch, readers: Sequence[Reader], loss: ExampleLoss | None = None, *, own: bool = False
) -> tuple[Any, dict[str, Tensor] | None]:
    """Run the model once while these readers read it.

    Args:
        anatomy: that of the model.
        batch: checked, and on the model's device.
        readers: one `HeadsReader` among them, with `leaves`, where there is a loss.
        loss: one value for each example: a backward pass follows, to the head outputs.
        own: whether it is the loss of the model's own task.

    Returns the model's outputs, and the gradients of the head outputs by stack.
    """
    with ExitStack() as taps:
        if loss is not None:
            return _run_backward(anatomy, batch, readers, loss, own, taps)
        arguments = _opened(readers, taps)
        return run(anatomy.model, {**batch, **arguments}), None


def _opened(readers: Sequence[Reader], taps: ExitStack) -> dict[str, Any]:
    """Open all readers, and tell what they ask the model for beside the batch."""
    arguments: dict[str, Any] = {}
    for reader in readers:
        reader.open(taps)
        arguments |= reader.arguments
    return arguments


def _run_backward(
    anatomy: Anatomy, batch: Batch, readers: Sequence[Reader], loss: ExampleLoss, own: bool, taps: ExitStack
) -> tuple[Any, dict[str, Tensor]]:
    model = anatomy.model
    heads = next(reader for reader in readers if isinstance(reader, HeadsReader))
    anatomy.check_readable()
    first = FirstExample(anatomy, loss, loss, custom=not own)
    first.check(batch)
    noted = ReadBatch(batch)
    arguments = _opened(readers, taps)
    with torch.inference_mode(False), torch.enable_grad(), uncached(model):
        with lost_gradients(anatomy, batch) as lost:
            outputs = run_model(model, {**batch, **arguments}, labels=not own)
        losses = example_losses(loss, outputs, noted)
        first.compare(losses)
        noted.check(model)
        each = torch.autograd.grad(losses.sum(), list(heads.outputs.values()), materialize_grads=True)
        taps.close()
        if lost:
            check_gradient(anatomy, batch, loss, lost[0], labelled=not own)
    return outputs, heads.gradients(each)
