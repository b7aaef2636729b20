"""How far apart is what the heads attend to, over a data set?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .alike import HeadDistances, Reduce
from .anatomy.sites import Site
from .data.batches import Batch, Batches
from .data.padding import RealQueries
from .divergence import distances, weights_in_pieces
from .errors import DataError
from .results.result import cpu64, finite
from .streaming.accumulate import Accumulator, accumulate, stat
from .tap import tap


class DistancesAccumulator(Accumulator):
    """Sums the distances of every two heads over every real query's attention, for `accumulate`.

    The maps of all layers are kept until the forward pass of a batch is done: it takes as much memory as they do.
    """

    total: Tensor = stat("layer head layer head")
    compared: Tensor = stat("layer layer", torch.int64)
    queries: Tensor = stat("layer", torch.int64)

    def __init__(self, smoothing: float = 0.0, reduce: Reduce = "mean") -> None:
        if not 0 <= smoothing < 1:
            raise DataError(f"smoothing must be from 0 to less than 1, got {smoothing!r}")
        if reduce not in ("mean", "sum"):
            raise DataError(f"reduce must be 'mean' or 'sum', got {reduce!r}")
        self._smoothing, self._reduce = smoothing, reduce

    def settings(self) -> str:
        """How the rows are smoothed."""
        return str(self._smoothing)

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Keep the attention maps, and compare them when all are there."""
        real = RealQueries(self.anatomy, batch)
        blocks: dict[Site, list[Tensor]] = {}

        def read(site: Site, x: Tensor, rows: slice) -> None:
            blocks.setdefault(site, []).append(x.detach())

        with tap(self.anatomy, "attention", read=read):
            yield
        maps = {site: _whole(blocks.pop(site)) for site in list(blocks)}
        masks = {site: real.among(site, slice(0, x.shape[2]), x) for site, x in maps.items()}
        real.check()
        for sites in _comparable(maps):
            self._compare(sites, [maps[site] for site in sites], masks[sites[0]])

    def update(self, batch: Batch, outputs: Any) -> None:
        """The sums are made when the model has run."""

    def _compare(self, sites: list[Site], maps: list[Tensor], queries: Tensor) -> None:
        """Add the distances between all heads of sites with maps `[batch, head, query, key]` of the same tokens."""
        maps = [x.to(maps[0].device) for x in maps]
        to_itself = "cross" not in sites[0].stack and maps[0].shape[2] == maps[0].shape[3]
        pieces = weights_in_pieces(maps, queries, queries if to_itself else None, smoothing=self._smoothing)
        places = [(site.row, head) for site in sites for head in site.kept]
        rows, heads = torch.tensor(places, device=self.total.device).T
        found = distances(pieces, self.total.new_zeros(len(places), len(places)))
        self.total[rows[:, None], heads[:, None], rows, heads] += found
        layers = rows.unique()
        self.compared[layers[:, None], layers] += queries.sum().to(layers.device)
        self.queries[layers] += queries.sum().to(layers.device)

    def compute(self) -> HeadDistances:
        """Divide by the number of real queries, and mark the heads that are not there or have no distance."""
        many, anatomy = self.queries.cpu(), self.anatomy
        present = anatomy.present & (many > 0)[:, None]
        # Layers that were compared now and then only, as when both happened to have one token, have no distance.
        always = (self.compared.cpu() == many[:, None]) & (self.compared.cpu() == many)
        there = present[:, :, None, None] & present & always[:, None, :, None]
        js = cpu64(self.total).clamp_min(0)
        js = js / many[:, None, None, None] if self._reduce == "mean" else js
        size = anatomy.layers * anatomy.heads
        js = js.masked_fill(~there, float("nan")).view(size, size)
        finite(js.diagonal().view(anatomy.layers, anatomy.heads), present, "head distance")
        return HeadDistances(js, many, anatomy.heads, anatomy.labels, self._smoothing, self._reduce)


def _whole(blocks: list[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)


def _comparable(maps: dict[Site, Tensor]) -> list[list[Site]]:
    """Sites whose heads attend between the same tokens: of one stack, with as many queries and keys."""
    groups: dict[Any, list[Site]] = {}
    for site, x in maps.items():
        groups.setdefault((site.stack, x.shape[0], x.shape[2:]), []).append(site)
    return list(groups.values())


def head_distances(
    model: nn.Module,
    batches: Batches,
    *,
    smoothing: float = 0.0,
    reduce: Reduce = "mean",
    progress: str | None = None,
) -> HeadDistances:
    """Measure how far apart the attention of every two heads is: their Jensen-Shannon distance, in nats.

    JS(p, q) = H(m) - H(p)/2 - H(q)/2 with m = (p + q)/2, of two heads' attention from the same query token, averaged
    over all real query tokens of all examples (Clark et al. 2019, §6). Padding is no query and no key. The heads of
    different stacks, and of layers that pool tokens, attend between other tokens: they have no distance.

    Args:
        model: any model with attention heads, under any attention implementation; left as it was found.
        batches: one mapping of model arguments, or an iterable of them. The maps of all layers of a batch are kept
            while it runs, layers x batch x heads x queries x keys numbers: take small batches of long texts.
        smoothing: s in p <- (1 - s) p + s/n, for the n real keys of a text; the paper's code has 0.001.
        reduce: "mean" over all query tokens, as the paper's caption says, or "sum", as its formula and code have it.
        progress: the title of a progress bar; no bar without it.

    Raises `DataError` for batches that cannot be used, and for a smoothing or reduction that is none.

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> found = head_distances(model, {"input_ids": torch.tensor([[5, 6, 7]])})
        >>> found.js.shape, found.between((0, 1), (1, 3)) < 0.7
        (torch.Size([8, 8]), True)
    """
    return accumulate(model, batches, DistancesAccumulator(smoothing, reduce), progress=progress)[0]
