"""Reader of coreference in columns: CoNLL-2012, SemEval-2010 task 1, CoNLL-U, and the three columns of OntoGUM."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError, be, checked, how_many, shown
from .bracketed_trees import Parse, Row, parses, trees_in_columns, unescaped
from .documents import Document, Documents, Mention
from .files import BLANKS, columns_of, files_in, lines_of, open_text, text_of
from .mention_brackets import MentionBrackets
from .phrases import PENN_TAGS, head_in_tree, head_in_words, kind_of
from .skips import Broken, BrokenPart, Skip, placed, reasons_for

_BEGIN = re.compile(r"#\s*begin document\s*(?:\((.*)\)|([^;\s]\S*))?\s*;?\s*(?:part (\d+))?")
_NEW_DOCUMENT = re.compile(r"#\s*newdoc\b(?:\s+id)?\s*=?\s*(.*)")
_WHOLE = re.compile("[0-9]{1,9}")
_FIRST_ID = re.compile("1|0[.]1|1-[0-9]+")
"""What the first line of a sentence in CoNLL-U is numbered."""
_BIT = re.compile(rf"(\([^{BLANKS}()*]+)*\*\)*|-|_")
_Trees = Sequence[tuple[int, Parse]]
"""The first word of each tree, and the tree."""


class _Layout(NamedTuple):
    """Which columns a format has, counted from 0."""

    name: str
    number: int
    word: int
    tag: int | None = None
    tree: int | None = None
    head: int | None = None
    """The number of the word that each word depends on."""
    sentences: bool = True
    """Whether a blank line follows each sentence, or only each document."""
    exactly: int | None = None
    """The number of columns, if it is always the same."""
    least: int = 0
    """The smallest number of columns."""
    escaped: bool = True
    """Whether brackets in the text are written as `-LRB-`."""
    entities: bool = False
    """Whether mentions say more than the number of a cluster: `(e1-person`."""


_THREE = _Layout("OntoGUM", 0, 1, sentences=False, exactly=3, entities=True)
_CONLL_2012 = _Layout("CoNLL-2012", 2, 3, tag=4, tree=5, least=7)
_SEMEVAL_2010 = _Layout("SemEval-2010 task 1", 0, 1, tag=4, head=8, least=17, escaped=False)
_CONLLU = _Layout("CoNLL-U", 0, 1, tag=4, head=6, exactly=10, escaped=False, entities=True)


class _Text(NamedTuple):
    """The lines of a document as they are."""

    path: Path
    name: str
    lines: tuple[tuple[int, str], ...]
    end: int
    """The number of the line where it ends."""
    trouble: str = ""
    """What is wrong there, if it does not end as it should."""


@dataclass
class _Lines:
    """The content of a document's lines, line by line."""

    name: str
    path: Path
    layout: _Layout
    words: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """[word]: the number of its line."""
    sentences: list[int] = field(default_factory=list)
    mentions: MentionBrackets = field(init=False)
    parted: bool = False
    """Whether a blank line follows a word."""

    def __post_init__(self) -> None:
        self.mentions = MentionBrackets(self.layout.entities)

    @property
    def tags(self) -> list[str]:
        """[word]: its part of speech, if the file has those of the Penn Treebank."""
        column = self.layout.tag
        tags = [row[column] for row in self.rows] if column is not None else []
        known = self.layout is _CONLL_2012 or set(tags) <= PENN_TAGS
        return tags if known and set(tags) != {"-"} else []

    @property
    def heads(self) -> list[int] | None:
        """[word]: the word that it depends on, or -1 for none; None if the file does not say it."""
        column = self.layout.head
        if column is None or not all(_WHOLE.fullmatch(row[column]) for row in self.rows):
            return None
        ends = [*self.sentences[1:], len(self.words)]
        starts = [start for start, end in zip(self.sentences, ends, strict=True) for _ in range(start, end)]
        given = [int(row[column]) for row in self.rows]
        return [start + head - 1 if head else -1 for start, head in zip(starts, given, strict=True)]


