"""Reading text files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ..errors import readable


@contextmanager
def open_text(path: str | Path, *, newline: str | None = None) -> Iterator[TextIO]:
    """Open a text file in UTF-8 for reading. Raises `DataError` if it cannot be read."""
    with readable(path), open(path, encoding="utf-8", newline=newline) as file:
        yield file


def text_of(path: str | Path) -> str:
    """The content of a text file in UTF-8. Raises `DataError` if it cannot be read."""
    with open_text(path) as file:
        return file.read()
