"""Accumulators, and how several of them read the same attention maps.

An `Accumulator` is zeroed once, updated batch by batch, merged with others of its kind, and at last computed.
It holds sums (float64) and counts (int64) only: merging adds and never divides, so that any split of the data over
batches, processes or days gives the same result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor

from ..anatomy.sites import Anatomy, Site
from ..data.batches import Batch, device_of
from ..data.losses import ExampleLoss, find_loss
from ..data.padding import RealQueries
from ..errors import DataError, UnknownAnatomy, checked, described
from ..results.result import Result
from ..tap import RowStatistics, Wanted, apart, check_rows, of_map, shares, tap, together
from .first_example import FirstExample
from .gradient_check import check_gradient
from .identity import identity

A = TypeVar("A", bound="Accumulator")
Names = dict[str, tuple[Any, ...]]
"""{axis: names}, of the axes along which sums have names that come from the data."""
Weighting = Literal["attention", "norm"]
"""What attention is measured by: its weights, or each query's shares of the norms of what arrives, |α f(x)|."""


class Stat:
    """A sum that an accumulator keeps: its axes, by name, and its type."""

    def __init__(self, axes: str, dtype: torch.dtype) -> None:
        self.axes, self.dtype = axes.split(), dtype

    def __get__(self, instance: object, owner: type) -> Stat:
        """The declaration, of a class. An accumulator has a tensor instead once `zero` has run, else `DataError`."""
        if instance is not None:
            raise _not_zeroed(instance)
        return self

    def zeros(self, sizes: dict[str, int], device: torch.device) -> Tensor:
        """The sum of nothing. Raises `DataError` for an axis whose size is not known."""
        if unknown := [axis for axis in self.axes if axis not in sizes]:
            raise DataError(
                f"stat names the axis {unknown[0]!r}, whose size is not known: its axes are {', '.join(sizes)}, and "
                "those that the method sizes() returns"
            )
        return torch.zeros([sizes[axis] for axis in self.axes], dtype=self.dtype, device=device)


class _Unset:
    """An attribute of an accumulator before `zero` has set it."""

    def __get__(self, instance: object, owner: type) -> Any:
        """Raise `DataError`."""
        if instance is not None:
            raise _not_zeroed(instance)
        return self


def _not_zeroed(accumulator: object) -> DataError:
    name = type(accumulator).__name__
    return DataError(
        f"{name} has no sums yet: pass it to accumulate(model, batches, ...), or call zero(dissect(model)) first"
    )


def check_weighting(weighting: str) -> Weighting:
    """The weighting, if it is "attention" or "norm"; else raise `DataError`."""
    if weighting not in get_args(Weighting):
        raise DataError(f"weighting must be 'attention' or 'norm', got {weighting!r}")
    return weighting  # type: ignore[return-value]


@checked
def stat(axes: str, dtype: torch.dtype = torch.float64) -> Any:
    """Declare a sum of an accumulator: `total: Tensor = stat("layer head")`. An empty string declares a scalar."""
    return Stat(axes, dtype)


