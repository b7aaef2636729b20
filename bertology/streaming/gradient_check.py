"""Whether the gradient of a loss to the gates of heads is its derivative, where a part of it may be lost."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..anatomy.sites import Anatomy
from ..data.batches import Batch, run_model
from ..data.losses import ExampleLoss, example_losses
from ..errors import UnknownAnatomy
from ..tap.gates import gating

DIRECTIONS = 6


def check_gradient(anatomy: Anatomy, batch: Batch, loss: ExampleLoss, lost: UnknownAnatomy, *, labelled: bool) -> None:
    """Raise `lost`, unless the gradient is the central difference of the loss along several directions.

    A value without a gradient need not matter: a maximum that is subtracted before a softmax does not.
    """
    model = anatomy.model
    if min(x.element_size() for x in model.parameters() if x.is_floating_point()) < 4:
        raise lost  # the differences would be rounded away
    first = next(model.parameters())
    gates = torch.ones(anatomy.layers, anatomy.heads, dtype=first.dtype, device=first.device, requires_grad=True)
    whole = _loss_at(anatomy, batch, loss, gates, labelled)
    if not whole.requires_grad:
        raise lost
    (gradient,) = torch.autograd.grad(whole, gates, materialize_grads=True)
    random = torch.Generator().manual_seed(0)
    step = 0.015 / gates.numel() ** 0.5
    for _ in range(DIRECTIONS):
        direction = torch.randn(gates.shape, generator=random).to(gates)
        with torch.no_grad():
            up, down = (
                _loss_at(anatomy, batch, loss, gates + sign * step * direction, labelled).double() for sign in (1, -1)
            )
        difference = (up - down) / (2 * step)
        if not (difference - (gradient * direction).sum()).abs() <= 2e-3 * gradient.norm():
            raise lost


def _loss_at(anatomy: Anatomy, batch: Batch, loss: ExampleLoss, gates: Tensor, labelled: bool) -> Tensor:
    model: nn.Module = anatomy.model
    with gating(anatomy, gates):
        outputs = run_model(model, batch, labels=labelled)
    return example_losses(loss, outputs, batch).sum()
