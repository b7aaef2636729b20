"""How many bits does it take to send the labels when a probe learns them block by block?

The online (prequential) code of Voita and Titov (2020): if a layer makes a task easy, the code is short. Code length
also measures how quickly a probe learns; a score measures only what it knows at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..errors import DataError, ShapeError, checked, how_many
from ..results.axes import axes
from ..results.result import Result, cpu64
from ..streaming.progress import Progress, progress_bar
from .optimizer import Training
from .probe_layers import cumulative_probes
from .random_draws import CODE, generator
from .scores import bits_of, logits_of
from .span_batches import BatchSource, EdgeBatch, check_gives_batches, check_sources
from .train import train_probes

PORTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""The shares of the records after which the paper trains again."""

Predict = Callable[[range], "Tensor | float"]
"""From a range of records, the total bits of their labels: [probe], or one float for one probe."""


@dataclass(frozen=True, eq=False, repr=False)
class CodeLength(Result):
    """How long the labels of a task are, in bits, sent block by block with probes trained on the blocks before."""

    bits: Annotated[Tensor, axes("step probe", unit="bits")]
    """[step, probe], bits: the code of each block of records; that of the first block is `uniform`."""
    uniform: Annotated[Tensor, axes("step", unit="bits")]
    """[step], bits: the uniform code of each block."""
    ends: Annotated[Tensor, axes("step")]
    """[step], int64: the number of records up to the end of each block; the probes of the next block are trained on
    these."""
    labels: Annotated[tuple[str, ...], axes("probe")]
    """[probe]: the names of the probes."""

    @property
    def online(self) -> Tensor:
        """[probe], bits: the code of all records."""
        return self.bits.sum(0)

    @property
    def compression(self) -> Tensor:
        """[probe]: the length of the uniform code divided by that of the online code."""
        return self.uniform.sum() / self.online

    def __str__(self) -> str:
        lines = ["| probe | bits | compression |", "|---|---|---|"]
        for name, bits, times in zip(self.labels, self.online.tolist(), self.compression.tolist(), strict=True):
            lines.append(f"| {name} | {bits:.0f} | {times:.2f} |")
        total = (
            f"{how_many(int(self.ends[-1]), 'record')} in {how_many(len(self.ends), 'block')}, "
            f"{self.uniform.sum():.0f} bits in uniform code"
        )
        return "\n".join([*lines, total])


