"""Text files as they are found: encodings, compression, folders, columns, JSON."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO, cast

from ..errors import DataError, readable

BLANKS = " \t\r\n"
"""What parts columns, lines and words of a file. A no-break space and its like are characters of a word."""
_GZIP = b"\x1f\x8b"
# UTF-32 before UTF-16: the mark of the one begins with that of the other.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NO_UTF8 = re.compile("[\udc80-\udcff]")
_LINE_END = re.compile(r"\r\n|\r|\n")


@contextmanager
def open_text(path: str | Path, *, newline: str | None = None, errors: str = "strict") -> Iterator[TextIO]:
    """Open a text file for reading: UTF-8, or the encoding that a byte order mark names, compressed by gzip or not.

    The byte order mark is no part of the text. Lines end in "\\n" whatever they end in in the file, unless `newline`
    says otherwise, as in Python's `open`. Raises `DataError`, which names the file, if it cannot be read, and the
    line where bytes are no text, unless `errors` says otherwise, as in Python's `open`.
    """
    with readable(path), _content(path) as content:
        try:
            encoding = _encoding_of(content, path)
            with io.TextIOWrapper(content, encoding=encoding, newline=newline, errors=errors) as text:
                yield text
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path} is not a complete gzip file ({error}): fetch or compress it again") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {_line_without_text(path, encoding)}: no text in {_in_words(encoding)} "
                f"({error.reason}): convert the file, or name another"
            ) from error


@contextmanager
def _content(path: str | Path) -> Iterator[IO[bytes]]:
    with open(path, "rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        yield cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if packed else file


def _encoding_of(content: IO[bytes], path: str | Path) -> str:
    begin = content.read(4)
    content.seek(0)
    encoding = next((name for mark, name in _MARKS.items() if begin.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in begin:
        raise DataError(
            f"{path}, line 1: no text in UTF-8 (it begins with a null byte): text in UTF-16 or UTF-32 needs a byte "
            "order mark, and other files cannot be read"
        )
    return encoding


def _in_words(encoding: str) -> str:
    return encoding.removesuffix("-sig").upper()


def _line_without_text(path: str | Path, encoding: str) -> int:
    """The number of the first line that cannot be decoded."""
    with _content(path) as content:
        everything = content.read()
    try:
        everything.decode(encoding)
    except UnicodeDecodeError as error:
        return len(_LINE_END.findall(everything[: error.start].decode(encoding, "ignore"))) + 1
    return 1


def text_of(path: str | Path, *, newline: str | None = None) -> str:
    """The content of a text file. Raises `DataError` if it cannot be read."""
    with open_text(path, newline=newline) as file:
        return file.read()


def lines_of(path: str | Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers, counted from 1, and without their ends."""
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip(BLANKS):
                yield number, line.strip("\r\n")


def blocks_of(path: str | Path) -> Iterator[list[tuple[int, str]]]:
    """The lines of a text file with their numbers, as `lines_of` has them, in the blocks between blank lines."""
    block: list[tuple[int, str]] = []
    for number, line in lines_of(path):
        if block and number > block[-1][0] + 1:
            yield block
            block = []
        block.append((number, line))
    if block:
        yield block


def columns_of(line: str) -> list[str]:
    """The columns of a line: parted by tabs where it has any, else by blanks. Blanks at its ends do not count.

    No other white space parts them: a no-break space is a character of a word.
    """
    line = line.strip(" \r\n")
    return line.split("\t") if "\t" in line else words_of(line)


def words_of(text: str) -> list[str]:
    """The words of a text, parted by blanks, tabs and the ends of lines, and by no other white space.

    >>> words_of("10\\u00a0000  men")
    ['10\\xa0000', 'men']
    """
    return re.findall(f"[^{BLANKS}]+", text)


def files_in(path: str | Path, *patterns: str) -> list[Path]:
    """The file itself, or those of a folder and the folders in it, sorted, whose name is of the first fitting pattern.

    Compressed files have the same names with `.gz`. Raises `DataError` for a folder without such files.
    """
    root = Path(path)
    if not os.path.isdir(root):
        return [root]
    for pattern in patterns:
        found = {file for name in (pattern, f"{pattern}.gz") for file in root.rglob(name) if file.is_file()}
        if found:
            return sorted(found)
    raise DataError(f"{path} is a folder: wanted a file, or a folder with files {' or '.join(patterns)}")


def name_in(root: str | Path, file: Path) -> str:
    """The name of a file in messages: in a folder of files, with the folders between."""
    return file.name if file == Path(root) else str(file.relative_to(root))


def json_list_of(path: str | Path, what: str) -> list[Any]:
    """The list that a JSON file holds. Raises `DataError`, which says `what` is wanted, for anything else."""
    text = text_of(path)
    try:
        found = json_of(text)
    except DataError as error:
        raise DataError(f"{path} is {error}") from error
    if not isinstance(found, list):
        raise DataError(f"{path} must hold a list of {what}, got {type(found).__name__}")
    return found


def json_of(text: str) -> Any:
    """What some JSON says. Raises `DataError` for what is no JSON, and for bytes that were no text."""
    if _NO_UTF8.search(text):
        raise DataError("not JSON: bytes that UTF-8 can't decode")
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"not JSON: {error}") from error
    except RecursionError as error:
        raise DataError("not JSON that can be read: brackets in brackets, too many levels deep") from error
