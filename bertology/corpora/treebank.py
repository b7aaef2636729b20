"""Sentences with dependency trees, and readers of CoNLL-U and the formats of Clark et al. (2019)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, overload

from ..errors import DataError, check_strings, checked, described, how_many, shown
from ..results.views import brief
from .files import BLANKS, blocks_of, columns_of, files_in, json_list_of, name_in, words_of
from .raw_text import Span, joined_text, spans_in_text
from .skips import Broken, BrokenPart, Skip, placed, reasons_for

_COLUMNS: tuple[str, ...] = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
_NUMBER, _RANGE_OR_EMPTY = re.compile("[1-9][0-9]*"), re.compile(r"[1-9][0-9]*-[0-9]+|[0-9]+\.[0-9]+")
_COMMENT = re.compile(r"#\s*([^=]*?)\s*=\s*(.*)")


@dataclass(frozen=True)
class Sentence:
    """The words of a sentence and its dependency tree.

    Raises `DataError` when it is not a tree: a head does not exist, or the arcs form a cycle.
    """

    words: tuple[str, ...]
    heads: tuple[int, ...]
    """[word]: the number of each word's head, counted from 1; 0 for a word whose head is the root."""
    relations: tuple[str, ...]
    """[word]: how each word depends on its head."""
    name: str = ""
    """Its name in messages: its `sent_id`, or its number in the file."""
    text: str = field(default="", compare=False)
    """The sentence as it is written, for `align(..., raw_text=True)`; empty if it is not known."""
    spans: tuple[tuple[int, int], ...] = field(default=(), compare=False)
    """[word] (first character, character after the last): where each word is in `text`; empty if it is not known."""

    __repr__ = brief

    def __post_init__(self) -> None:
        for part in ("words", "relations"):
            check_strings(f"sentence {self.name!r}: {part}", getattr(self, part))
        if not isinstance(self.heads, (list, tuple)):
            raise DataError(f"sentence {self.name!r}: heads must be a list of numbers, got {described(self.heads)}")
        many = len(self.words)
        if many == 0:
            raise DataError(f"sentence {self.name!r} has no words")
        if not many == len(self.heads) == len(self.relations):
            raise DataError(
                f"sentence {self.name!r} has {how_many(many, 'word')}, {how_many(len(self.heads), 'head')} and "
                f"{how_many(len(self.relations), 'relation')}: wanted one of each per word"
            )
        for word, head in enumerate(self.heads, 1):
            if isinstance(head, bool) or not isinstance(head, int) or not 0 <= head <= many:
                raise DataError(
                    f"sentence {self.name!r}: the head of word {word} must be a number from 0 (the root) to {many}, "
                    f"got {head!r}"
                )
        check_spans(f"sentence {self.name!r}", self.spans, many, self.text)
        cycle = _cycle(self.heads)
        if cycle:
            raise DataError(f"sentence {self.name!r} is not a tree: words {', '.join(map(str, cycle))} form a cycle")


def check_spans(place: str, spans: Sequence[tuple[int, int]], words: int, text: str) -> None:
    """Raise `DataError` for spans of characters that are not those of `words` words in a text."""
    if spans and len(spans) != words:
        raise DataError(
            f"{place} has {how_many(words, 'word')} and {how_many(len(spans), 'span')}: wanted one for each word, or "
            "none"
        )
    for span in spans:
        if len(span) != 2 or not 0 <= span[0] < span[1] <= len(text):
            raise DataError(f"{place}: wanted spans of characters within the {len(text)} of its text, got {span!r}")


@checked
@dataclass(frozen=True, repr=False)
class Treebank(Sequence[Sentence]):
    """Sentences with their trees, in the order of the file, and the sentences that were left out."""

    sentences: tuple[Sentence, ...]
    skipped: tuple[Skip, ...] = ()

    @property
    def relations(self) -> tuple[str, ...]:
        """All relations that occur, sorted."""
        return tuple(sorted({relation for sentence in self.sentences for relation in sentence.relations}))

    def __len__(self) -> int:
        return len(self.sentences)

    @overload
    def __getitem__(self, index: int) -> Sentence: ...
    @overload
    def __getitem__(self, index: slice) -> Treebank: ...
    def __getitem__(self, index: int | slice) -> Sentence | Treebank:
        if isinstance(index, slice):
            return Treebank(self.sentences[index], self.skipped)
        return self.sentences[index]

    def __repr__(self) -> str:
        words = sum(len(sentence.words) for sentence in self.sentences)
        return "; ".join([f"{how_many(len(self), 'sentence')}, {how_many(words, 'word')}", *reasons_for(self.skipped)])


