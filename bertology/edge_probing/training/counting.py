"""How many labels does a probe find, miss and make up?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import DataError, ShapeError
from ..spans import BatchSource, EdgeBatch
from .probes import Probes


class Counts(NamedTuple):
    """Decisions of probes about the targets of records: a label is predicted where its probability is 1/2 or more."""

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
    """F1 from pooled counts, 2 tp / (2 tp + fp + fn), float64. It is 0 where nothing is predicted and nothing true.

    >>> micro_f1(torch.tensor([3, 0]), torch.tensor([1, 0]), torch.tensor([2, 0])).tolist()
    [0.6666666666666666, 0.0]
    """
    doubled = 2 * tp.to(torch.float64)
    return doubled / (doubled + fp + fn).clamp_min(1)


def logits_of(
    probes: Probes, source: BatchSource, records: Tensor | range, batch_size: int
) -> Iterator[tuple[Tensor | range, EdgeBatch, Tensor]]:
    """The logits [probe, target, label] of some records at a time, in their order, without dropout and gradients.

    Raises `DataError` where they are not finite.
    """
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
                    f"probe {int((~logits.isfinite()).flatten(1).any(1).int().argmax())} gives logits that are not "
                    f"finite for records {int(some[0])} to {int(some[-1])}: look for NaN or overflow in their vectors"
                )
            yield some, batch, logits
    finally:
        probes.train(training)


def count(probes: Probes, source: BatchSource, *, records: int | None = None, batch_size: int = 32) -> Counts:
    """Count right and wrong decisions of all probes about all records, or about the first of them.

    Raises `DataError` where none of the labels that count is true of any target, for no score means anything there.
    """
    return judge(probes, source, records=records, batch_size=batch_size)[0]


def judge(
    probes: Probes, source: BatchSource, *, records: int | None = None, batch_size: int = 32
) -> tuple[Counts, Tensor]:
    """As `count`, and the loss [probe] float64: the mean over targets of the bits of all labels, counted or not."""
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
            f"none of the labels that count is true of a target of the {tp.shape[1]} records to score on "
            f"({', '.join(source.counted[:3])}{', ...' if len(columns) > 3 else ''}): F1 means nothing there"
        )
    return Counts(tp, fp, fn, *by_label), bits / targets


def _places(of: Tensor, some: range, batch: EdgeBatch) -> Tensor:
    """[target] int64: which of these records each target of their batch is of."""
    first, last = torch.searchsorted(of, torch.tensor([some.start, some.stop], device=of.device)).tolist()
    if last - first != batch.count:
        raise ShapeError(
            f"target_record gives records {some.start} to {some.stop - 1} {last - first} targets, "
            f"their batch has {batch.count}"
        )
    return (of[first:last] - some.start).to(batch.gold.device)


def bits_of(logits: Tensor, gold: Tensor) -> Tensor:
    """[...], bits: the code of all labels of some targets, of logits [..., target, label] and gold [target, label].

    Each label is a decision of its own: -log₂ σ(logit) where it is true, -log₂ (1 - σ(logit)) where it is not. Raises
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
