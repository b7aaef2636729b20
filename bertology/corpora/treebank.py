"""Sentences with dependency trees, and readers of CoNLL-U and the formats of Clark et al. (2019)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from ..errors import DataError, check_strings, checked, described, need
from .files import open_text, text_of


@dataclass(frozen=True)
class Skip:
    """A sentence or document that was left out, and why."""

    name: str
    reason: str


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
    text: str = ""
    """The sentence as it is written, for `align(..., raw_text=True)`; empty if it is not known."""
    spans: tuple[tuple[int, int], ...] = ()
    """[word] (first character, character after the last): where each word is in `text`; empty if it is not known."""

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
                f"sentence {self.name!r} has {many} words, {len(self.heads)} heads and {len(self.relations)} "
                "relations: wanted one of each per word"
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
        raise DataError(f"{place} has {words} words and {len(spans)} spans: wanted one for each word, or none")
    for span in spans:
        if len(span) != 2 or not 0 <= span[0] < span[1] <= len(text):
            raise DataError(f"{place}: wanted spans of characters within the {len(text)} of its text, got {span!r}")


@checked
@dataclass(frozen=True)
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


@checked
def read_conllu(path: str | Path, *, subtypes: bool = True, skip_broken: bool = False) -> Treebank:
    """Read a treebank of Universal Dependencies, or any other in CoNLL-U (extra `syntax`).

    Args:
        path: a CoNLL-U file. Multiword tokens and empty nodes are left out, because the tree is over the words.
        subtypes: whether relations keep the subtype after the colon (`nsubj:pass`) or lose it (`nsubj`).
        skip_broken: leave out sentences that are not trees, and list them in `skipped`, instead of raising.

    Raises `DataError` for a file without sentences, or with a sentence that is not a tree.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w", suffix=".conllu") as file:
        ...     lines = ["1\\tBirds\\t_\\t_\\t_\\t_\\t2\\tnsubj\\t_\\t_", "2\\tsing\\t_\\t_\\t_\\t_\\t0\\troot\\t_\\t_"]
        ...     _ = file.write("\\n".join(lines) + "\\n\\n")
        ...     file.flush()
        ...     read_conllu(file.name)[0].heads
        (2, 0)
    """
    conllu = need("conllu", extra="syntax")

    def make(tokens: Any, name: str) -> Sentence:
        return _sentence_of(tokens, tokens.metadata.get("sent_id") or name, subtypes)

    try:
        with open_text(path) as file:
            return _collect(path, conllu.parse_incr(file), make, skip_broken)
    except conllu.exceptions.ParseException as error:
        raise DataError(f"{path} is not CoNLL-U: {error}") from error


@checked
def read_depparse(path: str | Path, *, skip_broken: bool = False) -> Treebank:
    """Read the text format of Clark et al. (2019): a line `word head-relation` per word, blank lines between sentences.

    Heads are counted from 1, and 0 is the root. A relation may contain more hyphens, the last sentence needs no blank
    line, and several blank lines count as one. Raises `DataError` for lines of another format, and as `read_conllu`
    does.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write("Birds 2-nsubj\\nsing 0-root\\n")
        ...     file.flush()
        ...     read_depparse(file.name)[0].relations
        ('nsubj', 'root')
    """
    blocks = text_of(path).replace("\r\n", "\n").split("\n\n")
    filled = [lines for lines in (block.strip("\n").split("\n") for block in blocks) if lines != [""]]
    return _collect(path, filled, _sentence_in, skip_broken)


@checked
def read_json(path: str | Path, *, skip_broken: bool = False) -> Treebank:
    """Read the JSON of Clark et al. (2019): a list of objects with `words`, `heads` and `relns`.

    Raises `DataError` for objects without them, and as `read_conllu` does.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write('[{"words": ["Birds", "sing"], "heads": [2, 0], "relns": ["nsubj", "root"]}]')
        ...     file.flush()
        ...     len(read_json(file.name))
        1
    """
    try:
        records = json.loads(text_of(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(records, list):
        raise DataError(f"{path} must hold a list of sentences, got {type(records).__name__}")
    return _collect(path, records, _sentence_from, skip_broken)


def _collect(
    path: str | Path, records: Iterable[Any], make: Callable[[Any, str], Sentence], skip_broken: bool
) -> Treebank:
    sentences, skipped = [], []
    for number, record in enumerate(records, 1):
        name = f"{Path(path).name} {number}"
        try:
            sentences.append(make(record, name))
        except DataError as error:
            if not skip_broken:
                raise DataError(f"{error} (in {path}; skip_broken=True leaves such sentences out)") from error
            skipped.append(Skip(name, str(error)))
    if not sentences:
        raise DataError(f"{path} has no sentences{' that are trees' if skipped else ''}")
    return Treebank(tuple(sentences), tuple(skipped))


def _sentence_of(tokens: Any, name: str, subtypes: bool) -> Sentence:
    words = [token for token in tokens if isinstance(token["id"], int)]  # others are ranges and empty nodes
    relations = [token.get("deprel") or "_" for token in words]
    return Sentence(
        tuple(token["form"] for token in words),
        tuple(token.get("head") for token in words),
        tuple(relations if subtypes else [relation.partition(":")[0] for relation in relations]),
        name,
    )


def _sentence_in(lines: list[str], name: str) -> Sentence:
    words, heads, relations = [], [], []
    for line in lines:
        word, _, arc = line.rstrip().rpartition(" ")
        head, _, relation = arc.partition("-")
        if not word or not head.isdecimal() or not relation:
            raise DataError(f"sentence {name!r}: wanted a line `word head-relation`, got {line!r}")
        words.append(word)
        heads.append(int(head))
        relations.append(relation)
    return Sentence(tuple(words), tuple(heads), tuple(relations), name)


def _sentence_from(record: Any, name: str) -> Sentence:
    missing = [key for key in ("words", "heads", "relns") if not isinstance(record, dict) or key not in record]
    if missing:
        raise DataError(f"sentence {name!r} has no {', '.join(missing)}: each sentence needs words, heads, relns")
    return Sentence(tuple(record["words"]), tuple(record["heads"]), tuple(record["relns"]), name)


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
