"""How well can a task be solved from the layers up to each one?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError, ShapeError, check_least, checked, how_many
from ..results.axes import axes
from ..results.result import Result
from ..results.statistics import bootstrap_sums, percentile_interval
from .layer_statistics import LayerStatistics, layer_statistics
from .probes import Probes
from .span_batches import BatchSource, EdgeBatch


class Counts(NamedTuple):
    """Counts of right and wrong predictions. A label is predicted when its probability is 1/2 or more."""

    tp: Tensor
    """[probe, example] int32: labels that were predicted and are true, of those that count in the score."""
    fp: Tensor
    """[probe, example] int32: predicted, but not true."""
    fn: Tensor
    """[probe, example] int32: true, but not predicted."""
    label_tp: Tensor
    """[probe, label] int64: as `tp`, for each label, also those that do not count."""
    label_fp: Tensor
    """[probe, label] int64"""
    label_fn: Tensor
    """[probe, label] int64"""


def micro_f1(tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
    """F1 from pooled counts, 2 tp / (2 tp + fp + fn), float64. It is 0 when nothing is predicted and nothing is true.

    >>> micro_f1(torch.tensor([3, 0]), torch.tensor([1, 0]), torch.tensor([2, 0])).tolist()
    [0.6666666666666666, 0.0]
    """
    doubled = 2 * tp.to(torch.float64)
    return doubled / (doubled + fp + fn).clamp_min(1)


def logits_of(
    probes: Probes, source: BatchSource, records: Tensor | range, batch_size: int
) -> Iterator[tuple[Tensor | range, EdgeBatch, Tensor]]:
    """The logits [probe, target, label] of the records, batch by batch in their order, without dropout and gradients.

    Raises `DataError` when they are not finite.
    """
    check_least("batch_size", batch_size, 1)
    if len(records) and not 0 <= int(min(records)) <= int(max(records)) < source.records:
        raise DataError(
            f"records must be from 0 to {source.records - 1}, got {int(min(records))} to {int(max(records))}"
        )
    training = probes.training
    probes.eval()
    try:
        for start in range(0, len(records), batch_size):
            some = records[start : start + batch_size]
            batch = source.batch(some).to(probes.weights.device)
            with torch.no_grad():
                logits = probes(batch)
            if not logits.isfinite().all():
                raise DataError(
                    f"probe {int((~logits.isfinite()).flatten(1).any(1).int().argmax())} returns logits that are not "
                    f"finite for records {int(some[0])} to {int(some[-1])}: look for NaN or overflow in their vectors"
                )
            yield some, batch, logits
    finally:
        probes.train(training)


def count(probes: Probes, source: BatchSource, *, records: int | None = None, batch_size: int = 32) -> Counts:
    """Count right and wrong predictions of all probes for all records, or for the first `records`.

    Raises `DataError` when no target has a label that counts, because F1 is then not meaningful.
    """
    return judge(probes, source, records=records, batch_size=batch_size)[0]


def judge(
    probes: Probes, source: BatchSource, *, records: int | None = None, batch_size: int = 32
) -> tuple[Counts, Tensor]:
    """`count`, and the loss [probe] float64: the mean over targets of the bits of all labels, counted or not."""
    columns = [source.labels.index(label) for label in source.counted]
    of = source.target_record
    by_record: list[Tensor] = []
    by_label = torch.zeros(3, len(probes.seeds), len(source.labels), dtype=torch.int64)
    bits, targets = torch.zeros(len(probes.seeds), dtype=torch.float64), 0
    many = source.records if records is None else min(records, source.records)
    for some, batch, logits in logits_of(probes, source, range(many), batch_size):
        assert isinstance(some, range)
        bits, targets = bits + bits_of(logits, batch.gold).cpu(), targets + batch.count
        said, true = logits >= 0, (batch.gold > 0.5)[None]
        cells = torch.stack([said & true, said & ~true, ~said & true])
        by_label += cells.sum(2).cpu()
        counted = cells[..., columns].sum(3, dtype=torch.int32)
        per_record = counted.new_zeros(*counted.shape[:2], len(some))
        by_record.append(per_record.index_add(2, _places(of, some, batch), counted).cpu())
    if not by_record:
        raise DataError("there are no records to score probes on")
    tp, fp, fn = torch.cat(by_record, 2)
    if not (tp + fn)[0].any():
        raise DataError(
            f"none of the labels that count is true of a target of the {how_many(tp.shape[1], 'record')} to score on "
            f"({', '.join(source.counted[:3])}{', ...' if len(columns) > 3 else ''}), so F1 is not defined: "
            "score on records with such labels"
        )
    return Counts(tp, fp, fn, *by_label), bits / targets


def _places(of: Tensor, some: range, batch: EdgeBatch) -> Tensor:
    """[target] int64: the record of each target in a batch, counted from the first record of the batch."""
    first, last = torch.searchsorted(of, torch.tensor([some.start, some.stop], device=of.device)).tolist()
    if last - first != batch.count:
        raise ShapeError(
            f"records {some.start} to {some.stop - 1} have {how_many(last - first, 'target')} in target_record, "
            f"but their batch has {batch.count}"
        )
    return (of[first:last] - some.start).to(batch.gold.device)


@checked
def bits_of(logits: Tensor, gold: Tensor) -> Tensor:
    """[...], bits: the code of all labels of some targets, of logits [..., target, label] and gold [target, label].

    Each label is a separate decision: -log₂ σ(logit) if it is true, -log₂ (1 - σ(logit)) if it is not. Raises
    `ShapeError` for other shapes.

        >>> bits_of(torch.zeros(3, 2, 5), torch.ones(2, 5)).tolist()
        [10.0, 10.0, 10.0]
    """
    if gold.dim() != 2 or logits.shape[-2:] != gold.shape:
        raise ShapeError(
            f"logits must be [..., target, label] of gold [target, label] = {list(gold.shape)}, "
            f"got {list(logits.shape)}"
        )
    scores, sign = logits.detach().double(), 1 - 2 * gold.to(logits.device).double()
    return torch.nn.functional.softplus(scores * sign).sum((-2, -1)) / math.log(2)


@dataclass(frozen=True, eq=False, repr=False)
class LayerScores(Result):
    """F1 of cumulative probes: the one at layer l reads layers 0 to l.

    Layer 0 is the lexical layer. Layer l is the output of the model's l-th block, whose heads are in layer l - 1.
    """

    main: ClassVar[str | None] = "f1"

    f1: Annotated[Tensor, axes("seed layer")]
    """[seed, layer], 0 to 1: micro-F1 over all labels that count; a label is predicted when p >= 1/2. It is 0 when no
    predicted label is true, and when no label is predicted."""
    mix: Annotated[Tensor, axes("seed layer")]
    """[seed, layer]: the mixing weights s of the probe that reads all layers; they sum to 1."""
    gamma: Annotated[Tensor, axes("seed")]
    """[seed]: the factor γ of the probe that reads all layers."""
    tp: Annotated[Tensor, axes("seed layer example")]
    """[seed, layer, example] int32: labels that count, are predicted and are true, in each record that was scored."""
    fp: Annotated[Tensor, axes("seed layer example")]
    """[seed, layer, example] int32: labels that count, are predicted and are not true."""
    fn: Annotated[Tensor, axes("seed layer example")]
    """[seed, layer, example] int32: labels that count, are true and are not predicted."""
    label_tp: Annotated[Tensor, axes("seed layer label")]
    """[seed, layer, label]: as `tp`, for each label over all records, also for labels that do not count."""
    label_fp: Annotated[Tensor, axes("seed layer label")]
    """[seed, layer, label]: as `fp`."""
    label_fn: Annotated[Tensor, axes("seed layer label")]
    """[seed, layer, label]: as `fn`."""
    steps: Annotated[Tensor, axes("seed layer")]
    """[seed, layer]: the number of training steps of each probe."""
    best_steps: Annotated[Tensor, axes("seed layer")]
    """[seed, layer]: the step whose weights were kept as the best."""
    validation_f1: Annotated[Tensor, axes("seed layer validation")]
    """[seed, layer, validation]: F1 at each validation during training; NaN after a probe stopped."""
    losses: Annotated[Tensor, axes("seed layer validation")]
    """[seed, layer, validation]: the mean training loss before each validation; NaN after a probe stopped."""
    stopped: Annotated[tuple[tuple[str, ...], ...], axes("seed layer")]
    """[seed, layer]: why each probe stopped: "patience", "learning rate", or "validations" if all of them were used. In
    this last case more training may help."""
    seeds: Annotated[tuple[int, ...], axes("seed")]
    """[seed]: the seeds of initial weights and dropout."""
    label_names: Annotated[tuple[str, ...], axes("label")]
    """[label]"""
    counted: tuple[str, ...]
    """The labels that count in F1."""
    targets: int
    """The number of targets that were scored."""
    settings: str
    """The settings of training."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..."""

    def __str__(self) -> str:
        lines = [f"F1 of {how_many(self.targets, 'target')} at layers 0 to {self.labels[-1]}"]
        for seed, row in zip(self.seeds, self.f1.tolist(), strict=True):
            lines.append(f"seed {seed}: " + " ".join(f"{100 * f1:.1f}" for f1 in row))
        why = [one for seed in self.stopped for one in seed]
        if "validations" in why:
            lines.append(
                f"{why.count('validations')} of {how_many(len(why), 'probe')} used up all validations: more may help "
                "them"
            )
        if (self.f1 == 0).any():
            lines.append("F1 is 0 where no predicted label is true: a probe may have stopped too early, validate later")
        return "\n".join(lines)

    def statistics(self) -> LayerStatistics:
        """At which layers the task is solved: differential scores, expected layer, centre of gravity."""
        found = layer_statistics(self.f1, self.mix)
        return replace(found, model_name=self.model_name, n_examples=self.n_examples)

    def label_f1(self) -> Tensor:
        """[seed, layer, label]: F1 of each label alone; NaN for one that is neither true nor predicted anywhere."""
        cells = self.label_tp, self.label_fp, self.label_fn
        return micro_f1(*cells).masked_fill(torch.stack(cells).sum(0) == 0, torch.nan)

    @checked
    def bootstrap(self, resamples: int = 1000, *, seed: int = 0) -> Tensor:
        """[draw, seed, layer]: F1 over resampled records, the same for all probes in one draw.

        So any statistic of F1, such as the expected layer, can be computed for each draw. Records are resampled, not
        targets, because the targets of one text are not independent.
        """
        cells = torch.stack([self.tp, self.fp, self.fn]).double()
        return micro_f1(*bootstrap_sums(cells, resamples=resamples, seed=seed)[0].unbind(1))

    @checked
    def interval(self, level: float = 0.95, *, resamples: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
        """The lower and upper ends of the percentile interval of F1 over `bootstrap`, [seed, layer] each.

        It covers the choice of records to score on, for fixed trained probes.
        """
        return percentile_interval(self.bootstrap(resamples, seed=seed), level)

    @checked
    def layer_interval(self, level: float = 0.95, *, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """The lower and upper ends of the `bootstrap` interval of the expected layer, the mean over seeds.

        Both are NaN when more than one draw in twenty has no expected layer, because the other draws would give an
        interval that is too narrow.
        """
        draws = self.bootstrap(resamples, seed=seed)
        layers = layer_statistics(draws.flatten(0, 1)).expected_layers.view(draws.shape[:2]).mean(1)
        known = layers[~layers.isnan()]
        if len(known) < 0.95 * len(layers):
            return math.nan, math.nan
        low, high = percentile_interval(known, level)
        return low.item(), high.item()
