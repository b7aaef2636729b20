"""Where does each head's attention go, how far, and how concentrated is it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from ..anatomy.sites import Site
from ..data.batches import Batch, BatchesOrTexts
from ..data.padding import RealQueries
from ..data.token_classes import TokenClass, TokenClasses
from ..errors import DataError, check_share, checked
from ..results.axes import axes
from ..results.result import Result, cpu64, finite
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import stat
from ..streaming.map_accumulator import MapAccumulator, Weighting, check_weighting
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress
from ..tap import RowStatistics, Wanted
from .entropy import Average, batch_average, check_average


def places(found: RowStatistics, start: int, first: Tensor) -> dict[str, Tensor]:
    """{pattern: [batch, head, query]} of the attention of the query rows from `start` on."""
    assert found.distance is not None
    queries = torch.arange(start, start + found.shape[2], device=found.device)
    here = {name: _beside(found, queries + step) for name, step in (("previous", -1), ("next", 1), ("self", 0))}
    to_first = found.at(first[:, None].expand(-1, found.shape[2]))
    return {**here, "first": to_first, "distance": found.distance}


def _beside(found: RowStatistics, keys: Tensor) -> Tensor:
    """[batch, head, query]: each query's weight of its own key; 0 for keys beyond the text."""
    inside = (keys >= 0) & (keys < found.shape[3])
    return found.at(keys.clamp(0, found.shape[3] - 1)[None]) * inside


def by_class(sums: Tensor, masks: Tensor, real: Tensor, rows: slice, device: torch.device) -> dict[str, Tensor]:
    """[batch, head, class]: the attention of query rows to each class of keys, summed up on `device`.

    Over all real queries, over those of the class itself, and over the rest; with the number of queries in each class.
    `sums [batch, head, query, class]` are each query's.
    """
    each = sums.masked_fill(~real[:, None, :, None], 0).to(device).to(torch.float64)
    member = (masks[:, :, rows] & real).permute(1, 2, 0).to(device)  # [batch, query, class]
    inside = (each * member[:, None]).sum(2)
    total = each.sum(2)
    return {"to": total, "within": inside, "from_rest": total - inside, "members": member.sum(1)}


_PLACES = ("previous", "next", "self", "first", "distance")
_KINDS = (*_PLACES, "confidence")
_CLASSES = ("to", "within", "from_rest")


