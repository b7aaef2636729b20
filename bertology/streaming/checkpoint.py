"""Checkpoints, from which interrupted work resumes.

A `Checkpoint` serves a pass over the data and the training of probes alike: tensors in a safetensors file,
other values as JSON with them, and a digest that identifies the work.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from safetensors.torch import save_file
from torch import Tensor

from ..errors import DataError
from ..results.files import checksum, read_tensors

EVERY_SECONDS = 60.0


class Resumable(Protocol):
    """Work that can be interrupted."""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that it needs to resume."""

    def numbers(self) -> dict[str, Any]:
        """All other values that it needs, which JSON can hold."""

    def resume(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Resume the work where it was interrupted."""


class Checkpoint:
    """A file from which interrupted work resumes.

    Args:
        path: the file, in a folder that exists.
        digest: tells this work from other work.
        otherwise: words for the error: what the file belongs to if its digest differs.

    Raises `DataError` for a path that cannot be a file.
    """

    def __init__(self, path: str | Path, digest: str, *, otherwise: str) -> None:
        self._path, self._digest, self._otherwise = Path(path), digest, otherwise
        if self._path.is_dir() or not self._path.parent.is_dir():
            raise DataError(f"checkpoint must be a file in a folder that exists, got {self._path}")
        self._last = time.monotonic()

    def load(self, work: Resumable) -> None:
        """Resume from the file, if there is one. Raises `DataError` if it is of other work, or damaged."""
        if not self._path.exists():
            return
        try:
            about, tensors = read_tensors(self._path)
        except Exception as error:  # safetensors raises errors of its own
            raise self._unusable(f"cannot be read ({error})") from error
        if about.get("digest") != self._digest:
            raise self._unusable(f"is of {self._otherwise}")
        if about.get("content") != checksum(tensors, about.get("numbers", "")):
            raise self._unusable("is damaged: it does not hold what was written")
        try:
            work.resume(tensors, json.loads(about["numbers"]))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise self._unusable(f"does not fit ({type(error).__name__}: {error})") from error

    def _unusable(self, why: str) -> DataError:
        return DataError(f"the checkpoint {self._path} {why}: remove it or name another")

    def keep(self, work: Resumable) -> None:
        """Write the work to the file, unless that was done less than a minute ago."""
        if time.monotonic() - self._last >= EVERY_SECONDS:
            self.write(work)

    def write(self, work: Resumable) -> None:
        """Write the work to the file, all or nothing."""
        tensors = {name: x.detach().cpu().contiguous().clone() for name, x in work.tensors().items()}
        numbers = json.dumps(work.numbers())
        with complete_file(self._path) as part:
            about = {"digest": self._digest, "numbers": numbers, "content": checksum(tensors, numbers)}
            save_file(tensors, str(part), metadata=about)
        self._last = time.monotonic()

    def remove(self) -> None:
        """Remove the file, since the work is complete."""
        self._path.unlink(missing_ok=True)


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Give the path of a file to write, which replaces `path` once it is complete: there is never half a file.

    The file has a name of its own, so that two processes that write the same do not meet, and is removed on an error.
    """
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
