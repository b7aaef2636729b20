"""Readers of GAP and WinoBias, data sets on the antecedent of one pronoun per text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DataError, checked, shown
from .documents import Document, Documents, Kind, Mention
from .files import BLANKS, lines_of
from .phrases import TRAITS, gender_of, head_in_words
from .skips import Broken, Skip, placed, reasons_for
from .tables import rows_of

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
def read_gap(path: str | Path, *, skip_broken: bool = False) -> Documents:
    """Read GAP (Webster et al. 2018): a pronoun and two names, A and B, one of which it may refer to.

    These three are the mentions of a document. Its only target is the pronoun; the name may come before or after it.
    If the pronoun refers to neither name, the document has no target. `coreference_heads` returns the score in the row
    `pronoun`.
    Words are letters and digits with single hyphens, apostrophes or & between them, and dots and commas between
    digits; 's, 'll, 'd, 're, 've, 'm and any other mark are separate words. Examples with a mention that begins or
    ends inside a word are listed in `skipped`.

    Args:
        path: the TSV, with its header. Further columns are ignored.
        skip_broken: leave out lines that cannot be read, and list them in `skipped`, too, instead of raising.

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
    broken = Broken(skip_broken, "such lines")
    documents: list[Document] = []
    for number, cells in rows_of(path, _COLUMNS, broken, "the TSV of GAP, with its header", as_is=("Text",)):
        with broken.part(), placed(path, number):
            made = _gap(cells)
            if isinstance(made, Document):
                documents.append(made)
            else:
                broken.skipped.append(made)
    if not documents:
        told = "; ".join(reasons_for(broken.skipped))
        raise DataError(f"{path} holds no examples{' that can be used: ' if told else ''}{told}")
    return Documents(tuple(documents), tuple(broken.skipped))


def _gap(cells: Mapping[str, str]) -> Document | Skip:
    text, found = words_in(cells["Text"]), []
    for column, own in (("Pronoun", PRONOUN), ("A", FIRST), ("B", SECOND)):
        span = _gap_span(cells, column, text)
        if span is None:
            return Skip(cells["ID"], "a mention begins or ends inside a word")
        coref = cells.get(f"{column}-coref", "FALSE").upper()
        if coref not in ("TRUE", "FALSE"):
            raise DataError(f"{column}-coref must be TRUE or FALSE, got {shown(cells[f'{column}-coref'])}")
        cluster = PRONOUN if coref == "TRUE" else own
        head = head_in_words(text.words, *span)
        found.append(Mention(*span, head, cluster, "pronoun" if column == "Pronoun" else "proper"))
    mentions = tuple(sorted(found, key=lambda m: (m.start, -m.end)))
    return Document(text.words, mentions, cells["ID"], targets=(mentions.index(found[0]),), both_sides=True)


def _gap_span(cells: Mapping[str, str], column: str, text: TextWords) -> tuple[int, int] | None:
    offset, wanted = cells[f"{column}-offset"], cells[column]
    if not re.fullmatch("[0-9]{1,9}", offset):
        raise DataError(f"{column}-offset must be a number, got {shown(offset)}")
    start = int(offset)
    there = cells["Text"][start : start + len(wanted)]
    if there != wanted or not wanted:
        raise DataError(f"{column} is {shown(wanted)}, but the text has {shown(there)} at character {start}")
    return text.span(start, start + len(wanted))


@checked
def read_winobias(path: str | Path, *, skip_broken: bool = False) -> Documents:
    """Read WinoBias (Zhao et al. 2018): numbered sentences with two occupations, and a pronoun for one of them.

    Brackets mark the right occupation and its pronouns; the first pronoun is the target. The other occupation is not
    marked. It is found because another sentence of the file has it in brackets, so the file must be complete.
    Sentences without a second occupation are listed in `skipped`, because there is nothing to choose between. With
    `candidates="words"` of `coreference_heads`, all words before the pronoun are candidates.

    In the form that AllenNLP reads, sentences have no numbers, and round brackets mark a second entity and its
    pronouns: `[The cook] sold (the books) because [she] had read (them).` Its first pronoun is a target, too.

    Args:
        path: the file. Either each of its lines has a number, or none.
        skip_broken: leave out lines that cannot be read, and list them in `skipped`, too, instead of raising.

    Raises `DataError`, which names the file and the line, for lines without a number where others have one, and for
    those without an entity and its pronoun in brackets.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write("1 [The cook] met the guard as [she] left.\\n")
        ...     _ = file.write("2 The cook met [the guard] as [he] left.\\n")
        ...     file.flush()
        ...     [m.head for m in read_winobias(file.name)[0].mentions]
        [1, 4, 6]
    """
    broken = Broken(skip_broken, "such lines")
    found: list[Document] = []
    numbered: bool | None = None
    for number, line in lines_of(path):
        with broken.part(), placed(path, number):
            match = re.fullmatch(rf"[{BLANKS}]*(?:([0-9]+)[{BLANKS}]+)?(.*)", line)
            has, rest = bool(match and match[1]), match[2] if match else line
            numbered = has if numbered is None else numbered
            if has != numbered:
                raise DataError(f"wanted {'a number and ' if numbered else ''}a sentence, got {shown(line)}")
            found.append(_marked(rest.strip(BLANKS), f"{Path(path).name} {number}", has))
    if not found:
        told = "; ".join(reasons_for(broken.skipped))
        raise DataError(f"{path} holds no sentences{': ' if told else ''}{told}")
    occupations = {_occupation(document, document.mentions[0]) for document in found}
    whole = [_with_rivals(document, occupations) for document in found]
    several = [len({m.cluster for m in document.mentions}) > 1 for document in whole]
    lone = [
        Skip(document.name, "the other occupation was not found")
        for document, choice in zip(whole, several, strict=True)
        if not choice
    ]
    kept = tuple(document for document, choice in zip(whole, several, strict=True) if choice)
    return Documents(kept, (*broken.skipped, *lone))


