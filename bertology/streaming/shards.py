"""Files of sums: several machines measure a part of the data each, and their sums are added up later.

A part is called a shard. `accumulate(..., shard=(0, 8), save=folder)` measures the first of eight and writes its sums,
some kilobytes, to a file of that folder; `merge_shards(folder)` adds the files up when all are there. Any program that
runs Python on several machines can do it: a job array, Ray, Dask, or a loop in a shell.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.sites import Anatomy, Site
from ..data.batch_checks import Batch, check_inputs
from ..data.batches import Batches
from ..errors import DataError, checked, how_many, is_whole, readable, writable
from ..results.complete_file import try_to_write
from ..results.fields import model_name
from ..results.files import checksum, read_tensors, write_tensors
from ..results.result import with_measured
from ..tap.private_api import library_versions
from .accumulator import Accumulator, Names, states_of
from .identity import add_batch, edits_identity, identity, model_identity
from .named_axes import merge_by_name, without_names
from .processes import process, processes
from .samplers import check_not_shared

Shard = tuple[int, int]
"""Which part of the data, from 0, and of how many: (0, 8) is the first of eight."""
CPU = torch.device("cpu")
PATTERN = "*-of-*.safetensors"
# What must be the same in all files, and the words for it.
SAME = {
    "versions": "versions of torch and transformers",
    "model": "model",
    "edits": "edits, such as gates,",
    "anatomy": "heads, such as the pruned ones,",
    "parts": "MLPs or blocks, such as pruned neurons,",
    "measures": "measures, settings or code (such as that of another version of bertology)",
}

TOLD = {"shard", "name", "names", "examples", "data", "versions", "model", "anatomy", "measures"}
"""What each file says of its sums."""


@checked
def shard_batches(batches: Iterable[Any], shard: Shard | None = None) -> Iterable[Any]:
    """Every n-th batch, so that n processes or machines share all batches, and none comes twice.

    Args:
        batches: all batches, in the same order everywhere; an iterator is read through, and can be read once.
        shard: (k, n), the k-th of n shares, from 0. By default the share of this process under `torch.distributed`.

        >>> [list(shard_batches(range(5), (k, 2))) for k in (0, 1)]
        [[0, 2, 4], [1, 3]]
    """
    shard = (process(), processes()) if shard is None else shard
    check_shard(shard)
    if isinstance(batches, Mapping):
        raise DataError("one batch cannot be shared: pass a list of batches, or a DataLoader")
    check_not_shared(batches)
    return islice(batches, shard[0], None, shard[1]) if isinstance(batches, Iterator) else _Share(batches, shard)


class _Share:
    """Every n-th batch of an iterable that can be read again."""

    def __init__(self, batches: Iterable[Any], shard: Shard) -> None:
        self._batches, self._shard = batches, shard
        # The first share counts what the batches of `align` leave out, so that all together count it once.
        self.skipped = getattr(batches, "skipped", ()) if shard[0] == 0 else ()

    def __iter__(self) -> Iterator[Any]:
        return islice(self._batches, self._shard[0], None, self._shard[1])

    def __len__(self) -> int:
        if not isinstance(self._batches, Sized):
            raise TypeError(f"a {type(self._batches).__name__} has no length")
        return len(range(self._shard[0], len(self._batches), self._shard[1]))


def check_shard(shard: Any) -> None:
    """Raise `DataError` for what is no pair of a number and a larger number of shards."""
    if not (isinstance(shard, (tuple, list)) and len(shard) == 2 and all(map(is_whole, shard))):
        raise DataError(f"shard must be a pair of whole numbers such as (0, 8), the first of eight, got {shard!r}")
    if not 0 <= shard[0] < shard[1]:
        raise DataError(f"shard=(k, n) is number k, from 0 to n - 1, of n shards; got {tuple(shard)}")


class DigestedBatches:
    """Batches, and a digest of those that were read, in their order; they are read once."""

    def __init__(self, batches: Batches) -> None:
        self._batches, self._digest = batches, hashlib.sha256()

    @property
    def digest(self) -> str:
        """The digest of what was read up to now."""
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[Batch]:
        for batch in [self._batches] if isinstance(self._batches, Mapping) else self._batches:
            check_inputs(batch)
            add_batch(self._digest, batch)
            yield batch


class Sums(NamedTuple):
    """What a file holds."""

    path: Path
    about: dict[str, Any]
    tensors: dict[str, Tensor]

    def of(self, number: int) -> tuple[Names, dict[str, Tensor]]:
        """The names along axes that come from the data, and the sums, of one measure."""
        prefix, names = f"{number}.", self.about["names"][number]
        sums = {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}
        return {axis: tuple(some) for axis, some in names.items()}, sums


class ShardFile:
    """The file of one shard. Raises `DataError` for a folder that cannot be, and a file of other work."""

    def __init__(
        self,
        folder: str | Path | None,
        shard: Shard | None,
        model: nn.Module,
        accumulators: Sequence[Accumulator],
    ) -> None:
        if folder is None or shard is None:
            raise DataError("shard=(k, n) and save=folder belong together: which part of the data this is, and where")
        check_shard(shard)
        with writable(folder):
            Path(folder).mkdir(parents=True, exist_ok=True)
        try_to_write(Path(folder))
        self.path = Path(folder) / f"{shard[0]:05d}-of-{shard[1]:05d}.safetensors"
        self._about = {"shard": list(shard), "name": model_name(model), **_work(model, dissect(model), accumulators)}

    def read(self) -> Sums | None:
        """What the file holds, if it is there already. Raises `DataError` if it is of other work, or damaged."""
        if not os.path.exists(self.path):
            return None
        sums = _read(self.path)
        _check_same(sums, self._about, "this run")
        return sums

    def write(self, accumulators: Sequence[Accumulator], examples: int, data: str) -> None:
        """Write the sums, all or nothing."""
        names = [one.names() for one in accumulators]
        about = json.dumps({**self._about, "names": names, "examples": examples, "data": data}, sort_keys=True)
        write_tensors(self.path, states_of(accumulators), {"sums": about}, "content", about)


@checked
def merge_shards(folder: str | Path, *accumulators: Accumulator, model: nn.Module | None = None) -> tuple[Any, ...]:
    """Add up the sums of all shards in a folder: the results over all of the data.

    Args:
        folder: where `accumulate(..., shard=(k, n), save=folder)` wrote its files, on any machines, in any order.
        accumulators: those that were passed to `accumulate`. They may be left out where they were made from numbers,
            strings and lists of them; a measure with a function of yours is needed again.
        model: the model that was measured, to make sure that it is the same; it is not needed.

    Returns one result an accumulator, in their order: those of one pass over all data, up to rounding, and the same to
    the last bit in whatever order the shards were finished.

    Raises `DataError` for a shard that is missing, damaged or of another model, other measures or other versions, and
    where two shards hold the same data.

        >>> import tempfile, torch
        >>> from transformers import BertConfig, BertModel
        >>> from bertology import EntropyAccumulator, accumulate
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> batches = [{"input_ids": torch.tensor([[5, 6, 7]])}, {"input_ids": torch.tensor([[8, 9]])}]
        >>> folder = tempfile.mkdtemp()
        >>> for k in range(2):
        ...     _ = accumulate(model, batches[k], EntropyAccumulator(), shard=(k, 2), save=folder)
        >>> merge_shards(folder)[0].queries.tolist()
        [5, 5]
    """
    with readable(folder):
        paths = sorted(Path(folder).glob(PATTERN))
    if not paths:
        raise DataError(f"no shards in {folder}: wanted files such as 00000-of-00008.safetensors")
    shards = [_read(path) for path in paths]
    _check_complete(shards)
    first = shards[0].about
    for sums in shards[1:]:
        _check_same(sums, first, paths[0].name)
    measures = accumulators or tuple(map(_made, first["measures"]))
    anatomy = _anatomy(first["anatomy"]) if model is None else dissect(model)
    own = _measures(measures) if model is None else _work(model, anatomy, measures)
    own.pop("edits", None)  # those that were open while shards were measured are compared among shards
    _check_same(shards[0], own, "the model and the accumulators that were passed")
    for number, accumulator in enumerate(measures):
        there = first.get("parts", {}).get(str(number))
        part = accumulator.part_of(anatomy) if model is not None or there is None else _anatomy(there)
        merge_by_name(accumulator, [sums.of(number) for sums in shards], partial(accumulator.forget, part, CPU))
    examples = sum(sums.about["examples"] for sums in shards)
    return tuple(with_measured(one.compute(), first["name"], examples) for one in measures)


def _work(model: nn.Module, anatomy: Anatomy, accumulators: Sequence[Accumulator]) -> dict[str, Any]:
    """What identifies the work: files of sums are merged only where it is the same."""
    return {
        "versions": list(library_versions()),
        "model": model_identity(model, "shard", edits=False),
        "edits": edits_identity(model),
        "anatomy": [_plain(site) for site in anatomy.sites],
        "parts": {
            str(number): [_plain(site) for site in part.sites]
            for number, one in enumerate(accumulators)
            if (part := one.part_of(anatomy)) is not anatomy
        },
        **_measures(accumulators),
    }


def _measures(accumulators: Sequence[Accumulator]) -> dict[str, Any]:
    """Each measure: its class, its settings and code, and its arguments if JSON can hold them."""
    return {
        "measures": [
            {
                "class": _class_name(type(one)),
                "settings": identity(without_names(one).described()),
                "arguments": [list(one._given[0]), one._given[1]] if _is_plain(one._given) else None,
            }
            for one in accumulators
        ]
    }


def _class_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_plain(value: Any) -> bool:
    """Whether JSON holds a value as it is, but for tuples, which come back as lists."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(x) for key, x in value.items())
    return value is None or type(value) in (bool, int, float, str)


