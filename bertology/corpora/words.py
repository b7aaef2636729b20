"""Words and their tokens: alignment, and attention from word to word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..anatomy.names import IDS_ARGUMENT, MASK_ARGUMENT
from ..data.tokens import PADDING as PADDING
from ..data.tokens import SPECIAL as SPECIAL
from ..errors import DataError, checked, how_many
from ..results.views import brief
from .raw_text import Span
from .skips import Skip, reasons_for

Rows = Literal["mean", "first", "max"]


class HasWords(Protocol):
    """Any text with words, such as a `Sentence` or a `Document`."""

    @property
    def words(self) -> tuple[str, ...]:
        """Its words, in order."""

    @property
    def name(self) -> str:
        """Its name in messages."""


@checked
@dataclass(frozen=True)
class Aligned:
    """A sentence or document in a batch, and the word that each of its tokens is part of."""

    source: Any
    """The `Sentence`, `Document` or other text that was aligned."""
    word_of: tuple[int, ...]
    """[token]: the word, counted from 0; -1 for special tokens, -2 for padding."""

    __repr__ = brief

    @property
    def groups(self) -> tuple[int, ...]:
        """[token]: the number of its word or special token, counted in the order of the text; -2 for padding."""
        found: dict[tuple[int, int], int] = {}
        # Each special token is its own group; the tokens of a word are one group.
        keys = [(word, place if word == SPECIAL else 0) for place, word in enumerate(self.word_of)]
        return tuple(PADDING if key[0] == PADDING else found.setdefault(key, len(found)) for key in keys)

    @property
    def word_groups(self) -> list[int]:
        """[word]: the group of each word."""
        return list(dict.fromkeys(g for g, word in zip(self.groups, self.word_of, strict=True) if word >= 0))

    @property
    def ends(self) -> tuple[int | None, int | None]:
        """The groups of the special tokens before and after the text (BERT: [CLS] and [SEP]); None if there is none."""
        first, last = self.word_groups[0], self.word_groups[-1]
        return 0 if first > 0 else None, last + 1 if max(self.groups) > last else None


@dataclass(frozen=True, repr=False)
class AlignedBatches:
    """Batches of model arguments, annotated with words. Examples that could not be used are listed in `skipped`."""

    batches: tuple[dict[str, Any], ...]
    skipped: tuple[Skip, ...]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __str__(self) -> str:
        examples = sum(len(batch["annotations"]) for batch in self.batches)
        return "; ".join(
            [f"{how_many(examples, 'example')} in {how_many(len(self), 'batch')}", *reasons_for(self.skipped)]
        )

    __repr__ = __str__


@checked
def align(
    tokenizer: Any, sources: Sequence[HasWords], *, batch_size: int = 16, max_length: int | None = None,
    raw_text: bool = False,
) -> AlignedBatches:  # fmt: skip
    """Tokenize sentences or documents that are given as words, and note which word each token is part of.

    The words are joined by blanks, and a token belongs to the word that contains its characters. A text that is too
    long for the model, or whose words and tokens do not align, is left out and listed in `skipped`; it is never
    truncated. `skipped` also lists the texts that were left out when the sources were read.

    With `raw_text=True` the model reads each sentence as it is written, "don't" in the place of "do n't". This matters
    for byte-level and SentencePiece tokenizers, whose tokens depend on blanks, and for languages that are written
    without them. A token of the characters of several words belongs to the one that has most of them, the first of
    these; a sentence with a word that is left without a token, such as one of the two in French "du", is left out.

    Args:
        tokenizer: a fast tokenizer; slow ones do not return the characters of a token.
        sources: texts with `words` and a `name`: a `Treebank`, a list of `Sentence`s or `Document`s.
        batch_size: the number of examples in a batch; texts of similar length are batched together.
        max_length: the longest text in tokens, special tokens included; by default the tokenizer's limit.
        raw_text: tokenize the `text` of the sources, in which each word has its span, as `read_conllu` reads them.

    Raises `DataError` for a slow tokenizer, when no text is left, and for sources without text if that is wanted.

        >>> from transformers import AutoTokenizer
        >>> from bertology.demo import minilm_path
        >>> from bertology.syntax import Sentence
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> batches = align(tokenizer, [Sentence(("Birds", "warble"), (2, 0), ("nsubj", "root"))])
        >>> next(iter(batches))["annotations"][0].word_of
        (-1, 0, 1, 1, -1)
    """
    check_tokenizer(tokenizer, batch_size)
    longest = tokenizer.model_max_length if max_length is None else max_length
    kept: list[tuple[dict[str, list[int]], Any, tuple[int, ...]]] = []
    skipped: list[Skip] = list(getattr(sources, "skipped", ()))
    for number, source in enumerate(sources):
        text, spans = _written(source) if raw_text else _blank_between(source.words)
        arguments, offsets, special = _tokens(tokenizer, text)
        word_of, reason = _word_of(spans, offsets, special, shared=raw_text)
        if len(offsets) > longest:
            reason = f"longer than {how_many(longest, 'token')}"
        if reason:
            skipped.append(Skip(source.name or str(number), reason))
        else:
            kept.append((arguments, source, word_of))
    if not kept:
        raise DataError(
            f"none of {how_many(len(sources), 'text')} can be used{': ' if skipped else ''}"
            + ", ".join({s.reason for s in skipped})
        )
    kept.sort(key=lambda one: len(one[2]))
    batches = (kept[i : i + batch_size] for i in range(0, len(kept), batch_size))
    return AlignedBatches(tuple(_batch(tokenizer, some) for some in batches), tuple(skipped))


def check_tokenizer(tokenizer: Any, batch_size: int) -> None:
    """Raise `DataError` for a slow tokenizer, and for a batch size below 1."""
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which does not return the characters of its tokens, or "
            "is no tokenizer: load a fast one (AutoTokenizer.from_pretrained(..., use_fast=True))"
        )
    if batch_size < 1:
        raise DataError(f"batch_size must be 1 or more, got {batch_size}")


@checked
def word_attention(x: Tensor, aligned: Sequence[Aligned], *, rows: Rows = "mean") -> list[Tensor]:
    """[head, group, group] for each example: the attention of words and special tokens to one another.

    Attention to the tokens of a word is summed, so that rows still sum to 1. Attention from the tokens of a word is
    averaged (Clark et al. 2019, §4.1); or that of the first token is taken (`"first"`); or the largest value for each
    word, divided by the sum of these values (`"max"`).

    Args:
        x: [batch, head, query, key]: the attention maps of one layer.
        aligned: the batch's `annotations`. `Aligned.word_groups` are the indices of the words in the result.
        rows: how the rows of a word's tokens are combined into one.

    Raises `DataError` for maps of other tokens, and for values that are not finite; rows of padding may hold anything.

        >>> import torch
        >>> uniform = torch.full((1, 2, 3, 3), 1 / 3)
        >>> word_attention(uniform, [Aligned(None, (0, 1, 1))])[0][0]
        tensor([[0.3333, 0.6667],
                [0.3333, 0.6667]])
    """
    return WordMaps(aligned, rows).between_groups(x)


class WordMaps:
    """The attention between the words of a batch, of one layer after another: what layers share is prepared once."""

    def __init__(self, aligned: Sequence[Aligned], rows: Rows = "mean") -> None:
        if rows not in get_args(Rows):
            raise DataError(f"rows must be 'mean', 'first' or 'max', got {rows!r}")
        groups = [one.groups for one in aligned]
        self._rows, self._sizes = rows, [max(-1, *some) + 1 for some in groups]
        self._groups = _padded_numbers(groups)
        self._words = [one.word_groups for one in aligned]
        self._padding = self._groups == PADDING
        self._prepared: dict[Any, tuple[Tensor, Tensor, Tensor | None]] = {}

    def between_groups(self, x: Tensor) -> list[Tensor]:
        """[head, group, group] for each example, of a layer's maps; see `word_attention`."""
        whole = self._joined(x, "groups")
        return [one[:, :size, :size] for one, size in zip(whole, self._sizes, strict=True)]

    def between_words(self, x: Tensor) -> Tensor:
        """[batch, head, word, word], of a layer's maps: without special tokens, and 0 behind the words of a text."""
        if self._rows != "max":
            return self._joined(x, "words")
        whole = self._joined(x, "groups")
        most = max(map(len, self._words))
        found = whole.new_zeros(*whole.shape[:2], most, most)
        for example, places in enumerate(self._words):
            found[example, :, : len(places), : len(places)] = whole[example][:, places][:, :, places]
        return found

    def _joined(self, x: Tensor, what: str) -> Tensor:
        """[batch, head, part, part]: the attention between parts of the texts, their groups or their words."""
        if not self._sizes or x.dim() != 4:
            raise DataError(
                "wanted maps [batch, head, query, key] of one example or more, "
                f"got {list(x.shape)} and {how_many(len(self._sizes), 'example')}"
            )
        tokens = self._groups.shape[1]
        if x.shape[0] != len(self._sizes) or x.shape[2:] != (tokens, tokens):
            raise DataError(
                f"wanted maps of self attention over the {how_many(tokens, 'token')} of "
                f"{how_many(len(self._sizes), 'example')}, got maps of {how_many(x.shape[0], 'example')}, "
                f"{how_many(x.shape[2], 'query')} and {how_many(x.shape[3], 'key')}"
            )
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        part, mix, padding = self._matrices(what, x)
        # Keys first, so that neither product needs a copy of its factors for each head.
        to = (part.mT @ x.flatten(1, 2).mT).view(len(x), part.shape[2], *x.shape[1:3])  # [batch, part, head, query]
        if not to.sum().isfinite():  # the rows of padding have no share in those of words, but may hold NaN
            to = to if padding is None else to.masked_fill(padding, 0)
            if not to.isfinite().all():
                raise DataError("attention weights are not finite: check the model's weights for NaN or overflow")
        if self._rows == "max":
            of_part = (to.masked_fill(p[:, None, None] == 0, 0).amax(3) for p in part.unbind(2))
            whole = torch.stack(list(of_part), dim=3)
            whole = whole / whole.sum(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        else:
            whole = (to.flatten(1, 2) @ mix).view(*to.shape[:3], part.shape[2])
        return whole.permute(0, 2, 3, 1)

    def _matrices(self, what: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """[batch, token, part]: 1 where a token is in a part, and its share in the part's row; which are padding."""
        asked = (what, x.dtype, x.device)
        if asked not in self._prepared:
            numbers = self._groups if what == "groups" else self._numbers_of_words()
            part = (numbers[..., None] == torch.arange(max(0, int(numbers.max()) + 1))).to(x.dtype)
            first, share = part * (part.cumsum(1) == 1), part / part.sum(1, keepdim=True).clamp_min(1)
            mix = first if self._rows == "first" else share
            padding = self._padding[:, None, None].to(x.device) if self._padding.any() else None
            self._prepared[asked] = part.to(x.device), mix.to(x.device), padding
        return self._prepared[asked]

    def _numbers_of_words(self) -> Tensor:
        """[batch, token]: the number of a token's word among the words of its text; `PADDING` for special tokens."""
        numbers = [{group: number for number, group in enumerate(groups)} for groups in self._words]
        rows = zip(numbers, self._groups.tolist(), strict=True)
        return torch.tensor([[number.get(group, PADDING) for group in row] for number, row in rows])


def _padded_numbers(rows: Sequence[Sequence[int]]) -> Tensor:
    """[batch, token]"""
    tensors = [torch.tensor(row) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=PADDING) if tensors else torch.empty(0, 0)


def _tokens(tokenizer: Any, text: str) -> tuple[dict[str, list[int]], list[tuple[int, int]], list[int]]:
    """The model's arguments, each token's characters, and whether each token is special."""
    found = dict(tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False))
    offsets, special = found.pop("offset_mapping"), found.pop("special_tokens_mask")
    return found, [_trimmed(text, *span) for span in offsets], special


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A token's characters without blanks around them, which some tokenizers include."""
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())


