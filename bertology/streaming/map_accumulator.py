"""Measures of attention maps, and how several of them read the same maps.

`accumulate` reads each map once, and gives it to all measures that tap the same place.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor

from ..anatomy.sites import Site
from ..data.batches import Batch
from ..data.padding import RealQueries
from ..errors import DataError
from ..tap import RowStatistics, Wanted, apart, check_rows, of_map, shares, tap, tap_entropies, together
from .accumulator import Accumulator

Weighting = Literal["attention", "norm"]
"""What attention is measured by: its weights, or each query's shares of the norms of what arrives, |α f(x)|."""


def check_weighting(weighting: str) -> Weighting:
    """The weighting, if it is "attention" or "norm"; else raise `DataError`."""
    if weighting not in get_args(Weighting):
        raise DataError(f"weighting must be 'attention' or 'norm', got {weighting!r}")
    return weighting  # type: ignore[return-value]


class MapAccumulator(Accumulator):
    """A measure of attention maps over a data set: say in `read` what a block of query rows adds to the sums.

    `accumulate` reads each attention map once and gives it to all such measures of a pass. For each batch it calls
    `start_batch` before the forward pass, `read` as often as there are blocks, `update` after the forward pass, and
    `end_batch` at last. Most measures need `read` alone.

        >>> from dataclasses import dataclass
        >>> from typing import Annotated
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> @dataclass(frozen=True, eq=False, repr=False)
        ... class ToFirst(Result):
        ...     total: Annotated[torch.Tensor, axes("layer head")]
        ...     labels: tuple[str, ...]
        >>> class ToFirstAccumulator(MapAccumulator):
        ...     total = stat("layer head")
        ...     def read(self, site, weights, rows, real):
        ...         to_first = weights[..., 0].masked_fill(~real[:, None], 0)
        ...         self.total[site.row, list(site.kept)] += to_first.sum((0, 2))
        ...     def compute(self):
        ...         return ToFirst(self.total, self.anatomy.labels)
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> (found,) = accumulate(model, {"input_ids": torch.tensor([[5, 6, 7]])}, ToFirstAccumulator())
        >>> found.total.shape
        torch.Size([2, 4])
    """

    place: ClassVar[Literal["attention", "entropy", "statistics"]] = "attention"
    """What `read` is given: attention weights, the entropies of each query's weights, `[batch, head, query]`, or the
    statistics of these weights that `wants` asks for, which on long texts take no map."""
    whole: ClassVar[bool] = False
    """Whether `read` needs each map in one piece, not in blocks of query rows."""
    text_only: ClassVar[bool] = False
    """Whether `read` is given only maps from the tokens of the text to the same tokens, each in one piece: no cross
    attention, no decoder after an encoder, no layer that pools tokens."""
    rows: int | None = None
    """The most query rows that `read` is given at a time; by default as many as fit into 64 MiB."""
    weighting: Weighting = "attention"
    """Whether `read` is given attention weights, or, with "norm", each query's shares of the norms of what arrives from
    the keys (Kobayashi et al. 2020), which sum to 1 as well."""

    @property
    def tapped(self) -> str:
        """The place of the tap that it reads."""
        return "norms" if self.weighting == "norm" else self.place

    def described(self) -> str:
        """As of every accumulator, and the weighting."""
        return f"{super().described()} {self.weighting}"

    def start_batch(self, batch: Batch) -> None:
        """Get ready for a batch, before the forward pass."""

    def wants(self, site: Site, shape: tuple[int, int, int, int]) -> Wanted:
        """Which statistics `read` is given of a map [batch, head, query, key], at the place "statistics"."""
        return Wanted(entropy=True, largest=True, distance=True)

    @abstractmethod
    def read(self, site: Site, weights: Any, rows: slice, real: Tensor) -> None:
        """Add a block of attention weights to the sums.

        Args:
            site: the layer; its sums are at `[site.row, list(site.kept)]`, since pruned heads have no weights.
            weights: [batch, head, query, key], of the heads that are left and of the query rows `rows`. They belong to
                the autograd graph only if `needs_gradient` is set. Do not change them in place.
            rows: which queries of the map these are.
            real: [batch, query], bool: which of these queries are real tokens; the others are padding.
        """

    def update(self, batch: Batch, outputs: Any) -> None:
        """Add to the sums what the outputs of a batch give; by default nothing."""

    def end_batch(self, batch: Batch) -> None:
        """Finish a batch after the forward pass, for sums that need all blocks of it."""

    def watch(self, batch: Batch) -> AbstractContextManager[Any]:
        """Open a tap for this measure alone; unless this is overridden, `accumulate` opens one for all measures."""
        return read_maps([self], batch)


