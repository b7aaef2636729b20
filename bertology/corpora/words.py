"""Words and their tokens: alignment, and attention from word to word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..anatomy.names import IDS_ARGUMENT, MASK_ARGUMENT
from ..errors import DataError
from .treebank import Skip

SPECIAL, PADDING = -1, -2
Rows = Literal["mean", "first", "max"]


class HasWords(Protocol):
    """Whatever has words: a `Sentence`, a `Document`."""

    @property
    def words(self) -> tuple[str, ...]:
        """Its words, in order."""

    @property
    def name(self) -> str:
        """What messages call it."""


@dataclass(frozen=True)
class Aligned:
    """A sentence or document in a batch, and the word that each of its tokens is part of."""

    source: Any
    """What was given: a `Sentence`, a `Document`."""
    word_of: tuple[int, ...]
    """[token]: the word, counted from 0; -1 for special tokens, -2 for padding."""

    @property
    def groups(self) -> tuple[int, ...]:
        """[token]: as `word_of`, with a number for each special token too, in the order of the text; -2 for padding."""
        found: dict[tuple[int, int], int] = {}
        # A special token stands for itself, the tokens of a word for one another.
        keys = [(word, place if word == SPECIAL else 0) for place, word in enumerate(self.word_of)]
        return tuple(PADDING if key[0] == PADDING else found.setdefault(key, len(found)) for key in keys)

    @property
    def word_groups(self) -> list[int]:
        """[word]: the group of each word."""
        return list(dict.fromkeys(g for g, word in zip(self.groups, self.word_of, strict=True) if word >= 0))

    @property
    def ends(self) -> tuple[int | None, int | None]:
        """The groups of the special tokens before and behind the text, [CLS] and [SEP] of BERT; None where none is."""
        first, last = self.word_groups[0], self.word_groups[-1]
        return 0 if first > 0 else None, last + 1 if max(self.groups) > last else None


@dataclass(frozen=True)
class AlignedBatches:
    """Batches of model arguments whose examples carry their words; what could not be used is listed in `skipped`."""

    batches: tuple[dict[str, Any], ...]
    skipped: tuple[Skip, ...]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __str__(self) -> str:
        examples = sum(len(batch["annotations"]) for batch in self.batches)
        reasons = Counter(skip.reason for skip in self.skipped)
        return f"{examples} examples in {len(self)} batches" + "".join(
            f"; {n} skipped: {r}" for r, n in reasons.items()
        )


def align(
    tokenizer: Any, sources: Sequence[HasWords], *, batch_size: int = 16, max_length: int | None = None
) -> AlignedBatches:
    """Tokenize sentences or documents that come as words, and note which word each token is part of.

    The words are joined by blanks, and a token belongs to the word that its characters are in. A source that does not
    fit the model, or whose words and tokens do not align, is left out and listed, never cut; and so are those that were
    left out when the sources were read.

    Args:
        tokenizer: a fast tokenizer: only such a one tells the characters of a token.
        sources: what has `words` and a `name`: a `Treebank`, a list of `Sentence`s or `Document`s.
        batch_size: how many examples a batch has; those of like length come together.
        max_length: the longest text in tokens, special ones included; by default what the tokenizer says.

    Raises `DataError` for a slow tokenizer, and when nothing is left.

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
        arguments, offsets, special = _tokens(tokenizer, " ".join(source.words))
        word_of, reason = _word_of(source.words, offsets, special)
        if len(offsets) > longest:
            reason = f"longer than {longest} tokens"
        if reason:
            skipped.append(Skip(source.name or str(number), reason))
        else:
            kept.append((arguments, source, word_of))
    if not kept:
        raise DataError(
            f"none of {len(sources)} texts can be used{': ' if skipped else ''}"
            + ", ".join({s.reason for s in skipped})
        )
    kept.sort(key=lambda one: len(one[2]))
    batches = (kept[i : i + batch_size] for i in range(0, len(kept), batch_size))
    return AlignedBatches(tuple(_batch(tokenizer, some) for some in batches), tuple(skipped))


def check_tokenizer(tokenizer: Any, batch_size: int) -> None:
    """Raise `DataError` for a slow tokenizer, and for batches of no examples."""
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which does not tell the characters of its tokens: "
            "load a fast one (AutoTokenizer.from_pretrained(..., use_fast=True))"
        )
    if batch_size < 1:
        raise DataError(f"batch_size must be 1 or more, got {batch_size}")


