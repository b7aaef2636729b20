"""How much does the loss hang on each head?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from .batches import Batch, Batches, device_of, examples, rows_per_example
from .errors import DataError, UnknownAnatomy
from .head import Head, head_at
from .losses import ExampleLoss, example_losses, find_loss
from .masking import gating
from .names import INEXACT_GRADIENTS
from .result import Result, cpu64, finite
from .site import Anatomy
from .streaming import Accumulator, accumulate, stat


@dataclass(frozen=True, eq=False, repr=False)
class HeadImportance(Result):
    """How much the loss hangs on each head, over a data set.

    With g = ∂L(x)/∂ξ, the gradient of one example's loss with respect to the head's gate ξ, at ξ = 1.
    """

    _by_layer: ClassVar = ("scores", "signed", "fisher", "stderr")

    scores: Tensor
    """[layer, head]: E|g|, the importance of Michel et al. 2019, eq. 2; NaN for pruned heads."""
    signed: Tensor
    """[layer, head]: E[g]; to first order the loss grows by -E[g] when the head goes."""
    fisher: Tensor
    """[layer, head]: E[g²], the diagonal Fisher information of the gate (Kwon et al. 2022)."""
    stderr: Tensor
    """[layer, head]: the standard error of `scores` over examples; infinite with one example."""
    examples: int
    """How many examples were averaged over."""
    labels: tuple[str, ...]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""
    normalization: str | None = None
    """How the scores were normalized: None, "layer" or "all"."""

    def normalized(self, how: Literal["layer", "all"]) -> HeadImportance:
        """Scale the scores so that layers, or all heads, can be compared.

        "layer" divides each layer's scores by their l2 norm (Michel et al. 2019, §4), plus 1e-20. "all" does that,
        and then lays all scores on [0, 1] by their minimum and maximum, as run_bertology.py did by default.
        The other fields are scaled with the scores (the Fisher information twice).
        """
        if how not in ("layer", "all"):
            raise DataError(f"normalized takes 'layer' or 'all', got {how!r}")
        scale = self.scores.nan_to_num().norm(dim=-1, keepdim=True) + 1e-20
        scores = self.scores / scale
        if how == "all":
            there = scores[~scores.isnan()]
            # With equal scores everywhere there is nothing to stretch: all of them become 0.
            span = (there.max() - there.min()) or 1.0
            scores, scale = (scores - there.min()) / span, scale * span
        return replace(
            self,
            scores=scores,
            signed=self.signed / scale,
            fisher=self.fisher / scale**2,
            stderr=self.stderr / scale,
            normalization=how,
        )

    def ranking(self) -> list[Head]:
        """All heads, least important first; heads of equal importance in the order of layers and heads."""
        flat = self.scores.flatten()
        order = [i for i in torch.argsort(flat, stable=True).tolist() if not flat[i].isnan()]
        return [head_at(self.labels, *divmod(i, self.scores.shape[1])) for i in order]


class ImportanceAccumulator(Accumulator):
    """Sums |g|, g and g² of every head over examples, for `accumulate`. Takes the same `loss` as `head_importance`."""

    needs_gradient = True

    absolute: Tensor = stat("layer head")
    signed: Tensor = stat("layer head")
    squared: Tensor = stat("layer head")
    examples: Tensor = stat("", torch.int64)

    def __init__(self, loss: ExampleLoss | None = None) -> None:
        self._own = loss
        self.needs_labels = loss is not None

    def zero(self, anatomy: Anatomy) -> ImportanceAccumulator:
        """Forget everything; find the loss before any work is done."""
        if not anatomy.present.any():
            raise DataError("there is nothing to rank: every head of this model was pruned")
        for site in anatomy.sites:
            if (why := INEXACT_GRADIENTS.get(type(site.attention).__name__)) is not None:
                raise UnknownAnatomy(f"the attention of {site.label} {why}: importance from it would not be exact")
        self._loss = self._own or find_loss(anatomy.model)
        return super().zero(anatomy)

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Gate every head of every example on its own."""
        shape = (self.anatomy.layers, examples(batch), self.anatomy.heads)
        first = next(self.anatomy.model.parameters())
        self._gates = torch.ones(shape, dtype=first.dtype, device=device_of(self.anatomy.model), requires_grad=True)
        with gating(self.anatomy, self._gates.repeat_interleave(rows_per_example(batch), dim=1)):
            yield

    def update(self, batch: Batch, outputs: Any) -> None:
        """One backward pass, through the gates only: each example's loss reaches no gate but its own."""
        loss = example_losses(self._loss, outputs, batch).sum()
        if not loss.requires_grad:
            raise UnknownAnatomy(
                "the loss does not depend on any head: it was cut from the graph, or heads are not run"
            )
        (gradient,) = torch.autograd.grad(loss, [self._gates], allow_unused=True)
        if gradient is None:
            raise UnknownAnatomy(
                "the gradient does not reach the heads: the model makes a graph of its own (reversible layers)"
            )
        gradient = gradient.to(self.absolute.device, torch.float64)
        self.absolute += gradient.abs().sum(1)
        self.signed += gradient.sum(1)
        self.squared += gradient.square().sum(1)
        self.examples += examples(batch)
        del self._gates

    def compute(self) -> HeadImportance:
        """Divide by the number of examples."""
        n = int(self.examples)
        sums = [cpu64(x) for x in (self.absolute, self.signed, self.squared)]
        scores, signed, fisher = (finite(x / n, self.anatomy.present, "head importance") for x in sums)
        spread = (fisher - scores.square()).clamp_min(0)
        stderr = (spread / (n - 1)).sqrt() if n > 1 else torch.full_like(scores, float("inf"))
        return HeadImportance(scores, signed, fisher, stderr, n, self.anatomy.labels)


def head_importance(
    model: nn.Module, batches: Batches, *, loss: ExampleLoss | None = None, progress: str | None = None
) -> HeadImportance:
    """Estimate how much the loss hangs on each head, from one backward pass a batch.

    I_h = E_x |∂L(x)/∂ξ_h| (Michel, Levy and Neubig 2019, eq. 2): the absolute value is taken example by example, so
    that the result does not depend on how the examples are batched. Only the gates get gradients, the weights none.
    Sort the data by length to waste no time on padding, which never counts.

    Args:
        model: a model with a task head, under any attention implementation; measured in eval mode, left as it was.
        batches: one mapping of model arguments with labels, or an iterable of them.
        loss: `f(outputs, batch) -> [batch]`, one loss per example; by default the task head's (`losses.find_loss`).
        progress: the title of a progress bar; no bar without it.

    Raises `LossError` when labels are missing, no loss is known, or a loss is not one finite value per example.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "labels": torch.tensor([1, 0])}
        >>> importance = head_importance(model, batch)
        >>> importance.scores.shape, importance.examples
        (torch.Size([2, 4]), 2)
        >>> len(importance.normalized("layer").ranking())
        8
    """
    return accumulate(model, batches, ImportanceAccumulator(loss), progress=progress)[0]
