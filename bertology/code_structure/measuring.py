"""How far does the attention of each layer and head follow the structure of code, and what would without knowing it?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..anatomy.sites import Anatomy, Site
from ..data.batches import Batch
from ..errors import DataError
from ..streaming.accumulate import Accumulator, stat
from .aligning import AlignedCode
from .comparing import CatComparison
from .distances import leaf_distances
from .filtering import leaves_of, restricted
from .leaf_maps import LeafMaps, visible
from .masks import QUARTER, attention_mask, distance_mask, overlap
from .nulls import positional, shuffled
from .reading import code_in, leaf_maps

KINDS = ("attention", "shuffled", "positional")
"""What is scored: the model's attention, that with its pairs shuffled, and each map's own mean at every offset."""
Types = Sequence[Sequence[str] | None]
"""[layer]: the types of leaves that count in each; None for all."""


class CatAccumulator(Accumulator):
    """Counts for CAT-scores of all layers and heads, of batches that `align_code` makes, and of two null models.

    Args:
        examples: all snippets that can occur, by their numbers.
        types: [layer]: the types of leaves that count in each layer, and for its heads; None for all leaves.
        quantile: the share of pairs that is high in attention, and near in the tree.
        upgraded: whether distances are those of the upgraded tree (U-AST).
        nulls: whether null models are scored, too: it takes twice as long.
        seed: of the shuffled pairs.
    """

    matched: Tensor = stat("kind layer example", torch.int64)
    either: Tensor = stat("kind layer example", torch.int64)
    head_matched: Tensor = stat("kind layer head example", torch.int64)
    head_either: Tensor = stat("kind layer head example", torch.int64)

    def __init__(
        self, examples: Sequence[AlignedCode], *, types: Types | None = None, quantile: float = QUARTER,
        upgraded: bool = True, nulls: bool = True, seed: int = 0,
    ) -> None:  # fmt: skip
        self._names = [one.tree.name or str(one.number) for one in examples]
        self._place = {one.number: place for place, one in enumerate(examples)}
        self._types, self._quantile, self._upgraded, self._seed = types, quantile, upgraded, seed
        self._kinds = KINDS if nulls else KINDS[:1]

    def settings(self) -> str:
        """What is counted, and of what."""
        types = None if self._types is None else [None if some is None else list(some) for some in self._types]
        return f"{self._names} {types} {self._quantile} {self._upgraded} {self._kinds} {self._seed}"

    def sizes(self) -> dict[str, int]:
        """How many kinds of attention and how many snippets there are."""
        return {"kind": len(self._kinds), "example": len(self._names)}

    def zero(self, anatomy: Anatomy) -> CatAccumulator:
        """Forget everything, and get ready for a model."""
        if self._types is not None and len(self._types) != len(anatomy.labels):
            raise DataError(f"types must be one list a layer, {len(anatomy.labels)}, got {len(self._types)}")
        return super().zero(anatomy)

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Read the attention between leaves, layer by layer."""
        aligned = code_in(batch)
        if strange := [one for one in aligned if one.number not in self._place]:
            raise DataError(f"snippet number {strange[0].number} is not among the {len(self._place)} announced")
        snippets = [_Snippet(one, self._quantile, self._upgraded, self._seed) for one in aligned]

        def read(site: Site, example: int, maps: LeafMaps, causal: bool) -> None:
            one = snippets[example]
            self._count(site, one, maps, causal, self._place[one.number])

        with leaf_maps(self.anatomy, batch, read):
            yield

    def _count(self, site: Site, one: _Snippet, maps: LeafMaps, causal: bool, place: int) -> None:
        heads, valid = list(site.kept), visible(len(maps.kept)) if causal else None
        values = torch.cat([maps.values.mean(0, keepdim=True), maps.values])
        some = one.leaves(maps.kept, None if self._types is None else self._types[site.row])
        near = one.near(maps.kept[some], causal)
        left = None if valid is None else restricted(valid, some)
        high = attention_mask(restricted(values, some), quantile=self._quantile, valid=left)
        found = [overlap(high, near)]
        if len(self._kinds) > 1:
            by_offset = restricted(positional(values, valid=valid), some)
            of_offsets = attention_mask(by_offset, quantile=self._quantile, valid=left)
            found += [overlap(high, one.shuffled(near, left)), overlap(of_offsets, near)]
        for kind, counts in enumerate(found):
            matched, either = (x.to(self.matched.device) for x in counts)
            self.matched[kind, site.row, place], self.either[kind, site.row, place] = matched[0], either[0]
            self.head_matched[kind, site.row, heads, place] = matched[1:]
            self.head_either[kind, site.row, heads, place] = either[1:]

    def update(self, batch: Batch, outputs: Any) -> None:
        """The counts were made while the model ran."""

    def compute(self) -> CatComparison:
        """The counts of all kinds of attention, and of what."""
        return CatComparison(
            matched=self.matched.cpu().int(),
            either=self.either.cpu().int(),
            head_matched=self.head_matched.cpu().int(),
            head_either=self.head_either.cpu().int(),
            kinds=self._kinds,
            types=tuple(None if some is None else tuple(some) for some in self._types or [None] * self.anatomy.layers),
            names=tuple(self._names),
            quantile=self._quantile,
            upgraded=self._upgraded,
            labels=self.anatomy.labels,
        )


class _Snippet:
    """What is computed once of a snippet, for all layers."""

    def __init__(self, one: AlignedCode, quantile: float, upgraded: bool, seed: int) -> None:
        self.number, self._types = one.number, one.tree.types
        self._distance = torch.from_numpy(leaf_distances(one.tree, upgraded=upgraded))
        self._quantile, self._seed = quantile, seed
        self._near: dict[tuple[bool, bytes], Tensor] = {}

    def leaves(self, kept: Tensor, types: Sequence[str] | None) -> Tensor:
        """[leaf] int64: which leaves count, as places among those with tokens."""
        if types is None:
            return torch.arange(len(kept))
        return leaves_of([self._types[leaf] for leaf in kept.tolist()], types)

    def near(self, leaves: Tensor, causal: bool) -> Tensor:
        """[leaf, leaf] bool: which of some leaves are near in the tree. Layers mostly ask for the same ones."""
        key = (causal, leaves.numpy().tobytes())
        if key not in self._near:
            valid = visible(len(leaves)) if causal else None
            distance = restricted(self._distance, leaves)
            self._near[key] = distance_mask(distance, quantile=self._quantile, valid=valid)
        return self._near[key]

    def shuffled(self, near: Tensor, valid: Tensor | None) -> Tensor:
        """[leaf, leaf] bool: as `near`, with the pairs in another order."""
        return shuffled(near, snippet=self.number, seed=self._seed, valid=valid)
