"""How do sentences become texts of two paragraphs, as BERT was trained on?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from bertology.syntax import Sentence


def paragraph_pairs(
    tokenizer: Any, sentences: Sequence[Sentence], *, max_length: int = 128, batch_size: int = 16
) -> tuple[list[dict[str, Any]], int, int]:
    """Batches of texts [CLS] paragraph [SEP] paragraph [SEP] of at most so many tokens (Clark et al. 2019, §3).

    Paragraphs are runs of whole sentences of one document, which is told by the sentences' names up to their last
    hyphen. Token types tell the two apart, as in training. Returns the batches, how many sentences are longer than half
    a text and left out, and how many paragraphs have no partner in their document.
    """
    room = (max_length - tokenizer.num_special_tokens_to_add(pair=True)) // 2
    lengths = [len(tokenizer(" ".join(s.words), add_special_tokens=False)["input_ids"]) for s in sentences]
    paragraphs: list[list[str]] = []
    pairs = zip(sentences, lengths, strict=True)
    for _, document in groupby(pairs, key=lambda pair: pair[0].name.rpartition("-")[0]):
        paragraphs.append(list(_paragraphs(document, room)))
    texts = [(many[i], many[i + 1]) for many in paragraphs for i in range(0, len(many) - 1, 2)]
    texts.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    batches = []
    for start in range(0, len(texts), batch_size):
        firsts, seconds = zip(*texts[start : start + batch_size], strict=True)
        batches.append(dict(tokenizer(list(firsts), list(seconds), padding=True, return_tensors="pt")))
    return batches, sum(length > room for length in lengths), sum(len(many) % 2 for many in paragraphs)


def _paragraphs(document: Iterator[tuple[Sentence, int]], room: int) -> Iterator[str]:
    words: list[str] = []
    used = 0
    for sentence, length in document:
        if length > room:
            continue
        if used + length > room:
            yield " ".join(words)
            words, used = [], 0
        words += sentence.words
        used += length
    if words:
        yield " ".join(words)
