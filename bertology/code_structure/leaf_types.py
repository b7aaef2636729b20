"""Which types of leaves does each layer attend to most?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ..anatomy.sites import Site
from ..errors import DataError, HeadError, ShapeError, check_least, checked, described, how_many
from ..results.axes import axes
from ..results.result import Result
from ..results.views import expected_rows
from ..streaming.accumulator import Names, stat
from ..streaming.map_accumulator import Weighting, check_weighting
from .leaf_maps import LeafMapAccumulator, LeafMaps, visible
from .masks import QUARTER, HighAttention, attention_mask

TOP = 8
"""The number of types that the released code of Chen et al. (2022) keeps."""
BELOW = 40
"""The published lists have only types whose rank sum over four models is below this."""
PUBLISHED_TYPES: dict[str, tuple[str, ...]] = {
    "python": ("]", "def", ")", "for", "identifier", ":", "if", "return", "(", "=", ","),
    "java": ("public", "string_literal", "{", ";", "return", "=", "}", ",", ")"),
    "javascript": ("function", ")", "(", "{", "string_fragment", ";", "identifier", ","),
    "go": ("package_identifier", "if", "=", "return", "type_identifier", ":", '"', "field_identifier"),
}
"""The lists that `published_types` gives, by language."""


class TypeCounts:
    """How often the attention from and to each type of leaf is high: counts that are summed over snippets.

    In every pair of leaves that counts, both leaves are counted under their types; they are counted as high if the
    attention of the pair is above the map's quantile (Chen et al. 2022):
    P(t) = (#{(i,j): A_ij > θ, t = type(i)} + #{.. t = type(j)}) / (#{(i,j): t = type(i)} + #{.. t = type(j)}).

        >>> import torch
        >>> from bertology.code_structure import attention_mask
        >>> counts = TypeCounts()
        >>> counts.add(attention_mask(torch.tensor([[0.9, 0.1], [0.2, 0.3]])), ("identifier", "="))
        >>> counts.types, counts.share
        (('identifier', '='), tensor([0.5000, 0.0000], dtype=torch.float64))
    """

    types: tuple[str, ...]
    """[class]: the types so far, in the order of their first occurrence."""
    high: Tensor
    """[..., class] int64: how often a leaf of the type is in a pair of high attention; both sides of a pair count."""
    total: Tensor
    """[..., class] int64: how often a leaf of the type is in a pair."""
    once: Tensor
    """[...]: what `total` must exceed for a type to be common: the sum over snippets of the number of pairs that count,
    divided by the number of leaves. If all pairs count, this is n for a snippet of n leaves."""
    snippets: int
    """The number of snippets that were added."""

    def __init__(self) -> None:
        self.types, self.snippets = (), 0
        self.high = self.total = torch.zeros(0, dtype=torch.int64)
        self.once = torch.zeros((), dtype=torch.float64)

    @checked
    def add(self, high: HighAttention, types: Sequence[str], *, valid: Tensor | None = None) -> None:
        """Add the maps of one snippet, [..., leaf, leaf]; the number of maps must be the same in each call.

        Maps that are 0 everywhere are not counted.

        Args:
            high: where the attention is high: `attention_mask`.
            types: [leaf]: the types of the leaves.
            valid: [leaf, leaf] bool: the pairs that count: the same as for `attention_mask`.

        Raises `ShapeError` if there are not as many types as leaves, or if the shape of the maps changes.
        """
        mask, leaves = high.mask, len(types)
        if mask.shape[-2:] != (leaves, leaves):
            raise ShapeError(
                f"wanted one type per leaf, got {how_many(leaves, 'type')} and maps of {list(mask.shape[-2:])}"
            )
        if self.snippets and high.blank.shape != self.once.shape:
            raise ShapeError(f"wanted maps of {list(self.once.shape)} as before, got {list(high.blank.shape)}")
        found = tuple(dict.fromkeys(types))
        number = {kind: place for place, kind in enumerate(found)}
        of = torch.tensor([number[kind] for kind in types], dtype=torch.int64, device=mask.device)
        if valid is None:
            pairs, many = torch.full((leaves,), 2 * leaves, device=mask.device), leaves * leaves
        else:
            pairs, many = valid.sum(0) + valid.sum(1), int(valid.sum())
        counted = (~high.blank).to(torch.int64).cpu()
        total = torch.zeros(len(found), dtype=torch.int64, device=mask.device).index_add_(0, of, pairs.to(mask.device))
        sides = mask.sum(-1) + mask.sum(-2)
        new = TypeCounts()
        new.types, new.snippets = found, 1
        new.high = torch.zeros(*sides.shape[:-1], len(found), dtype=torch.int64, device=mask.device)
        new.high = new.high.index_add_(-1, of, sides).cpu()
        new.total = counted[..., None] * total.cpu()
        new.once = counted * (many / max(1, leaves))
        self.merge(new)

    @checked
    def merge(self, other: TypeCounts) -> None:
        """Add the counts of other snippets, for the same number of maps."""
        if other.snippets == 0:
            return
        if self.snippets and self.once.shape != other.once.shape:
            raise ShapeError(f"wanted counts of {list(self.once.shape)} maps, got {list(other.once.shape)}")
        types = tuple(dict.fromkeys(self.types + other.types))
        place = {kind: number for number, kind in enumerate(types)}
        high, total = (torch.zeros(*other.once.shape, len(types), dtype=torch.int64) for _ in range(2))
        for one in (self, other):
            if one.snippets:
                at = torch.tensor([place[kind] for kind in one.types], dtype=torch.int64)
                high.index_add_(-1, at, one.high)
                total.index_add_(-1, at, one.total)
        self.types, self.high, self.total = types, high, total
        self.once = self.once + other.once
        self.snippets += other.snippets

    @property
    def share(self) -> Tensor:
        """[..., class], 0 to 1: P, the share of a type's pairs with high attention; NaN for a type without pairs."""
        return self.high / self.total.to(torch.float64)

    def ranking(self, *at: int) -> tuple[str, ...]:
        """The common types of one map, sorted by P from the highest; types with equal P are sorted by name.

        A type is common if it has more pairs than all snippets together have leaves, and at least one pair of high
        attention. This is the rule in the code of Chen et al. (2022), where a comment says: more than one per snippet.
        In a causal map, half as many pairs are enough.

        Args:
            at: the index of the map: none for counts of a single map, a head for [head, class].

        Raises `DataError` for an index of another length.
        """
        if len(at) != self.once.dim() or any(not 0 <= i < n for i, n in zip(at, self.once.shape, strict=True)):
            raise DataError(f"counts are for {list(self.once.shape)} maps: wanted one index per axis, got {list(at)}")
        high, total, share = (x[at].tolist() for x in (self.high, self.total, self.share))
        common = [i for i in range(len(self.types)) if total[i] > self.once[at] and high[i] > 0]
        return tuple(self.types[i] for i in sorted(common, key=lambda i: (-share[i], self.types[i])))

    @checked
    def frequent(self, *at: int, top: int = TOP) -> tuple[str, ...]:
        """The types that the released code of Chen et al. (2022) keeps: the first `top` types of `ranking`.

        Raises `DataError` as `ranking` does, and for a `top` below 1.
        """
        if top < 1:
            raise DataError(f"top must be the number of types to keep, 1 or more, got {top}")
        return self.ranking(*at)[:top]


@checked
def rank_sum(rankings: Iterable[Sequence[str]], *, below: int = BELOW) -> tuple[str, ...]:
    """The types that are in the rankings of all models and rank high: the sum of their ranks, from 0, is below `below`.

    The lists for the published scores were made in this way from four models. Types are sorted by their sum, the lowest
    first.

    Args:
        rankings: one per model, from `TypeCounts.ranking`.
        below: a type is kept if the sum of its ranks is less than this.

    Raises `DataError` for no rankings, and for a ranking that names a type twice.

        >>> rank_sum([("def", "(", ")"), (")", "def", "if")], below=3)
        ('def', ')')
    """
    check_least("below", below, 1)
    every = [tuple(ranking) for ranking in rankings]
    if not every or any(len(set(one)) < len(one) for one in every):
        raise DataError(f"wanted one ranking per model, with each type once, got {every}")
    sums: Counter[str] = Counter()
    for ranking in every:
        sums.update({kind: rank for rank, kind in enumerate(ranking)})
    shared = [kind for kind in every[0] if all(kind in one for one in every)]
    return tuple(kind for kind in sorted(shared, key=lambda kind: (sums[kind], kind)) if sums[kind] < below)


@checked
def published_types(language: str) -> tuple[str, ...]:
    """The types of leaves of the published CAT-scores, the highest rank first.

    They are the result of `rank_sum` for CodeBERT, RoBERTa, UniXcoder and GraphCodeBERT, each at its last layer (Chen
    et al. 2022: the notebook `model_free_frequent_type` of their code). The types are those of the grammars of 2022. In
    those, a Java string was one leaf, `string_literal`; in today's grammar it has several: a `"` at each end, and
    `string_fragment`. In the published list for JavaScript one model counts twice: the first ranking has the shares of
    the second model, but is not sorted by them.

    Raises `DataError` for a language other than Python, Java, JavaScript and Go.

        >>> published_types("go")
        ('package_identifier', 'if', '=', 'return', 'type_identifier', ':', '"', 'field_identifier')
    """
    if language not in PUBLISHED_TYPES:
        raise DataError(f"types were published for {', '.join(PUBLISHED_TYPES)}, not for {language!r}")
    return PUBLISHED_TYPES[language]


@checked
def leaves_of(types: Sequence[str], kept: Iterable[str]) -> Tensor:
    """[leaf] int64: the numbers of the leaves of the kept types, ascending.

    Restrict maps and distances to them before making masks, because quantiles are over the remaining pairs.

        >>> leaves_of(("def", "identifier", "(", ")"), {"(", ")"})
        tensor([2, 3])
    """
    wanted = set(kept)
    return torch.tensor([i for i, kind in enumerate(types) if kind in wanted], dtype=torch.int64)


@checked
def restricted(x: Tensor, leaves: Tensor) -> Tensor:
    """[..., leaf, leaf]: only the rows and columns of some leaves; see `leaves_of`.

    >>> import torch
    >>> restricted(torch.arange(16).view(4, 4), torch.tensor([2, 3]))
    tensor([[10, 11],
            [14, 15]])
    """
    if leaves.dim() != 1 or leaves.is_floating_point() or leaves.dtype == torch.bool or x.dim() < 2:
        raise ShapeError(
            f"wanted x [..., leaf, leaf] and leaves [leaf], whole numbers, got {list(x.shape)} and {described(leaves)}"
        )
    if leaves.numel() and not 0 <= int(leaves.min()) <= int(leaves.max()) < x.shape[-1]:
        raise DataError(f"leaves must be from 0 to {x.shape[-1] - 1}, got {leaves.tolist()}")
    at = leaves.to(x.device)
    pairs = (at[:, None] * x.shape[-1] + at).flatten()
    return x.flatten(-2).index_select(-1, pairs).view(*x.shape[:-2], len(at), len(at))


@dataclass(frozen=True, eq=False, repr=False)
class LeafTypes(Result):
    """How often each layer's attention, averaged over heads, is high from or to leaves of each type."""

    main: ClassVar[str | None] = "share"

    high: Annotated[Tensor, axes("layer class")]
    """[layer, class] int64: how often a leaf of the type is in a pair of high attention; both sides of a pair count."""
    total: Annotated[Tensor, axes("layer class")]
    """[layer, class] int64: how often a leaf of the type is in a pair."""
    once: Annotated[Tensor, axes("layer")]
    """[layer]: what `total` must exceed for a type to be common: see `TypeCounts.once`."""
    snippets: Annotated[Tensor, axes("layer")]
    """[layer] int64: the number of snippets that were counted; 0 for layers that do not read the code."""
    types: Annotated[tuple[str, ...], axes("class")]
    """[class]: the types of leaves."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks."""

    @property
    def share(self) -> Annotated[Tensor, axes("layer class", words="share of pairs with high attention")]:
        """[layer, class], 0 to 1: P, the share of a type's pairs with high attention; NaN for a type without pairs."""
        return self.high / self.total.double()

    @checked
    def counts(self, row: int) -> TypeCounts:
        """The counts of one layer, by its row, to merge with others or to rank. Raises `HeadError` for another row."""
        rows = len(self.labels)
        if not -rows <= row < rows:
            raise HeadError(
                f"row {row} is out of range: there are {how_many(rows, 'layer')}, in the rows 0 to {rows - 1}"
            )
        found = TypeCounts()
        found.types, found.snippets = self.types, int(self.snippets[row])
        found.high, found.total, found.once = self.high[row], self.total[row], self.once[row]
        return found

    @checked
    def frequent(self, row: int, *, top: int = TOP) -> tuple[str, ...]:
        """The types of one layer, by its row, that the released code of Chen et al. (2022) keeps."""
        return self.counts(row).frequent(top=top)

    def __str__(self) -> str:
        lines = [f"types of leaves with the highest share of high attention, of {len(self.types)}"]
        for row in expected_rows(self.labels, self.snippets.bool().tolist()):
            if self.snippets[row]:
                shares = dict(zip(self.types, self.share[row].tolist(), strict=True))
                listed = ", ".join(f"{kind} {100 * shares[kind]:.0f} %" for kind in self.frequent(row))
            else:
                listed = ""
            lines.append(f"layer {self.labels[row]}: {listed or 'none, since no pair of leaves has high attention'}")
        return "\n".join(lines)


class TypesAccumulator(LeafMapAccumulator):
    """Counts for `LeafTypes`, from batches of `align_code`. `types` are all types that can occur."""

    high: Tensor = stat("layer class", torch.int64)
    total: Tensor = stat("layer class", torch.int64)
    once: Tensor = stat("layer")
    seen: Tensor = stat("layer", torch.int64)

    def __init__(self, types: Sequence[str], *, quantile: float = QUARTER, weighting: Weighting = "attention") -> None:
        self.weighting = check_weighting(weighting)
        self._number = {kind: place for place, kind in enumerate(sorted(set(types)))}
        self._quantile = quantile

    def names(self) -> Names:
        """The types of leaves."""
        return {"class": tuple(self._number)}

    def rename(self, names: Names) -> None:
        """Count other types."""
        self._number = {kind: place for place, kind in enumerate(names["class"])}

    def settings(self) -> str:
        """The types, and the quantile of high attention."""
        return f"{list(self._number)} {self._quantile}"

    def sizes(self) -> dict[str, int]:
        """The number of types."""
        return {"class": len(self._number)}

    def read_leaves(self, site: Site, example: int, maps: LeafMaps, causal: bool) -> None:
        """Count the leaves with high attention in a layer."""
        valid = visible(len(maps.kept)) if causal else None
        types = self.snippets[example].tree.types
        kinds = [types[leaf] for leaf in maps.kept.tolist()]
        found = TypeCounts()
        found.add(attention_mask(maps.values.mean(0), quantile=self._quantile, valid=valid), kinds, valid=valid)
        places = torch.tensor([self._number[kind] for kind in found.types], device=self.high.device)
        self.high[site.row].index_add_(0, places, found.high.to(self.high.device))
        self.total[site.row].index_add_(0, places, found.total.to(self.total.device))
        self.once[site.row] += found.once.to(self.once.device)
        self.seen[site.row] += 1

    def compute(self) -> LeafTypes:
        """The counts as a result."""
        self.check_measured(self.seen, "snippet")
        high, total, once, seen = (x.cpu() for x in (self.high, self.total, self.once, self.seen))
        return LeafTypes(high, total, once, seen, tuple(self._number), self.anatomy.labels)
