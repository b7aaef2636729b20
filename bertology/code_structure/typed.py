"""Which types of leaves does each layer attend to most?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..anatomy.sites import Site
from ..data.batches import Batch
from ..results.result import Result
from ..streaming.accumulate import Accumulator, stat
from .filtering import TOP, TypeCounts
from .leaf_maps import LeafMaps, visible
from .masks import QUARTER, attention_mask
from .reading import code_in, leaf_maps


@dataclass(frozen=True, eq=False, repr=False)
class LeafTypes(Result):
    """How often each layer's attention, its heads averaged, is high from or to leaves of each type."""

    _by_layer: ClassVar = ("high", "total", "once", "snippets")

    high: Tensor
    """[layer, class] int64: times that a leaf of the type is in a pair of high attention, the pair's sides apart."""
    total: Tensor
    """[layer, class] int64: times that it is in a pair."""
    once: Tensor
    """[layer]: what `total` must exceed for a type to be common: once a snippet with all its leaves."""
    snippets: Tensor
    """[layer] int64: how many were counted; 0 for layers that do not read the code."""
    types: tuple[str, ...]
    """[class]: the types of leaves."""
    labels: tuple[str, ...]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks."""

    @property
    def share(self) -> Tensor:
        """[layer, class], 0 to 1: how much of a type's attention is high (P); NaN for one that never was in a pair."""
        return self.high / self.total.double()

    def counts(self, row: int) -> TypeCounts:
        """Those of one layer, by its row, to merge with others or to rank."""
        found = TypeCounts()
        found.types, found.snippets = self.types, int(self.snippets[row])
        found.high, found.total, found.once = self.high[row], self.total[row], self.once[row]
        return found

    def frequent(self, row: int, *, top: int = TOP) -> tuple[str, ...]:
        """The types of one layer, by its row, that the released code of Chen et al. (2022) keeps."""
        return self.counts(row).frequent(top=top)

    def __str__(self) -> str:
        lines = [f"types of leaves with the highest share of high attention, of {len(self.types)}"]
        for row, label in enumerate(self.labels):
            if self.snippets[row]:
                shares = dict(zip(self.types, self.share[row].tolist(), strict=True))
                told = ", ".join(f"{kind} {100 * shares[kind]:.0f} %" for kind in self.frequent(row))
                lines.append(f"layer {label}: {told}")
        return "\n".join(lines)


class TypesAccumulator(Accumulator):
    """Counts for `LeafTypes`, of batches that `align_code` makes. `types` are all those that can occur."""

    high: Tensor = stat("layer class", torch.int64)
    total: Tensor = stat("layer class", torch.int64)
    once: Tensor = stat("layer")
    seen: Tensor = stat("layer", torch.int64)

    def __init__(self, types: Sequence[str], *, quantile: float = QUARTER) -> None:
        self._number = {kind: place for place, kind in enumerate(sorted(set(types)))}
        self._quantile = quantile

    def settings(self) -> str:
        """The types, and what is high."""
        return f"{list(self._number)} {self._quantile}"

    def sizes(self) -> dict[str, int]:
        """How many types there are."""
        return {"class": len(self._number)}

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Read the attention between leaves, layer by layer."""
        trees = [one.tree for one in code_in(batch)]

        def read(site: Site, example: int, maps: LeafMaps, causal: bool) -> None:
            valid = visible(len(maps.kept)) if causal else None
            kinds = [trees[example].types[leaf] for leaf in maps.kept.tolist()]
            found = TypeCounts()
            found.add(attention_mask(maps.values.mean(0), quantile=self._quantile, valid=valid), kinds, valid=valid)
            places = torch.tensor([self._number[kind] for kind in found.types], device=self.high.device)
            self.high[site.row].index_add_(0, places, found.high.to(self.high.device))
            self.total[site.row].index_add_(0, places, found.total.to(self.total.device))
            self.once[site.row] += found.once.to(self.once.device)
            self.seen[site.row] += 1

        with leaf_maps(self.anatomy, batch, read):
            yield

    def update(self, batch: Batch, outputs: Any) -> None:
        """The counts were made while the model ran."""

    def compute(self) -> LeafTypes:
        """The counts, and of what."""
        high, total, once, seen = (x.cpu() for x in (self.high, self.total, self.once, self.seen))
        return LeafTypes(high, total, once, seen, tuple(self._number), self.anatomy.labels)