def add_to(sums: Tensor, site: Site, values: Tensor) -> None:
    """Add `values [head, ...]`, of the heads of a site that are left, to `sums [layer, head, ...]`."""
    row = sums[site.row]
    if len(site.kept) == len(row):
        row += values  # indices of all heads would take longer than the sum
    else:
        row[list(site.kept)] += values


def add_to_all(sums: Tensor, sites: Sequence[Site], values: Tensor) -> None:
    """Add `values [site, ...]` or `[site, head, ...]`, of the heads that are left, to `sums [layer, head, ...]`."""
    if sums.shape[1:] != values.shape[1:]:
        for site, one in zip(sites, values, strict=True):
            add_to(sums, site, one)
    elif [site.row for site in sites] == list(range(len(sums))):
        sums += values
    else:
        sums[[site.row for site in sites]] += values


def _given(measures: Sequence[MapAccumulator], site: Site, x: Any, rows: slice) -> list[Any]:
    """What each measure is given of what was read for all of them."""
    if isinstance(x, RowStatistics):
        return apart(x, [measure.wants(site, x.shape) for measure in measures])
    # A detached view of what has no graph would cost as much as the rest.
    values = shares(x) if measures[0].weighting == "norm" else x.detach() if x.requires_grad else x
    return [
        of_map(values, rows, measure.wants(site, x.shape))
        if measure.place == "statistics"
        else (x if measure.needs_gradient else values)
        for measure in measures
    ]


def _looks_back(measure: MapAccumulator) -> bool:
    """Whether a measure does more after the forward pass than `end_batch`: its maps must be read by then."""
    kind = type(measure)
    return kind.update is not MapAccumulator.update or kind.watch is not MapAccumulator.watch


@contextmanager
def read_maps(measures: Sequence[MapAccumulator], batch: Batch) -> Iterator[None]:
    """Give the attention maps of a forward pass to several measures that tap one place, through one tap."""
    tapped = measures[0].tapped
    for measure in measures:
        check_rows(measure.rows)
        measure.start_batch(batch)
    anatomy = measures[0].anatomy
    real = RealQueries(anatomy, batch, text_only=all(measure.text_only for measure in measures))
    some_want_text = any(measure.text_only for measure in measures)

    def wants(site: Site, shape: tuple[int, int, int, int]) -> Wanted:
        return together([measure.wants(site, shape) for measure in measures])

    def read(site: Site, x: Any, rows: slice) -> None:
        given = measures
        if some_want_text and not real.are_of_text(site, x):
            given = [measure for measure in measures if not measure.text_only]
        if given:
            queries = real.among(site, rows, x)
            for measure, own in zip(given, _given(given, site, x, rows), strict=True):
                measure.read(site, own, rows, queries)

    fewest = min((measure.rows for measure in measures if measure.rows is not None), default=None)
    whole = any(measure.whole or measure.text_only for measure in measures)
    if tapped == "entropy" and not any(map(_looks_back, measures)):
        tapping = tap_entropies(anatomy, read, rows=fewest, whole=whole)
    else:
        tapping = tap(anatomy, tapped, read=read, rows=fewest, whole=whole, wants=wants)
    with tapping:
        yield
    real.check()
    for measure in measures:
        measure.end_batch(batch)
