"""Variants of a model in which attention between some tokens is cut, in one layer or in all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace as changed
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..anatomy.sites import Anatomy
from ..data.batches import Batch
from .masked import Cut, cutting
from .resume import Recording
from .variants import Variants


class EdgeVariants(Variants):
    """Gates [copy, layer, cut]: 0 makes a cut in all heads of a layer. A variant runs alone.

    All passes, also the one that is recorded, compute attention by the model's eager function.
    """

    starts: ClassVar[tuple[str, ...]] = ("block", "alone")
    copied: ClassVar[bool] = False

    def __init__(self, anatomy: Anatomy, cuts: Sequence[Cut]) -> None:
        super().__init__(anatomy)
        self._cuts = cuts

    def noted(self, record: Recording) -> AbstractContextManager[Any]:
        """Let the recorded pass attend as the others."""
        return cutting(self.anatomy, {})

    def ran(self, record: Recording) -> Collection[int]:
        """The layers whose attention ran."""
        return record.attentions.keys()

    def tried(self, copies: int) -> int:
        """One."""
        return 1

    def trial(self, row: int, copies: int, later: Sequence[int]) -> Tensor:
        """One copy without a cut."""
        return torch.ones(1, self.anatomy.layers, len(self._cuts))

    def changing_all(self) -> Tensor:
        """All cuts in all layers."""
        return torch.zeros(1, self.anatomy.layers, len(self._cuts))

    def can_start(self, start: str, record: Recording, row: int) -> bool:
        """A pass resumes if there are blocks before the layer."""
        return start != "block" or len(record.sites_from(row)) < len(self.anatomy.sites)

    def open(self, record: Recording, row: int, gates: Tensor, batch: Batch, start: str, undo: ExitStack) -> None:
        """Resume at the block of the layer, and cut."""
        sites = self.anatomy.sites
        if start == "block":
            sites = record.sites_from(row)
            undo.enter_context(record.resumed(row, 1))
        made = {
            site: [cut for cut, gate in zip(self._cuts, gates[0, site.row], strict=True) if not gate] for site in sites
        }
        cuts = {site: [(list(range(len(site.kept))), cut) for cut in some] for site, some in made.items() if some}
        undo.enter_context(cutting(changed(self.anatomy, sites=sites), cuts))
