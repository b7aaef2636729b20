"""How spread out is each head's attention?"""

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


@dataclass(frozen=True, eq=False, repr=False)
class AttentionEntropy(Result):
    """How spread out each head's attention is, over a data set."""

    _by_layer: ClassVar = ("mean", "queries")

    mean: Tensor
    """[layer, head], nats: 0 looks at one token, ln n at n tokens alike; NaN for pruned heads."""
    queries: Tensor
    """[layer]: the real query tokens that were averaged over."""
    labels: tuple[str, ...]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""


class EntropyAccumulator(Accumulator):
    """Sums the entropy of every real query's attention, for `accumulate`."""

    total: Tensor = stat("layer head")
    queries: Tensor = stat("layer", torch.int64)

    def __init__(self, rows: int | None = None) -> None:
        self._rows = rows

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Read the entropies of attention maps, block by block."""
        real = RealQueries(self.anatomy, batch)

        def read(site: Site, x: Tensor, rows: slice) -> None:
            mask = real.among(site, rows, x)
            each = x.detach().masked_fill(~mask[:, None], 0).to(self.total.device)
            self.total[site.row, list(site.kept)] += each.sum((0, 2), dtype=torch.float64)
            self.queries[site.row] += mask.sum().to(self.queries.device)

        with tap(self.anatomy, "entropy", read=read, rows=self._rows):
            yield
            real.check()

    def update(self, batch: Batch, outputs: Any) -> None:
        """The sums were made while the model ran."""

    def compute(self) -> AttentionEntropy:
        """Divide by the number of real queries."""
        there = self.anatomy.present & (self.queries.cpu() > 0)[:, None]
        mean = finite(cpu64(self.total) / self.queries.cpu()[:, None], there, "attention entropy")
        return AttentionEntropy(mean, self.queries.cpu(), self.anatomy.labels)


def attention_entropy(
    model: nn.Module, batches: Batches, *, rows: int | None = None, progress: str | None = None
) -> AttentionEntropy:
    """Measure how spread out each head's attention is: the mean entropy of a query's attention weights, in nats.

    H = -Σ_j p_j ln p_j, averaged over all real query tokens of all examples, as the script run_bertology.py did
    (Clark et al. 2019, §3, average over the queries of an example first). Padding is no query, and gets no attention.

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
        >>> attention_entropy(model, {"input_ids": torch.tensor([[5, 6, 7]])}).mean.shape
        torch.Size([2, 4])
    """
    return accumulate(model, batches, EntropyAccumulator(rows), progress=progress)[0]
