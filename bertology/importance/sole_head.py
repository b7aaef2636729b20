"""How well does a layer do with one of its heads alone?"""

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
from ..results.axes import axes
from ..results.result import Result
from ..tap.gates import Kind, replacement_name
from .many_gates import NAN, VariantScores, score_variants
from .significance import Correction, Of, Significance, Test, significance


@dataclass(frozen=True, eq=False, repr=False)
class SoleHeadAblation(Result):
    """What a model loses when all heads of a layer go but one, for each head."""

    scores: Annotated[Tensor, axes("layer head")]
    """[layer, head]: the metric when of this layer only this head is left; NaN for pruned heads, and where a layer did
    not run."""
    base: float
    """The whole model's metric."""
    chosen: Annotated[Tensor, axes("layer")]
    """[layer], int64: the best head, the one of the lowest number where several are; -1 where there is none."""
    change: Annotated[Tensor, axes("layer")]
    """[layer]: the metric with the chosen head alone, less that of the whole model."""
    leaking: bool
    """Whether heads were chosen on the data that they are scored on, which flatters them."""
    leaking_change: Annotated[Tensor, axes("layer")]
    """[layer]: what `change` is when heads are chosen on the data that they are scored on."""
    losses: Annotated[Tensor, axes("layer head example")]
    """[layer, head, example]: every example's loss with this head alone."""
    base_losses: Annotated[Tensor, axes("example")]
    """[example]: every example's loss in the whole model."""
    logits: Annotated[Tensor, axes("layer head row label")]
    """[layer, head, row, label]: what the metric saw with this head alone; empty for a metric of losses."""
    base_logits: Annotated[Tensor, axes("row label")]
    """[row, label]: what the metric saw of the whole model."""
    truths: Annotated[Tensor, axes("row")]
    """[row]: the labels that the metric saw."""
    example_of: Annotated[Tensor, axes("row")]
    """[row], int64: which example a row belongs to."""
    metric: str
    """What was measured."""
    replace: str
    """What stood where the other heads' output was: "zero", "mean", "resample" or "given"."""
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
        """Test for each layer's chosen head whether the change is more than chance; p is NaN for all other heads.

        The arguments are those of `HeadAblation.significance`; the correction is for the number of layers.
        """
        there = torch.zeros_like(self.scores, dtype=torch.bool)
        rows = (self.chosen >= 0).nonzero().flatten()
        there[rows, self.chosen[rows]] = True
        return significance(self, there, test, of, correction, metric, resamples, seed)


def sole_head_ablation(
    model: nn.Module,
    batches: Batches,
    *,
    metric: str | Metric,
    choose_on: Batches | None = None,
    replace: Kind | Tensor = "zero",
    loss: ExampleLoss | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: str | None = None,
) -> SoleHeadAblation:
    """Leave one layer a single head, and see what becomes of the metric (Michel et al. 2019, §3.3 and appendix A).

    Each head in turn stays alone in its layer; the other layers keep all of theirs. A layer's best head is chosen on
    `choose_on`, data of its own: the best of twelve on the data that it is scored on is best there by luck too.

    Args:
        model: a model with a task head; it is only gated, never changed.
        batches: the data that is scored: one mapping of model arguments with labels, or an iterable of them.
        metric: as in `head_ablation`.
        choose_on: the data that the heads are chosen on; by default `batches`, and the result is marked as `leaking`.
        replace: what stands where the other heads' output was, as in `head_ablation`.
        loss: `f(outputs, batch) -> [batch]`; by default that of the task head.
        seed: of the draws for "resample".
        checkpoint: as in `accumulate`: a file from which the pass over `batches` goes on. A pass over `choose_on` has a
            file beside it, whose name ends in `.choose`; once complete, it is made anew.
        progress: the title of a progress bar over batches; no bar without it.

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

    def scored(data: Batches, file: str | Path | None) -> VariantScores:
        return score_variants(
            model,
            data,
            all_but_one,
            metric=metric,
            replace=replace,
            loss=loss,
            seed=seed,
            checkpoint=file,
            progress=progress,
        )

    own_file = None if checkpoint is None else f"{checkpoint}.choose"
    other = None if choose_on is None else scored(choose_on, own_file)
    found = scored(batches, checkpoint)
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


def all_but_one(anatomy: Anatomy) -> Tensor:
    """[variant, layer, head]: each head that is there is alone in its layer in one variant."""
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