@checked
def read_conll_coref(path: str | Path, *, trees: str | Path | None = None, skip_broken: bool = False) -> Documents:
    """Read coreference in the columns of CoNLL-2012, SemEval-2010 task 1 or CoNLL-U, or the three columns of OntoGUM.

    Each line is one word. Columns are counted from 0. CoNLL-2012 (OntoNotes' `*_gold_conll`) has the word's number in
    column 2, the word in column 3, its tag in column 4, its part of the tree in column 5. SemEval-2010 has number,
    word, and in columns 4 and 8 its tag and its head. OntoGUM has the word's number, the word and the mentions. The
    last column has the mentions that begin or end at the word. A blank line follows each sentence, and in OntoGUM
    only each document: where there is none, the ends of sentences are not known. Mentions are brackets with the number
    of a cluster: `(3(4)`, `2)|(5`. A mention that is written twice in one cluster is one mention; a span in two
    clusters is two mentions. The treebanks' `-LRB-` is read as `(`.

    CoNLL-U with mentions (GUM, CorefUD) has them in its last column, `Entity=(e1-person-1-new`, and lines `# newdoc`
    before documents. OntoGUM may have such cells, too. A mention on an empty node alone is no mention here, and one of
    several pieces is listed in `skipped`.

    A mention's head is found in the tree (Collins 1999; `phrases.head_in_tree`), or from the heads of its words, or,
    without either, by a simple rule (`phrases.head_in_words`). Its kind is found from the tag of its head, or, without
    tags of the Penn Treebank, from a list of pronouns and from capital letters. Mentions are in the order of the text.

    Args:
        path: the file, or a folder of files: those that are named `*gold_conll`, or else `*conll` or `*.conllu`, also
            in folders inside it. Files without documents are then listed in `skipped`.
        trees: a file of the same words in the brackets of the Penn Treebank, for a file without trees.
        skip_broken: leave out documents that cannot be read, and list them in `skipped`, instead of raising.

    Raises `DataError`, which names the file, the line and the document, for lines of another format, for words that
    are not numbered one after another, for brackets without a partner, and when the words of the trees differ.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write("# begin document\\n0\\tThe\\t(1\\n1\\tqueen\\t1)\\n2\\tsleeps\\t_\\n# end document\\n")
        ...     file.flush()
        ...     read_conll_coref(file.name)[0].mentions
        (Mention(start=0, end=2, head=1, cluster=1, kind='nominal'),)
    """
    broken = Broken(skip_broken, "such documents")
    read: list[tuple[_Lines, _Trees]] = []
    for file in files_in(path, "*gold_conll", "*conll", "*.conllu"):
        with broken.file(path, file, read, "holds no documents"):
            for text in _texts(file, broken):
                with broken.part():
                    lines = _lines_of(text)
                    read.append((lines, _own_trees(lines) if trees is None else ()))
                    broken.skipped += [Skip(text.name, "a mention has several pieces")] * lines.mentions.in_pieces
    if not read:
        told = "; ".join(reasons_for(broken.skipped)) or "wanted lines `# begin document` before the words"
        raise DataError(f"{path} holds no documents: {told}")
    if trees is not None:
        given = parses(text_of(trees), trees)
        read = [(lines, own) for (lines, _), own in zip(read, _shared_out(read, given, path, trees), strict=True)]
    return Documents(tuple(_document(lines, own, trees is not None) for lines, own in read), tuple(broken.skipped))


def _texts(path: Path, broken: Broken) -> Iterator[_Text]:
    """The lines of each document, whatever they hold."""
    lines: list[tuple[int, str]] = []
    name, begun, count, number, outside = "", 0, 0, 0, False
    conllu = _is_conllu(path)

    def made(trouble: str = "") -> _Text:
        return _Text(path, name, tuple(lines), number, trouble)

    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            begin = (_NEW_DOCUMENT if conllu else _BEGIN).match(line.strip(BLANKS))
            if begin or (conllu and not begun and not line.startswith("#") and line.strip(BLANKS)):
                if begun:
                    trouble = f"a document begins before {name!r} ends: wanted a line `#end document` before it"
                    yield made("" if conllu else trouble)
                count += 1
                name, begun, outside = _name(begin, path, count), number, False
                lines = [] if begin else [(number, line)]
            elif not conllu and line.startswith("#") and "end document" in line:
                if begun:
                    yield made()
                begun = 0
            elif begun:
                lines.append((number, line))
            elif line.strip(BLANKS) and not line.startswith("#") and not outside:
                outside = True  # only the first of several is listed
                with broken.part():
                    raise BrokenPart(
                        path, number, "a word is outside a document: wanted a line `# begin document` before it"
                    )
    if begun and conllu:
        yield made()
    elif begun:
        yield made(f"the file ends before document {name!r}: wanted a line `#end document`; is the file complete?")


