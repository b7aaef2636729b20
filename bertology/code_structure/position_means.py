"""The attention of each layer and head at each offset between two leaves, averaged over snippets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..anatomy.sites import Site
from ..results.axes import axes
from ..results.result import Result
from ..streaming.accumulator import Names, stat
from ..streaming.map_accumulator import Weighting, check_weighting
from .align import AlignedCode
from .leaf_maps import LeafMapAccumulator, LeafMaps, visible
from .leaf_types import leaves_of, restricted
from .masks import OffsetMeans


@dataclass(frozen=True, eq=False, repr=False)
class PositionMeans(Result):
    """The sums of the attention at each signed offset j - i, from the lowest to the highest offset."""

    total: Annotated[Tensor, axes("layer offset")]
    """[layer, offset] float64: the sum over pairs of leaves of the attention, averaged over heads."""
    head_total: Annotated[Tensor, axes("layer head offset")]
    """[layer, head, offset] float64: the sum of each head's own attention."""
    pairs: Annotated[Tensor, axes("layer offset")]
    """[layer, offset] int64: the number of pairs of leaves."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks."""

    def map(self, row: int, heads: Sequence[int], leaves: int, like: Tensor) -> Tensor:
        """[1 + head, leaf, leaf]: the map of a snippet, of the mean over heads first.

        It is 0 at offsets that no snippet had.
        """
        means = OffsetMeans()
        means.total = torch.cat([self.total[row][None], self.head_total[row, list(heads)]])
        means.pairs = self.pairs[row]
        longest = OffsetMeans()  # so that longer snippets than those of the means have maps too
        longest.total = means.total.new_zeros(len(means.total), 2 * leaves - 1)
        longest.pairs = means.pairs.new_zeros(2 * leaves - 1)
        means.merge(longest)
        return means.map(leaves, dtype=like.dtype, device=like.device)


class PositionAccumulator(LeafMapAccumulator):
    """Sums for `PositionMeans`, from batches of `align_code`.

    Args:
        examples: all snippets that can occur.
        types: [layer]: the types of the leaves among which offsets are counted; None for all leaves.
        weighting: "attention", or "norm" for the norms of what arrives.
    """

    total: Tensor = stat("layer offset")
    head_total: Tensor = stat("layer head offset")
    pairs: Tensor = stat("layer offset", torch.int64)

    def __init__(
        self, examples: Sequence[AlignedCode], *, types: Sequence[Sequence[str] | None] | None = None,
        weighting: Weighting = "attention",
    ) -> None:  # fmt: skip
        self.weighting = check_weighting(weighting)
        self._longest = max((len(one.tree) for one in examples), default=1)
        self._types = types

    def names(self) -> Names:
        """The offsets, as far as the longest snippet has them."""
        return {"offset": tuple(range(1 - self._longest, self._longest))}

    def rename(self, names: Names) -> None:
        """Count further offsets."""
        self._longest = len(names["offset"]) // 2 + 1

    def settings(self) -> str:
        """The longest snippet, and the types."""
        return f"{self._longest} {self._types}"

    def sizes(self) -> dict[str, int]:
        """The number of offsets."""
        return {"offset": 2 * self._longest - 1}

    def read_leaves(self, site: Site, example: int, maps: LeafMaps, causal: bool) -> None:
        """Add a layer's attention at each offset."""
        types = None if self._types is None else self._types[site.row]
        values = torch.cat([maps.values.mean(0, keepdim=True), maps.values])
        if types is not None:
            kinds = self.snippets[example].tree.types
            values = restricted(values, leaves_of([kinds[leaf] for leaf in maps.kept.tolist()], types))
        if not values.shape[-1]:
            return
        found = OffsetMeans()
        found.add(values, valid=visible(values.shape[-1]) if causal else None)
        first = self._longest - values.shape[-1]
        at = slice(first, first + len(found.pairs))
        self.total[site.row, at] += found.total[0].to(self.total)
        self.head_total[site.row, list(site.kept), at] += found.total[1:].to(self.head_total)
        self.pairs[site.row, at] += found.pairs.to(self.pairs)

    def compute(self) -> PositionMeans:
        """The sums as a result."""
        self.check_measured(self.pairs, "pair of leaves")
        return PositionMeans(self.total.cpu(), self.head_total.cpu(), self.pairs.cpu(), self.anatomy.labels)
