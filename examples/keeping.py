"""How studies start, and a folder of results from which an interrupted study resumes."""

from __future__ import annotations

import argparse
import atexit
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoModel, AutoTokenizer

from bertology import Result
from bertology.errors import BertologyError, DataError, need
from bertology.results.complete_file import locked, write_text

R = TypeVar("R", bound=Result)


class Kept:
    """A folder of results: each result is written as soon as it is computed, and read when the study is run again.

    No other run writes to the folder until this process has ended. Raises `DataError` for a folder that another run
    writes to, or that is of a run with other arguments.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.out = Path(args.output_dir)
        self.out.mkdir(parents=True, exist_ok=True)
        with ExitStack() as alone:
            alone.enter_context(locked(self.out))
            others = ("output_dir", "no_cuda", "beside")  # they do not change what is computed
            self._settings = {name: value for name, value in vars(args).items() if name not in others}
            self._written = self.out / "settings.json"
            if self._written.exists() and self._read() != self._settings:
                raise DataError(
                    f"{self._written} was written with other settings: name another --output_dir, or empty this one"
                )
            atexit.register(alone.pop_all().close)

    def begin(self) -> None:
        """Write the arguments to the folder, once they were all checked."""
        write_text(self._written, json.dumps(self._settings, indent=1))

    def _read(self) -> Any:
        try:
            return json.loads(self._written.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self._written} cannot be read ({error}): remove it, or name another --output_dir"
            ) from error

    def __call__(self, name: str, kind: type[R], make: Callable[[], R]) -> R:
        """Read a result from the folder, or compute and write it."""
        path = self.out / f"{name}.safetensors"
        if not path.exists():
            print(f"{name} ...", flush=True)
            made = make()
            made.save(path)
        return kind.load(path)


class BaseStudy:
    """What every study starts with: its arguments, the folder of its results, and the device of its models.

    `extras` are the packages that the study needs, each with the extra of bertology that installs it.
    """

    def __init__(self, args: argparse.Namespace, extras: dict[str, str]) -> None:
        for module, extra in extras.items():
            need(module, extra=extra)
        self.args, self.kept = args, Kept(args)
        self.device = "cuda" if torch.cuda.is_available() and not args.no_cuda else "cpu"

    def load(self, path: str) -> tuple[Any, Any]:
        """A tokenizer, and its model without a task head."""
        return AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).to(self.device).eval()


@contextmanager
def errors_in_a_line() -> Iterator[None]:
    """End the script with the message of an error that the user can do something about, without a traceback."""
    try:
        yield
    except (BertologyError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