def _is_conllu(path: Path) -> bool:
    """Whether the first words of a file are in the ten columns of CoNLL-U, before any line `# begin document`."""
    for _, line in lines_of(path):
        if _BEGIN.match(line):
            return False
        if not line.startswith("#"):
            columns = columns_of(line)
            return len(columns) == 10 and bool(_FIRST_ID.fullmatch(columns[0]))
    return False


def _name(begin: re.Match[str] | None, path: Path, count: int) -> str:
    parts = [one for one in begin.groups() if one] if begin else []
    if begin is None or begin.re is _NEW_DOCUMENT:
        return parts[0] if parts else f"{path.stem} {count}"
    name = begin[1] or begin[2] or f"{path.stem} {count}"
    return f"{name} part {begin[3]}" if begin[3] else name


def _lines_of(text: _Text) -> _Lines:
    """The content of a document's lines. Raises `DataError`."""
    lines: _Lines | None = None
    blank = True
    for number, line in text.lines:
        with placed(text.path, number):
            columns = columns_of(line) if line.strip(BLANKS) and not line.startswith("#") else None
            if columns is None:
                blank = blank or not line.strip(BLANKS)
                if lines is not None:
                    lines.parted = lines.parted or blank
                continue
            if lines is None:
                lines = _Lines(text.name, text.path, _layout_of(columns, text.name, line))
            try:
                words = len(lines.words)
                _take(lines, columns, number, blank)
            except DataError as error:
                raise DataError(f"document {text.name!r}: {error}") from error
            blank = blank and len(lines.words) == words
    if text.trouble:
        raise BrokenPart(text.path, text.end, text.trouble)
    if lines is None:
        raise BrokenPart(text.path, text.end, f"document {text.name!r} has no words")
    if lines.mentions.open is not None:
        raise BrokenPart(
            text.path,
            text.end,
            f"document {text.name!r} ends before its mention of cluster {lines.mentions.open} is closed",
        )
    return lines


def _layout_of(columns: Sequence[str], name: str, line: str) -> _Layout:
    """The format of a document, by its first line. Raises `DataError` for other formats."""
    if len(columns) == 3 and _WHOLE.fullmatch(columns[0]):
        return _THREE
    if len(columns) == 10 and _FIRST_ID.fullmatch(columns[0]):
        return _CONLLU
    if len(columns) >= 7 and all(map(_WHOLE.fullmatch, columns[1:3])) and _BIT.fullmatch(columns[5]):
        return _CONLL_2012
    if len(columns) >= 17 and columns[0] == "1" and (columns[8] == "_" or _WHOLE.fullmatch(columns[8])):
        return _SEMEVAL_2010
    raise DataError(
        f"document {name!r}: wanted 3 columns (number, word, mentions) or those of CoNLL-2012 (document, part, number, "
        "word, tag, part of the tree, ..., mentions), SemEval-2010 task 1 or CoNLL-U, got "
        f"{len(columns)}: {shown(line)}"
    )


def _take(lines: _Lines, columns: list[str], number: int, after_blank: bool) -> None:
    """Add the columns of one line to a document. Raises `DataError`."""
    layout, before = lines.layout, lines.rows[-1] if lines.rows else None
    many = layout.exactly or (len(before) if before is not None and not after_blank else None)
    if len(columns) < layout.least or (many is not None and len(columns) != many):
        raise DataError(
            f"wanted {how_many(many or layout.least, 'column')} of {layout.name}, as before, got {len(columns)}: "
            f"{shown(' '.join(columns))}"
        )
    cell = _entities_in(columns[-1]) if layout is _CONLLU else columns[-1]
    if layout is _CONLLU and not _WHOLE.fullmatch(columns[0]):
        if "." in columns[0]:  # an empty node: a mention may begin or end there
            lines.mentions.mark(cell, len(lines.words), len(lines.words))
        return
    _check_number(columns[layout.number], before, after_blank, layout)
    if not columns[layout.word]:
        raise DataError("the word is empty")
    if after_blank or before is None:
        lines.sentences.append(len(lines.words))
    lines.words.append(unescaped(columns[layout.word]) if layout.escaped else columns[layout.word])
    lines.rows.append(columns)
    lines.numbers.append(number)
    lines.mentions.mark(cell, len(lines.words) - 1, len(lines.words))


