"""What does the model lose when one head is removed, or when a layer keeps only one head?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ..anatomy.sites import Anatomy
from ..data.batches import BatchesOrTexts
from ..data.losses import ExampleLoss
from ..data.metrics import Metric, MetricName
from ..errors import DataError, checked
from ..results.axes import axes
from ..results.scatter import heads_correlation
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress
from ..tap.gates import Kind, replacement_name
from .many_gates import NAN, VariantScores, score_variants
from .significance import Of, PairedResult


@dataclass(frozen=True, eq=False, repr=False)
class HeadAblation(PairedResult):
    """What a model loses when one head is removed, for each head."""

    change: Annotated[Tensor, axes("layer head", words="change of the metric without the head", scale="signed")]
    """[layer, head]: the metric without the head minus that of the whole model; below 0 the head helps. NaN for
    pruned heads, and where a layer did not run."""
    loss_change: Annotated[Tensor, axes("layer head", words="change of the loss without the head", scale="signed")]
    """[layer, head]: the mean loss without the head minus that of the whole model; above 0 the head helps."""
    base: float
    """The whole model's metric."""
    base_loss: float
    """The whole model's mean loss."""

    def _tested(self) -> Tensor:
        return ~self.change.isnan()

    @checked
    def correlation(self, other: HeadAblation, *, of: Of = "metric") -> float:
        """Pearson's r between the heads' effects on two data sets (Michel et al. 2019, §3.4)."""
        if of not in ("metric", "loss"):
            raise DataError(f"of is 'metric' or 'loss', got {of!r}")
        r, _ = heads_correlation(*((x.change if of == "metric" else x.loss_change) for x in (self, other)))
        return r


