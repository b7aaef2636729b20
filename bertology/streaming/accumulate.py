"""How does one pass over a data set update several measures?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ..anatomy.dissect import dissect
from ..data.batches import Batch, Batches, each_batch, model_arguments, without_labels
from ..tap import undisturbed
from .accumulator import A, Accumulator, MapAccumulator, read_maps
from .checkpoint import Checkpoint


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
        _watch(accumulators, batch, watching)
        outputs = model(**(model_arguments(batch) if labelled else without_labels(model, batch)))
        for accumulator in accumulators:
            accumulator.update(batch, outputs)


def _watch(accumulators: Sequence[Accumulator], batch: Batch, watching: ExitStack) -> None:
    """Open what each accumulator needs around the forward pass: one tap for all measures that read the same place."""
    readers: dict[str, list[MapAccumulator]] = {}
    for accumulator in accumulators:
        if isinstance(accumulator, MapAccumulator) and type(accumulator).watch is MapAccumulator.watch:
            readers.setdefault(accumulator.place, []).append(accumulator)
        else:
            watching.enter_context(accumulator.watch(batch))
    for measures in readers.values():
        watching.enter_context(read_maps(measures, batch))


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
