"""What does the model lose when a head goes?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from .anatomy import dissect
from .batches import Batches, check_repeatable
from .errors import DataError
from .losses import ExampleLoss
from .masking import check_stand_ins
from .means import head_means
from .metrics import find_metric, metric_name
from .result import Result
from .scoring import INVERSE_LOSS
from .significance import Correction, Significance, Test, bootstrap, corrected, mcnemar, t_test
from .site import Anatomy
from .streaming import accumulate
from .variants import VariantAccumulator, VariantScores

NAN = float("nan")


@dataclass(frozen=True, eq=False, repr=False)
class HeadAblation(Result):
    """What a model loses when one head goes, for each head."""

    _by_layer: ClassVar = ("change", "loss_change", "losses", "logits")

    change: Tensor
    """[layer, head]: the metric without the head, less that of the whole model; below 0 the head is missed. NaN for
    pruned heads, and where a layer did not run."""
    loss_change: Tensor
    """[layer, head]: the mean loss without the head, less that of the whole model; above 0 the head is missed."""
    base: float
    """The whole model's metric."""
    base_loss: float
    """The whole model's mean loss."""
    losses: Tensor
    """[layer, head, example]: every example's loss without the head."""
    base_losses: Tensor
    """[example]: every example's loss in the whole model."""
    logits: Tensor
    """[layer, head, row, label]: what the metric saw without the head; empty for a metric of losses."""
    base_logits: Tensor
    """[row, label]: what the metric saw of the whole model."""
    truths: Tensor
    """[row]: the labels that the metric saw."""
    example_of: Tensor
    """[row], int64: which example a row belongs to."""
    metric: str
    """What was measured."""
    replace: str
    """What stood where the head's output was: "zero", "mean", "resample" or "given"."""
    examples: int
    """How many examples were measured."""
    labels: tuple[str, ...]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""

    def significance(
        self,
        test: Test = "bootstrap",
        *,
        of: Literal["metric", "loss"] = "metric",
        correction: Correction = "holm",
        metric: Callable[[Tensor, Tensor], float] | None = None,
        resamples: int = 1000,
        seed: int = 0,
    ) -> Significance:
        """Test for each head whether the change is more than chance (extra `stats`, but for the bootstrap).

        Args:
            test: "bootstrap", of the metric or the loss, over examples drawn again; "t", a paired t-test on the
                examples' losses, or on whether they are right (the share of right labels in an example of several);
                "mcnemar", exact, on whether they are right.
            of: what changed: the "metric" or the "loss".
            correction: for the number of heads: "holm", "bh" (Benjamini-Hochberg) or None.
            metric: the metric's own function, to be called again, if it is not one of GLUE's.
            resamples: how often the bootstrap draws.
            seed: of the bootstrap's draws.

        Raises `DataError` for tests that do not fit the metric, `ImportError` without scipy.
        """
        if test not in ("t", "mcnemar", "bootstrap") or of not in ("metric", "loss"):
            raise DataError(f"wanted test='t', 'mcnemar' or 'bootstrap', of='metric' or 'loss', got {test!r} of {of!r}")
        by_loss = of == "loss" or self.metric == INVERSE_LOSS
        there = ~self.change.isnan()
        if test == "mcnemar":
            if by_loss or not self._one_row_each():
                raise DataError("McNemar's test is about one label an example being right: take 't' or 'bootstrap'")
            p = mcnemar(self._right(there), self._base_right())
        elif test == "t":
            p = t_test(self._loss_changes(there) if by_loss else self._by_example(there))
        elif by_loss:
            changes = self._loss_changes(there)
            p = bootstrap(lambda drawn: changes[:, drawn].mean(1), self.examples, resamples, seed)
        else:
            p = self._bootstrap_metric(there, metric or find_metric(self.metric), resamples, seed)
        flat = torch.full_like(self.change, NAN)
        flat[there] = p
        name = "loss" if by_loss else self.metric
        return Significance(corrected(flat, correction), flat, test, name, correction, self.labels)

    def correlation(self, other: HeadAblation, *, of: Literal["metric", "loss"] = "metric") -> float:
        """Pearson's r between the heads' effects on two data sets (Michel et al. 2019, §3.4)."""
        pairs = [(r.change if of == "metric" else r.loss_change).flatten() for r in (self, other)]
        if pairs[0].shape != pairs[1].shape:
            raise DataError(
                f"wanted two ablations of one model, got {list(self.change.shape)}, {list(other.change.shape)}"
            )
        there = ~(pairs[0].isnan() | pairs[1].isnan())
        return float(torch.corrcoef(torch.stack([pair[there] for pair in pairs]))[0, 1])

    def _loss_changes(self, there: Tensor) -> Tensor:
        return self.losses[there] - self.base_losses

    def _right(self, there: Tensor) -> Tensor:
        """[head, row], bool."""
        self._check_classes()
        return self.logits[there].argmax(-1) == self.truths

    def _base_right(self) -> Tensor:
        return self.base_logits.argmax(-1) == self.truths

    def _by_example(self, there: Tensor) -> Tensor:
        """[head, example]: how much larger the share of right labels is without the head."""
        difference = self._right(there).double() - self._base_right().double()
        sums = torch.zeros(len(difference), self.examples, dtype=torch.float64)
        rows = torch.zeros(self.examples, dtype=torch.float64).index_add_(
            0, self.example_of, torch.ones(len(self.example_of), dtype=torch.float64)
        )
        return sums.index_add_(1, self.example_of, difference) / rows.clamp_min(1)

    def _bootstrap_metric(
        self, there: Tensor, metric: Callable[[Tensor, Tensor], float], resamples: int, seed: int
    ) -> Tensor:
        if self.metric == "accuracy" and self._one_row_each():
            changes = self._by_example(there)
            return bootstrap(lambda drawn: changes[:, drawn].mean(1), self.examples, resamples, seed)
        rows_of = [(self.example_of == example).nonzero().flatten() for example in range(self.examples)]
        logits = self.logits[there]

        def change(drawn: Tensor) -> Tensor:
            rows = torch.cat([rows_of[example] for example in drawn.tolist()])
            truths = self.truths[rows]
            base = metric(self.base_logits[rows], truths)
            return torch.tensor([metric(some[rows], truths) - base for some in logits], dtype=torch.float64)

        return bootstrap(change, self.examples, resamples, seed)

    def _one_row_each(self) -> bool:
        return torch.equal(self.example_of, torch.arange(self.examples))

    def _check_classes(self) -> None:
        if self.truths.is_floating_point() or self.base_logits.dim() != 2:
            raise DataError("this test is about labels being right, which these are not: take of='loss'")


