"""Folders of values that are written while a model runs: a file that says what they are, and files of the values.

The store of `edge_probing` and saved captures are such folders. The values may be far more than fit into memory: they
are appended to their files as they come, and mapped into memory to be read.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError, readable, writable
from ..results.complete_file import complete_file
from ..results.files import bytes_of

META = "meta.json"


class ValueFolder:
    """The files of a folder. Nothing is deleted: files that cannot be used raise a `DataError`."""

    format: ClassVar[int]
    holds: ClassVar[str]
    """What is in it, for errors: "encoded task"."""
    maker: ClassVar[str]
    """The call that makes it: "encode()"."""
    again: ClassVar[str]
    """What to do where it cannot be used: "encode the task again"."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def is_own(self, name: str) -> bool:
        """Whether this is the name of a file that such a folder has."""
        return name == META

    def is_begun(self) -> bool:
        """Whether a pass was begun here. Raises `DataError` if none can begin."""
        if os.path.exists(self.path / META):
            return True
        if os.path.isdir(self.path):
            with readable(self.path):
                others = sorted(name for name in os.listdir(self.path) if not self.is_own(name))
            if others:
                raise DataError(f"{self.path} holds other files ({others[0]}): name an empty folder, or a new one")
        elif os.path.exists(self.path) or not os.path.isdir(self.path.absolute().parent):
            raise DataError(f"wanted a folder, or the name of a new one in a folder that exists; got {self.path}")
        return False

    def about(self) -> dict[str, Any]:
        """The content of meta.json. Raises `DataError` if it is damaged or of another version."""
        try:
            found = json.loads((self.path / META).read_bytes())
            about, check = found["about"], found["check"]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataError(f"{self.path} holds no {self.holds}: wanted a folder that {self.maker} made") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self.damaged(f"{META} cannot be read ({error})") from error
        if check != check_of_values(about):
            raise self.damaged(f"{META} was changed")
        if about.get("format") != self.format:
            raise DataError(
                f"{self.path} is of format {about.get('format')}, this version reads {self.format}: {self.again}, "
                "in another folder"
            )
        return dict(about)

    def write_about(self, about: dict[str, Any]) -> None:
        """Write meta.json, without which nothing has begun."""
        about = {**about, "format": self.format}
        content = {"about": about, "check": check_of_values(about)}
        self.write(META, json.dumps(content, ensure_ascii=False).encode())

    def damaged(self, what: str) -> DataError:
        """An error that says what is wrong, and what to do."""
        return DataError(f"{self.path} is damaged: {what}. Remove the folder and {self.again}")

    def check_room(self, wanted: int) -> None:
        """Raise `DataError` if the disk has no room for so many bytes."""
        free = shutil.disk_usage(self.path).free
        if wanted > free:
            raise DataError(f"the vectors take {wanted / 1e9:.1f} GB, {self.path} has room for {free / 1e9:.1f} GB")

    def write(self, name: str, content: bytes) -> None:
        """Write a file, all or nothing."""
        with writable(self.path / name), complete_file(self.path / name) as part:
            part.write_bytes(content)

    def read(self, name: str) -> bytes:
        """The content of a file. Raises `DataError` where it cannot be read."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise self.damaged(f"{name} cannot be read ({error})") from error

    def size(self, name: str) -> int:
        """The size of a file in bytes. Raises `DataError` where there is none."""
        with suppress(OSError):
            if (self.path / name).is_file():
                return (self.path / name).stat().st_size
        raise self.damaged(f"{name} is not there, or is no file")


def check_of_values(about: Any) -> int:
    """The checksum of values for JSON."""
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


class Record(NamedTuple):
    """Where a tensor lies in a file: its first byte, its shape, its type, and the checksum of each part of it.

    The parts are those along the first axis, if there are several checksums.
    """

    start: int
    shape: tuple[int, ...]
    dtype: str
    checks: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """How many bytes the tensor takes."""
        size = getattr(torch, self.dtype).itemsize
        for many in self.shape:
            size *= many
        return int(size)

    @property
    def end(self) -> int:
        """The byte after its last one."""
        return self.start + self.bytes


class TensorFiles:
    """The files of a folder that tensors are appended to, each after the last one that is wanted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, FileIO] = {}
        self._undo = ExitStack()

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def open(self, name: str, end: int = 0) -> FileIO:
        """A file, of which only the first `end` bytes are kept when it is first opened."""
        if name not in self._files:
            path = self._path / name
            with writable(path):
                path.touch()
                # Without a buffer, whose content would be written once more when a file on a full disk is closed.
                file = self._undo.enter_context(path.open("r+b", buffering=0))
                file.truncate(end)
                file.seek(end)
            self._files[name] = file
        return self._files[name]

    def write(self, name: str, content: Any) -> None:
        """Write bytes to the end of a file. Raises `DataError` where the disk is full."""
        file = self.open(name)
        left = memoryview(content)
        with writable(self._path / name):
            while left:  # a disk that is nearly full takes a part
                left = left[file.write(left) :]

    def append(self, name: str, x: Tensor) -> Record:
        """Write a tensor to the end of a file, at a multiple of the size of its elements."""
        end, content = self.open(name).tell(), bytes_of(x)
        start = end + -end % x.element_size()
        self.write(name, b"\0" * (start - end))
        self.write(name, content.data)
        dtype = str(x.dtype).removeprefix("torch.")
        return Record(start, tuple(x.shape), dtype, (zlib.crc32(content.data),))


def mapped(path: Path, record: Record) -> Tensor:
    """A tensor in a file, mapped into memory: its values are read when they are used. Writing to it changes no file."""
    dtype = getattr(torch, record.dtype)
    if not record.bytes:
        return torch.empty(record.shape, dtype=dtype)
    storage: Any = torch.UntypedStorage.from_file(str(path), False, record.end)
    strides = torch.empty(record.shape, device="meta").stride()
    return torch.empty(0, dtype=dtype).set_(storage, record.start // dtype.itemsize, record.shape, strides)


def joined(records: Sequence[Record]) -> Record | None:
    """The record of tensors that lie one after the other, stacked; None where they do not, or differ in shape."""
    first = records[0]
    for one, after in pairwise(records):
        if after.start != one.end or after.shape != first.shape or after.dtype != first.dtype:
            return None
    checks = tuple(check for one in records for check in one.checks)
    return Record(first.start, (len(records), *first.shape), first.dtype, checks)


def is_whole(path: Path, record: Record) -> bool:
    """Whether a tensor in a file is as it was written."""
    x = mapped(path, record)
    parts = x.unbind(0) if len(record.checks) > 1 else [x]
    return all(zlib.crc32(bytes_of(part).data) == check for part, check in zip(parts, record.checks, strict=True))
