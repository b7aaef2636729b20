"""Tasks from files of columns: entities and semantic roles."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...corpora.bracketed_trees import unescaped
from ...corpora.files import BLANKS, columns_of, files_in, lines_of, name_in
from ...corpora.skips import Broken, BrokenPart, placed
from ...errors import DataError, checked, shown
from ..tasks import EdgeTask, Record, Target

Scheme = Literal["IOB2", "IOB1", "BIOES", "brackets"]
_Labelled = tuple[str, int, int]
_PASSED = re.compile(r"#\s*(begin|end) document|-DOCSTART-")
_TAG = re.compile(r"([A-Z])-(.+)")
_CELL = re.compile(rf"((?:\([^()*{BLANKS}]+)*)\*?(\)*)")
COLUMN_FILES = ("*gold_conll", "*conll")
"""The names of files in columns in a folder: OntoNotes' gold annotation, or else any."""
_LETTERS = {"IOB2": "BI", "IOB1": "BI", "BIOES": "BIMELSU"}


@dataclass(frozen=True)
class Rows:
    """The columns of a sentence, word by word."""

    path: Path
    name: str
    lines: tuple[int, ...]
    """[word]: the number of its line."""
    columns: tuple[tuple[str, ...], ...]

    def column(self, which: int) -> list[str]:
        """[word]: what is in a column. Raises `DataError` where it is missing."""
        for line, row in zip(self.lines, self.columns, strict=True):
            if not -len(row) <= which < len(row) or not row[which]:
                raise BrokenPart(self.path, line, f"wanted a column {which}, got {len(row)}: {shown(list(row))}")
        return [row[which] for row in self.columns]


def sentences_in(path: Path, name: str) -> Iterator[Rows]:
    """The sentences of a file with one word a line; lines `#begin document` and the like end a sentence, too."""
    rows: list[tuple[int, tuple[str, ...]]] = []
    number = last = 0

    def made() -> Rows:
        return Rows(path, f"{name} {number}", tuple(line for line, _ in rows), tuple(row for _, row in rows))

    for line, text in lines_of(path):
        passed = _PASSED.match(text)
        if rows and (passed or line > last + 1):
            number += 1
            yield made()
            rows = []
        if not passed:
            rows.append((line, tuple(columns_of(text))))
        last = line
    if rows:
        number += 1
        yield made()


def records_in(path: str | Path, broken: Broken, make: Callable[[Rows], Iterable[Record]]) -> list[Record]:
    """The records of a file in columns, or of those in a folder; files without any are listed."""
    records: list[Record] = []
    for file in files_in(path, *COLUMN_FILES):
        with broken.file(path, file, records, "no targets"):
            for rows in sentences_in(file, name_in(path, file)):
                records += make(rows)
    return records


@checked
def entity_edges(
    path: str | Path, *, word: int = 0, tag: int = -1, scheme: Scheme = "IOB2", skip_broken: bool = False,
    name: str = "entities",
) -> EdgeTask:  # fmt: skip
    """Make the task of predicting the kind of entity of a span, from a file with one word per line.

    Lines have columns, separated by tabs or, without tabs, by blanks; a blank line follows each sentence.
    Lines `#begin document`, `#end document` and `-DOCSTART-` are ignored. OntoNotes in the columns of CoNLL-2012,
    the paper's data, is read with `word=3, tag=10, scheme="brackets"`.

    Args:
        path: the file, or a folder of files: those that are named `*gold_conll`, or else `*conll`, also in folders
            inside it.
        word: the column of the words, counted from 0, or from the end with -1.
        tag: the column of the tags.
        scheme: how tags mark entities: each begins with `B-` ("IOB2"); with `B-` only after another of its kind
            ("IOB1"); ends are marked too, with `E-` or `L-`, and single words with `S-` or `U-` ("BIOES"); or all are
            in brackets, `(PERSON*`, `*)`, `(DATE)` ("brackets"; words then lose escapes such as `-LRB-`).
        skip_broken: leave out sentences that cannot be read, and list them in `skipped`, instead of raising.
        name: the name of the task in messages.

    Sentences without entities are left out and listed, as are files of a folder without any. Raises `DataError`, which
    names the file and the line, for tags of another scheme and for lines without these columns.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write("Ann\\tB-person\\nLee\\tI-person\\nsings\\tO\\n")
        ...     file.flush()
        ...     entity_edges(file.name)[0].targets
        (Target(span1=(0, 2), labels=('person',), span2=None, info=''),)
    """
    if scheme not in (*_LETTERS, "brackets"):
        raise DataError(f"scheme must be 'IOB2', 'IOB1', 'BIOES' or 'brackets', got {scheme!r}")
    broken = Broken(skip_broken, "such sentences")

    def made(rows: Rows) -> Iterator[Record]:
        with broken.part(rows.name), placed(rows.path, rows.lines[0]):
            words, tags = rows.column(word), rows.column(tag)
            spans = _bracketed(tags, rows) if scheme == "brackets" else _tagged(tags, scheme, rows)
            targets = tuple(Target((start, end), (label,)) for label, start, end in spans)
            plain = tuple(unescaped(one) for one in words) if scheme == "brackets" else tuple(words)
            yield Record(plain, targets, rows.name)

    records = records_in(path, broken, made)
    with placed(path):
        return EdgeTask.of(name, records, skipped=broken.skipped)


