"""What does each head put out, and what does the loss want of it?"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .anatomy.sites import Site
from .capture import Capture, by_stack, masks, one_batch, only, run
from .data.batches import Batch, model_arguments, without_labels
from .data.losses import ExampleLoss, example_losses, find_loss
from .errors import DataError
from .tap import tap


@dataclass(frozen=True, eq=False, repr=False)
class HeadOutputs(Capture):
    """The outputs of all heads for one batch, before the output projection."""

    stacks: dict[str, Tensor]
    """{stack: [layer, batch, token, head, dim]}: what each head adds, before the output projection mixes them."""
    gradient_stacks: dict[str, Tensor] | None
    """{stack: [layer, batch, token, head, dim]}: the gradient of each example's own loss; None without a loss."""
    masks: dict[str, Tensor]
    """{stack: [batch, token]}, bool: which tokens are real; at the others the values mean nothing."""

    @property
    def values(self) -> Tensor:
        """[layer, batch, token, head, dim]: the outputs in the model's only stack."""
        return only(self.stacks)

    @property
    def gradients(self) -> Tensor:
        """[layer, batch, token, head, dim]: the gradients in the model's only stack."""
        if self.gradient_stacks is None:
            raise DataError("no gradients were captured: call head_outputs(..., loss='auto')")
        return only(self.gradient_stacks)

    def mean(self) -> Tensor:
        """[layer, head, dim]: each head's mean output over the real tokens, as `ablated(replace=...)` takes it."""
        return self.values[:, self.mask].mean(1)


def head_outputs(model: nn.Module, inputs: Batch, *, loss: ExampleLoss | str | None = None) -> HeadOutputs:
    """Capture every head's output for a batch and, given a loss, its gradient.

    Args:
        model: any model with attention heads.
        inputs: one mapping of model arguments, with labels if the loss needs them.
        loss: None for no gradients; "auto" for the loss of the model's task head (see `losses.find_loss`); or
            `f(outputs, batch) -> [batch]`, one loss per example.

    The sum over tokens and dim of output x gradient is the gradient of the head's gate (Michel et al. 2019, eq. 2),
    whose mean absolute value over examples is `head_importance`.

    Raises `LossError` when labels are missing, no loss is known, or a loss is not one finite value per example.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([1])}
        >>> head_outputs(model, batch, loss="auto").gradients.shape
        torch.Size([2, 1, 3, 4, 8])
    """
    found: dict[Site, Tensor] = {}
    chosen = find_loss(model) if loss == "auto" else loss
    if isinstance(chosen, str):
        raise DataError(f"loss must be None, 'auto' or a function of (outputs, batch), got {chosen!r}")

    def read(site: Site, x: Tensor) -> None:
        found[site] = x.detach()

    def edit(site: Site, x: Tensor) -> Tensor:
        # In a frozen model no graph comes from below: it then starts here.
        found[site] = x.requires_grad_()
        return found[site]

    with one_batch(model, inputs) as (anatomy, batch), ExitStack() as taps:
        if chosen is None:
            taps.enter_context(tap(anatomy, "heads", read=read))
            run(model, batch)
            gradients = None
        else:
            anatomy.check_readable()
            taps.enter_context(tap(anatomy, "heads", edit=edit))
            with torch.inference_mode(False), torch.enable_grad():
                outputs = model(**(without_labels(model, batch) if loss == "auto" else model_arguments(batch)))
                total = example_losses(chosen, outputs, batch).sum()
                each = torch.autograd.grad(total, list(found.values()), materialize_grads=True)
            gradients = by_stack(anatomy, dict(zip(found, each, strict=True)), head_axis=2)
        stacks = by_stack(anatomy, {site: x.detach() for site, x in found.items()}, head_axis=2)
        return HeadOutputs(stacks, gradients, masks(anatomy, batch, stacks, axis=2))