def _made(measure: Mapping[str, Any]) -> Accumulator:
    """The accumulator that a file names."""
    waiting: list[Any] = [Accumulator]
    while waiting:
        kind = waiting.pop()
        if _class_name(kind) == measure["class"] and measure["arguments"] is not None:
            args, kwargs = measure["arguments"]
            made: Accumulator = kind(*args, **kwargs)
            return made
        waiting += kind.__subclasses__()
    name = measure["class"].rpartition(".")[2]
    raise DataError(
        f"the shards are of {name} with arguments that a file cannot hold, or of a module that was not imported: pass "
        f"the accumulators, merge_shards(folder, {name}(...))"
    )


_PARTS = {"attention", "query", "key", "value", "place", "projection", "record"}


def _plain(site: Site) -> dict[str, Any]:
    """A site without its modules."""
    values = {field.name: getattr(site, field.name) for field in fields(site) if field.name not in _PARTS}
    return {name: list(x) if isinstance(x, tuple) else x for name, x in values.items()}


def _anatomy(sites: Iterable[Mapping[str, Any]]) -> Anatomy:
    """An anatomy of no model: where the heads were, which is all that results say of it."""
    nothing = nn.Module()
    parts: dict[str, Any] = dict.fromkeys(_PARTS, nothing)
    made = [Site(**{**one, "kept": tuple(one["kept"])}, **parts) for one in sites]
    return Anatomy(nothing, tuple(made), ())


