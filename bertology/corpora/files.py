"""Reading and writing files, and the errors for those that are missing, are folders or are no text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ..errors import DataError


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Read a file inside. Raises `DataError` for one that cannot be read."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: wanted a file, seen from the folder {Path.cwd()}") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder: wanted a file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8 ({error}): convert it, or name another file") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


@contextmanager
def writable(path: str | Path) -> Iterator[None]:
    """Write a file inside. Raises `DataError` for one that cannot be written."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error}): name a file in a folder that exists") from error


@contextmanager
def open_text(path: str | Path, *, newline: str | None = None) -> Iterator[TextIO]:
    """Open a text file in UTF-8 for reading. Raises `DataError` if it cannot be read."""
    with readable(path), open(path, encoding="utf-8", newline=newline) as file:
        yield file


def text_of(path: str | Path) -> str:
    """The content of a text file in UTF-8. Raises `DataError` if it cannot be read."""
    with open_text(path) as file:
        return file.read()
