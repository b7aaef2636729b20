"""Samplers that share a data set among processes, and give some examples twice to make all shares equally long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..data.rows import length_of
from ..errors import DataError, how_many

# Where a loader keeps what it reads: `iterable` is tqdm's, `dataset` and the samplers are torch's and accelerate's.
_INSIDE = ("iterable", "sampler", "batch_sampler", "dataset")


def check_sampler(batches: Any) -> None:
    """Raise `DataError` for a loader that gives some examples to two processes, to make all shares equally long."""
    for part in _parts(batches):
        repeated = _repeated(part)
        if repeated:
            raise DataError(
                f"the {type(part).__name__} of the {type(batches).__name__} gives {repeated} to two processes, so that "
                "all have equally many, and what is counted twice changes every figure. Give each process its own "
                "share: Subset(data, range(rank, len(data), processes)), without a sampler; or shard_batches(batches) "
                "of batches that are the same in every process"
            )


def check_not_shared(batches: Any) -> None:
    """Raise `DataError` for a loader whose sampler shares the data already: what is shared twice would be lost."""
    for part in _parts(batches):
        if max(_processes_of(part), 1) > 1:
            raise DataError(
                f"shard_batches shares batches that are the same in every process, but the {type(part).__name__} of "
                f"this {type(batches).__name__} gives each process its share already: pass it to the measure itself, "
                "or a loader without it to shard_batches"
            )


def _parts(batches: Any) -> Iterator[Any]:
    """A loader and what it reads, each once."""
    waiting, seen = [batches], set()
    while waiting:
        part = waiting.pop(0)
        if part is None or id(part) in seen or isinstance(part, (list, tuple, dict)):
            continue
        seen.add(id(part))
        yield part
        waiting += [getattr(part, name, None) for name in _INSIDE]


def _processes_of(part: Any) -> int:
    """Among how many processes a sampler or a loader shares; 0 where it does not."""
    state = getattr(part, "state", None) if hasattr(part, "_drop_last") else None  # a loader that process 0 reads alone
    counts = (getattr(part, "num_replicas", 0), getattr(part, "num_processes", 0), getattr(state, "num_processes", 0))
    return next((count for count in counts if isinstance(count, int) and count), 0)


def _repeated(part: Any) -> str:
    """What a sampler gives twice, in words; empty if it gives everything once."""
    shares, inner = _processes_of(part), getattr(part, "batch_sampler", None)
    if shares < 2 or getattr(part, "drop_last", False) or getattr(part, "_drop_last", False):
        return ""
    total, data = getattr(part, "total_size", None), getattr(part, "dataset", getattr(part, "lengths", None))
    count = length_of(data)
    if isinstance(total, int) and count is not None:  # such as torch's DistributedSampler
        more = total - count
        return f"{more} of {how_many(count, 'example')}" if more > 0 else ""
    if hasattr(part, "even_batches"):  # accelerate's BatchSamplerShard
        return _of_even_batches(part, inner, shares) if part.even_batches else ""
    if hasattr(part, "_drop_last"):  # accelerate's DataLoaderDispatcher, which gives each process a part of each batch
        return _of_whole(count, shares)
    size = getattr(part, "batch_size", None)
    if isinstance(size, int):  # the IterableDatasetShard and the ShardSampler of accelerate and transformers
        return _of_whole(count, size if getattr(part, "split_batches", False) else size * shares)
    return ""


def _of_even_batches(part: Any, inner: Any, shares: int) -> str:
    batches = length_of(inner)
    if batches is None or getattr(inner, "drop_last", False):
        return ""
    size, count = getattr(inner, "batch_size", None) or 1, length_of(getattr(inner, "sampler", ())) or 0
    uneven = batches % shares and not getattr(part, "split_batches", False)
    return "some examples" if uneven or count % size else ""


def _of_whole(count: int | None, size: int) -> str:
    """What is repeated where examples are shared in groups of this size, the last of which is filled up."""
    if count is None:  # an iterable without a length
        return "the first examples, if their number cannot be divided by that of the processes,"
    more = -count % size
    return f"{more} of {how_many(count, 'example')}" if more else ""
