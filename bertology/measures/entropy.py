"""How spread out is each head's attention?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from ..anatomy.sites import Site
from ..data.batches import Batch, BatchesOrTexts
from ..errors import DataError, checked
from ..results.axes import axes
from ..results.result import Result, cpu64, finite
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import stat
from ..streaming.map_accumulator import MapAccumulator, add_to_all
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress

Average = Literal["query", "example"]


def check_average(average: str) -> None:
    """Raise `DataError` for an average that there is not."""
    if average not in ("query", "example"):
        raise DataError(f"average must be 'query' or 'example', got {average!r}")


def batch_average(sums: Tensor, counts: Tensor, average: Average) -> tuple[Tensor, Tensor]:
    """What a batch adds to the sum and to the count of an average.

    `sums [batch, ...]` are sums over the queries of each example, and `counts [batch, ...]` the numbers of these
    queries. With "query", every query has the same weight; with "example", every example has. Examples without any
    such query are left out.
    """
    if average == "query":
        return sums.sum(0), counts.sum(0)
    counts_there = counts.clamp_min(1)
    while counts_there.dim() < sums.dim():
        counts_there = counts_there[..., None]
    return (sums / counts_there).sum(0), (counts > 0).sum(0)


@dataclass(frozen=True, eq=False, repr=False)
class AttentionEntropy(Result):
    """How spread out each head's attention is, over a data set."""

    mean: Annotated[Tensor, axes("layer head", unit="nats", words="entropy of the attention")]
    """[layer, head], nats: 0 for attention to one token, ln n if uniform over n tokens; NaN for pruned heads."""
    first: Annotated[Tensor, axes("layer head", unit="nats", words="entropy of the attention of the first token")]
    """[layer, head], nats: of the text's first token alone ([CLS] in BERT)."""
    queries: Annotated[Tensor, axes("layer")]
    """[layer]: the real query tokens that were averaged over."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""


class EntropyAccumulator(MapAccumulator):
    """Sums the entropy of every real query's attention, for `accumulate`; its options are `attention_entropy`'s."""

    place = "entropy"

    total: Tensor = stat("layer head")
    first: Tensor = stat("layer head")
    over: Tensor = stat("layer", torch.int64)
    examples: Tensor = stat("layer", torch.int64)
    queries: Tensor = stat("layer", torch.int64)

    @checked
    def __init__(self, rows: int | None = None, *, average: Average = "query") -> None:
        check_average(average)
        self.rows, self._average = rows, average

    def settings(self) -> str:
        """The average."""
        return self._average

    def start_batch(self, batch: Batch) -> None:
        """Forget the entropies of the previous batch."""
        self._read: dict[Site, list[tuple[Tensor, Tensor]]] = {}

    def read(self, site: Site, weights: Tensor, rows: slice, real: Tensor) -> None:
        """Keep the entropies of a block of queries, which are few beside the weights: layers are added together."""
        self._read.setdefault(site, []).append((weights, real))

    def end_batch(self, batch: Batch) -> None:
        """Add the entropies of a batch: those of layers of one shape, and with the same real tokens, at once."""
        groups: dict[Any, list[Site]] = {}
        for site, blocks in self._read.items():
            groups.setdefault(tuple((x.shape, x.device, id(real)) for x, real in blocks), []).append(site)
        for sites in groups.values():
            self._add(sites, list(zip(*(self._read[site] for site in sites), strict=True)))
        self._read = {}

    def _add(self, sites: list[Site], blocks: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> None:
        """Add the entropies of these layers, which are given block by block: for each layer entropies, real tokens."""
        device = self.total.device
        if len(blocks) == 1 and device.type == "cpu" and bool(blocks[0][0][1].all()):
            self._add_complete(sites, torch.stack([x for x, _ in blocks[0]]).to(device))
            return
        count = torch.zeros(len(blocks[0][0][1]), dtype=torch.int64, device=device)
        total = torch.zeros((), dtype=torch.float64, device=device)
        for block in blocks:
            real = block[0][1].to(device)
            each = torch.stack([x for x, _ in block]).to(device)  # [site, batch, head, query]
            each = each.masked_fill(~real[:, None], 0)
            starts = (count == 0) & real.any(1)
            where = real.int().argmax(1)[:, None, None].expand(*each.shape[:3], 1)
            firsts = each.gather(3, where)[:, starts, :, 0]
            add_to_all(self.first, sites, firsts.sum(1, dtype=torch.float64))
            total, count = total + each.sum(3, dtype=torch.float64), count + real.sum(1)
        sums, over = batch_average(total.movedim(1, 0), count, self._average)
        add_to_all(self.total, sites, sums)
        for name, more in (("over", over), ("queries", count.sum()), ("examples", (count > 0).sum())):
            add_to_all(getattr(self, name), sites, more.expand(len(sites)))

    def _add_complete(self, sites: list[Site], each: Tensor) -> None:
        """Add the entropies `[site, batch, head, query]` of texts without padding, which need no count."""
        examples, queries = each.shape[1], each.shape[3]
        total = each.sum(3, dtype=torch.float64)
        add_to_all(self.first, sites, each[..., 0].sum(1, dtype=torch.float64))
        add_to_all(self.total, sites, (total if self._average == "query" else total / queries).sum(1))
        counts = torch.tensor([examples, examples * queries])[:, None].expand(2, len(sites)).unbind()
        of_average = counts[1] if self._average == "query" else counts[0]
        for name, more in (("over", of_average), ("queries", counts[1]), ("examples", counts[0])):
            add_to_all(getattr(self, name), sites, more)

    def compute(self) -> AttentionEntropy:
        """Divide by the number of real queries, or of examples."""
        self.check_measured(self.queries, "real query")
        there = self.anatomy.present & (self.queries.cpu() > 0)[:, None]
        sums, over = torch.stack([self.total, self.first]), torch.stack([self.over, self.examples])
        both = finite(cpu64(sums) / over.cpu()[..., None], there, "attention entropy")
        mean, first = (x.clone() for x in both.unbind())
        return AttentionEntropy(mean, first, self.queries.cpu(), self.anatomy.labels)


@merges
@checked
def attention_entropy(
    model: nn.Module,
    batches: BatchesOrTexts,
    *,
    average: Average = "query",
    rows: int | None = None,
    tokenizer: Any = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> AttentionEntropy:
    """Measure how spread out each head's attention is: the mean entropy of a query's attention weights, in nats.

    H = -Σ_j p_j ln p_j, averaged over all real query tokens of all examples, as the script run_bertology.py did.
    Padding is not counted as a query, and gets no attention. The code of Clark et al. (2019, §3.3) first mixes each row
    with 1e-4 of uniform attention, which the paper does not mention. This changes the entropy of a head by less than
    0.002 nats.

    Args:
        model: any model with attention heads, under any attention implementation; left as it was found.
        batches: one mapping of model arguments, or an iterable of them; or texts (see `make_batches`).
        average: whether every "query" has the same weight, or every "example", as in Clark et al. (2019).
        rows: how many query rows are read at a time; by default as many as fit into 64 MiB. The result does not
            depend on it.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for batches that cannot be used.

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> attention_entropy(model, {"input_ids": torch.tensor([[5, 6, 7]])}).mean.shape
        torch.Size([2, 4])
    """
    return accumulate(
        model, batches, EntropyAccumulator(rows, average=average), tokenizer=tokenizer, progress=progress
    )[0]