def _entities_in(cell: str) -> str:
    """The mentions in the last column of CoNLL-U."""
    return next((part.partition("=")[2] for part in cell.split("|") if part.startswith("Entity=")), "_")


def _check_number(found: str, before: Sequence[str] | None, after_blank: bool, layout: _Layout) -> None:
    """Raise `DataError` for a word that is not numbered as the next one of its sentence."""
    begins = after_blank or before is None
    wanted = [1] if layout is _CONLLU and begins else [0, 1] if begins else []
    if before is not None and not (layout is _CONLLU and begins):
        wanted.append(int(before[layout.number]) + 1)
    part_of_more = before is None and layout is _THREE
    if not _WHOLE.fullmatch(found) or (int(found) not in wanted and not part_of_more):
        raise DataError(
            f"wanted word number {wanted[0]}, got {shown(found)}: words count up from 0 or 1, and a blank line follows "
            "each sentence"
        )


def _own_trees(lines: _Lines) -> _Trees:
    """The trees in the file itself. A sentence may have none."""
    tag, tree = lines.layout.tag, lines.layout.tree
    if tag is None or tree is None:
        return ()
    found: list[tuple[int, Parse]] = []
    for start, end in zip(lines.sentences, [*lines.sentences[1:], len(lines.words)], strict=True):
        rows = [
            Row(lines.numbers[at], lines.words[at], lines.rows[at][tag], lines.rows[at][tree])
            for at in range(start, end)
        ]
        try:
            found += [(start + first, parse) for first, parse in trees_in_columns(rows, lines.path)]
        except BrokenPart as error:
            raise BrokenPart(lines.path, error.place, f"document {lines.name!r}: {error.problem}") from error
    return found


def _shared_out(
    read: Sequence[tuple[_Lines, _Trees]], given: list[Parse], path: str | Path, trees: str | Path
) -> list[_Trees]:
    """The trees of each document. Raises `DataError` at the first word that differs."""
    shared: list[_Trees] = []
    rest = iter(given)
    for lines, _ in read:
        own: list[tuple[int, Parse]] = []
        place = 0
        while place < len(lines.words):
            parse = next(rest, None)
            if parse is None:
                raise DataError(f"{trees} ends before word {place} of document {lines.name!r} of {path}")
            _compare(lines, place, parse, path, trees)
            own.append((place, parse))
            place += len(parse.words)
        shared.append(own)
    left = sum(1 for _ in rest)
    if left:
        raise DataError(
            f"{trees} and {path} must have the same documents: {how_many(left, 'tree')} {be(left)} left after the last "
            "document"
        )
    return shared


def _compare(lines: _Lines, place: int, parse: Parse, path: str | Path, trees: str | Path) -> None:
    words = [*lines.words[place : place + len(parse.words)], *[None] * len(parse.words)]
    for offset, (mine, other) in enumerate(zip(words, parse.words, strict=False)):
        if mine != other:
            wanted = "the end of the document" if mine is None else shown(mine)
            raise DataError(
                f"{trees} must have the same words as {path}: word {place + offset} of document "
                f"{lines.name!r} is {wanted}, but {shown(other)} in the trees"
            )


def _document(lines: _Lines, own: _Trees, trees_beside: bool) -> Document:
    beside = [tag for _, parse in own for tag in parse.tags] if trees_beside else []
    tags, heads = beside or lines.tags, lines.heads
    mentions = []
    for start, end, cluster in sorted(set(lines.mentions.spans), key=lambda span: (span[0], -span[1], span[2])):
        head = _head(lines.words, start, end, own, heads)
        mentions.append(Mention(start, end, head, cluster, kind_of(lines.words, tags, start, end, head)))
    known = lines.layout.sentences or lines.parted
    sentences = [start for start, _ in own] if trees_beside else lines.sentences if known else []
    return Document(tuple(lines.words), tuple(mentions), lines.name, tuple(tags) if tags else None, tuple(sentences))


def _head(words: Sequence[str], start: int, end: int, own: _Trees, heads: Sequence[int] | None) -> int:
    for first, parse in own:
        if first <= start and end <= first + len(parse.words):
            return first + head_in_tree(parse.tree, start - first, end - first)
    if heads is not None:
        outside = [word for word in range(start, end) if not start <= heads[word] < end]
        if len(outside) == 1:
            return outside[0]
    return head_in_words(words, start, end)  # no tree, or a mention across several sentences
