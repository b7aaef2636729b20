"""Accumulators: the sums of a measure over a data set.

An `Accumulator` is zeroed once, updated batch by batch, merged with others of its kind, and at last computed.
It holds sums (float64) and counts (int64) only: merging adds and never divides, so that any split of the data over
batches, processes or days gives the same result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..anatomy.sites import Anatomy
from ..data.batches import Batch, device_of
from ..data.losses import ExampleLoss, find_loss
from ..errors import DataError, UnknownAnatomy, checked, described
from ..results.result import Result
from .first_example import FirstExample
from .gradient_check import check_gradient
from .identity import identity

A = TypeVar("A", bound="Accumulator")
Names = dict[str, tuple[Any, ...]]
"""{axis: names}, of the axes along which sums have names that come from the data."""


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
        self._alone = FirstExample(anatomy, self._loss, self._loss, custom=loss is not None)

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
        if not int(torch.as_tensor(counted).sum()) and any(site.kept for site in self.anatomy.sites):
            raise DataError(
                f"{type(self).__name__} has nothing to compute from: there was no {what}. Pass batches, whose "
                "attention masks are 1 at the tokens of the text"
            )

    def state(self) -> dict[str, Tensor]:
        """The sums, by name."""
        return {name: getattr(self, name) for name in self._stats()}

    def merge(self: A, other: dict[str, Tensor]) -> A:
        """Add the sums of another accumulator of this kind, given as its `state`."""
        self.check_state(other)
        for name in self._stats():
            mine = getattr(self, name)
            setattr(self, name, mine + other[name].to(mine.device))
        return self

    def check_state(self, other: Any) -> None:
        """Raise `DataError` unless this is the `state` of another accumulator of this kind."""
        names = self._stats()
        if not isinstance(other, Mapping) or not names.keys() <= other.keys():
            came = f"{', '.join(map(str, other))}" if isinstance(other, Mapping) else described(other)
            raise DataError(f"merge takes the state() of another {type(self).__name__}: {', '.join(names)}; got {came}")
        for name in names:
            if not isinstance(other[name], Tensor) or other[name].shape != getattr(self, name).shape:
                wanted = f"a tensor {list(getattr(self, name).shape)}"
                raise DataError(f"merge: {name} must be {wanted}, got {described(other[name])}")

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
