"""How do a model's decisions about one sentence change from layer to layer?

Tenney et al. (2019), §4.1: the probabilities of the probes that read layers 0 to each layer, target by target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import DataError, ShapeError, check_least, checked, how_many
from ..results.axes import axes
from ..results.columns import columns_of, to_left
from ..results.result import Result, cpu64
from .tasks import EdgeTask, Target

UNSURE = 0.7
"""The paper's limit: a target is shown if its top label's mean probability over layers is no more."""
_LONG = 40


@dataclass(frozen=True, eq=False, repr=False)
class LabelTrajectories(Result):
    """The predictions of cumulative probes for the targets of some records, layer by layer.

    For a single record, `print` shows a table: each label's probability at every layer, in percent.
    """

    main: ClassVar[str | None] = "probabilities"

    probabilities: Annotated[Tensor, axes("layer target label")]
    """[layer, target, label], 0 to 1: the probability by the probe that reads layers 0 to this one."""
    gold: Annotated[Tensor, axes("target label")]
    """[target, label], bool: which labels are true."""
    record: Annotated[Tensor, axes("target")]
    """[target], int64: the record of each target, counted from 0 as in `words`."""
    spans: Annotated[Tensor, axes("target span")]
    """[target, span], int64: the first word and the word after the last one, of the first span, then of the second."""
    words: tuple[tuple[str, ...], ...]
    """The words of each record."""
    label_names: Annotated[tuple[str, ...], axes("label")]
    """[label]: the names of the labels."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..."""

    @property
    def top_label(self) -> Tensor:
        """[layer, target], int64: the most probable label, right or wrong; the first one if several are equal."""
        return self.probabilities.argmax(-1)

    @property
    def mean_top(self) -> Tensor:
        """[target]: the mean over layers of the probability of one label: the label with the highest mean."""
        return self.probabilities.mean(0).amax(-1)

    @property
    def flips(self) -> Tensor:
        """[target], int64: the number of layers with another top label than the layer below."""
        return (self.top_label.diff(dim=0) != 0).sum(0)

    @property
    def movement(self) -> Tensor:
        """[target]: how much probabilities change over all layers, Σ_ℓ ½ Σ_k |p_ℓ(k) - p_ℓ₋₁(k)|.

        If one label fully replaces another, this adds 1.
        """
        return self.probabilities.diff(dim=0).abs().sum((0, 2)) / 2

    @property
    def settled(self) -> Tensor:
        """[target], int64: the first layer from which the top label no longer changes."""
        top = self.top_label
        return len(top) - (top == top[-1]).flip(0).long().cumprod(0).sum(0)

    @checked
    def of_label(self, label: str) -> Tensor:
        """[layer, target]: the probability of one label. Raises `DataError` for a label that the task does not have."""
        if label not in self.label_names:
            raise DataError(f"the task has no label {label!r}: its labels are {', '.join(self.label_names)}")
        return self.probabilities[..., self.label_names.index(label)]

    def of_gold(self) -> Tensor:
        """[layer, target]: the mean probability of the labels that are true; NaN for targets without true labels."""
        many = self.gold.sum(-1)
        right = self.probabilities.masked_fill(~self.gold, 0).sum(-1) / many
        return right.masked_fill(many == 0, torch.nan)

    @checked
    def unsure(self, limit: float = UNSURE) -> Tensor:
        """[target], bool: whether `mean_top` is at most the limit (§4.1)."""
        if not 0 <= limit <= 1:
            raise DataError(f"limit, a mean probability, must be from 0 to 1, got {limit}")
        return self.mean_top <= limit

    @checked
    def sentences(self, limit: float = UNSURE, *, least: int = 2) -> list[int]:
        """The numbers of the records that the paper shows: those with at least `least` unsure targets (§4.1)."""
        many = self.record[self.unsure(limit)].bincount(minlength=len(self.words))
        return [number for number, count in enumerate(many.tolist()) if count >= max(1, least)]

    @checked
    def most_changing(self, many: int = 10, *, by: Literal["flips", "movement"] = "flips", least: int = 2) -> list[int]:
        """The numbers of the records whose decisions change most over the layers, the most changing one first.

        Records are sorted by the mean of `flips` over their targets, and records with equal means by the mean of
        `movement`; with `by="movement"` the other way round. Records with fewer than `least` targets are left out.
        """
        if by not in ("flips", "movement"):
            raise DataError(f"by must be 'flips' or 'movement', got {by!r}")
        check_least("many", many, 1)
        targets = self.record.bincount(minlength=len(self.words))
        sums = [self.record.bincount(x.double(), minlength=len(self.words)) for x in (self.flips, self.movement)]
        pairs = torch.stack(sums if by == "flips" else sums[::-1], dim=1) / targets[:, None]
        there = [number for number, count in enumerate(targets.tolist()) if count >= max(1, least)]
        return sorted(there, key=lambda number: pairs[number].tolist(), reverse=True)[:many]

    @checked
    def sentence(self, record: int) -> LabelTrajectories:
        """Only one record. Raises `DataError` for a record that does not exist, or has no targets."""
        found = self.subset(self.record == record)
        if not found.targets:
            raise DataError(
                f"record {record} has no targets: there are {how_many(len(self.words), 'record')}, counted from 0"
            )
        return replace(found, record=torch.zeros_like(found.record), words=(self.words[record],))

    @checked
    def subset(self, targets: Tensor) -> LabelTrajectories:
        """Some targets, [target] bool, in the same records."""
        if targets.dtype != torch.bool or targets.shape != self.record.shape:
            found = f"{list(targets.shape)} {targets.dtype}"
            raise ShapeError(f"targets must be [target] = [{self.targets}] bool, got {found}")
        cut = {name: getattr(self, name)[targets] for name in ("gold", "record", "spans")}
        return replace(self, probabilities=self.probabilities[:, targets], **cut)

    @property
    def targets(self) -> int:
        """The number of targets."""
        return len(self.record)

    @checked
    def shown(self, target: int) -> list[int]:
        """The labels of a target that are true, or the most probable at some layer, sorted by mean probability."""
        which = self.gold[target].clone()
        which[self.top_label[:, target]] = True
        means = self.probabilities[:, target].mean(0).tolist()
        return sorted(which.nonzero().flatten().tolist(), key=lambda label: -means[label])

    @checked
    def asked(self, target: int) -> str:
        """The words of a target's spans: `she | saw`. The middle of long spans is left out."""
        words, ends = self.words[int(self.record[target])], self.spans[target].tolist()
        return " | ".join(_short(words[start:end]) for start, end in zip(ends[::2], ends[1::2], strict=True))

    def __str__(self) -> str:
        if len(self.words) > 1:
            return (
                f"{how_many(self.targets, 'target')} in {how_many(len(self.words), 'record')}, at "
                f"{how_many(len(self.labels), 'layer')}, of {how_many(len(self.label_names), 'label')}: "
                f"{int(self.unsure().sum())} unsure targets, {how_many(len(self.sentences()), 'record')} with two or "
                "more"
            )
        shown = [(target, label) for target in range(self.targets) for label in self.shown(target)]
        width = max([3, *(columns_of(self.label_names[label]) for _, label in shown)])  # at least as wide as `layer`
        lines = [" ".join(self.words[0]), f"  {'layer':<{width + 2}}{''.join(f'{name:>4} ' for name in self.labels)}"]
        for target in range(self.targets):
            lines += [self._title(target), *(self._row(target, label, width) for label in self.shown(target))]
        return "\n".join(line.rstrip() for line in lines)

    def _title(self, target: int) -> str:
        true = [name for name, is_true in zip(self.label_names, self.gold[target].tolist(), strict=True) if is_true]
        spans = " ".join(f"[{start}, {end})" for start, end in self.spans[target].view(-1, 2).tolist())
        return f"{self.asked(target)}  {spans}: {', '.join(true) or 'no label is true'}"

    def _row(self, target: int, label: int, width: int) -> str:
        right = "+" if self.gold[target, label] else " "
        values, tops = self.probabilities[:, target, label].tolist(), (self.top_label[:, target] == label).tolist()
        cells = [f"{100 * p:>4.0f}{'*' if on_top else ' '}" for p, on_top in zip(values, tops, strict=True)]
        return f"  {right} {to_left(self.label_names[label], width)}{''.join(cells)}"


