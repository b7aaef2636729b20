"""Documents with coreference, and how a long one is split into pieces that a model can read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

from ..anatomy.names import IDS_ARGUMENT
from ..data.token_classes import check_is_tokenizer
from ..errors import DataError, checked, how_many
from ..results.views import brief
from .skips import Skip, reasons_for

KINDS = ("pronoun", "proper", "nominal")
Kind = Literal["pronoun", "proper", "nominal"]


@checked
@dataclass(frozen=True)
class Mention:
    """Words that refer to an entity in the text, such as "the old queen", and which entity that is.

    Raises `DataError` for a span without words, and for a head outside the span.
    """

    start: int
    """Its first word, counted from 0."""
    end: int
    """The word after its last one."""
    head: int
    """Its head word, "queen"; measures use the attention from and to this word."""
    cluster: int
    """The entity: mentions of one cluster refer to the same entity."""
    kind: Kind

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise DataError(f"a mention must end after its start, got start {self.start} and end {self.end}")
        if not self.start <= self.head < self.end:
            raise DataError(
                f"the head of a mention must be one of its words, from {self.start} to {self.end - 1}, got {self.head}"
            )
        if self.kind not in KINDS:
            raise DataError(f"the kind of a mention must be one of {', '.join(KINDS)}, got {self.kind!r}")


@checked
@dataclass(frozen=True)
class Document:
    """The words of a text and the mentions in it.

    Raises `DataError` for mentions, tags, sentences or targets that do not fit these words.
    """

    words: tuple[str, ...]
    mentions: tuple[Mention, ...]
    name: str = ""
    """Its name in messages."""
    tags: tuple[str, ...] | None = None
    """[word]: the parts of speech of the Penn Treebank, if they are known."""
    sentences: tuple[int, ...] = ()
    """The first word of each sentence, if they are known."""
    targets: tuple[int, ...] | None = None
    """The mentions whose antecedent is to be found, by index; None for all mentions that have one."""
    both_sides: bool = False
    """Whether an antecedent may also follow the mention, as in GAP, where a name may follow its pronoun."""

    __repr__ = brief

    def __post_init__(self) -> None:
        many = len(self.words)
        if many == 0:
            raise DataError(f"document {self.name!r} has no words")
        for mention in self.mentions:
            if mention.end > many:
                raise DataError(
                    f"document {self.name!r} has {how_many(many, 'word')}, but a mention goes from word "
                    f"{mention.start} to {mention.end}"
                )
        twice = [(m.start, m.end) for m, times in Counter(self.mentions).items() if times > 1]
        if twice:
            raise DataError(f"document {self.name!r} has the mention of the words {twice[0]} twice: pass it once")
        if self.tags is not None and len(self.tags) != many:
            raise DataError(
                f"document {self.name!r} has {how_many(many, 'word')} and {how_many(len(self.tags), 'tag')}: wanted "
                "one per word"
            )
        starts = self.sentences
        if starts and (starts[0] != 0 or starts[-1] >= many or list(starts) != sorted(set(starts))):
            raise DataError(
                f"document {self.name!r}: the starts of sentences must increase from 0 and be less than {many}, "
                f"got {starts}"
            )
        for target in self.targets or ():
            if not 0 <= target < len(self.mentions):
                raise DataError(
                    f"document {self.name!r} has {how_many(len(self.mentions), 'mention')}, counted from 0: there is "
                    f"no mention {target}"
                )


@checked
@dataclass(frozen=True, repr=False)
class Documents(Sequence[Document]):
    """Documents, in the order of the file, and what was left out."""

    documents: tuple[Document, ...]
    skipped: tuple[Skip, ...] = ()
    """Documents, examples and words that could not be used."""
    cut_through: int = 0
    """How many mentions `pieces` dropped because a piece ends inside them."""
    beyond: int = 0
    """How many mentions come after the first piece, if only that was kept."""

    @property
    def mentions(self) -> int:
        """The number of mentions in all documents."""
        return sum(len(document.mentions) for document in self.documents)

    def __len__(self) -> int:
        return len(self.documents)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> Documents: ...
    def __getitem__(self, index: int | slice) -> Document | Documents:
        if isinstance(index, slice):
            return replace(self, documents=self.documents[index])
        return self.documents[index]

    def __str__(self) -> str:
        lost = {"cut through": self.cut_through, "after the first piece": self.beyond}
        gone = [f"{how_many(many, 'mention')} {why}" for why, many in lost.items() if many]
        told = f"{how_many(len(self), 'document')}, {how_many(self.mentions, 'mention')}"
        return "; ".join([told, *gone, *reasons_for(self.skipped)])

    __repr__ = __str__


@checked
def pieces(
    tokenizer: Any, documents: Sequence[Document], *, max_length: int = 128, first_only: bool = False,
    at: Literal["sentence", "word"] = "sentence",
) -> Documents:  # fmt: skip
    """Split documents into pieces that fit a model. Mentions that are not inside one piece are dropped and counted.

    Args:
        tokenizer: the model's.
        documents: the documents to split. Clusters keep their numbers, and a mention's antecedents are those in its
            piece.
        max_length: the longest piece in tokens, special tokens included.
        first_only: keep only the first piece of each document, as Clark et al. (2019), §4.3, who keep 128 tokens.
        at: where to split: after the last "sentence" that fits (a longer sentence is split after a word), or after the
            last "word" that fits. Documents without sentences are split after words.

    A single word longer than `max_length` is left out, and listed in `skipped`. Raises `DataError` if `max_length`
    leaves no room for words.

        >>> from transformers import AutoTokenizer
        >>> from bertology.demo import minilm_path
        >>> from bertology.corpora.documents import Document, Mention, pieces
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> queen = Mention(0, 2, 1, 1, "nominal"), Mention(3, 4, 3, 1, "pronoun")
        >>> document = Document(("The", "queen", "said", "she", "sings", "."), queen, "queen")
        >>> [piece.words for piece in pieces(tokenizer, [document], max_length=6)]
        [('The', 'queen', 'said', 'she'), ('sings', '.')]
    """
    if at not in ("sentence", "word"):
        raise DataError(f"at must be 'sentence' or 'word', got {at!r}")
    check_is_tokenizer(tokenizer)
    if _tokens(tokenizer, ()) >= max_length:
        raise DataError(f"max_length={max_length} has room only for special tokens: pass a larger one")
    made: list[Document] = []
    skipped = list(getattr(documents, "skipped", ()))
    cut_through, beyond = (getattr(documents, name, 0) for name in ("cut_through", "beyond"))
    for document in documents:
        spans, too_long = _spans(tokenizer, document, max_length, at, first_only)
        skipped += [Skip(f"{document.name}, word {word}", "a word is longer than a piece") for word in too_long]
        parts = [_part(document, *span) for span in spans]
        read = spans[-1][1] if first_only and spans else len(document.words)
        lost = sum(m.start >= read for m in document.mentions)
        made += parts
        beyond += lost
        cut_through += len(document.mentions) - lost - sum(len(part.mentions) for part in parts)
    return Documents(tuple(made), tuple(skipped), cut_through, beyond)


def _spans(
    tokenizer: Any, document: Document, max_length: int, at: str, first_only: bool
) -> tuple[list[tuple[int, int]], list[int]]:
    """The first word of each piece and the word after its last one, and the words that fit no piece."""
    # With a blank before it, a word has the same tokens as inside a text, if the tokenizer keeps blanks.
    alone = tokenizer([f" {word}" for word in document.words], add_special_tokens=False, verbose=False)[IDS_ARGUMENT]
    lengths = [len(tokens) for tokens in alone]
    spans: list[tuple[int, int]] = []
    too_long: list[int] = []
    start = 0
    while start < len(document.words) and not (spans and first_only):
        end, room = start, max_length - _tokens(tokenizer, ())
        while end < len(document.words) and lengths[end] <= room:
            room -= lengths[end]
            end += 1
        end = max(end, start + 1)
        while end > start and _tokens(tokenizer, document.words[start:end]) > max_length:
            end -= 1  # the sum of the words' lengths is an estimate
        inside = [s for s in document.sentences if start < s <= end]
        if at == "sentence" and inside and end < len(document.words):
            end = inside[-1]
        if end > start:
            spans.append((start, end))
        else:
            too_long.append(start)
        start = max(end, start + 1)
    return spans, too_long


def _tokens(tokenizer: Any, words: Sequence[str]) -> int:
    return len(tokenizer(" ".join(words), verbose=False)[IDS_ARGUMENT])


def _part(document: Document, start: int, end: int) -> Document:
    """The document from word `start` to word `end`, with the mentions between them."""
    if (start, end) == (0, len(document.words)):
        return document
    kept = [number for number, m in enumerate(document.mentions) if start <= m.start and m.end <= end]
    mentions = tuple(
        replace(m, start=m.start - start, end=m.end - start, head=m.head - start)
        for m in (document.mentions[number] for number in kept)
    )
    sentences = {max(s, start) - start for s, stop in _sentences(document) if s < end and stop > start}
    targets = None if document.targets is None else tuple(kept.index(t) for t in document.targets if t in kept)
    return replace(
        document, words=document.words[start:end], mentions=mentions, sentences=tuple(sorted(sentences)),
        tags=None if document.tags is None else document.tags[start:end], targets=targets,
        name=f"{document.name} [{start}:{end}]",
    )  # fmt: skip


def _sentences(document: Document) -> list[tuple[int, int]]:
    return list(zip(document.sentences, (*document.sentences[1:], len(document.words)), strict=False))


def document_of(source: object) -> Document:
    """The aligned document. Raises `DataError` for anything else."""
    if not isinstance(source, Document):
        raise DataError(f"wanted documents with mentions, got {type(source).__name__}: read a file with coreference")
    return source
