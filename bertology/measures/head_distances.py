"""How different is the attention of every two heads?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..anatomy.sites import Head, OneHead, Site, each_head, head_at
from ..data.batches import Batch, BatchesOrTexts
from ..errors import DataError, HeadError, checked, how_many, need
from ..results.axes import axes
from ..results.result import Result, cpu64, finite
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import stat
from ..streaming.map_accumulator import MapAccumulator
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress
from .divergences import distances, weights_in_pieces

Reduce = Literal["mean", "sum"]
Linkage = Literal["average", "complete", "single"]


@dataclass(frozen=True, eq=False, repr=False)
class HeadDistances(Result):
    """How far apart the attention of every two heads is, over a data set (Clark et al. 2019, §6).

    The rows of `js` are all heads of all layers, layer by layer: head h of layer l is row `l * heads_per_layer + h`.
    """

    js: Annotated[Tensor, axes("head head", unit="nats", words="Jensen-Shannon divergence")]
    """[head, head], nats: 0 for the same attention, ln 2 for no common key; NaN for pruned heads and across stacks."""
    queries: Annotated[Tensor, axes("layer")]
    """[layer]: the real query tokens that were compared."""
    heads_per_layer: int
    """How many rows of `js` each layer has: the heads of the widest, before pruning."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""
    smoothing: float = 0.0
    """How much of each row of attention was spread over all keys alike."""
    reduce: Reduce = "mean"
    """Whether `js` is the mean over all query tokens, or their sum."""

    @property
    def heads(self) -> Annotated[list[Head], axes("head")]:
        """[head]: the name of each row of `js`, pruned heads included."""
        return [head_at(self.labels, row, h) for row in range(len(self.labels)) for h in range(self.heads_per_layer)]

    @checked
    def between(self, a: OneHead, b: OneHead) -> float:
        """The distance of two heads, given as names, "L1H0", `Head`s or (layer, head) pairs; NaN where they have none.

        Raises `HeadError` for a head that is not in this result.
        """
        return self.js[self._row(a), self._row(b)].item()

    @checked
    def stack(self, name: str) -> HeadDistances:
        """Only the heads of one stack, "encoder", "decoder" or "cross", of a model with several."""
        cut = super().stack(name)
        rows = [row for row in range(len(self.js)) if self.labels[row // self.heads_per_layer] in cut.labels]
        return replace(cut, js=self.js[rows][:, rows])

    @checked
    def embed(self, dims: int = 2, *, seed: int = 0) -> Tensor:
        """[head, dim]: a point for each head; the distances between points approximate those between heads.

        Metric multidimensional scaling of `js` itself, as in the paper's Figure 6: the best of five starts
        (extra `syntax`). NaN for pruned heads. Only distances have a meaning: the points may be rotated and reflected.

        Raises `DataError` for fewer heads than `dims` + 1, and where heads have no distance, as across stacks.
        """
        there, js = self._compared()
        if not 1 <= dims < len(js):
            raise DataError(
                f"dims must be from 1 to {len(js) - 1}, one less than the {how_many(len(js), 'head')}, got {dims!r}"
            )
        points, _ = need("sklearn.manifold", extra="syntax").smacof(
            js.numpy(), metric=True, n_components=dims, n_init=5, n_jobs=1, max_iter=1000, eps=1e-10,
            random_state=seed, normalized_stress=False,
        )  # fmt: skip
        out = torch.full((len(self.js), dims), float("nan"), dtype=torch.float64)
        out[there] = torch.from_numpy(points)
        return out

    @checked
    def clusters(self, k: int, *, linkage: Linkage = "average") -> Tensor:
        """[layer, head], int64: which of `k` clusters each head is in, numbered by their first heads; -1 for pruned.

        Agglomerative clustering (extra `syntax`): the two clusters that are nearest become one, until `k` are left.
        How far apart two clusters are is the "average", the largest ("complete") or the smallest ("single") distance
        between their heads.

        Raises `DataError` for `k` out of range, and where heads have no distance, as across stacks.
        """
        if linkage not in get_args(Linkage):
            raise DataError(f"linkage must be 'average', 'complete' or 'single', got {linkage!r}")
        there, js = self._compared()
        if not 1 <= k <= len(js):
            raise DataError(f"k must be from 1 to {len(js)}, the number of heads, got {k!r}")
        found = [0] * len(js)
        if len(js) > 1:
            kind = need("sklearn.cluster", extra="syntax").AgglomerativeClustering
            found = kind(n_clusters=k, metric="precomputed", linkage=linkage).fit_predict(js.numpy()).tolist()
        numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(found))}
        out = torch.full((len(self.js),), -1)
        out[there] = torch.tensor([numbers[cluster] for cluster in found])
        return out.view(-1, self.heads_per_layer)

    def __str__(self) -> str:
        within, across = self._by_layers()
        lines = [
            f"HeadDistances: {how_many(int(self._there.sum()), 'head')}, Jensen-Shannon divergence in nats, "
            f"{self.reduce} over query tokens" + (f", smoothing {self.smoothing:g}" if self.smoothing else ""),
            f"{'layer':>10}  {'within':>9}  {'to others':>9}  {'tokens':>9}",
        ]
        for row, label in enumerate(self.labels):
            means = (f"{x:9.4g}" if x == x else " " * 9 for x in (within[row].item(), across[row].item()))
            lines.append(f"{label:>10}  {'  '.join(means)}  {self.queries[row].item():9}")
        return "\n".join(lines)

    def _by_layers(self) -> tuple[Tensor, Tensor]:
        """[layer]: the mean distance between two heads of a layer, and from its heads to those of other layers."""
        layer = torch.arange(len(self.js)) // self.heads_per_layer
        same = layer[:, None] == layer
        own = self.js.masked_fill(~same, float("nan")).fill_diagonal_(float("nan"))
        other = self.js.masked_fill(same, float("nan"))
        return own.view(len(self.labels), -1).nanmean(1), other.view(len(self.labels), -1).nanmean(1)

    @property
    def _there(self) -> Tensor:
        """[head], bool: which heads were measured."""
        return ~self.js.diagonal().isnan()

    def _compared(self) -> tuple[Tensor, Tensor]:
        """Which heads were measured, and their distances; a `DataError` where some have none."""
        there = self._there
        js = self.js[there][:, there]
        if js.isnan().any():
            names = [head for head, is_there in zip(self.heads, there.tolist(), strict=True) if is_there]
            a, b = (names[row] for row in js.isnan().nonzero()[0].tolist())
            way = f": take .stack({a.stack!r}) or another stack first" if a.stack != b.stack else ""
            raise DataError(f"heads {a} and {b} do not attend between the same tokens and have no distance{way}")
        if len(js) == 0:
            raise DataError("no head is left in this result: there is nothing to compare")
        return there, js

    def _row(self, head: OneHead) -> int:
        (head,) = each_head([head])
        if isinstance(head, Head):
            rows = [row for row, one in enumerate(self.heads) if _is(head, one)]
            if len(rows) == 1:
                return rows[0]
            what = "in several stacks; say which" if rows else "not in this result"
            raise HeadError(f"head {head} is {what}: its layers are {', '.join(self.labels)}")
        layer, number = head
        if not (0 <= layer < len(self.labels) and 0 <= number < self.heads_per_layer):
            raise HeadError(
                f"head {number} of layer {layer} is out of range: this result has "
                f"{how_many(len(self.labels), 'layer')} of {how_many(self.heads_per_layer, 'head')}"
            )
        return layer * self.heads_per_layer + number


