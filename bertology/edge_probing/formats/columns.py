"""Tasks from files of columns: entities and semantic roles."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

from ...corpora.bracketed_trees import unescaped
from ...corpora.files import columns_of, open_text
from ...corpora.skips import Skip
from ...errors import DataError, checked
from ..tasks import EdgeTask, Record, Target

Scheme = Literal["IOB2", "IOB1", "BIOES", "brackets"]
_Labelled = tuple[str, int, int]
_PASSED = re.compile(r"#\s*(begin|end) document|-DOCSTART-")
_TAG = re.compile(r"([A-Z])-(.+)")
_CELL = re.compile(r"((?:\([^()*\s]+)*)\*?(\)*)")
_LETTERS = {"IOB2": "BI", "IOB1": "BI", "BIOES": "BIMELSU"}


@checked
def entity_edges(
    path: str | Path, *, word: int = 0, tag: int = -1, scheme: Scheme = "IOB2", name: str = "entities"
) -> EdgeTask:
    """Make the task of predicting the kind of entity of a span, from a file with one word per line.

    Lines have columns, separated by tabs or, without tabs, by blanks; a blank line follows each sentence.
    Lines `#begin document`, `#end document` and `-DOCSTART-` are ignored. OntoNotes in the columns of CoNLL-2012,
    the paper's data, is read with `word=3, tag=10, scheme="brackets"`.

    Args:
        path: the file.
        word: the column of the words, counted from 0, or from the end with -1.
        tag: the column of the tags.
        scheme: how tags mark entities: each begins with `B-` ("IOB2"); with `B-` only after another of its kind
            ("IOB1"); ends are marked too, with `E-` or `L-`, and single words with `S-` or `U-` ("BIOES"); or all are
            in brackets, `(PERSON*`, `*)`, `(DATE)` ("brackets"; words then lose escapes such as `-LRB-`).
        name: the name of the task in messages.

    Sentences without entities are left out and listed. Raises `DataError`, which names the line, for tags of another
    scheme and for lines without these columns.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write("Ann\\tB-person\\nLee\\tI-person\\nsings\\tO\\n")
        ...     file.flush()
        ...     entity_edges(file.name)[0].targets
        (Target(span1=(0, 2), labels=('person',), span2=None, info=''),)
    """
    if scheme not in (*_LETTERS, "brackets"):
        raise DataError(f"scheme must be 'IOB2', 'IOB1', 'BIOES' or 'brackets', got {scheme!r}")
    records = []
    for number, (line, rows) in enumerate(_sentences(Path(path)), 1):
        words, tags = (_column(rows, column, path, line) for column in (word, tag))
        place = f"{path}, line {line}"
        if scheme == "brackets":
            words, spans = [unescaped(one) for one in words], _bracketed(tags, place)
        else:
            spans = _tagged(tags, scheme, place)
        targets = tuple(Target((start, end), (label,)) for label, start, end in spans)
        records.append(Record(tuple(words), targets, f"{Path(path).name} {number}"))
    return EdgeTask.of(name, records)


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
        path: the file.
        word: the column of the words, counted from 0. The defaults are those of CoNLL-2012.
        first: the first of the predicates' columns.
        last: the column after the last of them; -1 if one more column follows, as coreference in CoNLL-2012; 0 if
            they are the last columns, as in CoNLL-2005.
        skip_broken: leave out predicates whose brackets do not match or that have not one `V`, and list them in
            `skipped`, instead of raising.
        name: the name of the task in messages.

    Predicates without arguments are left out and listed. Raises `DataError`, which names the line.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write("The (A0*\\nbirds *)\\nsing (V*)\\nloudly (AM-MNR*)\\n")
        ...     file.flush()
        ...     task = srl_edges(file.name, word=0, first=1, last=0)
        >>> [(t.span1, t.span2, *t.labels) for t in task[0].targets]
        [((2, 3), (0, 2), 'A0'), ((2, 3), (3, 4), 'AM-MNR')]
    """
    records: list[Record] = []
    skipped: list[Skip] = []
    for number, (line, rows) in enumerate(_sentences(Path(path)), 1):
        words = tuple(unescaped(one) for one in _column(rows, word, path, line))
        if len({len(row) for row in rows}) > 1:
            raise DataError(f"{path}, line {line}: the words of a sentence have different numbers of columns")
        for column in range(first, len(rows[0]) + last):
            place, called = f"{path}, line {line}, column {column}", f"{Path(path).name} {number}, column {column}"
            try:
                targets = _roles(_bracketed([row[column] for row in rows], place), place)
            except DataError as error:
                if not skip_broken:
                    raise DataError(f"{error} (skip_broken=True leaves such predicates out)") from error
                skipped.append(Skip(called, str(error).removeprefix(f"{place}: ")))
            else:
                records.append(Record(words, targets, called))
    return EdgeTask.of(name, records, counted="srl", skipped=skipped)


