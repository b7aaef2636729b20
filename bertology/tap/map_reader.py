"""A reader of attention maps, or of statistics of their rows: what it reads, and how many query rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..anatomy.sites import Site
from .arriving import Arriving
from .calls import Calls
from .recompute import of_first_run, recomputing
from .row_statistics import FEW, RowStatistics, Wanted, attention_entropies, of_map

Reader = Callable[[Site, Any, slice], Any]
Wants = Callable[[Site, tuple[int, int, int, int]], Wanted]
"""What a reader of statistics wants of a map of this shape: batch, head, query, key."""


class FewWeights:
    """Small maps of a pass, of which a reader is given the entropies together: one step in place of one a layer."""

    def __init__(self, read: Reader) -> None:
        self._read = read
        self._kept: list[tuple[Site, Tensor, slice]] = []

    def takes(self, site: Site, weights: Tensor, rows: slice) -> bool:
        """Keep a map, if it is small; its graph would need an entropy of its own."""
        if weights.requires_grad or weights.numel() >= FEW:
            return False
        self._kept.append((site, weights, rows))
        if len(self._kept) == _MOST_KEPT:
            self.give()
        return True

    def give(self) -> None:
        """Give the reader the entropies of the maps that were kept."""
        kept, self._kept = self._kept, []
        maps = [weights for _, weights, _ in kept]
        alike = len({(x.shape, x.dtype, x.device) for x in maps}) == 1
        found = attention_entropies(torch.stack(maps)).unbind() if alike else map(attention_entropies, maps)
        for (site, _, rows), entropies in zip(kept, found, strict=True):
            self._read(site, entropies, rows)


# With fewer than `FEW` weights each, they take 2 MB at most.
_MOST_KEPT = 64


@dataclass(frozen=True, eq=False)
class Reading:
    """A reader, the sites that it reads, in what form ("attention", "norms", "entropy" or "statistics"), in blocks or
    whole."""

    calls: Calls[Site]
    read: Reader
    what: str
    rows: int | None
    whole: bool
    wants: Wants
    arriving: Arriving | None = None
    few: FewWeights | None = None
    masks: dict[Any, Tensor] = field(default_factory=dict)
    """The causal masks of whole texts, which all layers share."""
    eager: dict[type, tuple[Callable[..., Any], bool]] = field(default_factory=dict)
    """The eager function of each class of attention modules, and whether it is asked for its map."""

    def weighed(self, site: Site, weights: Tensor, rows: slice, value: Tensor | None) -> Tensor:
        """The weights of a block, or, for a reader of norms, |α f(x)| with the values of all keys."""
        if self.arriving is None or not self.calls.count:
            return weights
        return self.arriving.weighed(site, weights, value, rows)

    @property
    def needs_map(self) -> bool:
        """Whether it reads the weights themselves."""
        return self.what in ("attention", "norms") or self.whole

    def wanted(self, site: Site, shape: tuple[int, int, int, int]) -> Wanted:
        """Which statistics it reads of a map of this shape."""
        return Wanted(entropy=True) if self.what == "entropy" else self.wants(site, shape)

    def give(self, site: Site, weights: Tensor, rows: slice, entropies: Tensor | None = None) -> None:
        """Give the reader what it reads of a block of attention weights; not of a part that runs again."""
        if recomputing() and not self.calls.count:
            return
        if self.what in ("attention", "norms"):
            self.read(site, weights, rows)
        elif self.what == "statistics":
            batch, heads, queries, keys = weights.shape
            wanted = self.wants(site, (batch, heads, queries, keys))
            self.read(site, of_first_run(of_map)(weights.detach(), rows, wanted), rows)
        elif entropies is not None:
            self._read_in_order(site, entropies, rows)
        elif self.few is None or not self.few.takes(site, weights, rows):
            self._read_in_order(site, of_first_run(attention_entropies)(weights), rows)

    def give_statistics(self, site: Site, found: RowStatistics) -> None:
        """Give the reader the statistics of all rows of a map."""
        if self.calls.count:
            self._read_in_order(site, found.entropy if self.what == "entropy" else found, slice(0, found.shape[2]))

    def _read_in_order(self, site: Site, found: Any, rows: slice) -> None:
        """Give the reader what was found, after the small maps before it."""
        if self.few is not None:
            self.few.give()
        self.read(site, found, rows)