def _read(path: Path) -> Sums:
    """What a file holds. Raises `DataError` where it is damaged, or no file of sums."""
    try:
        said, tensors = read_tensors(path)
    except Exception as error:  # safetensors raises errors of its own
        raise DataError(f"{path} is no file of sums, or is damaged ({error}): measure this shard again") from error
    text = said.get("sums", "")
    if said.get("content") != checksum(tensors, text):
        raise DataError(f"{path} is damaged: it does not hold what was written. Remove it, and measure it again")
    about: dict[str, Any] = json.loads(text)
    if not isinstance(about, dict) or not about.keys() >= TOLD or not _is_shard(about["shard"]):
        raise DataError(f"{path} does not say what it holds the sums of: measure this shard again")
    return Sums(path, about, tensors)


def _is_shard(shard: Any) -> bool:
    return isinstance(shard, list) and len(shard) == 2 and all(map(is_whole, shard)) and 0 <= shard[0] < shard[1]


def _check_complete(shards: Sequence[Sums]) -> None:
    """Raise `DataError` unless each of all shards is there once, and no two hold the same data."""
    counts = sorted({sums.about["shard"][1] for sums in shards})
    if len(counts) > 1:
        raise DataError(
            f"the folder holds shards of {' and of '.join(map(str, counts))}: they are of several runs. Merge each in "
            "a folder of its own"
        )
    there = {sums.about["shard"][0]: sums.path for sums in shards}
    missing = [number for number in range(counts[0]) if number not in there]
    if missing:
        first = ", ".join(map(str, missing[:5])) + ", ..." * (len(missing) > 5)
        raise DataError(
            f"{len(missing)} of {how_many(counts[0], 'shard')} are missing: {first}. Measure them, or wait until they "
            "are there"
        )
    seen: dict[str, Path] = {}
    for sums in shards:
        if sums.about["examples"] and sums.about["data"] in seen:
            raise DataError(
                f"{seen[sums.about['data']].name} and {sums.path.name} hold the same data, which would count twice: "
                "give each shard a part of its own, such as shard_batches(batches, (k, n))"
            )
        seen[sums.about["data"]] = sums.path


def _check_same(sums: Sums, other: Mapping[str, Any], whose: str) -> None:
    """Raise `DataError` for a file whose work is not that of another."""
    for name, words in SAME.items():
        if name in other and _compared(name, sums.about) != _compared(name, other):
            raise DataError(f"{sums.path} has other {words} than {whose}: their sums do not belong together")


def _compared(name: str, about: Mapping[str, Any]) -> Any:
    """What is compared: of measures not the arguments, which may hold names from the data, but what they amount to."""
    if name == "measures":
        return [(one["class"], one["settings"]) for one in about[name]]
    return about.get(name) or {}
