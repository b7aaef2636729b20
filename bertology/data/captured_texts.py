"""What was captured of which texts: the tokens in a result, and the words that they are part of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ..anatomy.names import DECODER_IDS_ARGUMENT
from ..results.axes import axes
from ..results.fields import ABOUT
from .batches import ANNOTATIONS, Batch, token_ids, token_mask, without_labels
from .models import is_encoder_decoder
from .tokens import PADDING, WordsOfTokens, token_strings


@dataclass(frozen=True, eq=False, repr=False)
class CapturedTexts:
    """The texts of a capture: the fields that all captures share. They have defaults, and are keyword-only."""

    tokens: Annotated[tuple[tuple[str, ...], ...], axes("batch token")] = field(
        default=(), kw_only=True, metadata=ABOUT
    )
    """[batch, token]: the tokens of the input texts, an empty string for padding; empty without a tokenizer."""
    decoder_tokens: Annotated[tuple[tuple[str, ...], ...], axes("batch token")] = field(
        default=(), kw_only=True, metadata=ABOUT
    )
    """[batch, token]: the tokens that the decoder of an encoder-decoder reads; empty for other models."""
    word_of: Annotated[tuple[tuple[int, ...], ...], axes("batch token")] = field(
        default=(), kw_only=True, metadata=ABOUT
    )
    """[batch, token]: the word of each token of the input, from 0; -1 for special tokens, -2 for padding.

    A word begins after a blank, and where the tokenizer splits a text, such as at punctuation. Empty where it is not
    known: for batches that were not made of texts, and for tokenizers that do not tell."""

    positions: Annotated[tuple[int, ...], axes("token")] = field(default=(), kw_only=True, metadata=ABOUT)
    """[token]: which tokens of each text were kept, from 0 at its first real token, and from -1 back from its last one;
    empty where all were. Of attention maps these are the queries. `tokens` are those of the whole text."""

    def tokens_of(self, stack: str) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
        """The tokens that attend in a stack, and those that are attended to, each [batch, token]."""
        decodes = bool(self.decoder_tokens) and not stack.startswith("encoder")
        queries = self.decoder_tokens if decodes else self.tokens
        keys = self.tokens if stack.startswith("cross") else queries
        return tuple(map(self._chosen, queries)) if self.positions else queries, keys

    def _chosen(self, tokens: tuple[str, ...]) -> tuple[str, ...]:
        """The tokens of a text at the positions that were kept, an empty string where it does not have one."""
        real = [token for token in tokens if token]
        return tuple(real[one] if -len(real) <= one < len(real) else "" for one in self.positions)


def texts_of(model: nn.Module, batch: Batch, tokenizer: Any) -> dict[str, Any]:
    """The fields of `CapturedTexts`, if there is a tokenizer and the batch has token ids."""
    ids = token_ids(model, batch, "encoder") if tokenizer is not None else None
    if ids is None:
        return {}
    real = _real(model, batch, ids, "encoder")
    found: dict[str, Any] = {"tokens": token_strings(tokenizer, ids, real)}
    if is_encoder_decoder(model):
        written = without_labels(model, batch).get(DECODER_IDS_ARGUMENT)
        if isinstance(written, Tensor):
            found["decoder_tokens"] = token_strings(tokenizer, written, _real(model, batch, written, "decoder"))
    notes = batch.get(ANNOTATIONS, ())
    if len(notes) == len(ids) and all(isinstance(one, WordsOfTokens) and one.word_of for one in notes):
        found["word_of"] = tuple(_placed(one.word_of, mask) for one, mask in zip(notes, real.tolist(), strict=True))
    return found


def _real(model: nn.Module, batch: Batch, ids: Tensor, stack: str) -> Tensor:
    """[row, token], bool: which tokens are not padding; all of them where the mask does not tell."""
    try:
        mask = token_mask(model, batch, stack)
    except ValueError:  # an attention mask of another shape
        return torch.ones_like(ids, dtype=torch.bool)
    return mask if mask.shape == ids.shape else torch.ones_like(ids, dtype=torch.bool)


def _placed(words: tuple[int, ...], real: list[bool]) -> tuple[int, ...]:
    """[token]: the words where the text is, on whichever side its padding."""
    left = iter(words)
    return tuple(next(left) if there else PADDING for there in real)