def _sentences(path: Path) -> Iterator[tuple[int, list[list[str]]]]:
    """The first line and the rows of each sentence."""
    rows: list[list[str]] = []
    start = 1
    with open_text(path) as file:
        for number, line in enumerate(chain(file, [""]), 1):
            filled = line.strip("\r\n")
            if filled.strip() and not _PASSED.match(line):
                start = start if rows else number
                rows.append(columns_of(filled))
            elif rows:
                yield start, rows
                rows = []


def _column(rows: Sequence[Sequence[str]], column: int, path: str | Path, line: int) -> list[str]:
    for offset, row in enumerate(rows):
        if not -len(row) <= column < len(row) or not row[column]:
            raise DataError(f"{path}, line {line + offset}: wanted a column {column}, got {len(row)}: {list(row)}")
    return [row[column] for row in rows]


def _tagged(tags: Sequence[str], scheme: str, place: str) -> list[_Labelled]:
    """The entities that are marked by letters."""
    found: list[_Labelled] = []
    continues = False  # whether the last entity may have another word
    for at, tag in enumerate(tags):
        match = _TAG.fullmatch(tag)
        if tag != "O" and (match is None or match[1] not in _LETTERS[scheme]):
            raise DataError(f"{place}, word {at}: wanted O or a tag of {scheme} such as B-person, got {tag!r}")
        if match is None:
            continues = False
            continue
        letter, label = match.groups()
        inside = letter in "IELM"
        if inside and continues and found[-1][0] == label:
            found[-1] = label, found[-1][1], at + 1
        elif inside and scheme != "IOB1":
            raise DataError(f"{place}, word {at}: {tag!r} continues no entity; with scheme='IOB1' it begins one")
        else:
            found.append((label, at, at + 1))
        continues = letter in "BIM"
    return found


def _bracketed(cells: Sequence[str], place: str) -> list[_Labelled]:
    """The entities that are marked by brackets, in the order of their beginnings."""
    found: list[_Labelled] = []
    opened: list[tuple[str, int]] = []
    for at, cell in enumerate(cells):
        match = _CELL.fullmatch(cell)
        if match is None or not cell:
            raise DataError(f"{place}, word {at}: wanted brackets such as (ARG0*, * or *), got {cell!r}")
        opened += [(label, at) for label in match[1].split("(")[1:]]
        for _ in match[2]:
            if not opened:
                raise DataError(f"{place}, word {at}: {cell!r} closes a bracket that was never opened")
            label, start = opened.pop()
            found.append((label, start, at + 1))
    if opened:
        raise DataError(f"{place}: the bracket ({opened[-1][0]} is never closed")
    return sorted(found, key=lambda one: (one[1], -one[2]))


def _roles(found: Sequence[_Labelled], place: str) -> tuple[Target, ...]:
    verbs = [(start, end) for label, start, end in found if label == "V"]
    if len(verbs) != 1:
        raise DataError(f"{place}: wanted one predicate, marked (V*), got {len(verbs)}")
    return tuple(Target(verbs[0], (label,), (start, end)) for label, start, end in found if label != "V")