def word_attention(x: Tensor, aligned: Sequence[Aligned], *, rows: Rows = "mean") -> list[Tensor]:
    """[head, group, group] for each example: the attention of words and special tokens to one another.

    Attention to the tokens of a word is summed up, so that rows still sum to 1; attention from them is averaged
    (Clark et al. 2019, §4.1), or the `"first"` token's, or the largest to each word, divided by its sum (`"max"`).

    Args:
        x: [batch, head, query, key]: the attention maps of one layer.
        aligned: the batch's `annotations`. `Aligned.word_groups` are the words' places in what is returned.
        rows: how the rows of a word's tokens become one.

    Raises `DataError` for maps that are not of these tokens, and for NaN in them; the rows of padding may hold any.

        >>> import torch
        >>> uniform = torch.full((1, 2, 3, 3), 1 / 3)
        >>> word_attention(uniform, [Aligned(None, (0, 1, 1))])[0][0]
        tensor([[0.3333, 0.6667],
                [0.3333, 0.6667]])
    """
    groups = pad_sequence([torch.tensor(one.groups) for one in aligned], batch_first=True, padding_value=PADDING)
    if x.shape[0] != len(aligned) or x.shape[2:] != (groups.shape[1], groups.shape[1]):
        raise DataError(
            f"maps of {x.shape[0]} examples, {x.shape[2]} queries and {x.shape[3]} keys, words of {len(aligned)} "
            f"examples of {groups.shape[1]} tokens: wanted the maps of self attention over these tokens"
        )
    groups = groups.to(x.device)
    x = x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill((groups == PADDING)[:, None, :, None], 0)
    if not x.isfinite().all():
        raise DataError("attention weights are not finite: look for NaN or overflow in the model's weights")
    # [batch, 1, token, group]: 1 where a token is part of a group.
    part = (groups[..., None] == torch.arange(int(groups.max()) + 1, device=x.device)).to(x.dtype)[:, None]
    to = x @ part
    if rows == "mean":
        whole = (part / part.sum(2, keepdim=True).clamp_min(1)).mT @ to
    elif rows == "first":
        first = part * (part.cumsum(2) == 1)
        whole = first.mT @ to
    elif rows == "max":
        whole = torch.stack([to.masked_fill(p[..., None] == 0, 0).amax(2) for p in part.unbind(-1)], dim=2)
        whole = whole / whole.sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    else:
        raise DataError(f"rows must be 'mean', 'first' or 'max', got {rows!r}")
    return [one[:, : (n := max(a.groups) + 1), :n] for one, a in zip(whole, aligned, strict=True)]


def _tokens(tokenizer: Any, text: str) -> tuple[dict[str, list[int]], list[tuple[int, int]], list[int]]:
    """The model's arguments, and of each token the characters and whether it is special."""
    found = dict(tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False))
    offsets, special = found.pop("offset_mapping"), found.pop("special_tokens_mask")
    return found, [_trimmed(text, *span) for span in offsets], special


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A token's characters without the blanks around it, which some tokenizers count to it."""
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())


def _word_of(
    words: Sequence[str], offsets: Sequence[tuple[int, int]], special: Sequence[int]
) -> tuple[tuple[int, ...], str]:
    """[token]: the word of each token, and why the words and tokens do not align, if so."""
    word_at: list[int] = []
    for number, word in enumerate(words):
        word_at += [number] * (len(word) + 1)  # the blank behind a word counts to it
    word_of: list[int] = []
    for (start, end), is_special in zip(offsets, special, strict=True):
        touched = sorted(set(word_at[start:end]))
        if is_special:
            word_of.append(SPECIAL)
        elif len(touched) > 1:
            return (), "a token spans several words"
        elif touched:
            word_of.append(touched[0])
        else:  # a bare blank (SentencePiece): part of the word that follows
            word_of.append(word_at[min(start, len(word_at) - 1)])
    if set(range(len(words))) - set(word_of):
        return (), "a word has no token"
    inside = [word for word in word_of if word != SPECIAL]
    if inside != sorted(inside):
        return (), "tokens are not in the order of the words"
    return tuple(word_of), ""


def padded(tokenizer: Any, texts: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
    """What a tokenizer makes of several texts, as one batch.

    Padded on the right: the attention mask tells padding, so a tokenizer without a padding token will do.
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
