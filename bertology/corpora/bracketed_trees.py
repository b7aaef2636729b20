"""Trees of phrases, and their reader in the brackets of the Penn Treebank."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError, be, how_many, shown
from .files import BLANKS
from .skips import Broken, BrokenPart

BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}
_BRACKET = re.compile("|".join(BRACKETS))
# Tags under which parsers write a bracket as it is: `(-RRB- ))`.
_TAGS_OF_BRACKETS = (*BRACKETS, "PUNCT", "PUNC", "PU", "PONCT", "SYM", "NFP", ":", ".", ",", "$(")
_TAG = "|".join(map(re.escape, _TAGS_OF_BRACKETS))
_BIT = re.compile(rf"((?:\([^{BLANKS}()*]+)*)\*(\)*)")
_TOKEN = re.compile(
    rf"\([{BLANKS}]*(?P<tag>{_TAG})[{BLANKS}]+(?P<bracket>[()])[{BLANKS}]*\)"  # (-RRB- ))
    rf"|\([{BLANKS}]*(?P<any>[^{BLANKS}()]+)[{BLANKS}]+\(\)"  # (PUNCT ()
    rf"|(?P<open>\()[{BLANKS}]*(?P<label>[^{BLANKS}()]*)|(?P<word>[^{BLANKS}()]+)|(?P<close>\))"
)


@dataclass(frozen=True)
class Phrase:
    """A constituent: its label, its words, and its children. A word has no children, and its label is its tag."""

    label: str
    start: int
    end: int
    children: tuple[Phrase, ...] = ()
    functions: tuple[str, ...] = ()
    """Its function tags: `NP-SBJ-1` has the label `NP` and the function `SBJ`."""


@dataclass(frozen=True)
class Parse:
    """A sentence's words, its tags and its constituents."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    tree: Phrase


@dataclass
class _Open:
    """A bracket that is not closed yet."""

    label: str
    start: int
    children: list[Phrase] = field(default_factory=list)
    word: str | None = None


class TreeBuilder:
    """Builds a tree from its brackets and words, in the order of the text. Traces are left out."""

    def __init__(self) -> None:
        self._words: list[str] = []
        self._tags: list[str] = []
        self._opened: list[_Open] = []

    @property
    def depth(self) -> int:
        """The number of brackets that are open."""
        return len(self._opened)

    def open(self, label: str) -> None:
        """Open a bracket. Raises `DataError` inside one that has a word."""
        inside = self._opened[-1] if self._opened else None
        if inside and (inside.word is not None or inside.label in BRACKETS):
            raise DataError(f"the tag {shown(inside.label)} has one word and no phrases: write a bracket as -LRB-")
        self._opened.append(_Open(label, len(self._words)))

    def word(self, word: str) -> None:
        """Put a word into the last bracket. Raises `DataError` where there is none, or where it holds more."""
        if not self._opened:
            raise DataError(f"{shown(word)} is outside of all trees")
        inside = self._opened[-1]
        if inside.word is not None or inside.children:
            raise DataError(
                f"the bracket {shown(inside.label)} has {shown(word)} beside others: wanted one word a bracket"
            )
        inside.word = word
        tag = _plain(inside.label)
        if tag != "-NONE-":
            self._words.append(unescaped(word))
            self._tags.append(tag)

    def close(self) -> Parse | None:
        """Close the last bracket. Returns the tree where this was the outermost and has words."""
        if not self._opened:
            raise DataError("')' is outside of all trees")
        one = self._opened.pop()
        label = _plain(one.label)
        functions = () if one.word is not None else _functions(one.label)
        phrase = Phrase(label, one.start, len(self._words), tuple(one.children), functions)
        if self._opened:
            if phrase.end > phrase.start:
                self._opened[-1].children.append(phrase)
            return None
        return Parse(tuple(self._words), tuple(self._tags), phrase) if self._words else None


class _Token(NamedTuple):
    kind: str
    value: str
    line: int
    first: bool
    """Whether it is a bracket at the very beginning of a line."""


def parses(text: str, path: str | Path, broken: Broken | None = None) -> list[Parse]:
    """Read trees in the brackets of the Penn Treebank. Traces are left out, as is the part of a label after its hyphen.

    A literal bracket may be a word, as parsers write it: `(-LRB- ()`. Trees that cannot be read are left out if
    `broken` says so; reading goes on at the next line that begins with a bracket. Raises `DataError`, which names the
    file and the line, for brackets that do not match.

        >>> parses("(S (NP (DT The) (NN queen)) (VP (VBZ sings)))", "example")[0].tags
        ('DT', 'NN', 'VBZ')
    """
    broken = Broken(False, "") if broken is None else broken
    tokens = list(_tokens(text))
    found: list[Parse] = []
    start = 0
    while start < len(tokens):
        end = start
        with broken.part():
            parse, end = _tree(tokens, start, path)
            found += [parse] if parse else []
        if end == start:
            end = next((k for k in range(start + 1, len(tokens)) if tokens[k].first), len(tokens))
        start = end
    return found


