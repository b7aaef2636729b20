"""How much of the loss is due to each head, on the path from no heads to all heads?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ..data.batches import Batch, BatchesOrTexts, examples, rows_per_example, run_model
from ..data.losses import ExampleLoss, example_losses
from ..errors import UnknownAnatomy, check_least, checked
from ..results.axes import axes
from ..results.result import Result
from ..results.statistics import standard_error_of_sums
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import stat
from ..streaming.identity import identity
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress
from ..tap.gates import gating
from .head_importance import GateAccumulator


@dataclass(frozen=True, eq=False, repr=False)
class IntegratedImportance(Result):
    """How much of the loss is due to each head: integrated gradients of the gates.

    All gates go from 0 to 1 together. A head's share is the integral of the gradient of its own gate over this path.
    The shares of all heads add up to the loss of the whole model minus that of the model without heads.
    """

    scores: Annotated[Tensor, axes("layer head", words="loss that the head takes away", scale="signed")]
    """[layer, head]: the mean of minus the integral: how much of the loss the head takes away; NaN for pruned heads."""
    absolute: Annotated[Tensor, axes("layer head", words="mean absolute share of the loss")]
    """[layer, head]: the mean over examples of the absolute value of the integral."""
    stderr: Annotated[Tensor, axes("layer head", words="standard error of the score")]
    """[layer, head]: the standard error of `scores` over examples; infinite with one example."""
    base_loss: float
    """The mean loss of the whole model."""
    none_loss: float
    """The mean loss of the model with all gates at 0."""
    steps: int
    """At how many points of the path the gradient was computed."""
    examples: int
    """How many examples were averaged over."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""

    @property
    def remainder(self) -> float:
        """The loss without heads, minus the loss with all, minus the sum of all scores: near 0 with enough steps."""
        return self.none_loss - self.base_loss - float(self.scores.nansum())


class _IntegratedAccumulator(GateAccumulator):
    """Sums the integrals over examples. It runs the model itself, and cannot share a pass with others."""

    total: Tensor = stat("layer head")
    absolute: Tensor = stat("layer head")
    squared: Tensor = stat("layer head")
    base: Tensor = stat("")
    none: Tensor = stat("")

    def __init__(self, steps: int, loss: ExampleLoss | None = None) -> None:
        super().__init__(loss)
        self._steps = steps

    def settings(self) -> str:
        """The number of steps, and the loss."""
        return f"{self._steps} {identity(self._own)}"

    def update(self, batch: Batch, outputs: Any) -> None:
        """Run one backward pass for each step, to the gates only."""
        losses = example_losses(self._loss, outputs, batch).detach()
        self.check_values(losses)
        device = self.total.device
        shape = (self.anatomy.layers, examples(batch), self.anatomy.heads)
        integral = torch.zeros(shape, dtype=torch.float64, device=device)
        for step in range(self._steps):
            gates = self.gates(batch, (step + 0.5) / self._steps)
            loss = self._under(batch, gates).sum()
            gradient = torch.autograd.grad(loss, gates, allow_unused=True)[0] if loss.requires_grad else None
            if gradient is None:
                raise UnknownAnatomy("the loss does not depend on any head: it was detached from the graph")
            integral += gradient.to(integral) / self._steps
        with torch.no_grad():
            self.none += self._under(batch, self.gates(batch, 0.0)).double().sum().to(device)
        self.base += losses.double().sum().to(device)
        self.total += integral.sum(1)
        self.absolute += integral.abs().sum(1)
        self.squared += integral.square().sum(1)
        self.examples += examples(batch)

    def _under(self, batch: Batch, gates: Tensor) -> Tensor:
        """[batch]: the losses under gates of each example."""
        with gating(self.anatomy, gates.repeat_interleave(rows_per_example(batch), dim=1)):
            outputs = run_model(self.anatomy.model, batch, labels=self.needs_labels)
        return example_losses(self._loss, outputs, batch)

    def compute(self) -> IntegratedImportance:
        """Divide by the number of examples."""
        total, absolute, squared = self.means("integrated importance", self.total, self.absolute, self.squared)
        n = int(self.examples)
        stderr = standard_error_of_sums(total, squared, n)
        base, none = float(self.base) / n, float(self.none) / n
        return IntegratedImportance(-total, absolute, stderr, base, none, self._steps, n, self.anatomy.labels)


@merges
@checked
def integrated_importance(
    model: nn.Module,
    batches: BatchesOrTexts,
    *,
    steps: int = 10,
    loss: ExampleLoss | None = None,
    tokenizer: Any = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> IntegratedImportance:
    """Share the loss among all heads, by integrated gradients of their gates (Sundararajan et al. 2017).

    `head_importance` takes the gradient of each gate where all gates are 1. Here all gates go from 0 to 1 together, and
    the gradients are averaged over this path. Hao et al. (2021) do so for attention weights. A head that is saturated,
    so that a small change of its gate does nothing, gets its share all the same.

    Args:
        model: as in `head_importance`.
        batches: likewise.
        steps: at how many points of this path, the midpoints of equal intervals, the gradient is computed. Each takes a
            forward and a backward pass. `remainder` shows whether they are enough.
        loss: as in `head_importance`.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for fewer than 1 step, and the errors of `head_importance`.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "labels": torch.tensor([1, 0])}
        >>> integrated_importance(model, batch, steps=4).scores.shape
        torch.Size([2, 4])
    """
    check_least("steps", steps, 1)
    measure = _IntegratedAccumulator(int(steps), loss)
    (found,) = accumulate(model, batches, measure, tokenizer=tokenizer, progress=progress)
    return found
