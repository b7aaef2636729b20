"""Accumulators, and the loop over a data set that updates them.

An `Accumulator` is zeroed once, updated batch by batch, merged with others of its kind, and at last computed.
It holds sums (float64) and counts (int64) only: merging adds and never divides, so that any split of the data over
batches, processes or days gives the same result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Sized
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..anatomy.dissect import dissect
from ..anatomy.sites import Anatomy
from ..data.batches import Batch, Batches, device_of, each_batch, model_arguments, without_labels
from ..results.result import Result
from ..tap import undisturbed
from .checkpoint import Checkpoint

A = TypeVar("A", bound="Accumulator")


class Stat:
    """A sum that an accumulator keeps: its axes, by name, and its type."""

    def __init__(self, axes: str, dtype: torch.dtype) -> None:
        self.axes, self.dtype = axes.split(), dtype

    def zeros(self, anatomy: Anatomy, others: dict[str, int]) -> Tensor:
        """The sum of nothing, on the model's device, or on the CPU where the device has no float64."""
        sizes = {"layer": anatomy.layers, "head": anatomy.heads, **others}
        device = device_of(anatomy.model)
        if device.type == "mps":
            device = torch.device("cpu")
        return torch.zeros([sizes[axis] for axis in self.axes], dtype=self.dtype, device=device)


def stat(axes: str, dtype: torch.dtype = torch.float64) -> Any:
    """Declare a sum of an accumulator: `total: Tensor = stat("layer head")`. An empty string declares one number."""
    return Stat(axes, dtype)


class Accumulator(ABC):
    """A measure over a data set: declare sums with `stat`, say how a batch updates them and what comes out.

    `watch` may tap the model for the length of a batch's forward pass; `update` then sees the batch and the outputs.
    An accumulator that needs gradients says so, and one that wants the model to see the labels.
    """

    needs_gradient: ClassVar[bool] = False
    needs_labels: bool = False
    keeps_graph: bool = False
    """Whether another one takes gradients of the same outputs after this one; `accumulate` says so."""
    anatomy: Anatomy

    def zero(self: A, anatomy: Anatomy) -> A:
        """Forget everything, and get ready for a model."""
        self.anatomy = anatomy
        for name, kind in self._stats().items():
            setattr(self, name, kind.zeros(anatomy, self.sizes()))
        return self

    def sizes(self) -> dict[str, int]:
        """How long the axes of its sums are other than `layer` and `head`, by name."""
        return {}

    def settings(self) -> str:
        """What tells this measure from others of its kind: a checkpoint of another one is refused."""
        return ""

    def watch(self, batch: Batch) -> AbstractContextManager[Any]:
        """What is around the forward pass of a batch."""
        return nullcontext()

    @abstractmethod
    def update(self, batch: Batch, outputs: Any) -> None:
        """Add what a batch brought, still inside `watch`."""

    @abstractmethod
    def compute(self) -> Result:
        """Divide, and give the result."""

    def state(self) -> dict[str, Tensor]:
        """The sums, by name."""
        return {name: getattr(self, name) for name in self._stats()}

    def merge(self: A, other: dict[str, Tensor]) -> A:
        """Add the sums of another accumulator of this kind, given as its `state`."""
        for name in self._stats():
            mine = getattr(self, name)
            setattr(self, name, mine + other[name].to(mine.device))
        return self

    @classmethod
    def _stats(cls) -> dict[str, Stat]:
        return {name: kind for c in reversed(cls.__mro__) for name, kind in vars(c).items() if isinstance(kind, Stat)}


def accumulate(
    model: nn.Module,
    batches: Batches,
    *accumulators: Accumulator,
    checkpoint: str | Path | None = None,
    progress: str | None = None,
) -> tuple[Any, ...]:
    """Take several measures in one pass over the data.

    Args:
        model: any model with attention heads; measured in eval mode, and left as it was found.
        batches: one mapping of model arguments, or an iterable of them.
        accumulators: what to measure, for example `ImportanceAccumulator(), EntropyAccumulator()`.
        checkpoint: a file to which the sums are written every minute, and from which a pass that was cut off goes on,
            given the same model and data. It is removed when the pass is complete. Each process needs its own.
        progress: the title of a progress bar; no bar without it.

    Returns one result an accumulator, in their order. Under `torch.distributed`, give each process its share of the
    batches: the sums are merged over all processes, and every process returns the same results.

    Raises `DataError` for batches that cannot be used, and when a checkpoint is of another model or other data.
    """
    with torch.inference_mode(False):
        return _accumulate(model, batches, accumulators, checkpoint, progress)


def _accumulate(
    model: nn.Module,
    batches: Batches,
    accumulators: Sequence[Accumulator],
    checkpoint: str | Path | None,
    progress: str | None,
) -> tuple[Any, ...]:
    anatomy = dissect(model)
    for accumulator in accumulators:
        accumulator.zero(anatomy)
    backward = [accumulator for accumulator in accumulators if accumulator.needs_gradient]
    for accumulator in backward:
        accumulator.keeps_graph = accumulator is not backward[-1]
    saved = Checkpoint(checkpoint, model, accumulators) if checkpoint is not None else None
    gradient = any(accumulator.needs_gradient for accumulator in accumulators)
    total = len(batches) if isinstance(batches, Sized) and not isinstance(batches, Mapping) else None
    with undisturbed(model), torch.set_grad_enabled(gradient):
        for batch in tqdm(each_batch(model, batches), desc=progress, total=total, disable=progress is None):
            if saved is None or not saved.has(batch):
                _update(model, batch, accumulators)
                if saved is not None:
                    saved.keep()
    results = tuple(all_merge(accumulator).compute() for accumulator in accumulators)
    if saved is not None:
        saved.remove()
    return results


def _update(model: nn.Module, batch: dict[str, Any], accumulators: Sequence[Accumulator]) -> None:
    labelled = any(accumulator.needs_labels for accumulator in accumulators)
    with ExitStack() as watching:
        for accumulator in accumulators:
            watching.enter_context(accumulator.watch(batch))
        outputs = model(**(model_arguments(batch) if labelled else without_labels(model, batch)))
        for accumulator in accumulators:
            accumulator.update(batch, outputs)


def all_merge(accumulator: A) -> A:
    """Merge an accumulator over all processes of `torch.distributed`; alone, it stays as it is."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return accumulator
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, {name: x.cpu() for name, x in accumulator.state().items()})
    accumulator.zero(accumulator.anatomy)
    for state in states:
        accumulator.merge(state)
    return accumulator
