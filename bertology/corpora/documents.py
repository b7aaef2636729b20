"""Documents with coreference, and how a long one is split into pieces that a model can read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

from ..anatomy.names import IDS_ARGUMENT
from ..errors import DataError
from .treebank import Skip

KINDS = ("pronoun", "proper", "nominal")
Kind = Literal["pronoun", "proper", "nominal"]


@dataclass(frozen=True)
class Mention:
    """Words that stand for a thing in the text, such as "the old queen", and which thing that is.

    Raises `DataError` for a span without words, and for a head outside it.
    """

    start: int
    """Its first word, counted from 0."""
    end: int
    """The word behind its last one."""
    head: int
    """The word that it hangs on, "queen": whose attention is asked."""
    cluster: int
    """The thing: mentions of one cluster are of the same thing."""
    kind: Kind

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise DataError(f"a mention is from a word to a later one, got from {self.start} to {self.end}")
        if not self.start <= self.head < self.end:
            raise DataError(f"the head of the mention from word {self.start} to {self.end} is {self.head}, outside it")
        if self.kind not in KINDS:
            raise DataError(f"a mention is of the kind {', '.join(KINDS)}, got {self.kind!r}")


@dataclass(frozen=True)
class Document:
    """The words of a text and the mentions in it.

    Raises `DataError` for mentions, tags, sentences or targets that are not of these words.
    """

    words: tuple[str, ...]
    mentions: tuple[Mention, ...]
    name: str = ""
    """What messages call it."""
    tags: tuple[str, ...] | None = None
    """[word]: the parts of speech of the Penn Treebank, where they are known."""
    sentences: tuple[int, ...] = ()
    """The first word of each sentence, where they are known."""
    targets: tuple[int, ...] | None = None
    """Which mentions are asked for their antecedent, by number; None for all that have one."""
    both_sides: bool = False
    """Whether antecedents are looked for behind a mention too, as in GAP, where a name may follow its pronoun."""

    def __post_init__(self) -> None:
        many = len(self.words)
        if many == 0:
            raise DataError(f"document {self.name!r} has no words")
        for mention in self.mentions:
            if mention.end > many:
                raise DataError(
                    f"document {self.name!r} has {many} words, a mention is from word {mention.start} to {mention.end}"
                )
        twice = [(m.start, m.end) for m, times in Counter(self.mentions).items() if times > 1]
        if twice:
            raise DataError(f"document {self.name!r} has the mention of the words {twice[0]} twice: wanted it once")
        if self.tags is not None and len(self.tags) != many:
            raise DataError(f"document {self.name!r} has {many} words and {len(self.tags)} tags: wanted one a word")
        starts = self.sentences
        if starts and (starts[0] != 0 or starts[-1] >= many or list(starts) != sorted(set(starts))):
            raise DataError(f"document {self.name!r}: its sentences begin at {starts}: wanted rising numbers from 0")
        for target in self.targets or ():
            if not 0 <= target < len(self.mentions):
                raise DataError(f"document {self.name!r} has {len(self.mentions)} mentions, none is number {target}")


@dataclass(frozen=True)
class Documents(Sequence[Document]):
    """Documents, in the order of the file, and what was left out."""

    documents: tuple[Document, ...]
    skipped: tuple[Skip, ...] = ()
    """Documents, examples and words that could not be used."""
    cut_through: int = 0
    """How many mentions `pieces` dropped because they do not lie within one piece."""
    beyond: int = 0
    """How many mentions stand behind the first piece, where only that was kept."""

    @property
    def mentions(self) -> int:
        """How many there are."""
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
        reasons = Counter(skip.reason for skip in self.skipped)
        lost = {"cut through": self.cut_through, "behind the first piece": self.beyond}
        gone = [f"{many} mentions {why}" for why, many in lost.items() if many]
        gone += [f"{many} skipped: {why}" for why, many in reasons.items()]
        return "; ".join([f"{len(self)} documents, {self.mentions} mentions", *gone])


def pieces(
    tokenizer: Any, documents: Sequence[Document], *, max_length: int = 128, first_only: bool = False,
    at: Literal["sentence", "word"] = "sentence",
) -> Documents:  # fmt: skip
    """Cut documents into pieces that fit a model. Mentions that do not lie within one piece are dropped, and counted.

    Args:
        tokenizer: the model's.
        documents: what to cut; clusters keep their numbers, so that a mention's antecedents are those in its piece.
        max_length: the longest piece in tokens, special ones included.
        first_only: keep the first piece of each document only, as Clark et al. (2019), §4.3, cut theirs to 128 tokens.
        at: where to cut: behind the last "sentence" that fits (a longer one is cut behind a word), or behind the last
            "word" that does. Documents without sentences are cut behind words.

    Words that alone are longer than `max_length` are left out, and listed in `skipped`. Raises `DataError` for a
    length that holds no word.

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
    if _tokens(tokenizer, ()) >= max_length:
        raise DataError(f"max_length={max_length} holds special tokens only: wanted room for words")
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
    """The first word of each piece and the word behind its last, and the words that fit no piece."""
    # A blank before the word: tokenizers that keep blanks read it so inside a text.
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
            end -= 1  # the lengths of words alone are an estimate
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
    """The document from one word to another, with the mentions that lie within."""
    if (start, end) == (0, len(document.words)):
        return document
    kept = [number for number, m in enumerate(document.mentions) if start <= m.start and m.end <= end]
    mentions = tuple(
        replace(m, start=m.start - start, end=m.end - start, head=m.head - start)
        for m in (document.mentions[number] for number in kept)
    )
    sentences = {max(s, start) - start for s, behind in _sentences(document) if s < end and behind > start}
    targets = None if document.targets is None else tuple(kept.index(t) for t in document.targets if t in kept)
    return replace(
        document, words=document.words[start:end], mentions=mentions, sentences=tuple(sorted(sentences)),
        tags=None if document.tags is None else document.tags[start:end], targets=targets,
        name=f"{document.name} [{start}:{end}]",
    )  # fmt: skip


def _sentences(document: Document) -> list[tuple[int, int]]:
    return list(zip(document.sentences, (*document.sentences[1:], len(document.words)), strict=False))


def document_of(source: object) -> Document:
    """What was aligned, or a `DataError` if it has no mentions."""
    if not isinstance(source, Document):
        raise DataError(f"wanted documents with mentions, got {type(source).__name__}: read a file with coreference")
    return source