@dataclass(frozen=True, eq=False, repr=False)
class AttentionPatterns(Result):
    """The surface patterns of each head's attention, averaged over the real queries of a data set.

    Most patterns need the position of each query among the keys, which is known only if both are the same tokens. In
    cross attention, with a cache of earlier keys, and in layers that pool tokens, all fields but `confidence` are NaN.
    """

    previous: Annotated[Tensor, axes("layer head", words="attention to the previous token")]
    """[layer, head], 0 to 1: the attention to the previous token; the first token has none."""
    next: Annotated[Tensor, axes("layer head", words="attention to the next token")]
    """[layer, head], 0 to 1: the attention to the next token; the last token has none."""
    self: Annotated[Tensor, axes("layer head", words="attention to the token itself")]
    """[layer, head], 0 to 1: the attention to the token itself."""
    first: Annotated[Tensor, axes("layer head", words="attention to the first token")]
    """[layer, head], 0 to 1: the attention to the text's first token."""
    distance: Annotated[Tensor, axes("layer head", unit="tokens", words="distance of the attended tokens")]
    """[layer, head], tokens: how far away the attended tokens are, on average."""
    confidence: Annotated[Tensor, axes("layer head", words="largest attention weight of a query")]
    """[layer, head], 0 to 1: the largest weight of a query (Voita et al. 2019)."""
    sink: Annotated[Tensor, axes("layer head", words="share of examples whose first token is a sink")]
    """[layer, head], 0 to 1: the share of examples in which the first token gets more than 0.3 of the attention, or
    another threshold (Gu et al. 2024); its mean over heads is the model's sink rate."""
    to: Annotated[Tensor, axes("layer head class")]
    """[layer, head, class], 0 to 1: the attention from all tokens to each class of tokens, `classes`."""
    within: Annotated[Tensor, axes("layer head class")]
    """[layer, head, class], 0 to 1: the attention from the tokens of a class to that class; NaN if it has none."""
    from_rest: Annotated[Tensor, axes("layer head class")]
    """[layer, head, class], 0 to 1: the attention from the tokens that are not of a class to that class."""
    queries: Annotated[Tensor, axes("layer")]
    """[layer]: the real query tokens that were averaged over."""
    classes: Annotated[tuple[str, ...], axes("class")]
    """[class]: the names of the token classes; the last is `other`, all tokens in none of them."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""
    weighting: str = "attention"
    """Whether attention weights were measured, "attention", or the norms of what arrives, "norm"."""

    @checked
    def attention_to(self, name: str, *, queries: Literal["all", "same", "rest"] = "all") -> Tensor:
        """[layer, head]: the attention to one class, from all tokens, those of the class itself, or the rest."""
        if name not in self.classes:
            raise DataError(f"no token class {name!r}: there are {', '.join(self.classes) or 'none, pass tokens='}")
        fields = {"all": self.to, "same": self.within, "rest": self.from_rest}
        if queries not in fields:
            raise DataError(f"queries must be one of {', '.join(map(repr, fields))}, got {queries!r}")
        return fields[queries][..., self.classes.index(name)]


class PatternsAccumulator(MapAccumulator):
    """Sums what every real query's attention looks like, for `accumulate`; its options are `attention_patterns`'."""

    place = "statistics"

    previous: Tensor = stat("layer head")
    next: Tensor = stat("layer head")
    self: Tensor = stat("layer head")
    first: Tensor = stat("layer head")
    distance: Tensor = stat("layer head")
    confidence: Tensor = stat("layer head")
    sink: Tensor = stat("layer head")
    to: Tensor = stat("layer head class")
    within: Tensor = stat("layer head class")
    from_rest: Tensor = stat("layer head class")
    over: Tensor = stat("layer", torch.int64)
    over_within: Tensor = stat("layer class", torch.int64)
    over_rest: Tensor = stat("layer class", torch.int64)
    queries: Tensor = stat("layer", torch.int64)
    examples: Tensor = stat("layer", torch.int64)
    unplaced: Tensor = stat("layer", torch.int64)
    unclassed: Tensor = stat("layer", torch.int64)

    @checked
    def __init__(
        self,
        rows: int | None = None,
        *,
        tokens: Mapping[str, TokenClass] | None = None,
        tokenizer: Any = None,
        average: Average = "query",
        sink_threshold: float = 0.3,
        weighting: Weighting = "attention",
    ) -> None:
        check_average(average)
        self.weighting = check_weighting(weighting)
        check_share("sink_threshold", sink_threshold)
        self.rows, self._average, self._threshold = rows, average, sink_threshold
        self._classes = TokenClasses(tokens, tokenizer)

    def settings(self) -> str:
        """The classes, the average and the threshold."""
        return f"{self._classes.settings()} {self._average} {self._threshold}"

    def sizes(self) -> dict[str, int]:
        """How many token classes there are."""
        return {"class": len(self._classes.names)}

    def start_batch(self, batch: Batch) -> None:
        """Forget the sums of the previous batch."""
        self._batch, self._queries = batch, RealQueries(self.anatomy, batch)
        self._sums: dict[Site, dict[str, Tensor]] = {}
        self._positions: dict[Site, tuple[int, int]] = {}
        self._masks: dict[tuple[str, int], Tensor | None] = {}

    def wants(self, site: Site, shape: tuple[int, int, int, int]) -> Wanted:
        """The largest weight, the distance, and the sums over each class of keys."""
        masks = self._masks_of(site, shape[3])
        return Wanted(
            largest=True, distance="cross" not in site.stack, columns=None if masks is None else masks.permute(1, 2, 0)
        )

    def read(self, site: Site, weights: RowStatistics, rows: slice, real: Tensor) -> None:
        """Add the statistics of a block of queries to the sums of each example."""
        device, keys = self.queries.device, weights.shape[3]
        self._positions[site] = max(rows.stop, self._positions.get(site, (0, 0))[0]), keys
        assert weights.largest is not None
        found = {"confidence": weights.largest}
        if "cross" not in site.stack:
            found |= places(weights, rows.start, self._queries.first(site, weights))
        each = {name: one.masked_fill(~real[:, None], 0).to(device) for name, one in found.items()}
        parts = {name: one.sum(2, dtype=torch.float64) for name, one in each.items()}
        parts["count"] = real.sum(1).to(device)
        masks = self._masks_of(site, keys)
        if masks is not None and weights.sums is not None:
            parts |= by_class(weights.sums, masks, real, rows, device)
        before = self._sums.setdefault(site, {})
        self._sums[site] = {name: part + before.get(name, 0) for name, part in parts.items()}

    def _masks_of(self, site: Site, keys: int) -> Tensor | None:
        """[class, batch, key], bool: the keys of each class; None without classes, or where they are not known."""
        if not self._classes.names:
            return None
        if (site.stack, keys) not in self._masks:
            self._masks[site.stack, keys] = self._classes.masks(self.anatomy, self._batch, site.stack, keys)
        return self._masks[site.stack, keys]

    def end_batch(self, batch: Batch) -> None:
        """Average over the queries of each example, if that is the average."""
        for site, found in self._sums.items():
            self._add(site, found)
            queries, keys = self._positions[site]
            self.unplaced[site.row] += "cross" in site.stack or queries != keys

    def _add(self, site: Site, found: dict[str, Tensor]) -> None:
        """Add what a batch brought in one layer: sums over the queries of each example."""
        row, heads, count = site.row, list(site.kept), found["count"]
        self.queries[row] += count.sum()
        self.examples[row] += (count > 0).sum()
        self.over[row] += batch_average(count, count, self._average)[1]
        for name in found.keys() & {*_KINDS, "to"}:
            getattr(self, name)[row, heads] += batch_average(found[name], count, self._average)[0]
        if "first" in found:
            sunk = found["first"] > self._threshold * count[:, None]
            self.sink[row, heads] += sunk[count > 0].sum(0)
        if "to" not in found:
            self.unclassed[row] += 1
            return
        inside, outside = found["members"], count[:, None] - found["members"]
        for name, members, divisor in (
            ("within", inside, self.over_within),
            ("from_rest", outside, self.over_rest),
        ):
            # [batch, class, head]: each class has queries of its own.
            sums = found[name].movedim(1, -1)
            total, over = batch_average(sums, members, self._average)
            getattr(self, name)[row, heads] += total.movedim(-1, 0)
            divisor[row] += over

    def update(self, batch: Batch, outputs: Any) -> None:
        """The sums were made while the model ran."""

    def compute(self) -> AttentionPatterns:
        """Divide by the number of real queries."""
        self.check_measured(self.queries, "real query")
        over = self.over.cpu()[:, None]
        there = self.anatomy.present & (over > 0)
        placed = there & (self.unplaced.cpu() == 0)[:, None]
        means: dict[str, Any] = {
            name: finite(
                cpu64(getattr(self, name)) / over, there if name == "confidence" else placed, f"patterns ({name})"
            )
            for name in _KINDS
        }
        classed = (placed & (self.unclassed.cpu() == 0)[:, None])[..., None]
        divisors = (over.expand(-1, len(self._classes.names)), self.over_within.cpu(), self.over_rest.cpu())
        classes: dict[str, Any] = {
            name: (cpu64(getattr(self, name)) / divisor[:, None]).masked_fill(
                ~(classed & (divisor > 0)[:, None]), float("nan")
            )
            for name, divisor in zip(_CLASSES, divisors, strict=True)
        }
        sink = finite(cpu64(self.sink) / self.examples.cpu()[:, None], placed, "patterns (sink)")
        return AttentionPatterns(
            **means, **classes, sink=sink, queries=self.queries.cpu(), classes=self._classes.names,
            labels=self.anatomy.labels, weighting=self.weighting,
        )  # fmt: skip


@merges
@checked
def attention_patterns(
    model: nn.Module,
    batches: BatchesOrTexts,
    *,
    tokens: Mapping[str, TokenClass] | None = None,
    tokenizer: Any = None,
    average: Average = "query",
    sink_threshold: float = 0.3,
    weighting: Weighting = "attention",
    rows: int | None = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> AttentionPatterns:
    """Measure what each head's attention looks like: to the previous, next, same and first token, how far, how surely.

    Averages over all real query tokens of all examples (Clark et al. 2019, §3; an edge token, which has no neighbour on
    one side, counts as 0 there). Padding is no query.

    Args:
        model: any model with attention heads, under any attention implementation; left as it was found.
        batches: one mapping of model arguments, or an iterable of them; or texts (see `make_batches`).
        tokens: classes of tokens whose share of the attention is measured too, by name: token ids, strings, or a
            function of the batch that gives [batch, token], bool. All other tokens are the class `other`.
        tokenizer: needed for texts, and for classes that are given as strings: it looks up their ids.
        average: whether every "query" counts alike, or every "example", as in the paper.
        sink_threshold: the share of the attention from which on the first token is called a sink.
        weighting: "attention" measures attention weights; "norm" each query's shares of |α f(x)|, the norms of what
            arrives from the keys (see `attention_maps`).
        rows: how many query rows are looked at at a time; by default as many as fit into 64 MiB. The result does not
            depend on it.
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for batches or token classes that cannot be used, `UnknownAnatomy` where the norms of what
    arrives cannot be known.

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> found = attention_patterns(model, {"input_ids": torch.tensor([[5, 6, 7]])}, tokens={"separator": [7]})
        >>> found.previous.shape, found.attention_to("separator", queries="rest").shape
        (torch.Size([2, 4]), torch.Size([2, 4]))
    """
    accumulator = PatternsAccumulator(
        rows, tokens=tokens, tokenizer=tokenizer, average=average, sink_threshold=sink_threshold,
        weighting=weighting,
    )  # fmt: skip
    return accumulate(model, batches, accumulator, tokenizer=tokenizer, progress=progress)[0]
