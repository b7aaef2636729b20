"""What does the model lose when one head is removed?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn

from ..anatomy.sites import Anatomy
from ..data.batches import Batches
from ..data.losses import ExampleLoss
from ..data.metrics import Metric
from ..errors import DataError
from ..results.axes import axes
from ..results.result import Result
from ..tap.gates import Kind, replacement_name
from .many_gates import score_variants
from .significance import Correction, Of, Significance, Test, significance


@dataclass(frozen=True, eq=False, repr=False)
class HeadAblation(Result):
    """What a model loses when one head goes, for each head."""

    change: Annotated[Tensor, axes("layer head")]
    """[layer, head]: the metric without the head, less that of the whole model; below 0 the head is missed. NaN for
    pruned heads, and where a layer did not run."""
    loss_change: Annotated[Tensor, axes("layer head")]
    """[layer, head]: the mean loss without the head, less that of the whole model; above 0 the head is missed."""
    base: float
    """The whole model's metric."""
    base_loss: float
    """The whole model's mean loss."""
    losses: Annotated[Tensor, axes("layer head example")]
    """[layer, head, example]: every example's loss without the head."""
    base_losses: Annotated[Tensor, axes("example")]
    """[example]: every example's loss in the whole model."""
    logits: Annotated[Tensor, axes("layer head row label")]
    """[layer, head, row, label]: what the metric saw without the head; empty for a metric of losses."""
    base_logits: Annotated[Tensor, axes("row label")]
    """[row, label]: what the metric saw of the whole model."""
    truths: Annotated[Tensor, axes("row")]
    """[row]: the labels that the metric saw."""
    example_of: Annotated[Tensor, axes("row")]
    """[row], int64: which example a row belongs to."""
    metric: str
    """What was measured."""
    replace: str
    """What stood where the head's output was: "zero", "mean", "resample" or "given"."""
    examples: int
    """How many examples were measured."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""

    def significance(
        self,
        test: Test = "bootstrap",
        *,
        of: Of = "metric",
        correction: Correction = "holm",
        metric: Metric | None = None,
        resamples: int | None = None,
        seed: int = 0,
    ) -> Significance:
        """Test for each head whether the change is more than chance (extra `stats`, but for the bootstrap).

        Args:
            test: "bootstrap", of the metric or the loss, over examples drawn again; "t", a paired t-test on the
                examples' losses, or on whether they are right (the share of right labels in an example of several);
                "mcnemar", exact, on whether they are right.
            of: what changed: the "metric" or the "loss".
            correction: for the number of heads: "holm", "bh" (Benjamini-Hochberg) or None.
            metric: the metric itself, for the bootstrap to call again, if it is not one of GLUE's.
            resamples: how often the bootstrap draws; by default 1,000 times, and 400 times for each head that p is
                corrected for: with fewer, no head could come out below 0.01, however large its effect.
            seed: of the bootstrap's draws.

        Raises `DataError` for tests that do not fit the metric, `MissingExtra` without scipy.
        """
        return significance(self, ~self.change.isnan(), test, of, correction, metric, resamples, seed)

    def correlation(self, other: HeadAblation, *, of: Of = "metric") -> float:
        """Pearson's r between the heads' effects on two data sets (Michel et al. 2019, §3.4)."""
        pairs = [(r.change if of == "metric" else r.loss_change).flatten() for r in (self, other)]
        if pairs[0].shape != pairs[1].shape:
            raise DataError(
                f"wanted two ablations of one model, got {list(self.change.shape)}, {list(other.change.shape)}"
            )
        there = ~(pairs[0].isnan() | pairs[1].isnan())
        r = float(torch.corrcoef(torch.stack([pair[there] for pair in pairs]))[0, 1])
        if r != r:
            raise DataError(
                f"no correlation: all {int(there.sum())} heads have the same effect on one of the data sets"
            )
        return r


def head_ablation(
    model: nn.Module,
    batches: Batches,
    *,
    metric: str | Metric,
    replace: Kind | Tensor = "zero",
    loss: ExampleLoss | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: str | None = None,
) -> HeadAblation:
    """Take each head away alone, and see what becomes of the metric and of the loss (Michel et al. 2019, §3.2).

    Every example is run without each head in turn, many heads to a batch, and what lies before a head is computed once
    for all heads of its layer: the cost is about half a forward pass for each head.

    Args:
        model: a model with a task head; it is only gated, never changed.
        batches: the data that is scored: one mapping of model arguments with labels, or an iterable of them.
        metric: as in `score`: a GLUE metric by name, "inverse_loss" (for language models), or
            `f(logits, labels) -> float`. Logits of all examples are kept for each head.
        replace: what stands where the head's output was: "zero"; "mean", its mean over the real tokens of `batches`;
            "resample", at every token its output at a real token of the batch, drawn at random; or a tensor
            `[layer, head, dim]`, such as `head_means(model, other).values`.
        loss: `f(outputs, batch) -> [batch]`; by default that of the task head.
        seed: of the draws for "resample".
        checkpoint: as in `accumulate`: a file from which a pass that was cut off goes on.
        progress: the title of a progress bar over batches; no bar without it.

    Raises `DataError` for a metric that is NaN or unknown, `LossError` when labels are missing or no loss is known,
    `HeadError` for another replacement, `ShapeError` for a tensor of another shape.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "labels": torch.tensor([1, 0])}
        >>> head_ablation(model, batch, metric="accuracy").change.shape
        torch.Size([2, 4])
    """
    found = score_variants(
        model,
        batches,
        one_off,
        metric=metric,
        replace=replace,
        loss=loss,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
    )
    losses = found.losses.mean(1)
    return HeadAblation(
        found.laid_out(found.scores - found.scores[0]),
        found.laid_out(losses - losses[0]),
        float(found.scores[0]),
        float(losses[0]),
        found.laid_out(found.losses),
        found.losses[0],
        found.laid_out(found.logits),
        found.logits[0],
        found.truths,
        found.example_of,
        found.metric,
        replacement_name(replace),
        found.losses.shape[1],
        found.labels,
    )


def one_off(anatomy: Anatomy) -> Tensor:
    """[variant, layer, head]: each head that is there is off in one variant."""
    places = anatomy.present.nonzero()
    gates = torch.ones(len(places), anatomy.layers, anatomy.heads)
    gates[torch.arange(len(places)), places[:, 0], places[:, 1]] = 0
    return gates
