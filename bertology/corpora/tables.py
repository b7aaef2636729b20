"""Tables with a header: one row a line, cells parted by tabs, no quotes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import DataError, how_many
from .files import BLANKS, lines_of
from .skips import Broken, BrokenPart


def rows_of(
    path: str | Path, wanted: Sequence[str], broken: Broken, what: str, *, as_is: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """The cells of each row by the names of their columns, and the number of its line.

    Blanks around a cell do not count, except in the columns `as_is`. Raises `DataError` for a header without the
    `wanted` columns, which says `what` is wanted, and for rows that end before them.
    """
    header: list[str] | None = None
    for number, line in lines_of(path):
        cells = line.split("\t")
        if header is None:
            header = [cell.strip(BLANKS) for cell in cells]
            missing = [column for column in wanted if column not in header]
            if missing:
                raise DataError(f"{path}, line {number}: the file has no column {', '.join(missing)}: wanted {what}")
            continue
        with broken.part():
            needed = max(map(header.index, wanted)) + 1
            if len(cells) < needed:
                raise BrokenPart(path, number, f"wanted {how_many(needed, 'column')} or more, got fewer: {len(cells)}")
            yield number, {h: c if h in as_is else c.strip(BLANKS) for h, c in zip(header, cells, strict=False)}
    if header is None:
        raise DataError(f"{path} has no column {', '.join(wanted)}: wanted {what}")