@checked
@merges
def head_ablation(
    model: nn.Module,
    batches: BatchesOrTexts,
    *,
    metric: MetricName | Metric,
    replace: Kind | Tensor = "zero",
    loss: ExampleLoss | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    tokenizer: Any = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> HeadAblation:
    """Remove one head at a time, and measure how the metric and the loss change (Michel et al. 2019, §3.2).

    Every example is run without each head in turn, for many heads in one batch. The layers before a head are computed
    once for all heads of its layer, so that the cost is about half a forward pass for each head.

    Args:
        model: a model with a task head; it is gated, and never changed.
        batches: the data that is scored: one mapping of model arguments with labels, or an iterable of them; or texts
            with labels (see `make_batches`).
        metric: as in `score`: a GLUE metric by name, "inverse_loss" (for language models), or
            `f(logits, labels) -> float`. Logits of all examples are kept for each head. With a `GenerationMetric`, the
            model generates from all examples once for each head.
        replace: what replaces the head's output: "zero"; "mean", its mean over the real tokens of `batches`;
            "resample", at every token its output at a real token of the batch, drawn at random; or a tensor
            `[layer, head, dim]`, such as `head_means(model, other).values`.
        loss: `f(outputs, batch) -> [batch]`; by default that of the task head.
        seed: the seed of the draws for "resample".
        checkpoint: as in `accumulate`: a file from which an interrupted pass resumes.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar over batches, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

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
        tokenizer=tokenizer,
        checkpoint=checkpoint,
        progress=progress,
    )
    losses = found.losses.mean(1)
    return HeadAblation(
        found.laid_out(found.scores - found.scores[0]),
        found.laid_out(losses - losses[0]),
        float(found.scores[0]),
        float(losses[0]),
        **_paired(found, replace),
    )


@dataclass(frozen=True, eq=False, repr=False)
class SoleHeadAblation(PairedResult):
    """What a model loses when all heads of a layer but one are removed, for each head."""

    scores: Annotated[Tensor, axes("layer head", words="the metric with this head alone in its layer")]
    """[layer, head]: the metric when only this head is left in its layer; NaN for pruned heads, and where a layer
    did not run."""
    base: float
    """The whole model's metric."""
    chosen: Annotated[Tensor, axes("layer")]
    """[layer], int64: the best head, the first one if several are equally good; -1 if there is none."""
    change: Annotated[Tensor, axes("layer")]
    """[layer]: the metric with only the chosen head minus that of the whole model."""
    leaking: bool
    """Whether heads were chosen on the data that they are scored on, which makes `change` too optimistic."""
    leaking_change: Annotated[Tensor, axes("layer")]
    """[layer]: `change` if the heads are chosen on the data that they are scored on."""

    def _tested(self) -> Tensor:
        """The chosen heads, one in each layer: the correction is for the number of layers."""
        there = torch.zeros_like(self.scores, dtype=torch.bool)
        rows = (self.chosen >= 0).nonzero().flatten()
        there[rows, self.chosen[rows]] = True
        return there


@checked
@merges
def sole_head_ablation(
    model: nn.Module,
    batches: BatchesOrTexts,
    *,
    metric: MetricName | Metric,
    choose_on: BatchesOrTexts | None = None,
    replace: Kind | Tensor = "zero",
    loss: ExampleLoss | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    tokenizer: Any = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> SoleHeadAblation:
    """Keep a single head in one layer, and measure how the metric changes (Michel et al. 2019, §3.3 and appendix A).

    Each head in turn is the only one left in its layer; the other layers keep all their heads. The best head of a layer
    is chosen on separate data, `choose_on`: a head that is chosen and scored on the same data is partly best by chance.

    Args:
        model: a model with a task head; it is gated, and never changed.
        batches: the data that is scored: one mapping of model arguments with labels, or an iterable of them; or texts
            with labels (see `make_batches`).
        metric: as in `head_ablation`.
        choose_on: the data that the heads are chosen on; by default `batches`, and the result is marked as `leaking`.
        replace: what replaces the output of the other heads, as in `head_ablation`.
        loss: `f(outputs, batch) -> [batch]`; by default that of the task head.
        seed: the seed of the draws for "resample".
        checkpoint: as in `accumulate`: a file from which the pass over `batches` resumes. The pass over `choose_on` has
            a second file, whose name ends in `.choose`; if that pass was complete, it is run again.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar over batches, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises the errors of `head_ablation`.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "labels": torch.tensor([1, 0])}
        >>> sole = sole_head_ablation(model, batch, metric="accuracy")
        >>> sole.change.shape, sole.leaking
        (torch.Size([2]), True)
    """

    scored = partial(
        score_variants,
        model,
        make_gates=all_but_one,
        metric=metric,
        replace=replace,
        loss=loss,
        seed=seed,
        tokenizer=tokenizer,
        progress=progress,
    )
    own_file = None if checkpoint is None else f"{checkpoint}.choose"
    other = None if choose_on is None else scored(choose_on, checkpoint=own_file)
    found = scored(batches, checkpoint=checkpoint)
    scores, base = found.laid_out(found.scores), float(found.scores[0])
    best = _best(scores)
    chosen = best if other is None else _best(other.laid_out(other.scores).masked_fill(scores.isnan(), NAN))
    return SoleHeadAblation(
        scores,
        base,
        chosen,
        _of(scores, chosen) - base,
        other is None,
        _of(scores, best) - base,
        **_paired(found, replace),
    )


def _paired(found: VariantScores, replace: Kind | Tensor) -> dict[str, Any]:
    """The fields of a `PairedResult`: the ablated models beside the whole one."""
    return {
        "losses": found.laid_out(found.losses),
        "base_losses": found.losses[0],
        "logits": found.laid_out(found.logits),
        "base_logits": found.logits[0],
        "truths": found.truths,
        "example_of": found.example_of,
        "metric": found.metric,
        "replace": replacement_name(replace),
        "examples": found.losses.shape[1],
        "labels": found.labels,
        "model_name": found.model_name,
    }


def one_off(anatomy: Anatomy) -> Tensor:
    """[variant, layer, head]: in each variant one of the heads left is switched off."""
    places = anatomy.present.nonzero()
    gates = torch.ones(len(places), anatomy.layers, anatomy.heads)
    gates[torch.arange(len(places)), places[:, 0], places[:, 1]] = 0
    return gates


def all_but_one(anatomy: Anatomy) -> Tensor:
    """[variant, layer, head]: in each variant one head is the only one of its layer."""
    places = anatomy.present.nonzero()
    gates = torch.ones(len(places), anatomy.layers, anatomy.heads)
    for gate, (row, head) in zip(gates, places.tolist(), strict=True):
        # Pruned heads keep their gates, which change nothing: a head that is alone already stays as it is.
        gate[row, anatomy.present[row]] = 0
        gate[row, head] = 1
    return gates


def _best(scores: Tensor) -> Tensor:
    """[layer], int64: the head of the highest score, the first of several; -1 where all are NaN."""
    first = scores.nan_to_num(float("-inf"), neginf=float("-inf")).argsort(dim=1, descending=True, stable=True)[:, 0]
    return first.masked_fill(scores.isnan().all(1), -1)


def _of(scores: Tensor, heads: Tensor) -> Tensor:
    """[layer]: the scores of these heads; NaN for -1."""
    return scores.gather(1, heads.clamp_min(0)[:, None])[:, 0].masked_fill(heads < 0, NAN)