@checked
def label_trajectories(
    probabilities: Tensor, task: EdgeTask, *, source: tuple[Tensor, Tensor] | None = None
) -> LabelTrajectories:
    """Follow what probes predict for targets from layer to layer (Tenney et al. 2019, §4.1).

    In the table of one record, `+` is before true labels, and `*` is after the most probable label at a layer.

    Args:
        probabilities: [layer, target, label], 0 to 1: after the sigmoid, of the probes that read layers 0 to each
            layer.
        task: the records with these targets, in their order, and the names of the labels.
        source: [target], twice: the number of the target's record in the task, and of the target in that record:
            the `source` of a store. By default these are all targets of the task, record by record.

    Raises `ShapeError` for other shapes, `DataError` for values outside of 0 to 1, or targets that do not exist.

        >>> import torch
        >>> from bertology.edge_probing import EdgeTask, Record, Target
        >>> record = Record(("Birds", "sing"), (Target((0, 1), ("NOUN",)), Target((1, 2), ("VERB",))))
        >>> nouns = torch.tensor([[0.9, 0.6], [0.8, 0.3], [0.95, 0.04]])
        >>> found = label_trajectories(torch.stack([nouns, 1 - nouns], dim=-1), EdgeTask.of("pos", [record]))
        >>> print(found)
        Birds sing
          layer    0    1    2
        Birds  [0, 1): NOUN
          + NOUN  90*  80*  95*
        sing  [1, 2): VERB
          + VERB  40   70*  96*
            NOUN  60*  30    4
        >>> found.flips.tolist(), found.settled.tolist()
        ([0, 1], [0, 1])
    """
    kept = _kept(task, source)
    if probabilities.dim() != 3 or probabilities.shape[1:] != (len(kept), len(task.labels)) or not kept:
        raise ShapeError(
            f"probabilities must be [layer, target, label] = [..., {len(kept)}, {len(task.labels)}], got "
            f"{list(probabilities.shape)}: if these are only some of the task's targets, name them with source="
        )
    found = cpu64(probabilities).clone()
    if not ((found >= 0) & (found <= 1)).all():
        raise DataError(
            f"probabilities must be from 0 to 1, got values from {found.min():.4g} to {found.max():.4g}: pass them "
            "after the sigmoid"
        )
    return LabelTrajectories(
        found,
        gold=torch.tensor([[label in target.labels for label in task.labels] for _, target in kept]),
        record=torch.tensor([number for number, _ in kept]),
        spans=torch.tensor([target.span1 + (target.span2 or ()) for _, target in kept]),
        words=tuple(record.words for record in task.records),
        label_names=task.labels,
        labels=tuple(map(str, range(len(found)))),
    )


def _kept(task: EdgeTask, source: tuple[Tensor, Tensor] | None) -> list[tuple[int, Target]]:
    """[target]: the number of its record, and the target itself."""
    every = {(n, m): target for n, record in enumerate(task.records) for m, target in enumerate(record.targets)}
    pairs = list(every) if source is None else list(zip(*(x.tolist() for x in source), strict=True))
    wrong = [pair for pair, times in Counter(pairs).items() if times > 1 or pair not in every]
    if wrong:
        record, number = wrong[0]
        raise DataError(f"source has target {number} of record {record}, which is not in the task, or is named twice")
    return [(pair[0], every[pair]) for pair in pairs]


def _short(words: Sequence[str]) -> str:
    """The words; if they are long, the middle is left out."""
    half = (len(words) + 1) // 2
    while half > 1 and len(" ".join([*words[:half], *words[-half:]])) > _LONG:
        half -= 1
    return " ".join(words) if 2 * half >= len(words) else " ".join([*words[:half], "…", *words[-half:]])