_MARKED = re.compile(r"\[\s*([^\[\]()]*?)\s*\]|\(\s*([^\[\]()]*?)\s*\)")


def _marked(marked: str, name: str, numbered: bool) -> Document:
    """A sentence with its mentions in brackets. Raises `DataError`."""
    wanted = f"wanted {'a number and ' if numbered else ''}a sentence with [an entity] and [its pronoun]"
    text, spans, last = "", [], 0
    for match in _MARKED.finditer(marked):
        text += marked[last : match.start()]
        inside, cluster = (match[2], 1) if match[1] is None else (match[1], 0)
        spans.append((len(text), len(text) + len(inside), cluster))
        text, last = text + inside, match.end()
    text += marked[last:]
    if re.search(r"[\[\]]", text) or sum(cluster == 0 for *_, cluster in spans) < 2:
        raise DataError(f"{wanted}, got {shown(marked)}")
    words, mentions = words_in(text), []
    for start, end, cluster in spans:
        span = words.span(start, end)
        if span is None:
            raise DataError(f"[{text[start:end]}] is not made of whole words: {shown(marked)}")
        kind: Kind = "pronoun" if _is_pronoun(words.words[slice(*span)]) else "nominal"
        mentions.append(Mention(*span, head_in_words(words.words, *span), cluster, kind))
    targets = []
    for own in ([m for m in mentions if m.cluster == cluster] for cluster in sorted({m.cluster for m in mentions})):
        target = next((m for m in own if m.kind == "pronoun"), None)
        if own[0].kind == "pronoun" or (target is None and own[0].cluster == 0):
            raise DataError(f"wanted first an entity and then a pronoun in brackets, got {shown(marked)}")
        targets += [mentions.index(target)] if target else []
    return Document(words.words, tuple(mentions), name, sentences=(0,), targets=tuple(sorted(targets)))


def _is_pronoun(words: Sequence[str]) -> bool:
    """Whether this is a pronoun, or several in one, such as "he or she"; "they" has no gender, but is one."""
    own = [word.lower() for word in words if word.lower() not in ("or", "/")]
    return bool(own) and all(word in TRAITS for word in own)


def _occupation(document: Document, mention: Mention) -> tuple[str, ...]:
    words = [word.lower() for word in document.words[mention.start : mention.end]]
    return tuple(words[1:] if words[0] == "the" and len(words) > 1 else words)


def _with_rivals(document: Document, occupations: set[tuple[str, ...]]) -> Document:
    """The sentence with the occupations that are not marked in it, each in its own cluster."""
    small = [word.lower() for word in document.words]
    taken = {place for m in document.mentions for place in range(m.start, m.end)}
    taken_clusters = {m.cluster for m in document.mentions}
    rivals: list[Mention] = []
    for occupation in sorted(occupations, key=len, reverse=True):
        for start in range(len(small) - len(occupation) + 1):
            end = start + len(occupation)
            if tuple(small[start:end]) == occupation and not taken & set(range(start, end)):
                taken |= set(range(start, end))
                begin = start - (start > 0 and small[start - 1] == "the")
                rivals.append(Mention(begin, end, end - 1, len(taken_clusters) + len(rivals), "nominal"))
    mentions = sorted([*document.mentions, *rivals], key=lambda m: m.start)
    targets = tuple(mentions.index(document.mentions[target]) for target in document.targets or ())
    return replace(document, mentions=tuple(mentions), targets=targets)


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
