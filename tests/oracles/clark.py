"""Slow twins of the surface measures of Clark et al. (2019), in loops written from the paper's text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def class_attention(maps: Tensor, mask: Tensor, member: Tensor, average: str) -> dict[str, Tensor]:
    """§3.2: the attention to a class of tokens, from all tokens, from the class itself, and from the rest.

    `maps [layer, batch, head, query, key]`, `member [batch, token]`; over every query, or over every example's mean.
    """
    layers, batch, heads, queries, _ = maps.shape
    out = {
        kind: torch.full((layers, heads), float("nan"), dtype=torch.float64) for kind in ("to", "within", "from_rest")
    }
    for layer in range(layers):
        for head in range(heads):
            texts: dict[str, list[list[float]]] = {kind: [] for kind in out}
            for b in range(batch):
                found: dict[str, list[float]] = {kind: [] for kind in out}
                for q in range(queries):
                    if not mask[b, q]:
                        continue
                    paid = sum(maps[layer, b, head, q, k].item() for k in range(queries) if member[b, k] and mask[b, k])
                    found["to"].append(paid)
                    found["within" if member[b, q] else "from_rest"].append(paid)
                for kind in out:
                    texts[kind].append(found[kind])
            for kind in out:
                out[kind][layer, head] = mean_over(texts[kind], average)
    return out


def mean_over(texts: list[list[float]], average: str) -> float:
    """The mean of all figures, or of the texts' means; texts without figures do not count."""
    if average == "query":
        every = [figure for text in texts for figure in text]
        return sum(every) / len(every) if every else float("nan")
    means = [sum(text) / len(text) for text in texts if text]
    return sum(means) / len(means) if means else float("nan")


def repeats(maps: Tensor, mask: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """The attention to earlier occurrences of a token, to what is behind these, and to the token before."""
    layers, batch, heads, queries, _ = maps.shape
    out = {
        kind: torch.full((layers, heads), float("nan"), dtype=torch.float64)
        for kind in ("duplicate", "induction", "previous")
    }
    for layer in range(layers):
        for head in range(heads):
            found: dict[str, list[float]] = {kind: [] for kind in out}
            for b in range(batch):
                for q in range(queries):
                    if not mask[b, q]:
                        continue
                    earlier = [k for k in range(q) if mask[b, k]]
                    keys = {
                        "duplicate": [k for k in earlier if ids[b, k] == ids[b, q]],
                        "induction": [k for k in earlier if k - 1 in earlier and ids[b, k - 1] == ids[b, q]],
                        "previous": [k for k in earlier if k == q - 1],
                    }
                    for kind, some in keys.items():
                        if some:
                            found[kind].append(sum(maps[layer, b, head, q, k].item() for k in some))
            for kind in out:
                out[kind][layer, head] = mean_over([found[kind]], "query")
    return out


def word_map(attention: Tensor, group_of: list[int], rows: str) -> list[list[float]]:
    """§4.1: the attention to a word is the sum over its tokens, from a word the mean over its tokens, for one head."""
    groups = max(group_of) + 1
    tokens = [[t for t, g in enumerate(group_of) if g == group] for group in range(groups)]
    out = []
    for row in range(groups):
        to = [[sum(attention[t, k].item() for k in tokens[column]) for column in range(groups)] for t in tokens[row]]
        if rows == "first":
            out.append(to[0])
        elif rows == "mean":
            out.append([sum(each[column] for each in to) / len(to) for column in range(groups)])
        else:
            most = [max(each[column] for each in to) for column in range(groups)]
            out.append([x / sum(most) for x in most])
    return out


def dependency_counts(sentences: list[tuple[Any, Tensor]], relations: list[str]) -> dict[str, Tensor]:
    """§4.2: how often a head's most attended-to word is the syntactic head, of (sentence, [layer, head, word, word])."""
    layers, heads = sentences[0][1].shape[:2]
    right = torch.zeros(len(relations), 2, layers, heads, dtype=torch.int64)
    by_offset = torch.zeros(len(relations), 6, dtype=torch.int64)
    arcs = torch.zeros(len(relations), dtype=torch.int64)
    for sentence, maps in sentences:
        n = len(sentence.words)
        for word in range(n):
            relation, gold = relations.index(sentence.relations[word]), sentence.heads[word]
            arcs[relation] += 1
            for number, offset in enumerate(range(-3, 3)):
                by_offset[relation, number] += min(max(word + 1 + offset, 0), n) == gold
            for layer in range(layers):
                for head in range(heads):
                    for direction in range(2):
                        scores = []
                        for other in range(n):
                            pair = (word, other) if direction == 0 else (other, word)
                            scores.append(0.0 if other == word else maps[layer, head][pair].item())
                        best = max(range(n), key=lambda other: scores[other])
                        right[relation, direction, layer, head] += scores[best] > 0 and best + 1 == gold
    return {"right": right, "offset_right": by_offset, "arcs": arcs}