class Accumulator(ABC):
    """A measure over a data set: declare sums with `stat`, say how a batch updates them and what comes out.

    `watch` may tap the model for the length of a batch's forward pass; `update` then sees the batch and the outputs.
    An accumulator that needs gradients says so, and one that wants the model to see the labels. A measure of attention
    maps is a `MapAccumulator`.
    """

    needs_gradient: ClassVar[bool] = False
    needs_labels: bool = False
    needs_finite_weights: ClassVar[bool] = False
    """Whether `accumulate` looks for NaN in the weights of queries and keys: fused attention does not pass it on."""
    by_example: ClassVar[bool] = False
    """Whether the result has values for each example: texts then stay in their order."""
    keeps_graph: bool = False
    """Whether another accumulator takes gradients of the same outputs after this one; `accumulate` sets it."""
    anatomy: Anatomy = _Unset()  # type: ignore[assignment]
    _loss: ExampleLoss | None = None  # set by `choose_loss` in measures of a loss
    _alone: FirstExample | None = None  # set by `zero` in measures of outputs
    _given: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls: type[A], *args: Any, **kwargs: Any) -> A:
        """Remember the arguments, which identify an accumulator."""
        made = super().__new__(cls)
        made._given = args, kwargs
        return made

    def zero(self: A, anatomy: Anatomy) -> A:
        """Forget everything, and get ready for a model."""
        device = device_of(anatomy.model, anatomy.modules)
        # The device of Apple has no float64.
        self.forget(self.part_of(anatomy), torch.device("cpu") if device.type == "mps" else device)
        return self

    def part_of(self, anatomy: Anatomy) -> Anatomy:
        """What is measured of a model: its heads, as they are given, or other parts, whose anatomy is returned."""
        return anatomy

    def forget(self, anatomy: Anatomy, device: torch.device) -> None:
        """Set all sums to 0, on a device. It needs no model: sums of other machines are merged without one."""
        self.anatomy = anatomy
        stats = self._stats()
        if stats:
            sizes = {"layer": anatomy.layers, "head": anatomy.heads, **self.sizes()}
            for name, kind in stats.items():
                setattr(self, name, kind.zeros(sizes, device))

    def choose_loss(self, anatomy: Anatomy, loss: ExampleLoss | None) -> None:
        """Measure by a custom loss, or else by that of the model's task, which is compared with the model's own."""
        self._loss = loss or find_loss(anatomy.model)
        self._alone = None if loss else FirstExample(anatomy, self._loss, self._loss)

    def sizes(self) -> dict[str, int]:
        """How long the axes of its sums are other than `layer` and `head`, by name."""
        return {}

    def names(self) -> Names:
        """The names along axes that come from the data, such as relations: sums of several parts are merged by them.

        A measure that has some also defines `rename`, which replaces them.
        """
        return {}

    def rename(self, names: Names) -> None:
        """Replace the names along axes that come from the data; `forget` or `zero` follows."""
        if names:
            raise DataError(
                f"{type(self).__name__} has no names from the data: it must define rename() to replace them"
            )

    @classmethod
    def axes(cls) -> dict[str, list[str]]:
        """The axes of each sum, by its name."""
        return {name: kind.axes for name, kind in cls._stats().items()}

    def settings(self) -> str:
        """What tells this measure from others of its kind: a checkpoint of another one is refused.

        By default the identity of the arguments that it was made with. Raises `DataError` where they have none.
        """
        return identity(self._given)

    def described(self) -> str:
        """Its class and code, and its settings: what identifies it in a checkpoint."""
        own, common = (_owner(type(self), name) for name in ("__init__", "settings"))
        # A subclass with further arguments may have left `settings` as it was.
        more = identity(self._given) if issubclass(own, common) and own is not common else ""
        return f"{identity(type(self))} {self.settings()} {more}"

    def check_gradient(self, batch: Batch, lost: UnknownAnatomy, *, labelled: bool) -> None:
        """Raise `lost`, unless the part of the graph that has no gradient does not matter to the loss."""
        if self._loss is None:
            raise lost
        check_gradient(self.anatomy, batch, self._loss, lost, labelled=labelled)

    def check_batch(self, batch: Batch) -> None:
        """Run the first example of a pass alone, before `watch` opens any tap, if the measure reads outputs."""
        if self._alone is not None:
            self._alone.check(batch)

    def check_values(self, values: Tensor, example_of: Tensor | None = None) -> None:
        """Compare what a measure read of the outputs with the same example alone, see `FirstExample.compare`."""
        if self._alone is not None:
            self._alone.compare(values, example_of)

    def watch(self, batch: Batch) -> AbstractContextManager[Any]:
        """What is around the forward pass of a batch."""
        return nullcontext()

    @abstractmethod
    def update(self, batch: Batch, outputs: Any) -> None:
        """Add what a batch brought, still inside `watch`."""

    @abstractmethod
    def compute(self) -> Result:
        """Divide, and give the result."""

    def check_measured(self, counted: Tensor | int, what: str) -> None:
        """Raise `DataError` if nothing was counted, for `compute`: a mean of nothing would be NaN.

        Args:
            counted: how many `what` the sums are over, in total or by layer.
            what: what was counted, such as "real query".
        """
        if self.anatomy.present.any() and not int(torch.as_tensor(counted).sum()):
            raise DataError(
                f"{type(self).__name__} has nothing to compute from: there was no {what}. Pass batches, whose "
                "attention masks are 1 at the tokens of the text"
            )

    def state(self) -> dict[str, Tensor]:
        """The sums, by name."""
        return {name: getattr(self, name) for name in self._stats()}

    def merge(self: A, other: dict[str, Tensor]) -> A:
        """Add the sums of another accumulator of this kind, given as its `state`."""
        names = self._stats()
        if not isinstance(other, Mapping) or not names.keys() <= other.keys():
            came = f"{', '.join(map(str, other))}" if isinstance(other, Mapping) else described(other)
            raise DataError(f"merge takes the state() of another {type(self).__name__}: {', '.join(names)}; got {came}")
        for name in names:
            if not isinstance(other[name], Tensor) or other[name].shape != getattr(self, name).shape:
                wanted = f"a tensor {list(getattr(self, name).shape)}"
                raise DataError(f"merge: {name} must be {wanted}, got {described(other[name])}")
        for name in names:
            mine = getattr(self, name)
            setattr(self, name, mine + other[name].to(mine.device))
        return self

    @classmethod
    @lru_cache(maxsize=64)
    def _stats(cls) -> dict[str, Stat]:
        return {name: kind for c in reversed(cls.__mro__) for name, kind in vars(c).items() if isinstance(kind, Stat)}


def _owner(kind: type, name: str) -> type:
    """The class that defines an attribute."""
    return next(c for c in kind.__mro__ if name in vars(c))


def states_of(accumulators: Sequence[Accumulator]) -> dict[str, Tensor]:
    """The sums of several accumulators, by the number and the name of each: `0.total`."""
    return {f"{number}.{name}": x for number, one in enumerate(accumulators) for name, x in one.state().items()}


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
    values = shares(x) if measures[0].weighting == "norm" else x.detach()

    def of(measure: MapAccumulator) -> Any:
        if measure.place == "statistics":
            return of_map(values, rows, measure.wants(site, x.shape))
        return x if measure.needs_gradient else values

    return [of(measure) for measure in measures]


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
    with tap(anatomy, tapped, read=read, rows=fewest, whole=whole, wants=wants):
        yield
    real.check()
    for measure in measures:
        measure.end_batch(batch)
