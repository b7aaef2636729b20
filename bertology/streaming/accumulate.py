"""The loop over a data set that updates several measures in one pass."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Sized
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..anatomy.dissect import dissect
from ..data.batches import ANNOTATIONS, Batch, Batches, each_batch, model_arguments, without_labels
from ..errors import DataError
from ..tap import undisturbed
from ..tap.gradient_cuts import gradients_checked
from .accumulator import A, Accumulator, MapAccumulator, read_maps
from .checkpoint import Checkpoint, add_tensor


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
        checkpoint: a file to which the sums are written every minute, and from which an interrupted pass resumes, given
            the same model and data. It is removed when the pass is complete. Each process needs its own.
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
    saved = _SavedPass(checkpoint, model, accumulators) if checkpoint is not None else None
    gradient = any(accumulator.needs_gradient for accumulator in accumulators)
    check: Any = partial(gradients_checked, anatomy) if gradient else nullcontext
    total = len(batches) if isinstance(batches, Sized) and not isinstance(batches, Mapping) else None
    with undisturbed(model), torch.set_grad_enabled(gradient):
        for batch in tqdm(each_batch(model, batches), desc=progress, total=total, disable=progress is None):
            if saved is None or not saved.has(batch):
                _update(model, batch, accumulators, check)
                check = nullcontext  # the parts of a model are the same in every batch
                if saved is not None:
                    saved.keep()
    results = tuple(all_merge(accumulator).compute() for accumulator in accumulators)
    if saved is not None:
        saved.remove()
    return results


class _SavedPass:
    """A pass over the data that is written to a file: the sums, and a digest of the batches that are in them."""

    def __init__(self, path: str | Path, model: nn.Module, accumulators: Sequence[Accumulator]) -> None:
        self._path, self._accumulators = path, accumulators
        self._digest = hashlib.sha256(_describe(model, accumulators).encode())
        self._done, self._seen, self._wanted = 0, 0, ""
        self._file = Checkpoint(path, self._digest.hexdigest(), otherwise="another model or other measures")
        self._file.load(self)

    def has(self, batch: Batch) -> bool:
        """Whether this batch, the next in turn, is in the sums already."""
        for name in sorted(batch):
            if isinstance(batch[name], Tensor):
                self._digest.update(name.encode())
                add_tensor(self._digest, batch[name])
        self._digest.update(repr(batch.get(ANNOTATIONS)).encode())
        self._seen += 1
        if self._seen == self._done and self._digest.hexdigest() != self._wanted:
            raise DataError(
                f"the checkpoint {self._path} is of other data: remove it, or pass the data that it was made on"
            )
        return self._seen <= self._done

    def keep(self) -> None:
        """Write the sums to the file, unless that was done less than a minute ago."""
        self._file.keep(self)

    def remove(self) -> None:
        """Remove the file, since the pass is complete."""
        if self._seen < self._done:
            raise DataError(f"the checkpoint {self._path} holds {self._done} batches, the data has only {self._seen}")
        self._file.remove()

    def tensors(self) -> dict[str, Tensor]:
        """The sums of all accumulators."""
        return {f"{i}.{name}": x for i, a in enumerate(self._accumulators) for name, x in a.state().items()}

    def numbers(self) -> dict[str, Any]:
        """How many batches are in the sums, and their digest."""
        return {"batches": self._seen, "batches_digest": self._digest.hexdigest()}

    def resume(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Begin with the sums of the interrupted pass."""
        self._done, self._wanted = numbers["batches"], numbers["batches_digest"]
        for i, accumulator in enumerate(self._accumulators):
            accumulator.merge({name: tensors[f"{i}.{name}"] for name in accumulator.state()})


def _describe(model: nn.Module, accumulators: Sequence[Accumulator]) -> str:
    """Tell one model from another: its class, and of each parameter the name, the shape and the sum of a few values."""
    lines = [type(model).__name__, *(f"{type(a).__name__} {a.settings()}" for a in accumulators)]
    for name, parameter in model.named_parameters():
        some = parameter.detach().flatten()[:64].double().sum().item()
        lines.append(f"{name} {list(parameter.shape)} {some!r}")
    return "\n".join(lines)


def _update(model: nn.Module, batch: dict[str, Any], accumulators: Sequence[Accumulator], check: Any) -> None:
    labelled = any(accumulator.needs_labels for accumulator in accumulators)
    with ExitStack() as watching:
        _watch(accumulators, batch, watching)
        inputs = model_arguments(batch) if labelled else without_labels(model, batch)
        with check():
            outputs = model(**inputs)
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