@checked
def read_conllu(path: str | Path, *, subtypes: bool = True, skip_broken: bool = False) -> Treebank:
    """Read a treebank of Universal Dependencies, or any other in CoNLL-U.

    Args:
        path: a CoNLL-U file, or a folder of `*.conllu` files. Multiword tokens and empty nodes are left out, because
            the tree is over the words. Columns are those of CoNLL-U, or those that a line `# global.columns` names.
        subtypes: whether relations keep the subtype after the colon (`nsubj:pass`) or lose it (`nsubj`).
        skip_broken: leave out sentences that are not trees or whose lines are broken, and list them in `skipped`,
            instead of raising.

    Raises `DataError`, which names the file and the line, for a line of another format, for words that are not
    numbered 1, 2, 3 and so on in a sentence, and for a sentence that is not a tree; and for a file without sentences.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w", suffix=".conllu") as file:
        ...     lines = ["1\\tBirds\\t_\\t_\\t_\\t_\\t2\\tnsubj\\t_\\t_", "2\\tsing\\t_\\t_\\t_\\t_\\t0\\troot\\t_\\t_"]
        ...     _ = file.write("\\n".join(lines) + "\\n\\n")
        ...     file.flush()
        ...     read_conllu(file.name)[0].heads
        (2, 0)
    """
    broken = Broken(skip_broken, "such sentences")
    sentences = []
    for found in conllu_sentences(path, broken):
        with broken.part(found.place), placed(found.path, found.line):
            sentences.append(_sentence_of(found, subtypes))
    return _treebank(path, sentences, broken)


@dataclass(frozen=True)
class ConlluSentence:
    """The lines of a sentence in CoNLL-U."""

    path: Path
    line: int
    """The number of its first line with a word."""
    place: str
    """The file and its number in it."""
    name: str
    """Its `sent_id`, or its place."""
    comments: dict[str, str]
    """What its comments say, such as its `text`."""
    words: tuple[dict[str, str], ...]
    """[word]: its columns by their names; no multiword tokens and no empty nodes."""
    lines: tuple[int, ...]
    """[word]: the number of its line."""
    written: tuple[tuple[str, int, bool], ...] = ()
    """What is written: the form, the number of its words, and whether a blank follows it."""

    @property
    def forms(self) -> tuple[str, ...]:
        """[word]: what is in the text."""
        return tuple(word["FORM"] for word in self.words)


def conllu_sentences(path: str | Path, broken: Broken) -> Iterator[ConlluSentence]:
    """The sentences of a CoNLL-U file, or of a folder of `*.conllu` files. Blocks of comments are no sentences."""
    for file in files_in(path, "*.conllu"):
        columns, number = _COLUMNS, 0
        for block in blocks_of(file):
            comments = {m[1]: m[2] for _, line in block if (m := _COMMENT.match(line))}
            columns = tuple(words_of(comments.get("global.columns", ""))) or columns
            lines = [(line, text) for line, text in block if not text.startswith("#")]
            if not lines:
                continue
            number += 1
            place = f"{name_in(path, file)} {number}"
            with broken.part(place):
                rows = [(line, _cells(line, text, columns, file)) for line, text in lines]
                found = dict(_words_in(rows, file))
                name = comments.get("sent_id") or place
                yield ConlluSentence(
                    file, lines[0][0], place, name, comments, tuple(found.values()), tuple(found), _written(rows)
                )


def _cells(line: int, text: str, columns: Sequence[str], path: Path) -> dict[str, str]:
    """{column: what a line has in it}."""
    cells = columns_of(text)
    if len(cells) != len(columns):
        wanted = f"wanted {how_many(len(columns), 'column')}, parted by tabs, got {len(cells)}: {shown(text)}"
        raise BrokenPart(path, line, f"the line is not CoNLL-U: {wanted}")
    return dict(zip(columns, cells, strict=True))


