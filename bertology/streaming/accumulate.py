"""The loop over a data set that updates several measures in one pass."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.modules import all_weights
from ..anatomy.sites import Anatomy
from ..data.batches import Batch, Batches, BatchesOrTexts, ReadBatch, device_of, each_batch, examples, run_model
from ..data.make_batches import as_batches
from ..data.rows import length_of
from ..errors import DataError, checked, how_many
from ..results.complete_file import locked
from ..results.fields import model_name
from ..results.result import with_measured
from ..tap import uncached, undisturbed
from ..tap.gradient_cuts import lost_gradients
from .accumulator import A, Accumulator, states_of
from .checkpoint import Checkpoint
from .first_example import check_padding
from .identity import add_batch, model_identity
from .loss_gradients import update_all
from .map_accumulator import MapAccumulator, read_maps
from .named_axes import merge_by_name
from .processes import Merge, check_counts, check_same_work, gathered, merges, processes
from .progress import Progress, progress_bar
from .samplers import check_sampler
from .shards import DigestedBatches, Shard, ShardFile


@merges
@checked
def accumulate(
    model: nn.Module,
    batches: BatchesOrTexts,
    *accumulators: Accumulator,
    tokenizer: Any = None,
    checkpoint: str | Path | None = None,
    shard: Shard | None = None,
    save: str | Path | None = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> tuple[Any, ...]:
    """Take several measures in one pass over the data.

    Args:
        model: any model with attention heads; measured in eval mode, and left as it was found.
        batches: one mapping of model arguments, or an iterable of them; or texts (see `make_batches`).
        accumulators: what to measure, for example `ImportanceAccumulator(), EntropyAccumulator()`.
        tokenizer: needed for texts: the model's. It makes batches of texts of similar length, unless a measure has
            values for each example.
        checkpoint: a file to which the sums are written every minute, and from which an interrupted pass resumes, given
            the same model and data. It is removed when the pass is complete. Each process needs its own. If it cannot
            be written, such as to a full disk, a warning says so, and the pass goes on.
        shard: (k, n): these batches are part k, from 0, of n parts of the data; other jobs measure the other parts.
        save: the folder in which such a shard's sums are written to a file, for `merge_shards`. A shard that is there
            already is not measured again. Processes do not merge their sums then.
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Returns one result for each accumulator, in their order; with `save`, that of this shard, and () for a shard without
    a batch. Under `torch.distributed`, give each process its share of the batches: the sums are merged over all
    processes, and every process returns the same results. A process may have no batches. An error in one of them is
    raised in all.

    Raises `DataError` for batches that cannot be used, when a checkpoint is of another model or other data, and when
    processes measure with other models or settings than others. With `merge="none"` one process may measure alone,
    such as in `if rank == 0:`; any other call waits for the others.
    """
    check_accumulators(accumulators)
    by_example = any(accumulator.by_example for accumulator in accumulators)
    made = partial(as_batches, model, batches, tokenizer, sort=not by_example)
    take = partial(_take, checkpoint=checkpoint, progress=progress)
    with torch.inference_mode(False), locked(checkpoint):
        if save is not None or shard is not None:
            file = ShardFile(save, shard, model, accumulators)
            return _of_shard(model, made(), accumulators, file, take)
        seen, measured, saved = take(model, made(), accumulators, may_be_empty=processes() > 1)
        if processes() > 1:
            check_same_work(model, accumulators)
            check_counts(seen, batches)
            measured = sum(gathered(measured, "number of examples"))
        results = tuple(all_merge(accumulator).compute() for accumulator in accumulators)
        if saved is not None:
            saved.remove()
    return tuple(with_measured(result, model_name(model), measured) for result in results)


def _of_shard(
    model: nn.Module,
    batches: Batches,
    accumulators: Sequence[Accumulator],
    file: ShardFile,
    take: Callable[..., tuple[int, int, _SavedPass | None]],
) -> tuple[Any, ...]:
    """Measure a shard and write its sums, or read what was measured of it before."""
    check_sampler(batches)
    data, there = DigestedBatches(batches), file.read()
    if there is None:
        _, many, saved = take(model, data, accumulators, may_be_empty=True)
        file.write(accumulators, many, data.digest)
        if saved is not None:
            saved.remove()
    else:
        many = sum(map(examples, data))
        if data.digest != there.about["data"]:
            raise DataError(f"{there.path} is there already, of other data: name another folder, or remove it")
        for number, accumulator in enumerate(accumulators):
            empty = accumulator.zero(dissect(model)).state()
            parts = [(accumulator.names(), empty), there.of(number)]
            merge_by_name(accumulator, parts, partial(accumulator.zero, accumulator.anatomy))
    results = [accumulator.compute() for accumulator in accumulators] if many else []
    return tuple(with_measured(result, model_name(model), many) for result in results)


def check_accumulators(accumulators: Sequence[Accumulator]) -> None:
    """Raise `DataError` unless these are accumulators, each of them once."""
    for number, accumulator in enumerate(accumulators):
        if not isinstance(accumulator, Accumulator):
            hint = f": call it, {accumulator.__name__}()" if isinstance(accumulator, type) else ""
            raise DataError(f"accumulate takes accumulators, got {accumulator!r}{hint}")
        if any(accumulator is other for other in accumulators[:number]):
            raise DataError(
                f"one {type(accumulator).__name__} is passed twice, which would count every batch twice: pass each "
                "accumulator once, or another one of its kind"
            )


def _take(
    model: nn.Module,
    batches: Batches,
    accumulators: Sequence[Accumulator],
    checkpoint: str | Path | None,
    progress: Progress,
    *,
    may_be_empty: bool,
) -> tuple[int, int, _SavedPass | None]:
    """Update the accumulators with all batches of this process: how many items and examples, and what was saved."""
    check_sampler(batches)
    anatomy = dissect(model)
    for accumulator in accumulators:
        accumulator.zero(anatomy)
    if any(accumulator.needs_finite_weights for accumulator in accumulators):
        _check_weights(anatomy)
    backward = [accumulator for accumulator in accumulators if accumulator.needs_gradient]
    for accumulator in backward:
        accumulator.keeps_graph = accumulator is not backward[-1]
    saved = _SavedPass(checkpoint, model, accumulators) if checkpoint is not None else None
    total = None if isinstance(batches, Mapping) else length_of(batches)
    whole = getattr(batches, "batch_size", 1) is None  # a DataLoader over a data set of batches
    follow, seen, measured, padding_checked = bool(backward), 0, 0, False
    # A pass with gradients has no use for a cache, which may be filled without them.
    cache: Any = uncached(model) if backward else nullcontext()
    with undisturbed(model, anatomy.modules), cache, torch.set_grad_enabled(bool(backward)):
        # A process among several may have no batches: its sums stay 0.
        device = device_of(model, anatomy.modules)
        each = each_batch(model, batches, device=device, may_be_empty=may_be_empty)
        for batch in progress_bar(progress, each, total=total):
            many = examples(batch)
            measured, seen = measured + many, seen + (1 if whole else many)
            if saved is None or not saved.has(batch):
                padding_checked = padding_checked or check_padding(anatomy, batch)
                _update(anatomy, batch, accumulators, follow=follow)
                follow = False  # the parts of a model are the same in every batch
                if saved is not None:
                    saved.keep()
    if saved is not None:
        saved.check_complete()
    return seen, measured, saved


def _check_weights(anatomy: Anatomy) -> None:
    """Raise `DataError` for NaN in the weights of queries and keys."""
    parts = dict.fromkeys(part for site in anatomy.sites for part in (site.query, site.key))
    sums: dict[Any, list[Tensor]] = {}
    with torch.no_grad():
        for weights in (x for part in parts for x in all_weights(part)):
            if weights.is_floating_point() and not weights.is_meta:
                sums.setdefault((weights.device, weights.dtype), []).append(weights.sum())
    # One question for all of them: each would wait for a GPU. A sum of infinite weights may be NaN as well.
    if not any(math.isnan(torch.stack(each).sum()) for each in sums.values()):
        return
    for site in anatomy.sites:
        for part in {site.query, site.key}:
            name = next((name for name, weights in part.named_parameters() if _holds_nan(weights)), None)
            if name is not None:
                raise DataError(f"{name} of the {type(part).__name__} of {site.label} holds NaN: load the model again")


def _holds_nan(weights: Tensor) -> bool:
    return weights.is_floating_point() and not weights.is_meta and bool(weights.detach().isnan().any())


class _SavedPass:
    """A pass over the data that is written to a file: the sums, and a digest of the batches that are in them."""

    def __init__(self, path: str | Path, model: nn.Module, accumulators: Sequence[Accumulator]) -> None:
        self._path, self._accumulators = path, accumulators
        self._digest = hashlib.sha256(_describe(model, accumulators).encode())
        self._done, self._seen, self._wanted = 0, 0, ""
        otherwise = "another model or other measures, or was written by another version of bertology"
        self._file = Checkpoint(path, self._digest.hexdigest(), otherwise=otherwise)
        self._file.load(self)

    def has(self, batch: Batch) -> bool:
        """Whether this batch, the next in turn, is in the sums already."""
        add_batch(self._digest, batch)
        self._seen += 1
        if self._seen == self._done and self._digest.hexdigest() != self._wanted:
            raise DataError(
                f"the checkpoint {self._path} is of other data: remove it, or pass the data that it was made on"
            )
        return self._seen <= self._done

    def keep(self) -> None:
        """Write the sums to the file, unless that was done less than a minute ago."""
        self._file.keep(self)

    def check_complete(self) -> None:
        """Raise `DataError` if the data has fewer batches than the sums."""
        if self._seen < self._done:
            raise DataError(
                f"the checkpoint {self._path} holds {how_many(self._done, 'batch')}, the data has only {self._seen}"
            )

    def remove(self) -> None:
        """Remove the file, since the pass is complete."""
        self._file.remove()

    def tensors(self) -> dict[str, Tensor]:
        """The sums of all accumulators."""
        return states_of(self._accumulators)

    def numbers(self) -> dict[str, Any]:
        """How many batches are in the sums, and their digest."""
        return {"batches": self._seen, "batches_digest": self._digest.hexdigest()}

    def resume(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Begin with the sums of the interrupted pass."""
        self._done, self._wanted = numbers["batches"], numbers["batches_digest"]
        for i, accumulator in enumerate(self._accumulators):
            accumulator.merge({name: tensors[f"{i}.{name}"] for name in accumulator.state()})


