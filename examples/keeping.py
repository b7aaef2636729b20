"""A folder of results, from which an interrupted study resumes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bertology import Result
from bertology.errors import DataError
from bertology.streaming.checkpoint import complete_file

R = TypeVar("R", bound=Result)


class Kept:
    """A folder of results: each result is written as soon as it is computed, and read when the study is run again.

    Raises `DataError` for a folder of a run with other arguments.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.out = Path(args.output_dir)
        self.out.mkdir(parents=True, exist_ok=True)
        self._settings = {name: value for name, value in vars(args).items() if name not in ("output_dir", "no_cuda")}
        self._written = self.out / "settings.json"
        if self._written.exists() and json.loads(self._written.read_text()) != self._settings:
            raise DataError(
                f"{self._written} was written with other settings: name another --output_dir, or empty this one"
            )

    def begin(self) -> None:
        """Write the arguments to the folder, once they were all checked."""
        self._written.write_text(json.dumps(self._settings, indent=1))

    def __call__(self, name: str, kind: type[R], make: Callable[[], R]) -> R:
        """Read a result from the folder, or compute and write it."""
        path = self.out / f"{name}.safetensors"
        if not path.exists():
            print(f"{name} ...", flush=True)
            made = make()
            with complete_file(path) as part:
                made.save(part)
        return kind.load(path)
