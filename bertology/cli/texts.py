"""Texts and labels of a file: plain text, TSV, CSV or JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..corpora.files import BLANKS, lines_of, open_text
from ..data.rows import FILE_LABEL_COLUMNS, PAIRED_COLUMNS, TEXT_COLUMNS
from ..errors import DataError, shown


@dataclass(frozen=True)
class Texts:
    """The examples of a file, and where each is: "dev.tsv, line 4"."""

    texts: list[tuple[str, ...]]
    labels: list[Any] | None
    places: list[str]
    columns: str = ""
    """Which columns were read and which were not, in words."""


def read_texts(
    path: str | Path,
    *,
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
    header: bool = True,
    limit: int | None = None,
) -> Texts:
    """Read the texts of a file, and their labels if it has any; the ending of its name tells its format.

    A .tsv or .csv file has a header, or else its columns are called 1, 2 and so on. A .json or .jsonl file has an
    object on each line. In any other file each line is a text. Blank lines do not count, and the first `limit` examples
    are read.

    Raises `DataError` for columns that are not there, for what is no text, and for a file without examples.
    """
    kind = Path(str(path).removesuffix(".gz")).suffix.lower()
    if kind not in (*ROWS, *HEADED) and (text_columns or label_column):
        raise DataError(f"{path} has no columns: its lines are texts. Columns are in .tsv, .csv and .jsonl files")
    if not header and kind not in HEADED:
        raise DataError(f"{path} has no header in any case: --no-header is for .tsv and .csv files")
    rows = HEADED[kind](path, header) if kind in HEADED else ROWS.get(kind, _plain)(path)
    texts: list[tuple[str, ...]] = []
    labels: list[Any] = []
    places: list[str] = []
    columns: tuple[str, ...] = ()
    told = ""
    for place, row in rows:
        if not texts:
            columns = _text_columns(row, text_columns, place)
            label_column = _label_column(row, label_column, place)
            told = _told(row, columns, label_column)
        texts.append(tuple(_text(row, name, place) for name in columns))
        labels.append(_cell(row, label_column, place) if label_column else None)
        places.append(place)
        if len(texts) == limit:
            break
    if not texts:
        raise DataError(f"{path} holds no texts")
    return Texts(texts, labels if label_column else None, places, told if kind in (*ROWS, *HEADED) else "")


def _plain(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in lines_of(path):
        yield f"{path}, line {number}", {"text": line.strip(BLANKS)}


def _tabbed(path: str | Path, header: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = ((number, [cell.strip(BLANKS) for cell in line.split("\t")]) for number, line in lines_of(path))
    return _named(path, lines, header)


def _commas(path: str | Path, header: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    with open_text(path, newline="") as file:
        reader = csv.reader(file)
        try:
            yield from _named(path, ((reader.line_num, cells) for cells in _rows(reader) if cells), header)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: no CSV ({error})") from error


def _rows(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    """The rows of a CSV file, each read without the limit that Python has for a cell, which holds for all readers."""
    while True:
        most = csv.field_size_limit(2**31 - 1)  # of 131,072 characters, less than a long document
        try:
            cells = next(reader, None)
        finally:
            csv.field_size_limit(most)
        if cells is None:
            return
        yield cells


def _named(
    path: str | Path, lines: Iterable[tuple[int, list[str]]], header: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The cells of each line by the names of their columns, or by the numbers of these, from 1 on."""
    names: list[str] = []
    for number, cells in lines:
        if header and not names:
            names = cells
        else:
            known = names or [str(column) for column in range(1, len(cells) + 1)]
            yield f"{path}, line {number}", dict(zip(known, cells, strict=False))


def _json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in lines_of(path):
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{place}: no JSON ({error}); wanted one object on each line") from error
        if not isinstance(row, dict):
            raise DataError(f'{place}: wanted an object, such as {{"text": ...}}, got {shown(row)}')
        yield place, row


HEADED = {".tsv": _tabbed, ".csv": _commas}
ROWS = {".json": _json_lines, ".jsonl": _json_lines, ".ndjson": _json_lines}


def _text_columns(row: Mapping[str, Any], given: Sequence[str], place: str) -> tuple[str, ...]:
    usual = (*PAIRED_COLUMNS, *((name,) for name in TEXT_COLUMNS))
    found = tuple(given) or next((names for names in usual if row.keys() >= {*names}), ())
    if not found or not row.keys() >= {*found}:
        wanted = " and ".join(map(repr, found)) or "text, such as 'text' or 'sentence'"
        raise DataError(f"{place}: no column {wanted}: name the text with --text-column; there are {_names(row)}")
    return found


def _label_column(row: Mapping[str, Any], given: str | None, place: str) -> str | None:
    if given and given not in row:
        raise DataError(f"{place}: no column {given!r}: --label-column takes one of {_names(row)}")
    return given or next((name for name in FILE_LABEL_COLUMNS if name in row), None)


def _told(row: Mapping[str, Any], columns: Sequence[str], label: str | None) -> str:
    """Which columns are read, and which are not."""
    others = [name for name in row if name not in (*columns, label)]
    parts = [f"text in {' and '.join(map(repr, columns))}", f"label in {label!r}" if label else "no label"]
    if others:
        parts.append(f"not read: {', '.join(map(repr, others[:20]))}{' ...' if len(others) > 20 else ''}")
    return "; ".join(parts)


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, list(row)[:20]))


def _cell(row: Mapping[str, Any], name: str, place: str) -> Any:
    if row.get(name) is None:
        raise DataError(f"{place}: the column {name!r} is missing")
    return row[name]


def _text(row: Mapping[str, Any], name: str, place: str) -> str:
    cell = _cell(row, name, place)
    if not isinstance(cell, str) or not cell.strip():
        raise DataError(f"{place}: the column {name!r} must hold a text, got {shown(cell)}")
    return cell