def _blank_between(words: Sequence[str]) -> tuple[str, list[Span]]:
    """The words joined by blanks, and the characters of each word."""
    ends = list(accumulate(len(word) + 1 for word in words))
    return " ".join(words), [(end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True)]


def _written(source: Any) -> tuple[str, Sequence[Span]]:
    """The text of a sentence as it is written, and the characters of each word."""
    spans = getattr(source, "spans", ())
    if not spans:
        raise DataError(
            "raw_text=True needs sentences with their text and the span of each word in it, as read_conllu reads them; "
            f"{type(source).__name__} {source.name!r} has none: use raw_text=False, which joins the words by blanks"
        )
    return source.text, spans


def _word_of(
    spans: Sequence[Span], offsets: Sequence[Span], special: Sequence[int], *, shared: bool
) -> tuple[tuple[int, ...], str]:
    """[token]: the word of each token; and the reason if words and tokens do not align, else an empty string.

    With `shared` a token may have characters of several words: it belongs to the word that has most of them.
    """
    word_at = {place: number for number in reversed(range(len(spans))) for place in range(*spans[number])}
    word_of: list[int] = []
    for (start, end), is_special in zip(offsets, special, strict=True):
        touched = Counter(word_at[place] for place in range(start, end) if place in word_at)
        if is_special:
            word_of.append(SPECIAL)
        elif len(touched) > 1 and not shared:
            return (), "a token spans several words"
        elif touched:
            word_of.append(min(touched, key=lambda word: (-touched[word], word)))
        else:  # only a blank (SentencePiece): part of the next word
            word_of.append(next((word for word, span in enumerate(spans) if span[1] > start), len(spans) - 1))
    if set(range(len(spans))) - set(word_of):
        return (), "a word has no token"
    inside = [word for word in word_of if word != SPECIAL]
    if inside != sorted(inside):
        return (), "tokens are not in the order of the words"
    return tuple(word_of), ""


def padded(tokenizer: Any, texts: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
    """The tokenizer's outputs for several texts as one batch, padded on the right.

    The attention mask marks padding, so the tokenizer needs no padding token.
    """
    fill = {IDS_ARGUMENT: tokenizer.pad_token_id or 0}
    batch: dict[str, Any] = {
        name: pad_sequence(
            [torch.tensor(one[name]) for one in texts], batch_first=True, padding_value=fill.get(name, 0)
        )
        for name in texts[0]
    }
    lengths = torch.tensor([len(one[IDS_ARGUMENT]) for one in texts])
    batch[MASK_ARGUMENT] = (torch.arange(batch[IDS_ARGUMENT].shape[1]) < lengths[:, None]).long()
    return batch


def _batch(tokenizer: Any, some: Sequence[tuple[dict[str, list[int]], Any, tuple[int, ...]]]) -> dict[str, Any]:
    batch = padded(tokenizer, [arguments for arguments, _, _ in some])
    tokens = batch[IDS_ARGUMENT].shape[1]
    batch["annotations"] = [
        Aligned(source, word_of + (PADDING,) * (tokens - len(word_of))) for _, source, word_of in some
    ]
    return batch
