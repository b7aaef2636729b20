"""What four processes of torch.distributed do at once, each with its share of the data, for every measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import bertology as bt
from bertology.errors import BertologyError
from bertology.streaming.processes import gathered, sharing
from helpers.every_measure import NAMES, measure
from helpers.processes import in_group, put_found
from helpers.shares import plain
from helpers.wrapped_models import FUNCTIONS, Doubled, called, difference, given_to, names, row, values

SIZE = 4


def each_of_four(rank: int, size: int, folder: str, queue: Any) -> None:
    """Do all of it, and put the results and the errors into the queue."""
    with in_group(rank, size, folder, seconds=120):
        put_found(rank, queue, lambda: {"accumulators": accumulated(rank), "functions": functions(rank, Path(folder))})


def accumulated(rank: int) -> dict[str, Any]:
    """{measure: its fields, merged over all four, and those of two pairs that measure all of it each}."""
    pairs = [torch.distributed.new_group([0, 1]), torch.distributed.new_group([2, 3])]
    found = {}
    for name in NAMES:
        make, model, batches = measure(name)
        (every,) = bt.accumulate(model, list(bt.shard_batches(batches, (rank, SIZE))), make())
        mine = list(bt.shard_batches(batches, (rank % 2, 2)))
        (paired,) = bt.accumulate(model, mine, make(), merge=pairs[rank // 2])
        found[name] = plain(every), plain(paired)
    return found


def functions(rank: int, folder: Path) -> dict[str, str]:
    """{public function of batches: "same" as in one process, or the difference, or the error}."""
    x = Doubled(folder / f"folder {rank}")
    x.folder.mkdir()
    found = {}
    for name in of_batches(x):
        with sharing("none"):
            alone = values(called(name, given_to(x, name))) if rank == 0 else None
        wanted, *_ = gathered(alone, name)
        given = given_to(x, name)
        whole = given["batches"]
        each = [row(whole, place) for place in range(len(whole["input_ids"]))] if isinstance(whole, dict) else whole
        given["batches"] = list(bt.shard_batches(each))
        try:
            found[name] = difference(values(called(name, given)), wanted) or "same"
        except BertologyError as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def of_batches(x: Doubled) -> list[str]:
    """The public functions of a model and batches whose results are the same however the data is shared."""
    return [name for name in names(x) if "batches" in given_to(x, name) and name in FUNCTIONS]
