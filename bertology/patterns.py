"""What does each head's attention look like: where does it go, how far, how surely?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .batches import Batch, Batches
from .queries import RealQueries
from .result import Result, cpu64, finite
from .site import Site
from .streaming import Accumulator, accumulate, stat
from .tap import tap

_KINDS = ("previous", "next", "self", "first", "distance", "confidence")


@dataclass(frozen=True, eq=False, repr=False)
class AttentionPatterns(Result):
    """The surface patterns of each head's attention, averaged over the real queries of a data set.

    Where a query stands among the keys is known where both are the same tokens. In cross attention, over a cache of
    earlier keys and where a layer pools tokens, all but `confidence` are NaN.
    """

    _by_layer: ClassVar = (*_KINDS, "queries")

    previous: Tensor
    """[layer, head], 0 to 1: the attention to the token before; the first token has none."""
    next: Tensor
    """[layer, head], 0 to 1: the attention to the token behind; the last token has none."""
    self: Tensor
    """[layer, head], 0 to 1: the attention to the token itself."""
    first: Tensor
    """[layer, head], 0 to 1: the attention to the text's first token."""
    distance: Tensor
    """[layer, head], tokens: how far away the attended tokens are, on average."""
    confidence: Tensor
    """[layer, head], 0 to 1: the largest weight of a query (Voita et al. 2019)."""
    queries: Tensor
    """[layer]: the real query tokens that were averaged over."""
    labels: tuple[str, ...]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""


class PatternsAccumulator(Accumulator):
    """Sums what every real query's attention looks like, for `accumulate`."""

    previous: Tensor = stat("layer head")
    next: Tensor = stat("layer head")
    self: Tensor = stat("layer head")
    first: Tensor = stat("layer head")
    distance: Tensor = stat("layer head")
    confidence: Tensor = stat("layer head")
    queries: Tensor = stat("layer", torch.int64)
    unplaced: Tensor = stat("layer", torch.int64)

    def __init__(self, rows: int | None = None) -> None:
        self._rows = rows

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Read the attention maps, block by block."""
        real = RealQueries(self.anatomy, batch)
        keys: dict[Site, int] = {}

        def read(site: Site, x: Tensor, rows: slice) -> None:
            mask = real.among(site, rows, x)
            self.queries[site.row] += mask.sum().to(self.queries.device)
            x = x.detach()
            found = {"confidence": x.amax(-1)}
            if "cross" not in site.stack:
                found |= _places(x, rows.start, real.first(site, x))
            keys[site] = x.shape[3]
            for name, each in found.items():
                sums = getattr(self, name)
                each = each.masked_fill(~mask[:, None], 0).to(sums.device)
                sums[site.row, list(site.kept)] += each.sum((0, 2), dtype=torch.float64)

        with tap(self.anatomy, "attention", read=read, rows=self._rows):
            yield
            real.check()
            for site, many in keys.items():
                self.unplaced[site.row] += "cross" in site.stack or many != real.positions[site]

    def update(self, batch: Batch, outputs: Any) -> None:
        """The sums were made while the model ran."""

    def compute(self) -> AttentionPatterns:
        """Divide by the number of real queries."""
        count = self.queries.cpu()[:, None]
        there = self.anatomy.present & (count > 0)
        placed = there & (self.unplaced.cpu() == 0)[:, None]
        means = {
            name: finite(
                cpu64(getattr(self, name)) / count, there if name == "confidence" else placed, f"patterns ({name})"
            )
            for name in _KINDS
        }
        return AttentionPatterns(**means, queries=self.queries.cpu(), labels=self.anatomy.labels)


def _places(x: Tensor, start: int, first: Tensor) -> dict[str, Tensor]:
    """{pattern: [batch, head, query]} of the attention weights `x` of the query rows from `start` on."""
    queries = torch.arange(start, start + x.shape[2], device=x.device)
    keys = torch.arange(x.shape[3], device=x.device)
    distances = (queries[:, None] - keys).abs().to(x.dtype)
    # A product of each query's row with its own distances: no third tensor of the map's size.
    distance = torch.einsum("bhqk,qk->bhq", x, distances)
    here = {name: _beside(x, queries + step) for name, step in (("previous", -1), ("next", 1), ("self", 0))}
    to_first = x.gather(3, first[:, None, None, None].expand(*x.shape[:3], 1)).squeeze(3)
    return {**here, "first": to_first, "distance": distance}


def _beside(x: Tensor, keys: Tensor) -> Tensor:
    """[batch, head, query]: each query's weight of its own key; 0 for keys beyond the text."""
    inside = (keys >= 0) & (keys < x.shape[3])
    places = keys.clamp(0, x.shape[3] - 1)[None, None, :, None].expand(*x.shape[:3], 1)
    return x.gather(3, places).squeeze(3) * inside


def attention_patterns(
    model: nn.Module, batches: Batches, *, rows: int | None = None, progress: str | None = None
) -> AttentionPatterns:
    """Measure what each head's attention looks like: to the previous, next, same and first token, how far, how surely.

    Averages over all real query tokens of all examples (Clark et al. 2019, §3, average over the queries of an example
    first; an edge token, which has no neighbour on one side, counts as 0 there and here). Padding is no query.

    Args:
        model: any model with attention heads, under any attention implementation; left as it was found.
        batches: one mapping of model arguments, or an iterable of them.
        rows: how many query rows are looked at at a time; by default as many as fit into 64 MiB. The result does not
            depend on it.
        progress: the title of a progress bar; no bar without it.

    Raises `DataError` for batches that cannot be used.

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> attention_patterns(model, {"input_ids": torch.tensor([[5, 6, 7]])}).previous.shape
        torch.Size([2, 4])
    """
    return accumulate(model, batches, PatternsAccumulator(rows), progress=progress)[0]
