"""Readers of GAP and WinoBias, data sets on the antecedent of one pronoun per text."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DataError, checked
from .documents import Document, Documents, Mention
from .files import open_text
from .phrases import gender_of, head_in_words
from .skips import Skip

_COLUMNS = ("ID", "Text", "Pronoun", "Pronoun-offset", "A", "A-offset", "A-coref", "B", "B-offset", "B-coref")
_SHORT = r"[’'](?:s|ll|d|re|ve|m)\b"
# A shortened verb or possessive, letters and digits with single marks between them, or any other mark.
_WORD = re.compile(rf"{_SHORT}|\w+(?:(?:(?!{_SHORT})[-’'&]|(?<=\d)[.,](?=\d))\w+)*|\S")
PRONOUN, FIRST, SECOND = 0, 1, 2
"""The clusters of GAP's mentions; a name that the pronoun refers to gets the pronoun's cluster."""


@dataclass(frozen=True)
class TextWords:
    """The words of a text, and the characters of each."""

    words: tuple[str, ...]
    starts: dict[int, int]
    """{character: the word that begins there}"""
    ends: dict[int, int]
    """{character: the word that ends before it}"""

    def span(self, start: int, end: int) -> tuple[int, int] | None:
        """The words of the characters from `start` to `end`; None if they begin or end inside a word."""
        if start not in self.starts or end not in self.ends:
            return None
        return self.starts[start], self.ends[end] + 1


def words_in(text: str) -> TextWords:
    """The words of a text: letters and digits with marks between them, shortened verbs, and single other marks."""
    found = list(_WORD.finditer(text))
    return TextWords(
        tuple(m[0] for m in found),
        {m.start(): number for number, m in enumerate(found)},
        {m.end(): number for number, m in enumerate(found)},
    )


@checked
def read_gap(path: str | Path) -> Documents:
    """Read GAP (Webster et al. 2018): a pronoun and two names, A and B, one of which it may refer to.

    These three are the mentions of a document. Its only target is the pronoun; the name may come before or after it.
    If the pronoun refers to neither name, the document has no target. `coreference_heads` returns the score in the row
    `pronoun`.
    Words are letters and digits with single hyphens, apostrophes or & between them, and dots and commas between
    digits; 's, 'll, 'd, 're, 've, 'm and any other mark are separate words. Examples with a mention that begins or
    ends inside a word are listed in `skipped`.

    Raises `DataError`, which names the file and the line, for missing columns, and for offsets where the text does not
    have the mention.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     names = "A\\tA-offset\\tA-coref\\tB\\tB-offset\\tB-coref"
        ...     _ = file.write(f"ID\\tText\\tPronoun\\tPronoun-offset\\t{names}\\n")
        ...     _ = file.write("1\\tAnn met Eve as she left.\\tshe\\t15\\tAnn\\t0\\tTRUE\\tEve\\t8\\tFALSE\\n")
        ...     file.flush()
        ...     [(m.start, m.cluster) for m in read_gap(file.name)[0].mentions]
        [(0, 0), (2, 2), (4, 0)]
    """
    documents: list[Document] = []
    skipped: list[Skip] = []
    with open_text(path, newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path} has no column {', '.join(missing)}: wanted the TSV of GAP, with its header")
        for row in reader:
            made = _gap(row, f"{path}, line {reader.line_num}")
            if isinstance(made, Document):
                documents.append(made)
            else:
                skipped.append(made)
    if not documents:
        raise DataError(f"{path} holds no examples{' whose mentions are whole words' if skipped else ''}")
    return Documents(tuple(documents), tuple(skipped))


def _gap(row: Mapping[str, str | None], place: str) -> Document | Skip:
    if any(row[column] is None for column in _COLUMNS):
        raise DataError(f"{place}: wanted {len(_COLUMNS)} columns or more, got fewer")
    cells = {column: row[column] or "" for column in _COLUMNS}
    text, found = words_in(cells["Text"]), []
    for column, own in (("Pronoun", PRONOUN), ("A", FIRST), ("B", SECOND)):
        span = _gap_span(cells, column, text, place)
        if span is None:
            return Skip(cells["ID"], "a mention begins or ends inside a word")
        coref = cells.get(f"{column}-coref", "FALSE").upper()
        if coref not in ("TRUE", "FALSE"):
            raise DataError(f"{place}: {column}-coref must be TRUE or FALSE, got {cells[f'{column}-coref']!r}")
        cluster = PRONOUN if coref == "TRUE" else own
        head = head_in_words(text.words, *span)
        found.append(Mention(*span, head, cluster, "pronoun" if column == "Pronoun" else "proper"))
    mentions = tuple(sorted(found, key=lambda m: (m.start, -m.end)))
    return Document(text.words, mentions, cells["ID"], targets=(mentions.index(found[0]),), both_sides=True)


def _gap_span(cells: Mapping[str, str], column: str, text: TextWords, place: str) -> tuple[int, int] | None:
    offset, wanted = cells[f"{column}-offset"], cells[column]
    if not offset.isdecimal():
        raise DataError(f"{place}: {column}-offset must be a number, got {offset!r}")
    start = int(offset)
    there = cells["Text"][start : start + len(wanted)]
    if there != wanted or not wanted:
        raise DataError(f"{place}: {column} is {wanted!r}, but the text has {there!r} at character {start}")
    return text.span(start, start + len(wanted))


@checked
def read_winobias(path: str | Path) -> Documents:
    """Read WinoBias (Zhao et al. 2018): numbered sentences with two occupations, and a pronoun for one of them.

    Brackets mark the right occupation and its pronouns; the first pronoun is the target. The other occupation is not
    marked. It is found because another sentence of the file has it in brackets, so the file must be complete.
    Sentences without a second occupation are listed in `skipped`, because there is nothing to choose between. With
    `candidates="words"` of `coreference_heads`, all words before the pronoun are candidates.

    Raises `DataError`, which names the file and the line, for lines without a number or without two mentions in
    brackets.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write("1 [The cook] met the guard as [she] left.\\n")
        ...     _ = file.write("2 The cook met [the guard] as [he] left.\\n")
        ...     file.flush()
        ...     [m.head for m in read_winobias(file.name)[0].mentions]
        [1, 4, 6]
    """
    with open_text(path) as file:
        lines = [
            _marked(line.strip(), f"{path}, line {number}", f"{Path(path).name} {number}")
            for number, line in enumerate(file, 1)
            if line.strip()
        ]
    if not lines:
        raise DataError(f"{path} holds no sentences")
    occupations = {_occupation(document, document.mentions[0]) for document in lines}
    whole = [_with_rivals(document, occupations) for document in lines]
    return Documents(
        tuple(document for document in whole if len({m.cluster for m in document.mentions}) > 1),
        tuple(
            Skip(document.name, "the other occupation was not found")
            for document in whole
            if len({m.cluster for m in document.mentions}) == 1
        ),
    )


def _marked(line: str, place: str, name: str) -> Document:
    """A sentence with its mentions in brackets."""
    number, _, marked = line.partition(" ")
    parts = re.split(r"\[\s*([^\[\]]*?)\s*\]", marked)
    if not number.isdecimal() or len(parts) < 5 or re.search(r"[\[\]]", "".join(parts)):
        raise DataError(f"{place}: wanted a number and a sentence with [an entity] and [its pronoun], got {line!r}")
    text, spans = parts[0], []
    for inside, following in zip(parts[1::2], parts[2::2], strict=True):
        spans.append((len(text), len(text) + len(inside)))
        text += inside + following
    words, mentions = words_in(text), []
    for start, end in spans:
        span = words.span(start, end)
        if span is None:
            raise DataError(f"{place}: [{text[start:end]}] is not made of whole words: {line!r}")
        pronoun = gender_of(text[start:end]) is not None
        mentions.append(Mention(*span, head_in_words(words.words, *span), 0, "pronoun" if pronoun else "nominal"))
    target = next((number for number, m in enumerate(mentions) if m.kind == "pronoun"), None)
    if target is None or mentions[0].kind == "pronoun":
        raise DataError(f"{place}: wanted first an entity and then a pronoun in brackets, got {line!r}")
    return Document(words.words, tuple(mentions), name, targets=(target,))


def _occupation(document: Document, mention: Mention) -> tuple[str, ...]:
    words = [word.lower() for word in document.words[mention.start : mention.end]]
    return tuple(words[1:] if words[0] == "the" and len(words) > 1 else words)


def _with_rivals(document: Document, occupations: set[tuple[str, ...]]) -> Document:
    """The sentence with the occupations that are not marked in it, each in its own cluster."""
    small = [word.lower() for word in document.words]
    taken = {place for m in document.mentions for place in range(m.start, m.end)}
    rivals: list[Mention] = []
    for occupation in sorted(occupations, key=len, reverse=True):
        for start in range(len(small) - len(occupation) + 1):
            end = start + len(occupation)
            if tuple(small[start:end]) == occupation and not taken & set(range(start, end)):
                taken |= set(range(start, end))
                begin = start - (start > 0 and small[start - 1] == "the")
                rivals.append(Mention(begin, end, end - 1, len(rivals) + 1, "nominal"))
    target = document.mentions[(document.targets or (0,))[0]]
    mentions = sorted([*document.mentions, *rivals], key=lambda m: m.start)
    return replace(document, mentions=tuple(mentions), targets=(mentions.index(target),))


@checked
def by_gender(documents: Sequence[Document]) -> dict[str, Documents]:
    """Split documents by the gender of the target pronoun: "feminine", "masculine", or both keys.

    >>> sheep = Document(("Ann", "left", "as", "she", "does"),
    ...     (Mention(0, 1, 0, 0, "proper"), Mention(3, 4, 3, 0, "pronoun")), targets=(1,))
    >>> {gender: len(some) for gender, some in by_gender([sheep]).items()}
    {'feminine': 1}
    """
    found: dict[str, list[Document]] = {}
    for document in documents:
        genders = {gender_of(document.words[document.mentions[target].head]) for target in document.targets or ()}
        for gender in genders & {"feminine", "masculine"}:
            found.setdefault(str(gender), []).append(document)
    return {gender: Documents(tuple(some)) for gender, some in sorted(found.items())}