@checked
def online_code(
    fit: Callable[[range], Predict],
    *,
    uniform: Tensor,
    portions: Sequence[float] = PORTIONS,
    names: Sequence[str] | None = None,
    progress: Progress = None,
) -> CodeLength:
    """Measure how long the labels are in online code (Voita and Titov 2020).

    L = U(1..t₁) - Σᵢ log₂ p_θᵢ(y of tᵢ+1 to tᵢ₊₁), where θᵢ is trained on records 1 to tᵢ and U is the uniform code.
    The paper codes one of K labels per target, so its uniform code takes log₂ K bits per target. In edge probing each
    label of a target is a separate decision, and the uniform code takes one bit per label. There a probe that only
    knows that most labels are false already compresses a lot: compare its code with that of layer 0, or of a model
    with random weights, not with 1.

    The code depends on the order of the records: shuffle them first, and keep the records of a document together.

    Args:
        fit: trains new probes on a range of records, and returns a function from another range to the bits of its
            labels: [probe] for several probes at once, such as those of all layers. `bits_of` computes bits from
            logits.
        uniform: [example]: the uniform code of each record's labels, in bits: targets × labels if each label is a
            separate decision.
        portions: shares of the records, ascending to 1: where blocks end. Empty blocks are left out.
        names: [probe]: the names of the probes; by default they are numbered.
        progress: True for a progress bar over blocks, or its title; no bar without it.

    Raises `DataError` for portions that do not ascend to 1, for bits that are negative or not finite, and when all
    records are in one block; `ShapeError` for other shapes.

        >>> import torch
        >>> def fit(train):  # how often is the label true?
        ...     p = (sum(record % 4 == 0 for record in train) + 1) / (len(train) + 2)
        ...     return lambda block: sum(-math.log2(p if record % 4 == 0 else 1 - p) for record in block)
        >>> found = online_code(fit, uniform=torch.ones(1000))
        >>> print(found)
        | probe | bits | compression |
        |---|---|---|
        | 0 | 813 | 1.23 |
        1000 records in 11 blocks, 1000 bits in uniform code
    """
    if uniform.dim() != 1:
        raise ShapeError(f"uniform must be [example], the bits of each record, got {list(uniform.shape)}")
    cost = cpu64(uniform)
    if not ((cost >= 0) & cost.isfinite()).all() or not cost.sum() > 0:
        raise DataError(f"uniform must be finite bits, 0 or more and not all 0, got a sum of {cost.sum():.4g}")
    ends = _block_ends(len(cost), portions)
    blocks = [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    found: list[Tensor] = []
    for block in progress_bar(progress, blocks[1:]):
        found.append(_bits(fit(range(block.start))(block), block, found))
    uniform_bits = torch.stack([cost[block.start : block.stop].sum() for block in blocks])
    bits = torch.stack([uniform_bits[0].expand_as(found[0]), *found])
    called = tuple(map(str, range(bits.shape[1]))) if names is None else tuple(names)
    if len(called) != bits.shape[1]:
        raise ShapeError(f"names must be [probe] = [{bits.shape[1]}], got {len(called)}")
    return CodeLength(bits, uniform_bits, torch.tensor(ends), called)


def _block_ends(many: int, portions: Sequence[float]) -> list[int]:
    """The ends of the blocks; each record is in one block."""
    if not portions or list(portions) != sorted(set(portions)) or portions[0] <= 0 or portions[-1] != 1:
        raise DataError(f"portions must be shares that ascend to 1, got {', '.join(map(str, portions))}")
    # A share that should be an integer, such as 0.7 of 10 records, may be a little less by rounding.
    ends = sorted({math.floor(many * share + 1e-9) for share in portions} - {0})
    if len(ends) < 2:
        raise DataError(
            f"{how_many(many, 'record')} in {how_many(len(ends), 'block')} at portions "
            f"{', '.join(map(str, portions))}: wanted two or more, one to train on and one to predict"
        )
    return ends


def _bits(bits: Tensor | float, block: range, before: list[Tensor]) -> Tensor:
    """[probe]: the bits of a block, checked."""
    found = cpu64(torch.as_tensor(bits))
    if found.dim() > 1 or (before and found.numel() != before[0].numel()):
        wanted = f"[{before[0].numel()}] as of the block before" if before else "one number a probe"
        raise ShapeError(f"the bits of a block are [probe], {wanted}, got {list(found.shape)}")
    if not ((found >= 0) & found.isfinite()).all():
        raise DataError(
            f"the bits of records {block.start} to {block.stop - 1} are {found.tolist()}: wanted finite numbers of 0 "
            "or more. A probability of 0 for a true label takes infinitely many bits, so probabilities must be above 0"
        )
    return found.flatten()


CODING = Training(choose_by="loss")
"""The paper's settings for tasks of medium size, but with the loss as criterion: the code is made of probabilities."""


@checked
def code_lengths(
    train: BatchSource, dev: BatchSource, *, seed: int = 0, settings: Training = CODING,
    portions: Sequence[float] = PORTIONS, device: torch.device | str = "cpu", progress: Progress = None,
) -> CodeLength:  # fmt: skip
    """Measure how long a task's labels are in online code with the probes of all layers (Voita and Titov 2020).

    The records of `train` are shuffled and split into blocks. The first block is sent in uniform code, each later one
    in the code of new probes that were trained on all blocks before it. All labels of each target are sent, also those
    that do not count in F1. The probe of layer l reads layers 0 to l, as in `probe_layers`: the code gets shorter at a
    layer that makes the task easier than the layers below. `online_code` explains the code.

    Args:
        train: the records whose labels are sent: the output of `encode` for a task and a model.
        dev: other records, whose labels the receiver has. They are not part of the code. They decide learning rates,
            the end of training and the best weights of all probes, so the next block is never used for that.
        seed: of initial weights and dropout, 0 or more.
        settings: by default `Training(choose_by="loss")`: the code is made of probabilities, so the loss on `dev`
            decides. With "f1", a probe that predicts no label is the best until another predicts one; this is a valid
            code, but a long one. Weights are only chosen at validations: make `validate_every` small, because a probe
            soon overfits the few records of the first blocks. `order` is also the seed of the shuffle.
        portions: shares of the records, ascending to 1: where blocks end. Empty blocks are left out.
        device: where to train.
        progress: True for a progress bar over blocks, or its title; no bar without it.

    Probes are trained once per block, the last time on half of the records. With the portions of the paper all this
    takes at most ten times as long as `probe_layers`, and less if patience ends training.

    Returns the code of each probe; `labels` are the layers, `0`, `1` ... The shuffle is over records, so the records of
    one document may be in several blocks.

    Raises `DataError` as `online_code` and `train_probes` do, and when `dev` is `train`.

        >>> from bertology.edge_probing import EdgeBatch
        >>> class Toy:  # whether the first element of a vector in layer 1 is above 0
        ...     layers, hidden, sides, labels, counted, records = 2, 4, 1, ("no", "yes"), ("yes",), 64
        ...     target_record = torch.arange(64)
        ...     def __init__(self, seed):
        ...         self.vectors = torch.randn(64, 2, 4, generator=torch.Generator().manual_seed(seed))
        ...     def batch(self, records):
        ...         vectors = self.vectors[torch.as_tensor(records)]
        ...         yes, rows = vectors[:, 1, 0] > 0, torch.arange(len(vectors))
        ...         return EdgeBatch(vectors, (rows,), (rows,), torch.stack([~yes, yes], 1).float())
        >>> settings = Training(lr=0.01, validate_every=10, max_validations=5, width=16, choose_by="loss")
        >>> found = code_lengths(Toy(0), Toy(1), settings=settings, portions=(0.1, 0.5, 1))
        >>> found.uniform.tolist(), bool(found.compression[1] > found.compression[0])
        ([12.0, 52.0, 64.0], True)
    """
    check_gives_batches(train=train, dev=dev)
    if train is dev:
        raise DataError("dev must be other records than train: the probes must not see the labels that are sent")
    shuffled = _Some(train, torch.randperm(train.records, generator=generator(settings.order, CODE)))
    check_sources(shuffled, dev)
    targets = torch.bincount(shuffled.target_record, minlength=shuffled.records)
    with torch.inference_mode(False):
        probes = cumulative_probes(train, (seed,), settings).to(device)

        def fit(records: range) -> Predict:
            trained = train_probes(shuffled.first(len(records)), dev, probes, settings).probes

            def bits(block: range) -> Tensor:
                found = logits_of(trained, shuffled, block, settings.batch_size)
                return torch.stack([bits_of(logits, batch.gold) for _, batch, logits in found]).sum(0)

            return bits

        return online_code(
            fit, uniform=targets * len(train.labels), portions=portions, names=[str(n) for n in range(train.layers)],
            progress=progress,
        )  # fmt: skip


class _Some:
    """Some records of a source, in a given order: a `BatchSource`."""

    def __init__(self, source: BatchSource, which: Tensor) -> None:
        self._source, self._which = source, which
        self.layers, self.hidden, self.sides = source.layers, source.hidden, source.sides
        self.labels, self.counted, self.records = source.labels, source.counted, len(which)
        targets = torch.bincount(source.target_record.cpu(), minlength=source.records)
        self.target_record = torch.arange(len(which)).repeat_interleave(targets[which])

    def first(self, many: int) -> _Some:
        """The first of these records."""
        return _Some(self._source, self._which[:many])

    def batch(self, records: Tensor | range) -> EdgeBatch:
        """All targets of these records, in the order given; records have their new numbers."""
        return self._source.batch(self._which[torch.as_tensor(records, dtype=torch.int64)])
