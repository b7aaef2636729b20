"""Slow twins of coreference measures, in loops written from the text of Clark et al. (2019), §4.3, and of the formats."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from bertology.corpora.documents import KINDS, Document, Mention
from helpers.trees import WORDS
from oracles import clark as oracles

PRONOUNS = {
    "i": ("one", "?", 1), "we": ("many", "?", 1), "you": ("?", "?", 2), "he": ("one", "m", 3), "she": ("one", "f", 3),
    "it": ("one", "n", 3), "they": ("many", "?", 3), "her": ("one", "f", 3), "his": ("one", "m", 3),
}  # fmt: skip


def word_maps(values: Tensor, one: Any, rows: str = "mean") -> list[list[list[list[list[float]]]]]:
    """[layer][head][word][word]: §4.1, of one example's maps `[layer, head, query, key]`."""
    words = one.word_groups
    whole = [[oracles.word_map(m, list(one.groups), rows) for m in layer] for layer in values]
    return [[[[m[i][j] for j in words] for i in words] for m in layer] for layer in whole]


def asked(document: Document, candidates: str) -> list[tuple[Mention, list[Mention], set[int], set[int]]]:
    """Every mention with an antecedent; the others, nearest first; the words to choose among; the right ones."""
    found = []
    for number, mention in enumerate(document.mentions):
        if document.targets is not None and number not in document.targets:
            continue
        others = []
        for distance in range(1, len(document.words)):
            for place in (mention.head - distance, mention.head + distance):
                if place < mention.head or document.both_sides:
                    others += [other for other in document.mentions if other.head == place]
        places, right = set(), set()
        for other in others:
            places.add(other.head)
            if other.cluster == mention.cluster:
                right.add(other.head)
        for word in range(len(document.words)):
            inside = mention.start <= word < mention.end
            behind = word > mention.head and not document.both_sides
            if candidates == "words" and not inside and not behind:
                places.add(word)
        if right:
            found.append((mention, others, places, right))
    return found


def antecedent_counts(documents: list[tuple[Document, Any]], candidates: str = "mentions") -> dict[str, Tensor]:
    """§4.3: what percent of the time does the head word of a mention most attend to the head of an antecedent?

    Of pairs of a document and its maps [layer][head][word][word].
    """
    layers, heads = len(documents[0][1]), len(documents[0][1][0])
    right = torch.zeros(len(KINDS), 2, layers, heads, dtype=torch.int64)
    both = torch.zeros(len(KINDS), 3, 2, layers, heads, dtype=torch.int64)
    baseline = torch.zeros(len(KINDS), 3, dtype=torch.int64)
    mentions = torch.zeros(len(KINDS), dtype=torch.int64)
    chance = torch.zeros(len(KINDS), dtype=torch.float64)
    for document, maps in documents:
        for mention, others, places, gold in asked(document, candidates):
            kind = KINDS.index(mention.kind)
            rules = [pick in gold for pick in baseline_picks(document, mention, others)]
            baseline[kind] += torch.tensor(rules)
            mentions[kind] += 1
            chance[kind] += sum(place in gold for place in places) / len(places)
            for layer in range(layers):
                for head in range(heads):
                    for direction in range(2):
                        best, most = None, 0.0
                        for place in sorted(places):
                            a, b = (mention.head, place) if direction == 0 else (place, mention.head)
                            if maps[layer][head][a][b] > most:
                                best, most = place, maps[layer][head][a][b]
                        right[kind, direction, layer, head] += best in gold
                        for rule in range(3):
                            both[kind, rule, direction, layer, head] += best in gold and rules[rule]
    return {
        "right": right, "right_with_baseline": both, "baseline_right": baseline, "mentions": mentions, "chance": chance,
    }  # fmt: skip


def baseline_picks(document: Document, mention: Mention, others: list[Mention]) -> list[int | None]:
    """The head words that the three baselines pick among the others, which come nearest first."""
    heads = [document.words[other.head].lower() for other in others]
    own = document.words[mention.head].lower()
    by_head = others[heads.index(own)].head if own in heads else None
    ranks = [sieve(document, other, mention) for other in others]
    return [others[0].head, by_head, others[ranks.index(min(ranks))].head]


def sieve(document: Document, one: Mention, other: Mention) -> int:
    """The first of the four sieves that two mentions pass together, from 0: words, head word, traits, any."""
    texts = [" ".join(document.words[m.start : m.end]).lower() for m in (one, other)]
    if texts[0] == texts[1]:
        return 0
    if document.words[one.head].lower() == document.words[other.head].lower():
        return 1
    for mine, its in zip(traits(document, one), traits(document, other), strict=True):
        if "?" not in (mine, its) and mine != its:
            return 3
    return 2


def traits(document: Document, mention: Mention) -> tuple[Any, Any, Any]:
    head = document.words[mention.head].lower()
    if mention.kind == "pronoun":
        return PRONOUNS.get(head, ("?", "?", "?"))
    plural = mention.kind == "nominal" and head[-1] == "s" and head[-2:] not in ("ss", "us", "is")
    return ("many" if plural else "one"), "?", 3


def cells(document: Document) -> list[str]:
    """The column of brackets: what ends, with the longest last, then what begins, with the longest first."""
    opens, closes, alone = defaultdict(list), defaultdict(list), defaultdict(list)
    for mention in document.mentions:
        if mention.end == mention.start + 1:
            alone[mention.start].append(mention.cluster)
        else:
            opens[mention.start].append((mention.end, mention.cluster))
            closes[mention.end - 1].append((mention.start, mention.cluster))
    column = []
    for word in range(len(document.words)):
        ends = "".join(f"{cluster})" for _, cluster in sorted(closes[word], reverse=True))
        starts = "".join(f"({cluster}" for _, cluster in sorted(opens[word], reverse=True))
        column.append(ends + starts + "".join(f"({cluster})" for cluster in alone[word]) or "_")
    return column


def random_documents(count: int, seed: int = 0, words: list[str] = WORDS, longest: int = 10) -> list[Document]:
    """Words at random with mentions at random, nested and crossing, some of them the same word."""
    dice = random.Random(seed)
    made = []
    for number in range(count):
        many = dice.randint(2, longest)
        text = tuple(dice.choice(words) for _ in range(many))
        found = {}
        for _ in range(dice.randint(1, 7)):
            start = dice.randrange(many)
            end = dice.randint(start + 1, min(many, start + 3))
            cluster, kind = dice.randrange(3), dice.choice(KINDS)
            found[start, end, cluster] = Mention(start, end, dice.randrange(start, end), cluster, kind)
        targets = None if number % 3 else tuple(range(0, len(found), 2))
        made.append(
            Document(text, tuple(found.values()), f"random {number}", targets=targets, both_sides=number % 4 == 0)
        )
    return made
