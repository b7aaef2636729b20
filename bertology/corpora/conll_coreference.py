"""Reader of coreference in the formats of CoNLL-2012."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from .documents import Document, Documents, Mention
from .phrases import Parse, head_in_tree, head_in_words, kind_of, parses, unescaped

_BEGIN = re.compile(r"#\s*begin document\s*(?:\((.*)\))?\s*;?\s*(?:part (\d+))?")
_CELL = re.compile(r"(?:\(\d+\)?|\d+\)|\|)+")
_PART = re.compile(r"(\()?(\d+)(\))?")


@dataclass
class _Lines:
    """What the lines of a document say, line by line."""

    name: str
    words: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    bits: list[str] = field(default_factory=list)
    """[word]: the part of the tree that stands at each word, with `*` for the word itself."""
    sentences: list[int] = field(default_factory=list)
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    """The first word of each mention, the word behind its last one, its cluster."""
    opened: dict[int, list[int]] = field(default_factory=dict)
    """{cluster: the first words of its mentions that are still open}"""
    breaks: bool = True

    @property
    def parsed(self) -> bool:
        """Whether the file brings trees."""
        return len(self.bits) == len(self.words) and any("(" in bit for bit in self.bits)


def read_conll_coref(path: str | Path, *, trees: str | Path | None = None) -> Documents:
    """Read coreference in the columns of CoNLL-2012 (OntoNotes' `*_gold_conll`), or in the three of OntoGUM.

    A line a word. CoNLL-2012 has the word in column 3, its tag in 4, its part of the tree in 5 and the mentions that
    begin or end there in the last, columns counted from 0, and a blank line behind each sentence. OntoGUM has the
    word's number, the word and the mentions. Mentions are brackets with the number of a cluster: `(3(4)`, `2)|(5`.
    Brackets that the treebanks write `-LRB-` are read as `(`.

    A mention's head is found in the tree (Collins 1999; `phrases.head_in_tree`), or, where there is none, by a plain
    rule (`phrases.head_in_words`). Its kind is told from the tag of its head, or from a list of pronouns and from
    capitals. Mentions come in the order of the text.

    Args:
        path: the file.
        trees: a file of the same words in the brackets of the Penn Treebank, for a file that has no trees of its own.

    Raises `DataError`, naming the file and the line, for lines of another form, for brackets without a partner, and
    where the trees have other words.

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
    shared = _shared_out(found, parses(Path(trees).read_text(encoding="utf-8"), str(trees)), path, trees)
    return Documents(tuple(_document(lines, own) for lines, own in zip(found, shared, strict=True)))


def _documents(path: Path) -> Iterator[_Lines]:
    now: _Lines | None = None
    count = 0
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            place, line = f"{path}, line {number}", line.strip("\r\n ")
            begin = _BEGIN.match(line)
            if begin:
                if now is not None:
                    raise DataError(f"{place}: a document begins within {now.name!r}: wanted `#end document` before")
                count += 1
                now = _Lines(_name(begin, path, count))
            elif line.startswith("#"):
                if now is not None and "end document" in line:
                    yield _closed(now, place)
                    now = None
            elif now is not None:
                _read(now, line, place)
            elif line:
                raise DataError(f"{place}: a word stands outside a document: wanted `# begin document` before")
    if now is not None:
        yield _closed(now, f"{path}, end of file")


def _name(begin: re.Match[str], path: Path, count: int) -> str:
    name = begin[1] or f"{path.stem} {count}"
    return f"{name} part {begin[2]}" if begin[2] else name


def _closed(lines: _Lines, place: str) -> _Lines:
    still = [cluster for cluster, starts in lines.opened.items() if starts]
    if still:
        raise DataError(f"{place}: document {lines.name!r} ends, and a mention of cluster {still[0]} is still open")
    if not lines.words:
        raise DataError(f"{place}: document {lines.name!r} has no words")
    return lines


def _read(lines: _Lines, line: str, place: str) -> None:
    """Add a line to a document."""
    if not line.strip():
        lines.breaks = True
        return
    columns = line.split("\t") if "\t" in line else line.split()
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
    # A mention that was opened before is closed first: `(2|2)` closes one and opens another.
    for opens, cluster, closes in sorted(parts, key=lambda part: part[0]):
        if opens and closes:
            lines.spans.append((word, word + 1, cluster))
        elif opens:
            lines.opened.setdefault(cluster, []).append(word)
        elif not lines.opened.get(cluster):
            raise DataError(
                f"{place}: document {lines.name!r}: a mention of cluster {cluster} is closed that was never opened"
            )
        else:
            lines.spans.append((lines.opened[cluster].pop(), word + 1, cluster))


def _own_parses(lines: _Lines) -> list[Parse]:
    """The trees of the file itself, if it has any."""
    if not lines.parsed:
        return []
    escaped = [re.sub(r"[()]", lambda found: {"(": "-LRB-", ")": "-RRB-"}[found[0]], word) for word in lines.words]
    leaves = (f"({tag} {word})" for tag, word in zip(lines.tags, escaped, strict=True))
    text = " ".join(bit.replace("*", f" {leaf} ") for bit, leaf in zip(lines.bits, leaves, strict=True))
    return _matched(lines, parses(text, lines.name))


def _matched(lines: _Lines, own: list[Parse]) -> list[Parse]:
    many = sum(len(parse.words) for parse in own)
    if many != len(lines.words):
        raise DataError(f"document {lines.name!r} has {len(lines.words)} words, its trees have {many}")
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
                        f"{trees} has other words than {path}: word {place + offset} of document {lines.name!r} is "
                        f"{wanted}, in the trees {other!r}"
                    )
            own.append(parse)
            place += len(parse.words)
        shared.append(own)
    left = sum(1 for _ in rest)
    if left:
        raise DataError(f"{trees} has {left} trees more than {path} has words for: wanted the same documents")
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
    return head_in_words(words, start, end)  # no tree, or a mention that runs over several sentences
