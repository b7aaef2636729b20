"""Reader of coreference in the formats of CoNLL-2012."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError, checked
from .documents import Document, Documents, Mention
from .files import columns_of, open_text, text_of
from .phrases import Parse, head_in_tree, head_in_words, kind_of, parses, unescaped

_BEGIN = re.compile(r"#\s*begin document\s*(?:\((.*)\))?\s*;?\s*(?:part (\d+))?")
_CELL = re.compile(r"(?:\(\d+\)?|\d+\)|\|)+")
_PART = re.compile(r"(\()?(\d+)(\))?")


@dataclass
class _Lines:
    """The content of a document's lines, line by line."""

    name: str
    words: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    bits: list[str] = field(default_factory=list)
    """[word]: the part of the tree in each word's line, with `*` for the word itself."""
    sentences: list[int] = field(default_factory=list)
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    """The first word of each mention, the word after its last one, its cluster."""
    opened: dict[int, list[int]] = field(default_factory=dict)
    """{cluster: the first words of its mentions that are still open}"""
    breaks: bool = True

    @property
    def parsed(self) -> bool:
        """Whether the file has trees."""
        return len(self.bits) == len(self.words) and any("(" in bit for bit in self.bits)


@checked
def read_conll_coref(path: str | Path, *, trees: str | Path | None = None) -> Documents:
    """Read coreference in the columns of CoNLL-2012 (OntoNotes' `*_gold_conll`), or in the three columns of OntoGUM.

    Each line is one word. Columns are counted from 0. CoNLL-2012 has the word in column 3, its tag in column 4, its
    part of the tree in column 5, and in the last column the mentions that begin or end at the word; a blank line
    follows each sentence. OntoGUM has the word's number, the word and the mentions. Mentions are brackets with the
    number of a cluster: `(3(4)`, `2)|(5`. The treebanks' `-LRB-` is read as `(`.

    A mention's head is found in the tree (Collins 1999; `phrases.head_in_tree`), or, without a tree, by a simple rule
    (`phrases.head_in_words`). Its kind is found from the tag of its head, or, without tags, from a list of pronouns
    and from capital letters. Mentions are in the order of the text.

    Args:
        path: the file.
        trees: a file of the same words in the brackets of the Penn Treebank, for a file without trees.

    Raises `DataError`, which names the file and the line, for lines of another format, for brackets without a partner,
    and when the words of the trees differ.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write("# begin document\\n0\\tThe\\t(1\\n1\\tqueen\\t1)\\n2\\tsleeps\\t_\\n# end document\\n")
        ...     file.flush()
        ...     read_conll_coref(file.name)[0].mentions
        (Mention(start=0, end=2, head=1, cluster=1, kind='nominal'),)
    """
    found = list(_documents(Path(path)))
    if not found:
        raise DataError(f"{path} holds no documents: wanted lines `# begin document` before the words")
    if trees is None:
        return Documents(tuple(_document(lines, _own_parses(lines)) for lines in found))
    shared = _shared_out(found, parses(text_of(trees), str(trees)), path, trees)
    return Documents(tuple(_document(lines, own) for lines, own in zip(found, shared, strict=True)))


def _documents(path: Path) -> Iterator[_Lines]:
    now: _Lines | None = None
    count = 0
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            place, line = f"{path}, line {number}", line.strip("\r\n ")
            begin = _BEGIN.match(line)
            if begin:
                if now is not None:
                    raise DataError(
                        f"{place}: a document begins before {now.name!r} ends: wanted a line `#end document` before it"
                    )
                count += 1
                now = _Lines(_name(begin, path, count))
            elif line.startswith("#"):
                if now is not None and "end document" in line:
                    yield _closed(now, place)
                    now = None
            elif now is not None:
                _read(now, line, place)
            elif line:
                raise DataError(f"{place}: a word is outside a document: wanted a line `# begin document` before it")
    if now is not None:
        yield _closed(now, f"{path}, end of file")


def _name(begin: re.Match[str], path: Path, count: int) -> str:
    name = begin[1] or f"{path.stem} {count}"
    return f"{name} part {begin[2]}" if begin[2] else name


def _closed(lines: _Lines, place: str) -> _Lines:
    still = [cluster for cluster, starts in lines.opened.items() if starts]
    if still:
        raise DataError(f"{place}: document {lines.name!r} ends before its mention of cluster {still[0]} is closed")
    if not lines.words:
        raise DataError(f"{place}: document {lines.name!r} has no words")
    return lines


