"""How many bits does it take to send the labels, if a probe learns them on the way?

The online (prequential) code of Voita and Titov (2020): a task that a layer makes easy has a short code. It counts how
soon a probe learns, too, where a score counts only what it knows in the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...errors import DataError, ShapeError
from ...results.result import Result, cpu64

PORTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""The shares of the records after which the paper trains again."""

Predict = Callable[[range], "Tensor | float"]
"""From the numbers of records, the bits of their labels together: [probe], or one number for one probe."""


@dataclass(frozen=True, eq=False, repr=False)
class CodeLength(Result):
    """How long the labels of a task are, in bits, sent block by block with probes trained on the blocks before."""

    _by_layer: ClassVar = ()

    bits: Tensor
    """[step, probe], bits: of each block of records; of the first block, which nothing was trained for, `uniform`."""
    uniform: Tensor
    """[step], bits: the uniform code of each block."""
    ends: Tensor
    """[step], int64: how many records there are up to the end of each block; the next block's probes are trained on
    these."""
    labels: tuple[str, ...]
    """[probe]: what they are called."""

    @property
    def online(self) -> Tensor:
        """[probe], bits: the code of all records."""
        return self.bits.sum(0)

    @property
    def compression(self) -> Tensor:
        """[probe]: how many times longer the uniform code is."""
        return self.uniform.sum() / self.online

    def __str__(self) -> str:
        lines = ["| probe | bits | compression |", "|---|---|---|"]
        for name, bits, times in zip(self.labels, self.online.tolist(), self.compression.tolist(), strict=True):
            lines.append(f"| {name} | {bits:.0f} | {times:.2f} |")
        told = f"{int(self.ends[-1])} records in {len(self.ends)} blocks, {self.uniform.sum():.0f} bits in uniform code"
        return "\n".join([*lines, told])


def online_code(
    fit: Callable[[range], Predict],
    *,
    uniform: Tensor,
    portions: Sequence[float] = PORTIONS,
    names: Sequence[str] | None = None,
    progress: str | None = None,
) -> CodeLength:
    """Measure how long the labels are in online code (Voita and Titov 2020).

    L = U(1..t₁) - Σᵢ log₂ p_θᵢ(y of tᵢ+1 to tᵢ₊₁), where θᵢ is trained on records 1 to tᵢ and U is the uniform code.
    The paper codes one of K labels, where that is log₂ K bits a target. Where each label of a target is a decision of
    its own, as in edge probing, it is one bit a label, and a probe that only knows that most labels are false
    compresses a lot: compare with the code of layer 0, or of a model with random weights, not with 1.

    The order of the records counts: shuffle them first, whole documents together if there are such.

    Args:
        fit: trains probes anew on the records of the range that it is given, and returns a function that gives the bits
            of the labels of another range: [probe] for several probes at once, such as those of all layers. `bits_of`
            makes bits of logits.
        uniform: [example]: the uniform code of each record's labels, in bits: targets × labels where each label is a
            decision of its own.
        portions: shares of the records, ascending to 1: where blocks end. Blocks that would be empty are left out.
        names: [probe]: what to call the probes; by default they are numbered.
        progress: the title of a progress bar over blocks; no bar without it.

    Raises `DataError` for portions that do not ascend to 1, for bits that are negative or not finite, and where all
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
    ends = _ends(len(cost), portions)
    blocks = [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    found: list[Tensor] = []
    for block in tqdm(blocks[1:], desc=progress, disable=progress is None):
        found.append(_bits(fit(range(block.start))(block), block, found))
    uniform_bits = torch.stack([cost[block.start : block.stop].sum() for block in blocks])
    bits = torch.stack([uniform_bits[0].expand_as(found[0]), *found])
    called = tuple(map(str, range(bits.shape[1]))) if names is None else tuple(names)
    if len(called) != bits.shape[1]:
        raise ShapeError(f"names must be [probe] = [{bits.shape[1]}], got {len(called)}")
    return CodeLength(bits, uniform_bits, torch.tensor(ends), called)


def _ends(many: int, portions: Sequence[float]) -> list[int]:
    """Where blocks end: each record in one block."""
    if not portions or list(portions) != sorted(set(portions)) or portions[0] <= 0 or portions[-1] != 1:
        raise DataError(f"portions are shares of the records that ascend to 1, got {', '.join(map(str, portions))}")
    # A share that is meant to be whole, such as 0.7 of 10 records, may come out a little less.
    ends = sorted({math.floor(many * share + 1e-9) for share in portions} - {0})
    if len(ends) < 2:
        raise DataError(
            f"{many} records make {len(ends)} blocks at portions {', '.join(map(str, portions))}: wanted two or more, "
            "one to begin with and one to predict"
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
            "or more; a probability of 0 for what is true takes infinitely many, so that probes must not be that sure"
        )
    return found.flatten()
