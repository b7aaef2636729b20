"""The folder of a store: its files and their layout.

meta.json      model, data, settings and sizes; written once all is known but the vectors
targets.npz    which rows belong to which target, and the labels
vectors.bin    [token, layer, hidden], row by row as the pass makes them
checks.bin     a checksum for each record's rows, written together with them: it says how far the pass has come
"""

from __future__ import annotations

import io
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, how_many, writable
from ..results.complete_file import complete_file, is_part, locked
from ..streaming.folder import META, TensorFiles, ValueFolder
from .tasks import EdgeTask

Numbers = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Layout:
    """The targets of a store, record by record in the task's order; the vectors may lie in another order.

    About 40 bytes per target, for any size of the model.
    """

    source: Numbers
    """[record]: its number in the task, which may have others without targets that are kept."""
    place: Numbers
    """[record]: its place among the records in the file of vectors."""
    tokens: Numbers
    """[record]: how many rows of vectors it has."""
    first_target: Numbers
    """[record + 1]: where its targets begin, and end."""
    spans: Numbers
    """[target, span, 2]: the first row of each span and the row after its last one, from the record's first row."""
    number: Numbers
    """[target]: its number among the targets of its record in the task."""
    first_label: Numbers
    """[target + 1]: where its labels begin, and end."""
    labels: Numbers
    """The labels of all targets, by number, target after target."""

    @cached_property
    def first_row(self) -> Numbers:
        """[record]: its first row in the file of vectors."""
        return self.row_at[self.place]

    @cached_property
    def row_at(self) -> Numbers:
        """[record + 1]: at which row the records begin, in the order of the file; the last is where the file ends."""
        counts = np.zeros(len(self.place), dtype=np.int64)
        counts[self.place] = self.tokens
        return np.concatenate([[0], np.cumsum(counts)])

    @property
    def rows(self) -> int:
        """How many rows of vectors there are."""
        return int(self.row_at[-1])

    @property
    def target_record(self) -> Numbers:
        """[target]: which record it is of."""
        return np.repeat(np.arange(len(self.source)), np.diff(self.first_target))

    @classmethod
    def joined(cls, parts: Sequence[Layout], records: Sequence[int]) -> Layout:
        """The layout of several, one after the other; `records` is the number of records in the task of each."""

        def all_of(name: str, sizes: Sequence[int]) -> Numbers:
            """One array of all parts, counted from the end of the part before."""
            shifts = np.cumsum([0, *sizes[:-1]])
            return np.concatenate([getattr(part, name) + shift for part, shift in zip(parts, shifts, strict=True)])

        def ends(name: str) -> Numbers:
            """The same of where something begins and ends: the end of one part is the begin of the next."""
            sizes = [int(getattr(part, name)[-1]) for part in parts]
            inner = np.cumsum([len(getattr(part, name)) for part in parts])[:-1]
            return np.delete(all_of(name, sizes), inner)

        none = [0] * len(parts)
        return cls(
            source=all_of("source", records),
            place=all_of("place", [len(part.place) for part in parts]),
            tokens=all_of("tokens", none).astype(np.int32),
            first_target=ends("first_target"),
            spans=all_of("spans", none).astype(np.int32),
            number=all_of("number", none).astype(np.int32),
            first_label=ends("first_label"),
            labels=all_of("labels", none).astype(np.int32),
        )

    def with_labels(self, task: EdgeTask) -> Layout:
        """The same rows, with the labels of a task that has the same words and spans."""
        first = np.cumsum([0, *(len(record.targets) for record in task.records)])
        kept = first[self.source[self.target_record]] + self.number
        ids, many = label_numbers(task)
        ends = np.cumsum(many)
        return replace(
            self,
            first_label=np.concatenate([[0], np.cumsum(many[kept])]),
            labels=ids[ranges((ends - many)[kept], ends[kept])],
        )

    def to_bytes(self) -> bytes:
        """All of it, as NumPy writes it."""
        file = io.BytesIO()
        np.savez(file, **{f.name: getattr(self, f.name) for f in fields(self)})
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Layout:
        """What `to_bytes` wrote. Raises `DataError` for anything else."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return cls(**{f.name: arrays[f.name] for f in fields(cls)})
        except Exception as error:  # any error of zipfile and NumPy
            raise DataError(f"it holds no arrays of targets ({error})") from error


def label_numbers(task: EdgeTask) -> tuple[Numbers, Numbers]:
    """The numbers of the labels, target after target, and how many labels each target has."""
    number = {label: place for place, label in enumerate(task.labels)}
    targets = [target for record in task.records for target in record.targets]
    ids: Any = (number[label] for target in targets for label in target.labels)
    return np.fromiter(ids, dtype=np.int32), np.array([len(target.labels) for target in targets], dtype=np.int64)


def ranges(starts: Numbers, ends: Numbers) -> Numbers:
    """All integers from each start to its end, range after range.

    >>> ranges(np.array([5, 1]), np.array([7, 4])).tolist()
    [5, 6, 1, 2, 3]
    """
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum()), dtype=np.int64) + np.repeat(starts - before, lengths)


TARGETS, VECTORS, CHECKS = "targets.npz", "vectors.bin", "checks.bin"
_NAMES = (META, TARGETS, VECTORS, CHECKS)


class Folder(ValueFolder):
    """The files of a store. Nothing is deleted: files that cannot be used raise a `DataError`."""

    format = 1
    holds = "encoded task"
    maker = "encode()"
    again = "encode the task again"

    def is_own(self, name: str) -> bool:
        """Whether a file is of a store, or a part that a process left that was killed."""
        return any(name in (own, f"{own}.part") or is_part(name, own) for own in _NAMES)

    def sizes_of_parts(self) -> list[int]:
        """The numbers of records of the parts that were joined here; empty if nothing has begun."""
        return [part["records"] for part in self.about().get("parts", ())] if self.is_begun() else []

    def begin(self, about: dict[str, Any], layout: Layout) -> None:
        """Write all files but the vectors. Raises `DataError` if the disk has no room for the vectors."""
        with writable(self.path):
            self.path.mkdir(exist_ok=True)
            self.check_room(layout.rows * row_bytes(about))
            (self.path / VECTORS).write_bytes(b"")
            (self.path / CHECKS).write_bytes(b"")
            self._write_about(about, layout)

    def join(self, parts: Sequence[Folder], about: dict[str, Any], layout: Layout) -> None:
        """Write the files of several folders into this one. meta.json is last: without it nothing has begun."""
        with writable(self.path), locked(self.path):
            self.path.mkdir(exist_ok=True)
            self.check_room(layout.rows * row_bytes(about))
            for name in (VECTORS, CHECKS):
                with complete_file(self.path / name) as part, open(part, "wb") as file:
                    for one in parts:
                        with open(one.path / name, "rb") as content:
                            shutil.copyfileobj(content, file)
            self._write_about(about, layout)

    def _write_about(self, about: dict[str, Any], layout: Layout) -> None:
        targets = layout.to_bytes()
        self.write(TARGETS, targets)
        self.write_about({**about, "targets_check": zlib.crc32(targets)})

    def layout(self, about: dict[str, Any]) -> Layout:
        """The layout of the targets. Raises `DataError` if the file is missing or damaged."""
        content = self.read(TARGETS)
        if zlib.crc32(content) != about["targets_check"]:
            raise self.damaged(f"{TARGETS} was changed or is incomplete")
        return Layout.from_bytes(content)

    def done(self, about: dict[str, Any], layout: Layout) -> int:
        """The number of records that have vectors. Raises `DataError` if the number of vectors does not agree."""
        done = len(self.read(CHECKS)) // 4
        if done > len(layout.place):
            raise self.damaged(f"{CHECKS} has {how_many(done, 'record')}, the task {len(layout.place)}")
        have, want = self.size(VECTORS), int(layout.row_at[done]) * row_bytes(about)
        if have < want or (done == len(layout.place) and have > want):
            raise self.damaged(f"{VECTORS} has {how_many(have, 'byte')}, wanted {want}")
        return done

    def checks(self) -> Numbers:
        """[record]: the checksums, in the order of the vectors."""
        return np.frombuffer(self.read(CHECKS), dtype="<u4")

    def vectors(self, about: dict[str, Any], rows: int) -> Numbers:
        """[token, layer, hidden]: the vectors, mapped into memory and read only.

        Each reader maps them again, because pages that were read count as memory of the process while a map exists.
        """
        shape = (rows, about["layers"], about["hidden"])
        try:
            return np.memmap(self.path / VECTORS, dtype=dtype_of(about), mode="r", shape=shape)
        except (OSError, ValueError) as error:
            raise self.damaged(f"{VECTORS} cannot be read ({error})") from error


class Appending:
    """The vectors and checksums of a folder, open for appending after the first `done` records."""

    def __init__(self, folder: Folder, done: int, size: int) -> None:
        self._files = TensorFiles(folder.path)
        # An interrupted pass may have left vectors without checksums.
        self._files.open(VECTORS, size)
        self._files.open(CHECKS, 4 * done)

    def __enter__(self) -> Appending:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.__exit__(*error)

    def add(self, vectors: Numbers, tokens: Sequence[int]) -> None:
        """Add the vectors of some records, `[token, layer, hidden]`, with the number of tokens of each record."""
        parts = np.split(vectors, np.cumsum(tokens)[:-1])
        checks = np.array([check_of(part) for part in parts], dtype="<u4")
        # In this order: a record with a checksum has its vectors.
        self._files.write(VECTORS, vectors.tobytes())
        self._files.write(CHECKS, checks.tobytes())


def check_of(vectors: Numbers) -> int:
    """The checksum of a record's vectors."""
    return zlib.crc32(np.ascontiguousarray(vectors).data)


def dtype_of(about: dict[str, Any]) -> np.dtype[Any]:
    """The type of the numbers in the file of vectors."""
    return np.dtype({"float16": "<f2", "float32": "<f4"}[about["dtype"]])


def row_bytes(about: dict[str, Any]) -> int:
    """How many bytes a token's vectors take."""
    return int(about["layers"]) * int(about["hidden"]) * dtype_of(about).itemsize