def _words_in(rows: Sequence[tuple[int, dict[str, str]]], path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The line and the columns of each word."""
    last = 0
    for line, word in rows:
        if _RANGE_OR_EMPTY.fullmatch(word["ID"]):
            continue
        if not _NUMBER.fullmatch(word["ID"]):
            raise BrokenPart(
                path, line, f"the line is not CoNLL-U: the number of a word must be 1 or more, got {shown(word['ID'])}"
            )
        if word["ID"] != str(last + 1):
            raise BrokenPart(
                path, line, f"the line is not CoNLL-U: wanted word {last + 1} of the sentence, got word "
                f"{shown(word['ID'])}: words count up from 1, and a blank line follows each sentence"
            )  # fmt: skip
        if not word["FORM"]:
            raise BrokenPart(path, line, "the line is not CoNLL-U: the word is empty")
        last += 1
        yield line, word


def _written(rows: Sequence[tuple[int, dict[str, str]]]) -> tuple[tuple[str, int, bool], ...]:
    """Multiword tokens, and the words that are not in one: the form, how many words, and whether a blank follows."""
    written = []
    inside = 0
    for _, word in rows:
        first, _, last = word["ID"].partition("-")
        if "." in first or (not last and int(first) <= inside):
            continue
        inside = int(last or first)
        blank = "SpaceAfter=No" not in word.get("MISC", "").split("|")
        written.append((word["FORM"], inside - int(first) + 1, blank))
    return tuple(written)


@checked
def read_depparse(path: str | Path, *, skip_broken: bool = False) -> Treebank:
    """Read the text format of Clark et al. (2019): a line `word head-relation` per word, blank lines between sentences.

    Heads are counted from 1, and 0 is the root. A relation may contain more hyphens, the last sentence needs no blank
    line, and several blank lines count as one. Raises `DataError`, which names the file and the line, for lines of
    another format, and as `read_conllu` does; `skip_broken` as there.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write("Birds 2-nsubj\\nsing 0-root\\n")
        ...     file.flush()
        ...     read_depparse(file.name)[0].relations
        ('nsubj', 'root')
    """
    broken = Broken(skip_broken, "such sentences")
    sentences = []
    for number, block in enumerate(blocks_of(path), 1):
        name = f"{Path(path).name} {number}"
        with broken.part(name), placed(path, block[0][0]):
            sentences.append(_sentence_in(block, name, path))
    return _treebank(path, sentences, broken)


@checked
def read_json(path: str | Path, *, skip_broken: bool = False) -> Treebank:
    """Read the JSON of Clark et al. (2019): a list of objects with `words`, `heads` and `relns`.

    Raises `DataError`, which names the file and the sentence, for objects without them, and as `read_conllu` does;
    `skip_broken` as there.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write('[{"words": ["Birds", "sing"], "heads": [2, 0], "relns": ["nsubj", "root"]}]')
        ...     file.flush()
        ...     len(read_json(file.name))
        1
    """
    broken = Broken(skip_broken, "such sentences")
    sentences = []
    for number, record in enumerate(json_list_of(path, "sentences"), 1):
        name = f"{Path(path).name} {number}"
        with broken.part(name), placed(path):
            sentences.append(_sentence_from(record, name))
    return _treebank(path, sentences, broken)


def _treebank(path: str | Path, sentences: Sequence[Sentence], broken: Broken) -> Treebank:
    if not sentences:
        told = "; ".join(reasons_for(broken.skipped))
        raise DataError(f"{path} has no sentences{' that are trees: ' if told else ''}{told}")
    return Treebank(tuple(sentences), tuple(broken.skipped))


def _sentence_of(found: ConlluSentence, subtypes: bool) -> Sentence:
    heads, relations = [], []
    for line, word in zip(found.lines, found.words, strict=True):
        head, relation = word.get("HEAD", "_"), word.get("DEPREL", "_") or "_"
        if not re.fullmatch("[0-9]{1,9}", head) or int(head) > len(found.words):
            many = f"a number from 0 (the root) to {len(found.words)}"
            raise BrokenPart(found.path, line, f"sentence {found.name!r}: the head must be {many}, got {shown(head)}")
        heads.append(int(head))
        relations.append(relation if subtypes else relation.partition(":")[0])
    text, spans = text_as_written(found)
    return Sentence(found.forms, tuple(heads), tuple(relations), found.name, text, spans)


def text_as_written(found: ConlluSentence) -> tuple[str, tuple[Span, ...]]:
    """The sentence as it is written, and the characters of each word; both empty if its words are not in its text."""
    forms = iter(found.forms)
    tokens = [(form, list(islice(forms, many))) for form, many, _ in found.written if many > 0]
    text = found.comments.get("text") or joined_text([(form, blank) for form, _, blank in found.written])
    spans = spans_in_text(text, tokens) or ()
    return (text, spans) if len(spans) == len(found.forms) else ("", ())


def _sentence_in(block: Sequence[tuple[int, str]], name: str, path: str | Path) -> Sentence:
    words, heads, relations = [], [], []
    for line, text in block:
        filled = text.strip(BLANKS)
        word, _, arc = filled.rpartition("\t" if "\t" in filled else " ")
        head, _, relation = arc.partition("-")
        if not word or not re.fullmatch("[0-9]{1,9}", head) or not relation:
            raise BrokenPart(path, line, f"wanted a line `word head-relation`, got {shown(text)}")
        words.append(word.strip(BLANKS))
        heads.append(int(head))
        relations.append(relation)
    return Sentence(tuple(words), tuple(heads), tuple(relations), name)


def _sentence_from(record: Any, name: str) -> Sentence:
    missing = [key for key in ("words", "heads", "relns") if not isinstance(record, dict) or key not in record]
    if missing:
        raise DataError(f"sentence {name!r} has no {', '.join(missing)}: each sentence needs words, heads, relns")
    lists = [record[key] for key in ("words", "heads", "relns")]
    if not all(isinstance(one, list) for one in lists):
        raise DataError(f"sentence {name!r}: words, heads and relns must be lists, got {shown(lists)}")
    words, heads, relations = map(tuple, lists)
    return Sentence(words, heads, relations, name)


def _cycle(heads: tuple[int, ...]) -> list[int]:
    """The words of a cycle of arcs, or none."""
    safe: set[int] = {0}
    for start in range(1, len(heads) + 1):
        path: list[int] = []
        word = start
        while word not in safe:
            if word in path:
                return path[path.index(word) :]
            path.append(word)
            word = heads[word - 1]
        safe.update(path)
    return []
