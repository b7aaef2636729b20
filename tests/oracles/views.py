"""Slow twins of what pictures show: for-loops written from Clark et al. (2019), §3 to §6."""

from __future__ import annotations

import math


def word_map(weights, word_of):
    """§4.1: attention to a split word is summed up, from it averaged; `word_of` numbers the group of each token."""
    groups = sorted(set(word_of))
    members = {group: [t for t, g in enumerate(word_of) if g == group] for group in groups}
    found = []
    for a in groups:
        row = []
        for b in groups:
            total = 0.0
            for query in members[a]:
                for key in members[b]:
                    total += weights[query][key]
            row.append(total / len(members[a]))
        found.append(row)
    return found


def arcs_right(weights, heads, from_dependent):
    """§4.2: of each word that hangs on another (heads from 1, 0 the root), whether the head picks that."""
    found = {}
    for word, gold in enumerate(heads):
        best, most = None, -math.inf
        for other in range(len(heads)):
            weight = weights[word][other] if from_dependent else weights[other][word]
            if other != word and weight > most:
                best, most = other, weight
        if gold > 0:
            found[word] = best == gold - 1
    return found


def behaviours(patterns, entropy, *, threshold=0.5, to_class=0.6, broad=3.8):
    """Figure 6: the rows and heads that have each name, with the thresholds of the authors' code."""
    found = {}
    rows, heads = patterns.first.shape
    for row in range(rows):
        for head in range(heads):
            measured = {
                "next": patterns.next[row, head].item() - threshold,
                "previous": patterns.previous[row, head].item() - threshold,
                "to first": patterns.first[row, head].item() - to_class,
                "broad": entropy.mean[row, head].item() - broad,
            }
            for number, name in enumerate(patterns.classes):
                if name != "other":
                    measured[f"to {name}"] = patterns.to[row, head, number].item() - to_class
            for name, above in measured.items():
                if above > 0:
                    found.setdefault(name, set()).add((row, head))
    return found