def _read(lines: _Lines, line: str, place: str) -> None:
    """Add one line to a document."""
    if not line.strip():
        lines.breaks = True
        return
    columns = columns_of(line)
    if lines.breaks:
        lines.sentences.append(len(lines.words))
        lines.breaks = False
    if len(columns) == 3:
        lines.words.append(unescaped(columns[1]))
    elif len(columns) >= 7:
        lines.words.append(unescaped(columns[3]))
        lines.tags.append(columns[4])
        lines.bits.append(columns[5])
    else:
        raise DataError(
            f"{place}: wanted 3 columns (number, word, mentions) or those of CoNLL-2012, got {len(columns)}: {line!r}"
        )
    _mark(lines, columns[-1], place)


def _mark(lines: _Lines, cell: str, place: str) -> None:
    """Open and close the mentions that begin and end at the last word."""
    if cell in ("_", "-", "*"):
        return
    if not _CELL.fullmatch(cell):
        raise DataError(f"{place}: wanted mentions such as (3(4), 2)|(5 or _, got {cell!r}")
    word = len(lines.words) - 1
    parts = [(bool(opens), int(cluster), bool(closes)) for opens, cluster, closes in _PART.findall(cell)]
    # Closing brackets come first: `(2|2)` closes an earlier mention and opens another.
    for opens, cluster, closes in sorted(parts, key=lambda part: part[0]):
        if opens and closes:
            lines.spans.append((word, word + 1, cluster))
        elif opens:
            lines.opened.setdefault(cluster, []).append(word)
        elif not lines.opened.get(cluster):
            raise DataError(
                f"{place}: document {lines.name!r}: a mention of cluster {cluster} is closed but was never opened"
            )
        else:
            lines.spans.append((lines.opened[cluster].pop(), word + 1, cluster))


def _own_parses(lines: _Lines) -> list[Parse]:
    """The trees in the file itself, if it has any."""
    if not lines.parsed:
        return []
    escaped = [re.sub(r"[()]", lambda found: {"(": "-LRB-", ")": "-RRB-"}[found[0]], word) for word in lines.words]
    leaves = (f"({tag} {word})" for tag, word in zip(lines.tags, escaped, strict=True))
    text = " ".join(bit.replace("*", f" {leaf} ") for bit, leaf in zip(lines.bits, leaves, strict=True))
    return _matched(lines, parses(text, lines.name))


def _matched(lines: _Lines, own: list[Parse]) -> list[Parse]:
    many = sum(len(parse.words) for parse in own)
    if many != len(lines.words):
        raise DataError(f"document {lines.name!r} has {len(lines.words)} words, but its trees have {many}")
    return own


def _shared_out(
    documents: Sequence[_Lines], given: list[Parse], path: str | Path, trees: str | Path
) -> list[list[Parse]]:
    """The trees of each document. Raises `DataError` at the first word that differs."""
    shared: list[list[Parse]] = []
    rest = iter(given)
    for lines in documents:
        own: list[Parse] = []
        place = 0
        while place < len(lines.words):
            parse = next(rest, None)
            if parse is None:
                raise DataError(f"{trees} ends before word {place} of document {lines.name!r} of {path}")
            words = lines.words[place : place + len(parse.words)]
            for offset, (mine, other) in enumerate(
                zip([*words, *[None] * len(parse.words)], parse.words, strict=False)
            ):
                if mine != other:
                    wanted = "the end of the document" if mine is None else repr(mine)
                    raise DataError(
                        f"{trees} must have the same words as {path}: word {place + offset} of document "
                        f"{lines.name!r} is {wanted}, but {other!r} in the trees"
                    )
            own.append(parse)
            place += len(parse.words)
        shared.append(own)
    left = sum(1 for _ in rest)
    if left:
        raise DataError(
            f"{trees} and {path} must have the same documents: {left} trees are left after the last document"
        )
    return shared


def _document(lines: _Lines, own: Sequence[Parse]) -> Document:
    starts, place = [], 0
    for parse in own:
        starts.append(place)
        place += len(parse.words)
    tags = [tag for parse in own for tag in parse.tags] or lines.tags
    tags = tags if tags and set(tags) != {"-"} else []
    mentions = []
    for start, end, cluster in sorted(lines.spans, key=lambda span: (span[0], -span[1], span[2])):
        head = _head(lines.words, start, end, own, starts)
        mentions.append(Mention(start, end, head, cluster, kind_of(lines.words, tags, start, end, head)))
    sentences = starts or (lines.sentences if len(lines.sentences) > 1 else [])
    return Document(tuple(lines.words), tuple(mentions), lines.name, tuple(tags) if tags else None, tuple(sentences))


def _head(words: Sequence[str], start: int, end: int, own: Sequence[Parse], starts: Sequence[int]) -> int:
    for first, parse in zip(starts, own, strict=True):
        if first <= start and end <= first + len(parse.words):
            return first + head_in_tree(parse.tree, start - first, end - first)
    return head_in_words(words, start, end)  # no tree, or a mention across several sentences