def _tokens(text: str) -> Iterator[_Token]:
    line, counted = 1, 0
    for match in _TOKEN.finditer(text):
        at = match.start()
        line, counted = line + text.count("\n", counted, at), at
        first = at == 0 or text[at - 1] == "\n"
        tag, word = match["tag"] or match["any"], match["bracket"] or "("
        if tag:
            yield _Token("open", tag, line, first)
            yield _Token("word", word, line, False)
            yield _Token("close", ")", line, False)
        elif match["open"]:
            yield _Token("open", match["label"], line, first)
        else:
            yield _Token("word" if match["word"] else "close", match[0], line, False)


def _tree(tokens: Sequence[_Token], start: int, path: str | Path) -> tuple[Parse | None, int]:
    """The tree that begins at a token, and the token after it."""
    builder = TreeBuilder()
    for place in range(start, len(tokens)):
        kind, value, line, _ = tokens[place]
        try:
            if kind == "open":
                builder.open(value)
            elif kind == "word":
                builder.word(value)
            else:
                parse = builder.close()
                if not builder.depth:
                    return parse, place + 1
        except DataError as error:
            raise BrokenPart(path, line, str(error)) from error
    raise BrokenPart(
        path,
        tokens[start].line,
        f"the file ends inside a tree: {how_many(builder.depth, 'bracket')} {be(builder.depth)} not closed since here",
    )


def _plain(label: str) -> str:
    return label if label.startswith("-") else re.split("[-=|]", label)[0]


def _functions(label: str) -> tuple[str, ...]:
    parts = [] if label.startswith("-") else re.split("[-=|]", label)[1:]
    return tuple(dict.fromkeys(part for part in parts if part and not part.isdecimal()))


def unescaped(word: str) -> str:
    """A word of a treebank with `(` for `-LRB-` and so on, and without slashes and backslashes before marks.

    >>> unescaped(r"1\\/2"), unescaped("-RRB-")
    ('1/2', ')')
    """
    word = _BRACKET.sub(lambda found: BRACKETS[found[0]], word).replace("\\/", "/").replace("\\*", "*")
    return word[1:] if word in ("/.", "/?", "/-") else word


class Row(NamedTuple):
    """A word in columns, and the part of the tree in its line: `(S(NP*`, with `*` for the word."""

    line: int
    word: str
    tag: str
    bit: str


def trees_in_columns(rows: Sequence[Row], path: str | Path) -> list[tuple[int, Parse]]:
    """The trees of a sentence in columns, each with its first word; none where no line has a bracket.

    Raises `DataError`, which names the file and the line, for brackets that do not match.
    """
    if not any("(" in row.bit or ")" in row.bit for row in rows):
        return []
    builder, start = TreeBuilder(), 0
    found: list[tuple[int, Parse]] = []
    for place, row in enumerate(rows):
        try:
            parse = _bit_into(builder, row)
        except DataError as error:
            raise BrokenPart(path, row.line, str(error)) from error
        if not builder.depth:
            if parse is None or len(parse.words) != place + 1 - start:
                raise BrokenPart(path, row.line, "a tree ends here that has not each of its words: is one a trace?")
            found.append((start, parse))
            builder, start = TreeBuilder(), place + 1
    if builder.depth:
        raise BrokenPart(
            path,
            rows[-1].line,
            f"the sentence ends inside a tree: {how_many(builder.depth, 'bracket')} {be(builder.depth)} not closed",
        )
    return found


def _bit_into(builder: TreeBuilder, row: Row) -> Parse | None:
    """Open the brackets before a word, put the word into the tree, and close those after it."""
    match = _BIT.fullmatch(row.bit)
    if match is None:
        raise DataError(f"wanted a part of a tree such as (S(NP* or *), got {shown(row.bit)}")
    labels = match[1].split("(")[1:]
    if not labels and not builder.depth:
        raise DataError(f"{shown(row.word)} is outside of all trees")
    for label in labels:
        builder.open(label)
    builder.open(row.tag)
    builder.word(row.word)
    builder.close()
    closed = None
    for _ in match[2]:
        closed = builder.close()
        if not builder.depth and closed is None:
            break
    return closed
