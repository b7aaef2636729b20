"""How far do CAT-scores lie above those of attention that knows nothing of structure?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..errors import DataError
from ..results.result import Result
from .resampling import Average
from .scores import CatGain, CatScores, scores_of

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, eq=False, repr=False)
class CatComparison(Result):
    """Counts of which the CAT-scores (Chen et al. 2022) of a model's attention are made, and those of null models.

    `scores` are the model's, `null` are those of a null model, and `beyond` says how far apart they are.
    """

    _by_layer: ClassVar = ()

    matched: Tensor
    """[kind, layer, example] int32: pairs of leaves of high attention that are near in the tree, heads averaged."""
    either: Tensor
    """[kind, layer, example] int32: pairs that are of high attention, near, or both; 0 for snippets without a score."""
    head_matched: Tensor
    """[kind, layer, head, example] int32: as `matched`, of each head's own attention."""
    head_either: Tensor
    """[kind, layer, head, example] int32: as `either`."""
    kinds: tuple[str, ...]
    """[kind]: `attention`, and the null models' names."""
    types: tuple[tuple[str, ...] | None, ...]
    """[layer]: the types of leaves that count; None where all do."""
    names: tuple[str, ...]
    """[example]: the snippets' names."""
    quantile: float
    """The share of pairs that are high in attention, and near in the tree."""
    upgraded: bool
    """Whether distances are those of the upgraded tree (U-AST)."""
    labels: tuple[str, ...]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks."""
    skipped: int = 0
    """How many snippets were left out of the batches, such as those that the model has no room for."""

    @property
    def scores(self) -> CatScores:
        """Those of the model's attention."""
        return self.of(self.kinds[0])

    def of(self, kind: str) -> CatScores:
        """The scores of one kind of attention: the model's, or a null model's. Raises `DataError` for others."""
        if kind not in self.kinds:
            raise DataError(f"scores are of {', '.join(self.kinds)}, got {kind!r}")
        place = self.kinds.index(kind)
        counts = (x[place] for x in (self.matched, self.either, self.head_matched, self.head_either))
        settings = f"{kind}, quantile {self.quantile}, {'U-AST' if self.upgraded else 'AST'}"
        return scores_of(*counts, names=self.names, labels=self.labels, settings=settings)

    def stack(self, name: str) -> CatComparison:
        """Only the layers of one stack, of a model with several."""
        rows = [row for row, label in enumerate(self.labels) if label.rpartition(".")[0] == name]
        if not rows:
            return super().stack(name)  # which says what stacks there are
        return replace(
            self, matched=self.matched[:, rows], either=self.either[:, rows],
            head_matched=self.head_matched[:, rows], head_either=self.head_either[:, rows],
            types=tuple(self.types[row] for row in rows), labels=tuple(self.labels[row] for row in rows),
        )  # fmt: skip

    def beyond(self, null: str, *, average: Average = "macro", level: float = 0.95) -> CatGain:
        """How far the model's scores lie above a null model's, on the same snippets: `CatScores.beyond`."""
        return self.scores.beyond(self.of(null), average=average, level=level)

    def joined(self, other: CatComparison, kind: str) -> CatComparison:
        """With the model's scores in another comparison as a null model, named `kind`, such as random weights.

        Raises `DataError` for scores of other snippets or settings, and for a name that is taken.
        """
        for name in ("names", "types", "quantile", "upgraded", "labels"):
            if getattr(self, name) != getattr(other, name):
                raise DataError(f"to be compared, both must be of the same {name}")
        if kind in self.kinds:
            raise DataError(f"there are scores of {kind!r} already")

        def both(mine: Tensor, others: Tensor) -> Tensor:
            return torch.cat([mine, others[:1]])

        return replace(
            self,
            matched=both(self.matched, other.matched),
            either=both(self.either, other.either),
            head_matched=both(self.head_matched, other.head_matched),
            head_either=both(self.head_either, other.head_either),
            kinds=(*self.kinds, kind),
        )

    def __str__(self) -> str:
        scores = [self.of(kind) for kind in self.kinds]
        lines = [f"| layer | {' | '.join(self.kinds)} |", f"|{'---|' * (1 + len(self.kinds))}"]
        for row, label in enumerate(self.labels):
            if scores[0].used[row]:
                lines.append(f"| {label} | {' | '.join(f'{one.macro[row]:.3f}' for one in scores)} |")
        left = f", {self.skipped} skipped" if self.skipped else ""
        return "\n".join([*lines, f"CAT-scores of {len(self.names)} snippets{left}; chance is about 1/7 = 0.143"])