@checked
def srl_edges(
    path: str | Path, *, word: int = 3, first: int = 11, last: int = -1, skip_broken: bool = False, name: str = "srl"
) -> EdgeTask:
    """Make the task of predicting the roles of a verb's arguments, from the columns of CoNLL-2012 or CoNLL-2005.

    One word per line, a blank line after each sentence. Each predicate of a sentence has a column, in which brackets
    mark its arguments: `(ARG0*`, `*`, `*)`, and with `(V*)` the predicate itself. As in the paper each predicate makes
    one record; `span1` is the predicate, `span2` an argument, `C-V` is one, too. Core roles and adjuncts count for the
    score: see `counted_labels`. Escapes such as `-LRB-` are read as `(`.

    Args:
        path: the file, or a folder of files, as in `entity_edges`.
        word: the column of the words, counted from 0. The defaults are those of CoNLL-2012.
        first: the first of the predicates' columns.
        last: the column after the last of them; -1 if one more column follows, as coreference in CoNLL-2012; 0 if
            they are the last columns, as in CoNLL-2005.
        skip_broken: leave out predicates whose brackets do not match or that have not one `V`, and sentences whose
            columns are broken, and list them in `skipped`, instead of raising.
        name: the name of the task in messages.

    Predicates without arguments are left out and listed, as are files of a folder without predicates. Raises
    `DataError`, which names the file and the line.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write("The (A0*\\nbirds *)\\nsing (V*)\\nloudly (AM-MNR*)\\n")
        ...     file.flush()
        ...     task = srl_edges(file.name, word=0, first=1, last=0)
        >>> [(t.span1, t.span2, *t.labels) for t in task[0].targets]
        [((2, 3), (0, 2), 'A0'), ((2, 3), (3, 4), 'AM-MNR')]
    """
    broken = Broken(skip_broken, "such predicates")

    def made(rows: Rows) -> Iterator[Record]:
        words: tuple[str, ...] = ()
        with broken.part(rows.name):
            words = tuple(unescaped(one) for one in rows.column(word))
            _check_widths(rows)
        for column in range(first, len(rows.columns[0]) + last) if words else ():
            called = f"{rows.name}, column {column}"
            with broken.part(called), placed(rows.path, f"line {rows.lines[0]}, column {column}"):
                found = _bracketed(rows.column(column), rows, column)
                yield Record(words, _roles(found, rows, column), called)

    records = records_in(path, broken, made)
    with placed(path):
        return EdgeTask.of(name, records, counted="srl", skipped=broken.skipped)


def _check_widths(rows: Rows) -> None:
    first = len(rows.columns[0])
    for line, row in zip(rows.lines, rows.columns, strict=True):
        if len(row) != first:
            raise BrokenPart(
                rows.path, rows.lines[0], "the words of a sentence have different numbers of columns: "
                f"{first} here, {len(row)} in line {line}"
            )  # fmt: skip


def _at(rows: Rows, word: int, column: int | None) -> str:
    """A place in messages."""
    return f"line {rows.lines[word]}{'' if column is None else f', column {column}'}, word {word}"


def _tagged(tags: Sequence[str], scheme: str, rows: Rows) -> list[_Labelled]:
    """The entities that are marked by letters."""
    found: list[_Labelled] = []
    continues = False  # whether the last entity may have another word
    for at, tag in enumerate(tags):
        match = _TAG.fullmatch(tag)
        if tag != "O" and (match is None or match[1] not in _LETTERS[scheme]):
            raise BrokenPart(
                rows.path, _at(rows, at, None), f"wanted O or a tag of {scheme} such as B-person, got {shown(tag)}"
            )
        if match is None:
            continues = False
            continue
        letter, label = match.groups()
        inside = letter in "IELM"
        if inside and continues and found[-1][0] == label:
            found[-1] = label, found[-1][1], at + 1
        elif inside and scheme != "IOB1":
            raise BrokenPart(
                rows.path, _at(rows, at, None), f"{shown(tag)} continues no entity; with scheme='IOB1' it begins one"
            )
        else:
            found.append((label, at, at + 1))
        continues = letter in "BIM"
    return found


def _bracketed(cells: Sequence[str], rows: Rows, column: int | None = None) -> list[_Labelled]:
    """The entities that are marked by brackets, in the order of their beginnings."""
    found: list[_Labelled] = []
    opened: list[tuple[str, int]] = []
    for at, cell in enumerate(cells):
        match = _CELL.fullmatch(cell)
        if match is None or not cell:
            raise BrokenPart(
                rows.path, _at(rows, at, column), f"wanted brackets such as (ARG0*, * or *), got {shown(cell)}"
            )
        opened += [(label, at) for label in match[1].split("(")[1:]]
        for _ in match[2]:
            if not opened:
                raise BrokenPart(
                    rows.path, _at(rows, at, column), f"{shown(cell)} closes a bracket that was never opened"
                )
            label, start = opened.pop()
            found.append((label, start, at + 1))
    if opened:
        place = f"line {rows.lines[opened[-1][1]]}" + ("" if column is None else f", column {column}")
        raise BrokenPart(rows.path, place, f"the bracket ({opened[-1][0]} is never closed")
    return sorted(found, key=lambda one: (one[1], -one[2]))


def _roles(found: Sequence[_Labelled], rows: Rows, column: int) -> tuple[Target, ...]:
    verbs = [(start, end) for label, start, end in found if label == "V"]
    if len(verbs) != 1:
        place = f"line {rows.lines[0]}, column {column}"
        raise BrokenPart(rows.path, place, f"wanted one predicate, marked (V*), got {len(verbs)}")
    return tuple(Target(verbs[0], (label,), (start, end)) for label, start, end in found if label != "V")
