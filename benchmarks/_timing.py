"""What the benchmarks share: their parser of arguments, and a clock."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows the docstring of a benchmark as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def timed(run: Callable[..., T], *args: Any) -> tuple[float, T]:
    """The seconds that a call takes, and its result."""
    start = time.perf_counter()
    result = run(*args)
    return time.perf_counter() - start, result
