"""Checkpoints, from which interrupted work resumes.

A `Checkpoint` serves a pass over the data and the training of probes alike: tensors in a safetensors file,
other values as JSON with them, and a digest that identifies the work.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ..errors import DataError
from ..results.files import checksum, read_tensors, write_tensors

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

    Where the file cannot be written (a full disk, a read-only folder), a warning says so, and the work goes on.
    Raises `DataError` for a path that cannot be a file.
    """

    def __init__(self, path: str | Path, digest: str, *, otherwise: str) -> None:
        self._path, self._digest, self._otherwise = Path(path), digest, otherwise
        if os.path.isdir(self._path) or not os.path.isdir(self._path.parent):
            raise DataError(f"checkpoint must be a file in a folder that exists, got {self._path}")
        self._last, self._warned = time.monotonic(), False

    def load(self, work: Resumable) -> None:
        """Resume from the file, if there is one. Raises `DataError` if it is of other work, or damaged."""
        if not os.path.exists(self._path):
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
        numbers = json.dumps(work.numbers())
        about = {"digest": self._digest, "numbers": numbers}
        try:
            write_tensors(self._path, work.tensors(), about, "content", numbers)
        except DataError as error:
            self._warn(f"{error.__cause__}. The work goes on, but resumes from what was written before, if anything")
        self._last = time.monotonic()

    def remove(self) -> None:
        """Remove the file, since the work is complete."""
        try:
            self._path.unlink(missing_ok=True)
        except (OSError, ValueError) as error:  # the second: a name that no file can have
            self._warn(f"{error}. Remove it by hand: the work is complete")

    def _warn(self, why: str) -> None:
        if not self._warned:
            warnings.warn(f"the checkpoint {self._path} cannot be written: {why}", stacklevel=2)
        self._warned = True