def head_ablation(
    model: nn.Module,
    batches: Batches,
    *,
    metric: str | Callable[[Tensor, Tensor], float],
    replace: Literal["zero", "mean", "resample"] | Tensor = "zero",
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
            "resample", its output at another real token of the batch, drawn at random; or a tensor
            `[layer, head, dim]`, such as `head_means(model, other).values`.
        loss: `f(outputs, batch) -> [batch]`; by default that of the task head.
        seed: of the draws for "resample".
        checkpoint: as in `accumulate`: a file from which a pass that was cut off goes on.
        progress: the title of a progress bar over batches; no bar without it.

    Raises `DataError` for a metric that is NaN or unknown, `LossError` when labels are missing or no loss is known,
    `ShapeError` for a tensor of another shape.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "labels": torch.tensor([1, 0])}
        >>> head_ablation(model, batch, metric="accuracy").change.shape
        torch.Size([2, 4])
    """
    stand_in, name = stand_ins(model, batches, replace)
    accumulator = VariantAccumulator(one_off, metric, loss, stand_in, seed)
    scores: VariantScores = accumulate(model, batches, accumulator, checkpoint=checkpoint, progress=progress)[0]
    anatomy = dissect(model)
    laid = Laid(anatomy, scores)
    return HeadAblation(
        laid.out(scores.scores) - scores.scores[0],
        laid.out(scores.losses.mean(1)) - scores.losses[0].mean(),
        float(scores.scores[0]),
        float(scores.losses[0].mean()),
        laid.out(scores.losses),
        scores.losses[0],
        laid.out(scores.logits),
        scores.logits[0],
        scores.truths,
        scores.example_of,
        metric_name(metric),
        name,
        scores.losses.shape[1],
        anatomy.labels,
    )


def one_off(anatomy: Anatomy) -> Tensor:
    """[variant, layer, head]: each head that is there is off in one variant."""
    places = anatomy.present.nonzero()
    gates = torch.ones(len(places), anatomy.layers, anatomy.heads)
    gates[torch.arange(len(places)), places[:, 0], places[:, 1]] = 0
    return gates


class Laid:
    """Lays what belongs to variants, one for each head, at their heads' places."""

    def __init__(self, anatomy: Anatomy, scores: VariantScores) -> None:
        self._there = anatomy.present
        self._ran = scores.ran

    def out(self, values: Tensor) -> Tensor:
        """[layer, head, ...] of [1 + variant, ...]: NaN for pruned heads and in layers that did not run."""
        wide = values[1:].to(torch.promote_types(values.dtype, torch.float32))
        laid = wide.new_full((*self._there.shape, *values.shape[1:]), NAN)
        laid[self._there] = wide
        laid[~self._ran] = NAN
        return laid


def stand_ins(model: nn.Module, batches: Batches, replace: str | Tensor) -> tuple[str | Tensor, str]:
    """What replaces heads, means taken over the data, and what to call it."""
    if isinstance(replace, Tensor):
        check_stand_ins(dissect(model), replace)
        return replace, "given"
    if replace not in ("zero", "mean", "resample"):
        raise DataError(f"replace must be 'zero', 'mean', 'resample' or a tensor [layer, head, dim], got {replace!r}")
    if replace == "mean":
        check_repeatable(batches, why="replace='mean'")
        return head_means(model, batches).values, replace
    return replace, replace
