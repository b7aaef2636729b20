"""Rows of tables with a header, separated by tabs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import DataError
from .files import BLANKS, lines_of
from .skips import Broken, BrokenPart


def rows_of_table(
    path: str | Path, columns: Sequence[str], what: str, broken: Broken, *, text: str = ""
) -> Iterator[tuple[int, dict[str, str]]]:
    """The cells of each line by the names of their columns, and the number of the line.

    Blanks at the ends of a cell are left out, but for the column `text`, whose characters are counted. Raises
    `DataError`, which names the file and the line, if one of `columns` is missing in the header or in a line; `what`
    says which table was wanted.
    """
    header: list[str] | None = None
    for number, line in lines_of(path):
        cells = line.split("\t")
        if header is None:
            header = [cell.strip(BLANKS) for cell in cells]
            missing = [column for column in columns if column not in header]
            if missing:
                raise DataError(
                    f"{path}, line {number}: the file has no column {', '.join(missing)}: wanted {what}, with its "
                    "header"
                )
            continue
        needed = max(map(header.index, columns)) + 1
        with broken.part():
            if len(cells) < needed:
                raise BrokenPart(path, number, f"wanted {needed} columns or more, got fewer: {len(cells)}")
            yield number, {h: c if h == text else c.strip(BLANKS) for h, c in zip(header, cells, strict=False)}
    if header is None:
        raise DataError(f"{path} has no column {', '.join(columns)}: wanted {what}, with its header")
