"""Slow twin of the whole of CAT-probing: Chen et al. (2022), as METHODS.md D1 has it, from a model's eager maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from bertology.code_structure import AlignedCode, shuffled
from oracles import code as oracles

Map = dict[tuple[int, int], float]
"""{(from leaf, to leaf): a number}, of the pairs that count."""
KINDS = ("attention", "shuffled", "positional")


def rows_of(model: Any, batches: Any) -> Iterator[tuple[AlignedCode, list[list[np.ndarray]]]]:
    """Of each snippet [layer][row]: the mean over heads in row 0, then each head, [token, token] without padding."""
    for batch in batches:
        given = {name: x for name, x in batch.items() if name != "annotations"}
        with torch.no_grad():
            found = model(**given, output_attentions=True).attentions
        for example, one in enumerate(batch["annotations"]):
            many = int(batch["attention_mask"][example].sum())
            heads = [layer[example, :, :many, :many].numpy() for layer in found]
            yield one, [[sum(layer) / len(layer), *layer] for layer in heads]


def leaf_map(weights: np.ndarray, leaf_of: Sequence[int], causal: bool) -> Map:
    """D1.2: the mean over the tokens of either leaf; of a decoder, over what it sees of itself and earlier ones."""
    found: dict[tuple[int, int], list[float]] = {}
    for query, i in enumerate(leaf_of):
        for key, j in enumerate(leaf_of):
            if i >= 0 and j >= 0 and not (causal and key > query):
                found.setdefault((i, j), []).append(float(weights[query, key]))
    return {pair: sum(values) / len(values) for pair, values in found.items()}


def above(values: Map, q: float) -> dict[tuple[int, int], bool]:
    threshold = np.quantile(list(values.values()), 1 - q)
    return {pair: value > threshold for pair, value in values.items()}


def by_offset(values: Map) -> Map:
    """The map with its mean at each offset, counted among the leaves that have tokens."""
    place = {leaf: n for n, leaf in enumerate(sorted({i for i, _ in values}))}
    found: dict[int, list[float]] = {}
    for (i, j), value in values.items():
        found.setdefault(place[j] - place[i], []).append(value)
    return {(i, j): sum(some) / len(some) for i, j in values for some in [found[place[j] - place[i]]]}


def by_means(values: Map, others: Sequence[Map]) -> Map:
    """The map with the mean of other maps at each offset; 0 at an offset that they do not have."""
    sums: dict[int, list[float]] = {}
    for other in others:
        place = {leaf: n for n, leaf in enumerate(sorted({i for i, _ in other}))}
        for (i, j), value in other.items():
            sums.setdefault(place[j] - place[i], []).append(value)
    place = {leaf: n for n, leaf in enumerate(sorted({i for i, _ in values}))}
    means = {offset: sum(some) / len(some) for offset, some in sums.items()}
    return {(i, j): means.get(place[j] - place[i], 0.0) for i, j in values}


def counted(one: AlignedCode, values: Map, types: Sequence[str] | None) -> Map:
    """The pairs of leaves of the types that count."""
    kept = {leaf for leaf, kind in enumerate(one.tree.types) if types is None or kind in types}
    return {pair: value for pair, value in values.items() if kept.issuperset(pair)}


def moved(near: dict[tuple[int, int], bool], number: int, seed: int) -> dict[tuple[int, int], bool]:
    """The pairs in the order of `shuffled`, which is tested by itself."""
    leaves = sorted({i for i, _ in near})
    numbers = torch.arange(len(leaves) ** 2).view(len(leaves), len(leaves))
    valid = torch.tensor([[(i, j) in near for j in leaves] for i in leaves])
    order = shuffled(numbers, snippet=number, seed=seed, valid=valid)
    place = {leaf: n for n, leaf in enumerate(leaves)}
    at = {pair: divmod(int(order[place[pair[0]], place[pair[1]]]), len(leaves)) for pair in near}
    return {pair: near[leaves[row], leaves[column]] for pair, (row, column) in at.items()}


def overlap(values: Map, high: dict[Any, bool], near: dict[Any, bool]) -> tuple[int, int]:
    """D1.5: matched and either; 0 of 0 for a map that is 0 everywhere."""
    if not any(values.values()):
        return 0, 0
    return sum(high[p] and near[p] for p in values), sum(high[p] or near[p] for p in values)


def counts(
    one: AlignedCode, row: np.ndarray, types: Sequence[str] | None, *, causal: bool = False, upgraded: bool = True,
    q: float = 0.25, seed: int = 0, kept_offsets: bool = False, others: Sequence[tuple[AlignedCode, np.ndarray]] = (),
) -> list[tuple[int, int]]:  # fmt: skip
    """[kind]: matched and either, of one map of one snippet.

    The positional null model counts offsets in the snippet, or among the leaves that count. Its means are over this
    map, or over the maps of `others`.
    """
    distance = oracles.distances(one.tree.code, one.tree.language, upgraded)
    whole = leaf_map(row, one.leaf_of[: len(row)], causal)
    values = counted(one, whole, types)
    if others:
        maps = [(other, leaf_map(some, other.leaf_of[: len(some)], causal)) for other, some in others]
        offsets = by_means(values if kept_offsets else whole, [
            counted(other, some, types) if kept_offsets else some for other, some in maps
        ])  # fmt: skip
    else:
        offsets = by_offset(values if kept_offsets else whole)
    offsets = counted(one, offsets, types)
    if not values:
        return [(0, 0)] * 3
    far = {(i, j): float(distance[i][j]) for i, j in values}
    threshold = np.quantile(list(far.values()), q)
    near = {pair: steps < threshold for pair, steps in far.items()}
    high = above(values, q)
    return [
        overlap(values, high, near),
        overlap(values, high, moved(near, one.number, seed)),
        overlap(offsets, above(offsets, q), near),
    ]


def type_counts(snippets: Sequence[tuple[AlignedCode, np.ndarray]], causal: bool, q: float = 0.25) -> Any:
    """D1.4, pooled over snippets: high and all sides of pairs by type, and what the latter must exceed."""
    high: Counter[str] = Counter()
    total: Counter[str] = Counter()
    once = 0.0
    for one, row in snippets:
        values = leaf_map(row, one.leaf_of[: len(row)], causal)
        if not any(values.values()):
            continue
        once += len(values) / len({i for i, _ in values})
        for pair, is_high in above(values, q).items():
            for leaf in pair:
                total[one.tree.types[leaf]] += 1
                high[one.tree.types[leaf]] += is_high
    return high, total, once


def frequent(snippets: Sequence[tuple[AlignedCode, np.ndarray]], causal: bool, top: int) -> tuple[str, ...]:
    high, total, once = type_counts(snippets, causal)
    common = [kind for kind in total if total[kind] > once and high[kind]]
    return tuple(sorted(common, key=lambda kind: (-high[kind] / total[kind], kind))[:top])