def _is(wanted: Head, one: Head) -> bool:
    return (wanted.layer, wanted.head) == (one.layer, one.head) and wanted.stack in ("", one.stack)


class DistancesAccumulator(MapAccumulator):
    """Sums the distances of every two heads over every real query's attention, for `accumulate`.

    The maps of all layers are kept in memory until the forward pass of a batch is done.
    """

    total: Tensor = stat("layer head layer head")
    compared: Tensor = stat("layer layer", torch.int64)
    queries: Tensor = stat("layer", torch.int64)

    @checked
    def __init__(self, smoothing: float = 0.0, reduce: Reduce = "mean") -> None:
        if not 0 <= smoothing < 1:
            raise DataError(f"smoothing must be from 0 to less than 1, got {smoothing!r}")
        if reduce not in ("mean", "sum"):
            raise DataError(f"reduce must be 'mean' or 'sum', got {reduce!r}")
        self._smoothing, self._reduce = smoothing, reduce

    def settings(self) -> str:
        """How the rows are smoothed."""
        return str(self._smoothing)

    def start_batch(self, batch: Batch) -> None:
        """Forget the maps of the previous batch."""
        self._maps: dict[Site, list[Tensor]] = {}
        self._real: dict[Site, list[Tensor]] = {}

    def read(self, site: Site, weights: Tensor, rows: slice, real: Tensor) -> None:
        """Keep a block of a map until the maps of all layers are there."""
        self._maps.setdefault(site, []).append(weights)
        self._real.setdefault(site, []).append(real)

    def end_batch(self, batch: Batch) -> None:
        """Compare the heads of all layers."""
        maps = {site: _whole(self._maps.pop(site)) for site in list(self._maps)}
        for sites in _comparable(maps):
            self._compare(sites, [maps[site] for site in sites], torch.cat(self._real[sites[0]], dim=1))

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
        self.check_measured(self.queries, "real query")
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


@merges
@checked
def head_distances(
    model: nn.Module,
    batches: BatchesOrTexts,
    *,
    smoothing: float = 0.0,
    reduce: Reduce = "mean",
    tokenizer: Any = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> HeadDistances:
    """Measure how far apart the attention of every two heads is: their Jensen-Shannon divergence, in nats.

    JS(p, q) = H(m) - H(p)/2 - H(q)/2 with m = (p + q)/2, of two heads' attention from the same query token, averaged
    over all real query tokens of all examples (Clark et al. 2019, §6). Padding is no query and no key. The heads of
    different stacks, and of layers that pool tokens, attend between other tokens: they have no distance.

    Args:
        model: any model with attention heads, under any attention implementation; left as it was found.
        batches: one mapping of model arguments, or an iterable of them; or texts (see `make_batches`). The maps of all
            layers of a batch are kept while it runs, layers x batch x heads x queries x keys elements: use small
            batches of long texts.
        smoothing: s in p <- (1 - s) p + s/n, for the n real keys of a text; the paper's code has 0.001.
        reduce: "mean" over all query tokens, as the paper's caption says, or "sum", as its formula and code have it.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for batches that cannot be used, and for a smoothing or reduction that is none.

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> found = head_distances(model, {"input_ids": torch.tensor([[5, 6, 7]])})
        >>> found.js.shape, found.between((0, 1), (1, 3)) < 0.7
        (torch.Size([8, 8]), True)
    """
    return accumulate(model, batches, DistancesAccumulator(smoothing, reduce), tokenizer=tokenizer, progress=progress)[
        0
    ]
