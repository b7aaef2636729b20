"""Slow twins of the probes of syntax: Clark et al. (2019), §5, in loops written from the equations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor


def attention_scores(maps: Tensor, w: Tensor, u: Tensor, r_start: float, r_end: float) -> Tensor:
    """§5, "attention-only probe": the logit of p(i|j), Σ_k w_k α^k_ij + u_k α^k_ji, at [j, i]; ROOT is column 0.

    `maps` are α: [k, i, j], with the start of the text as place 0 and its end as the last.
    """
    return _scores(maps, lambda k, i, j: float(w[k]), lambda k, i, j: float(u[k]), r_start, r_end)


def vector_scores(
    maps: Tensor, vectors: Tensor, w: Tensor, u: Tensor, w_bias: Tensor, u_bias: Tensor, r_start: float, r_end: float,
    *, next_one: bool = False,
) -> Tensor:  # fmt: skip
    """§5, "attention-and-words probe": Σ_k W_k·(v_i ⊕ v_j) α^k_ij + U_k·(v_i ⊕ v_j) α^k_ji, with the code's bias.

    `next_one` makes the slip of the paper's code (METHODS C4.2): candidate column c has the vector of word c + 1.
    """
    words, dim = vectors.shape
    nothing = torch.zeros(dim, dtype=vectors.dtype)

    def vector(i: int) -> Tensor:
        if next_one:
            return vectors[i] if i < words else nothing
        return nothing if i == 0 else vectors[i - 1]

    def weight(table: Tensor, bias: Tensor) -> Callable[[int, int, int], float]:
        def of(k: int, i: int, j: int) -> float:
            total = float(bias[k])
            for d in range(dim):
                total += float(table[k, d]) * float(vector(i)[d]) + float(table[k, dim + d]) * float(vectors[j - 1][d])
            return total

        return of

    return _scores(maps, weight(w, w_bias), weight(u, u_bias), r_start, r_end)


def _scores(
    maps: Tensor, w: Callable[[int, int, int], float], u: Callable[[int, int, int], float], r_start: float, r_end: float
) -> Tensor:
    words, end = maps.shape[1] - 2, maps.shape[1] - 1
    scores = torch.zeros(words, words + 1, dtype=torch.float64)
    for j in range(1, words + 1):
        for i in range(words + 1):
            for k in range(len(maps)):
                if i == 0:
                    toward = r_start * float(maps[k, 0, j]) + r_end * float(maps[k, end, j])
                    away = r_start * float(maps[k, j, 0]) + r_end * float(maps[k, j, end])
                else:
                    toward, away = float(maps[k, i, j]), float(maps[k, j, i])
                scores[j - 1, i] += w(k, i, j) * toward + u(k, i, j) * away
    return scores


def distance_scores(vectors: Tensor, inner: Tensor, bias: Tensor, outer: Tensor) -> Tensor:
    """§5, "distances + GloVe": a tanh layer over [v_j; v_i; features], and a linear one. ROOT's vector is 0."""
    words, dim = vectors.shape
    scores = torch.zeros(words, words + 1, dtype=torch.float64)
    for j in range(1, words + 1):
        for i in range(words + 1):
            own, other = vectors[j - 1].tolist(), vectors[i - 1].tolist() if i else [0.0] * dim
            features = [0.0] * 8
            if i == 0:
                features[7] = 1.0
            else:
                features[0], features[1] = max(i - j, 0) / words, max(j - i, 0) / words
                for place, offset in enumerate((0, -1, 1, -2, 2), 2):
                    features[place] = float(i - j == offset)
            inputs = own + other + features
            for h in range(len(inner)):
                before = sum(float(inner[h, n]) * x for n, x in enumerate(inputs)) + float(bias[h])
                scores[j - 1, i] += float(outer[h]) * math.tanh(before)
    return scores


def sentence_loss(scores: Tensor, heads: tuple[int, ...]) -> float:
    """-Σ_j ln p(head of j | j), where p is over ROOT and all words but j."""
    total = 0.0
    for j, head in enumerate(heads, 1):
        z = sum(math.exp(float(scores[j - 1, i])) for i in range(len(heads) + 1) if i != j)
        total -= math.log(math.exp(float(scores[j - 1, head])) / z)
    return total


def is_tree(heads: tuple[int, ...] | list[int]) -> bool:
    """Whether every word is reached from ROOT."""
    for word in range(1, len(heads) + 1):
        seen = set()
        while word:
            if word in seen:
                return False
            seen.add(word)
            word = heads[word - 1]
    return True


def best_tree(scores: Tensor, one_root: bool) -> float:
    """The highest sum of scores of any tree, by trying all of them."""
    words = len(scores)
    best = -math.inf
    for heads in itertools.product(range(words + 1), repeat=words):
        if is_tree(heads) and (not one_root or heads.count(0) == 1):
            best = max(best, tree_sum(scores, heads))
    return best


def tree_sum(scores: Tensor, heads: tuple[int, ...] | list[int]) -> float:
    """The sum of a tree's scores."""
    return sum(float(scores[word, head]) for word, head in enumerate(heads))


def word_frame(groups: list[int], maps: Tensor, start: int | None, end: int | None) -> Tensor:
    """§4.1 and §5: [k, place, place] of maps between groups: the text's start, its words, its end; 0 where none is."""
    places = [start, *groups, end]
    framed = torch.zeros(len(maps), len(places), len(places), dtype=maps.dtype)
    for k in range(len(maps)):
        for i, one in enumerate(places):
            for j, other in enumerate(places):
                if one is not None and other is not None:
                    framed[k, i, j] = maps[k, one, other]
    return framed


def mean_embedding(table: Tensor, ids: list[int], word_of: tuple[int, ...], word: int) -> Tensor:
    """The mean of the embeddings of a word's tokens."""
    rows = [table[token] for token, of in zip(ids, word_of, strict=True) if of == word]
    return sum(rows[1:], rows[0]) / len(rows)


def path_length(heads: tuple[int, ...], one: int, other: int) -> int:
    """The number of arcs between two words of a tree, counted from 0, over their lowest common ancestor."""
    ways = []
    for word in (one + 1, other + 1):
        way = [word]
        while way[-1]:
            way.append(heads[way[-1] - 1])
        ways.append(way)
    return min(ways[0].index(word) + ways[1].index(word) for word in ways[0] if word in ways[1])


def squared_distance(b: Tensor, one: Tensor, other: Tensor) -> float:
    """Hewitt and Manning 2019, eq. 1: (B (h_i - h_j))^T (B (h_i - h_j))."""
    moved = [float(sum(w * (x - y) for w, x, y in zip(row, one, other, strict=True))) for row in b]
    return sum(x * x for x in moved)


def structural_loss(b: Tensor, words: Tensor, heads: tuple[int, ...]) -> float:
    """§2.1: Σ_ij |d_T - d_B²| / |s|²."""
    n = len(words)
    every = [
        abs(path_length(heads, i, j) - squared_distance(b, words[i], words[j])) for i in range(n) for j in range(n)
    ]
    return sum(every) / n**2


def kruskal(distances: list[list[float]]) -> set[tuple[int, int]]:
    """A minimum spanning tree: the shortest arcs that close no circle."""
    part = list(range(len(distances)))
    arcs = set()
    for _, i, j in sorted((distances[i][j], i, j) for i in part for j in part if i < j):
        if part[i] != part[j]:
            arcs.add((i, j))
            part = [part[i] if x == part[j] else x for x in part]
    return arcs