def _describe(model: nn.Module, accumulators: Sequence[Accumulator]) -> str:
    """Tell one pass from another: by the model's class, settings and weights, and by the code and settings of measures.

    Raises `DataError` for weights and functions that cannot be identified.
    """
    return "\n".join([*model_identity(model, "checkpoint"), *(one.described() for one in accumulators)])


def _update(anatomy: Anatomy, batch: dict[str, Any], accumulators: Sequence[Accumulator], *, follow: bool) -> None:
    """Run a batch and update the accumulators with it; `follow` says whether to see that gradients reach the heads."""
    model = anatomy.model
    labelled = any(accumulator.needs_labels for accumulator in accumulators)
    for accumulator in accumulators:
        accumulator.check_batch(batch)
    noted = ReadBatch(batch)
    with ExitStack() as watching:
        _watch(accumulators, batch, watching)
        with lost_gradients(anatomy, batch) if follow else nullcontext() as lost:
            outputs = run_model(model, batch, labels=labelled)
        update_all(accumulators, noted, outputs)
    for accumulator in accumulators:
        if lost and accumulator.needs_gradient:
            accumulator.check_gradient(batch, lost[0], labelled=labelled)
    if labelled:
        noted.check(model)


def _watch(accumulators: Sequence[Accumulator], batch: Batch, watching: ExitStack) -> None:
    """Open what each accumulator needs around the forward pass: one tap for all measures that read the same place."""
    readers: dict[str, list[MapAccumulator]] = {}
    for accumulator in accumulators:
        if isinstance(accumulator, MapAccumulator) and type(accumulator).watch is MapAccumulator.watch:
            readers.setdefault(accumulator.tapped, []).append(accumulator)
        else:
            watching.enter_context(accumulator.watch(batch))
    if "attention" in readers and "statistics" in readers:
        # Where maps are read anyway, statistics are computed from them.
        readers["attention"] += readers.pop("statistics")
    for measures in readers.values():
        watching.enter_context(read_maps(measures, batch))


def all_merge(accumulator: A) -> A:
    """Merge an accumulator over all processes of `torch.distributed`; alone, it stays as it is."""
    if processes() == 1:
        return accumulator
    sums = accumulator.names(), {name: x.cpu() for name, x in accumulator.state().items()}
    parts = gathered(sums, f"sums of {type(accumulator).__name__}")
    merge_by_name(accumulator, parts, partial(accumulator.zero, accumulator.anatomy))
    return accumulator
