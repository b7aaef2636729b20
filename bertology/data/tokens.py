"""Tokens as readable strings, and the words that they are part of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

SPECIAL, PADDING = -1, -2
"""In the place of a word: a special token such as [CLS], and a position without a token."""
BEFORE_WORDS = ("▁", "Ġ")
"""How tokens of SentencePiece and of byte-level vocabularies begin where a blank stands before them."""
LITTLE = 8
"""So many more characters of a text are not cut."""
INSIDE_WORDS = "##"
"""How tokens of WordPiece begin inside a word."""
# Line breaks, also those of other systems, and what moves the cursor of a terminal: \n, \r, \x1b, ...
_SIGNS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}


class WordsOfTokens(NamedTuple):
    """What a batch of texts notes of each example, in its annotations."""

    word_of: tuple[int, ...]
    """[token]: the word of each real token, counted from 0; -1 for special tokens. Empty if it is not known."""


def token_strings(tokenizer: Any, ids: Tensor, real: Tensor) -> tuple[tuple[str, ...], ...]:
    """[row, token]: what each token is, readable; an empty string for padding.

    A blank before a token stays, and so does the `##` inside a word. A part of a character is as the tokenizer has it.
    """
    known: dict[int, str] = {}
    rows = []
    for row, mask in zip(ids.tolist(), real.tolist(), strict=True):
        for one in set(row) - known.keys():
            known[one] = _readable(tokenizer, one)
        rows.append(tuple(known[one] if there else "" for one, there in zip(row, mask, strict=True)))
    return tuple(rows)


def _readable(tokenizer: Any, number: int) -> str:
    raw = tokenizer.convert_ids_to_tokens(number)
    if raw is None or raw.startswith(INSIDE_WORDS):
        return raw or f"<{number}>"
    text = str(tokenizer.convert_tokens_to_string([raw]))
    if "\ufffd" in text or not text:
        text = raw
    blank = raw.startswith(BEFORE_WORDS) and not text.startswith((" ", *BEFORE_WORDS))
    return f" {text}" if blank else text


def label_of(token: str) -> str:
    """A token as pictures and tables write it: without blanks around it, and with signs for blanks and line breaks.

    >>> label_of(" a\\r\\n"), label_of("  ")
    ('a\\\\r\\\\n', '␣␣')
    """
    return token.strip(" ").translate(_SIGNS) or ("␣" * len(token))


def word_strings(tokens: Sequence[str], word_of: Sequence[int]) -> list[str]:
    """The words and special tokens of a text, in their order: what `word_attention` has a row for."""
    found: list[str] = []
    last = PADDING
    for token, word in zip(tokens, word_of, strict=True):
        if word == PADDING:
            continue
        if word == SPECIAL or word != last:
            found.append("")
        found[-1] += token.removeprefix(INSIDE_WORDS) if word == last else token
        last = word
    return [label_of(word) for word in found]


def beginning(tokens: Sequence[str], most: int) -> str:
    """The beginning of a text, as its tokens tell it; it ends in "…" if anything was cut, which is not done for little.

    >>> beginning(["[CLS]", "birds", "sing", ".", "[SEP]"], 16)
    '[CLS] birds sing . [SEP]'
    >>> beginning(["birds", "sing", "in", "the", "morning"], 16)
    'birds sing in the …'
    """
    blanks = any(token.startswith(" ") for token in tokens)  # else a token does not say whether a blank is before it
    text = short = ""
    for token in tokens:
        inside = blanks or token.startswith(INSIDE_WORDS) or not text
        text += (token if blanks else token.removeprefix(INSIDE_WORDS)) if inside else f" {token}"
        if len(text.strip()) > most and not short:
            short = text
        if len(text.strip()) > most + LITTLE:
            return f"{' '.join(short.split())} …" if len(short) < len(text) else f"{text.strip()[:most]}…"
    return " ".join(text.split())


def words_in(encoding: Any, texts: Sequence[str]) -> tuple[int, ...]:
    """[token]: the word of each token of an encoding of the tokenizers library; -1 for special tokens.

    A word begins after a blank, and where the tokenizer splits a text before it makes tokens, such as at punctuation.
    """
    found: list[int] = []
    number, last, last_start, blank = -1, None, -1, False
    for of, word, (start, end) in zip(encoding.sequence_ids, encoding.word_ids, encoding.offsets, strict=True):
        if of is None:
            found.append(SPECIAL)
            last = None
            continue
        inside = texts[of][start:end]
        start += len(inside) - len(inside.lstrip())
        after_blank = start == 0 or texts[of][start - 1 : start].isspace()
        begins = last is None or last != (of, word) or (after_blank and start > last_start)
        if begins and not (blank and last is not None and last[0] == of):
            number += 1
        found.append(number)
        last, last_start, blank = (of, word), start, not inside.strip()
    return tuple(found)
