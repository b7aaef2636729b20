"""What two processes of torch.distributed do at once, each with its share of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from bertology import (
    EntropyAccumulator,
    accumulate,
    attention_entropy,
    fit_gates,
    head_importance,
    head_means,
    pruning_curve,
    score,
    shard_batches,
)
from bertology.code_structure import align_code, cat_scores, leaf_types, relation_heads
from bertology.errors import BertologyError
from bertology.syntax import align, dependency_heads
from helpers.code_snippets import snippets
from helpers.processes import in_group, put_found
from helpers.trees import CATS, wordpiece_tokenizer
from helpers.wrapped_models import answers, others
from helpers.zoo import BY_NAME, batch, each_alone

TEXTS = each_alone(batch((7, 4, 5, 2, 6)))


class Texts(torch.utils.data.Dataset):
    """Texts of one length, so that a DataLoader can batch them."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, place: int) -> Any:
        return {"input_ids": torch.arange(3 + place, 9 + place), "labels": torch.tensor(place % 2)}


def loader(rank: int, size: int, **options: Any) -> Any:
    sampler = DistributedSampler(Texts(), num_replicas=size, rank=rank, shuffle=False, **options)
    return DataLoader(Texts(), batch_size=2, sampler=sampler)


def model(rank: int = 0, **config: Any) -> Any:
    return BY_NAME["bert"].build(seed=rank, **config)


def trees(rank: int, size: int) -> Any:
    return align(wordpiece_tokenizer(), CATS[rank::size])


def code(rank: int, size: int) -> Any:
    return align_code(wordpiece_tokenizer(), snippets()[rank::size])


WORK = {
    "importance": lambda rank, size: head_importance(model(), TEXTS[rank::size]),
    "all texts in one process": lambda rank, size: head_importance(model(), TEXTS if rank else []),
    "means": lambda rank, size: head_means(model(), TEXTS if rank else []),
    "accuracy": lambda rank, size: score(model(), TEXTS if rank == 0 else [], metric="accuracy"),
    "curve": lambda rank, size: pruning_curve(model(), TEXTS if rank == 0 else [], metric="accuracy"),
    "gates": lambda rank, size: fit_gates(model(), TEXTS if rank else [], steps=2),
    "other gates": lambda rank, size: fit_gates(model(), TEXTS[rank::size], steps=1 + rank),
    "relations": lambda rank, size: dependency_heads(model(), trees(rank, size)),
    "types": lambda rank, size: leaf_types(model(), code(rank, size)),
    "cat": lambda rank, size: cat_scores(model(), code(rank, size), types="all"),
    "code": lambda rank, size: relation_heads(model(), code(rank, size)),
    "whole shares": lambda rank, size: head_importance(model(), loader(rank, size, drop_last=True)),
    "own shares": lambda rank, size: head_importance(model(), shard_batches(TEXTS)),
    "own shares of a generator": lambda rank, size: head_importance(model(), shard_batches(one for one in TEXTS)),
    "own shares of trees": lambda rank, size: dependency_heads(model(), shard_batches(trees(0, 1))),
    "a group": lambda rank, size: head_importance(
        model(), TEXTS[rank::size], merge=torch.distributed.new_group(list(range(size)))
    ),
    "process 0 alone": lambda rank, size: (
        None if rank else pruning_curve(model(), TEXTS, metric="accuracy", merge="none")
    ),
    "relations of each alone": lambda rank, size: dependency_heads(model(), trees(rank, size), merge="none"),
    "code of process 1 alone": lambda rank, size: cat_scores(model(), code(0, 1), merge="none") if rank else None,
    "a group without process 0": lambda rank, size: head_means(model(), TEXTS, merge=torch.distributed.new_group([1])),
    "no texts": lambda rank, size: attention_entropy(model(), []),
    "other weights": lambda rank, size: attention_entropy(model(rank), TEXTS[rank::size]),
    "other activation": lambda rank, size: attention_entropy(
        model(hidden_act="relu" if rank else "gelu"), TEXTS[rank::size]
    ),
    "other settings": lambda rank, size: attention_entropy(
        model(), TEXTS[rank::size], average="example" if rank else "query"
    ),
    "other measures": lambda rank, size: accumulate(
        model(), TEXTS[rank::size], *[EntropyAccumulator() for _ in range(1 + rank)]
    ),
    "a bad batch": lambda rank, size: attention_entropy(model(), [*TEXTS[rank::size], {"input_ids": [1]}][: 2 + rank]),
    "a sampler": lambda rank, size: head_importance(model(), loader(rank, size)),
    "not a tree": lambda rank, size: dependency_heads(model(), TEXTS if rank else trees(rank, size)),
}

# One process has an argument that cannot be used, before there is any batch: process 1 where nothing else is said.
WRONG: dict[str, Callable[[int], Any]] = {
    "no batches at all": lambda rank: attention_entropy(model(), 3 if rank else TEXTS),
    "no model": lambda rank: head_importance("bert" if rank else model(), TEXTS),
    "an option": lambda rank: attention_entropy(model(), TEXTS, average="word" if rank else "query"),
    "an argument of another name": lambda rank: score(
        model(), TEXTS, metric="accuracy", **({"layer": 1} if rank else {})
    ),
    "a merge": lambda rank: head_means(model(), TEXTS, merge="both" if rank else "all"),
    "a checkpoint in no folder": lambda rank: accumulate(
        model(), TEXTS, EntropyAccumulator(), checkpoint="/no/such/folder/file" if rank else None
    ),
    "a file that is not there": lambda rank: attention_entropy(model(), _read(rank)),
    "a loss": lambda rank: head_importance(model(), TEXTS, loss=(lambda *_: 1 / 0) if rank == 0 else None),
    "an amount": lambda rank: pruning_curve(model(), TEXTS, metric="accuracy", amount=-1 if rank else 4),
    "relations given": lambda rank: (dependency_heads if rank else head_means)(model(), trees(rank, 2)),
    "texts without a tokenizer": lambda rank: attention_entropy(model(), ["a"] if rank else TEXTS),
    "code without leaves": lambda rank: leaf_types(model(), TEXTS if rank else code(0, 1)),
}


def _read(rank: int) -> Iterator[Any]:
    yield TEXTS[rank]
    if rank:
        Path("/no/such/file").read_bytes()


def each(rank: int, size: int, folder: str, queue: Any) -> None:
    """Do all of it, and put the results and the errors into the queue."""
    with in_group(rank, size, folder, seconds=60):
        put_found(rank, queue, lambda: _found(rank, size, Path(folder)))


def _found(rank: int, size: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"wrapped": answers(rank, folder), "others": others(rank, folder)}
    for name, wrong in WRONG.items():
        try:
            found[f"wrong: {name}"] = repr(wrong(rank))
        except Exception as error:  # not of this library where the process itself made the mistake
            found[f"wrong: {name}"] = f"{type(error).__name__}: {error}"
    for name, work in WORK.items():
        try:
            # Lists, since tensors would travel through files that end with the process.
            found[name] = plain(work(rank, size))
        except BertologyError as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def plain(result: Any) -> dict[str, Any]:
    """{field: value} of a result, tensors as lists; empty without a result."""
    return (
        {}
        if result is None
        else {name: x.tolist() if isinstance(x, torch.Tensor) else x for name, x in vars(result).items()}
    )
