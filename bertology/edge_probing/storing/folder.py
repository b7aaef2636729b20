"""What lies in the folder of a store, and is it whole?

meta.json      what it is of: model, data, settings, sizes; written once all is known but the vectors
targets.npz    which rows belong to which target, and the labels
vectors.bin    [token, layer, hidden], row by row as the pass makes them
checks.bin     a checksum for each record's rows, written when they are: as long as the pass has come
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from .layout import Layout, Numbers

FORMAT = 1
META, TARGETS, VECTORS, CHECKS = "meta.json", "targets.npz", "vectors.bin", "checks.bin"
_NAMES = {META, TARGETS, VECTORS, CHECKS, f"{META}.part", f"{TARGETS}.part"}


class Folder:
    """The files of a store. Nothing is ever deleted: what cannot be used is named in a `DataError`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def is_begun(self) -> bool:
        """Whether a pass was begun here. Raises `DataError` where none can be."""
        if (self.path / META).exists():
            return True
        if self.path.is_dir():
            others = sorted({file.name for file in self.path.iterdir()} - _NAMES)
            if others:
                raise DataError(f"{self.path} holds other files ({others[0]}): name an empty folder, or a new one")
        elif self.path.exists() or not self.path.absolute().parent.is_dir():
            raise DataError(f"wanted a folder, or the name of a new one in a folder that exists; got {self.path}")
        return False

    def begin(self, about: dict[str, Any], layout: Layout) -> None:
        """Write all but the vectors. Raises `DataError` where the disk has no room for those."""
        self.path.mkdir(exist_ok=True)
        self._check_room(layout.rows * row_bytes(about))
        targets = layout.to_bytes()
        self._write(TARGETS, targets)
        (self.path / VECTORS).write_bytes(b"")
        (self.path / CHECKS).write_bytes(b"")
        about = {"format": FORMAT, **about, "targets_check": zlib.crc32(targets)}
        self._write(META, json.dumps({"about": about, "check": _check(about)}, ensure_ascii=False).encode())

    def about(self) -> dict[str, Any]:
        """What the folder says of itself. Raises `DataError` where it is damaged or of another version."""
        try:
            found = json.loads((self.path / META).read_bytes())
            about, check = found["about"], found["check"]
        except FileNotFoundError as error:
            raise DataError(f"{self.path} holds no encoded task: wanted a folder that encode() made") from error
        except (ValueError, KeyError, TypeError) as error:
            raise self.damaged(f"{META} cannot be read ({error})") from error
        if check != _check(about):
            raise self.damaged(f"{META} was changed")
        if about.get("format") != FORMAT:
            raise DataError(
                f"{self.path} is of format {about.get('format')}, this version reads {FORMAT}: encode the task anew, "
                "in another folder"
            )
        return dict(about)

    def layout(self, about: dict[str, Any]) -> Layout:
        """Where the targets' vectors are. Raises `DataError` where the file is missing or damaged."""
        content = self._read(TARGETS)
        if zlib.crc32(content) != about["targets_check"]:
            raise self.damaged(f"{TARGETS} was changed or cut off")
        return Layout.from_bytes(content)

    def done(self, about: dict[str, Any], layout: Layout) -> int:
        """How many records have their vectors. Raises `DataError` where there are fewer vectors, or more, than that."""
        done = len(self._read(CHECKS)) // 4
        if done > len(layout.place):
            raise self.damaged(f"{CHECKS} has {done} records, the task {len(layout.place)}")
        have, want = self._size(VECTORS), int(layout.row_at[done]) * row_bytes(about)
        if have < want or (done == len(layout.place) and have > want):
            raise self.damaged(f"{VECTORS} has {have} bytes, wanted {want}")
        return done

    def checks(self) -> Numbers:
        """[record]: the checksums, in the order of the vectors."""
        return np.frombuffer(self._read(CHECKS), dtype="<u4")

    def vectors(self, about: dict[str, Any], rows: int) -> Numbers:
        """[token, layer, hidden]: the vectors, mapped into memory and read only.

        Mapped anew by each reader: pages that were read count as the process's memory as long as a map lives.
        """
        shape = (rows, about["layers"], about["hidden"])
        try:
            return np.memmap(self.path / VECTORS, dtype=dtype_of(about), mode="r", shape=shape)
        except (OSError, ValueError) as error:
            raise self.damaged(f"{VECTORS} cannot be read ({error})") from error

    def damaged(self, what: str) -> DataError:
        """An error that says what is wrong, and what to do."""
        return DataError(f"{self.path} is damaged: {what}. Remove the folder and encode the task again")

    def _check_room(self, wanted: int) -> None:
        free = shutil.disk_usage(self.path).free
        if wanted > free:
            raise DataError(f"the vectors take {wanted / 1e9:.1f} GB, {self.path} has room for {free / 1e9:.1f} GB")

    def _write(self, name: str, content: bytes) -> None:
        """Write a file, all or nothing."""
        part = self.path / f"{name}.part"
        part.write_bytes(content)
        os.replace(part, self.path / name)

    def _read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise self.damaged(f"{name} cannot be read ({error})") from error

    def _size(self, name: str) -> int:
        with suppress(OSError):
            return (self.path / name).stat().st_size
        raise self.damaged(f"{name} is not there")


class Appending:
    """The vectors and checksums of a folder, open at their ends, behind `done` records and their rows."""

    def __init__(self, folder: Folder, done: int, size: int) -> None:
        self._files = [open(folder.path / name, "r+b") for name in (VECTORS, CHECKS)]  # noqa: SIM115
        # A pass that was cut off may have left vectors without their checksums.
        for file, end in zip(self._files, (size, 4 * done), strict=True):
            file.truncate(end)
            file.seek(end)

    def __enter__(self) -> Appending:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def add(self, vectors: Numbers, tokens: Sequence[int]) -> None:
        """Add the vectors of some records, `[token, layer, hidden]`, of which each has so many tokens."""
        parts = np.split(vectors, np.cumsum(tokens)[:-1])
        content, checks = (vectors.tobytes(), np.array([check_of(part) for part in parts], dtype="<u4").tobytes())
        # In this order: a record whose checksum is there has its vectors.
        for file, data in zip(self._files, (content, checks), strict=True):
            file.write(data)
            file.flush()


def check_of(vectors: Numbers) -> int:
    """The checksum of a record's vectors."""
    return zlib.crc32(np.ascontiguousarray(vectors).data)


def dtype_of(about: dict[str, Any]) -> np.dtype[Any]:
    """The type of the numbers in the file of vectors."""
    return np.dtype({"float16": "<f2", "float32": "<f4"}[about["dtype"]])


def row_bytes(about: dict[str, Any]) -> int:
    """How many bytes a token's vectors take."""
    return int(about["layers"]) * int(about["hidden"]) * dtype_of(about).itemsize


def _check(about: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())
