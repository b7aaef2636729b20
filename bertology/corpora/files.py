"""Text files as they are found: encodings, compression, columns."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO, cast

from ..errors import DataError, readable

_GZIP = b"\x1f\x8b"
# UTF-32 before UTF-16: the mark of the one begins with that of the other.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@contextmanager
def open_text(path: str | Path, *, newline: str | None = None) -> Iterator[TextIO]:
    """Open a text file for reading: UTF-8, or the encoding that a byte order mark names, compressed by gzip or not.

    The byte order mark is no part of the text. Lines end in "\\n" whatever they end in in the file, unless `newline`
    says otherwise, as in Python's `open`. Raises `DataError`, which names the file, if it cannot be read.
    """
    with readable(path), open(path, "rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        content = cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if packed else file
        try:
            begin = content.read(4)
            content.seek(0)
            encoding = next((name for mark, name in _MARKS.items() if begin.startswith(mark)), "utf-8")
            with io.TextIOWrapper(content, encoding=encoding, newline=newline) as text:
                yield text
        except (EOFError, zlib.error) as error:
            raise DataError(f"{path} is not a complete gzip file ({error}): fetch or compress it again") from error


def text_of(path: str | Path, *, newline: str | None = None) -> str:
    """The content of a text file. Raises `DataError` if it cannot be read."""
    with open_text(path, newline=newline) as file:
        return file.read()


def columns_of(line: str) -> list[str]:
    """The columns of a line: parted by tabs where it has any, else by blanks.

    No other white space parts them: a no-break space is a character of a word.
    """
    line = line.strip("\r\n")
    return line.split("\t") if "\t" in line else re.findall("[^ ]+", line)
