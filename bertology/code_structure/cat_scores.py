"""How closely does a model's attention follow the structure of code?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.divided import check_not_divided
from ..anatomy.sites import Anatomy, Site
from ..data.batches import Batch, Batches
from ..errors import DataError, checked
from ..measures.random_weights import randomized
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import stat
from ..streaming.map_accumulator import Weighting, check_weighting
from ..streaming.processes import Merge, merges, skipped_in
from ..streaming.progress import Progress, titled
from .align import AlignedCode
from .cat_results import CatComparison
from .leaf_maps import LeafMaps, SnippetMapAccumulator, snippets_in, visible
from .leaf_types import TOP, LeafTypes, TypesAccumulator, leaves_of, published_types, restricted
from .masks import QUARTER, attention_mask, distance_mask, overlap, positional, shuffled
from .position_means import PositionAccumulator, PositionMeans
from .trees import leaf_distances

KINDS = ("attention", "shuffled", "positional")
"""What is scored: the model's attention, the same with shuffled pairs, and the mean of each map at each offset."""
AMONG_KEPT = "positional, kept leaves"
"""The mean of each map at each offset, where offsets and means are those among the leaves that count."""
ELSEWHERE = ", other snippets"
"""What is added to the name of a positional null model whose means are over other snippets."""
Offsets = Literal["snippet", "kept", "both"]
"""Among which leaves the offsets of the positional null model are counted."""
Types = Sequence[Sequence[str] | None]
"""[layer]: the types of leaves that count in each; None for all."""


def kinds_of(offsets: Offsets) -> tuple[str, ...]:
    """What is scored. Raises `DataError` for other offsets than "snippet", "kept" and "both"."""
    if offsets not in get_args(Offsets):
        raise DataError(f"offsets must be 'snippet', 'kept' or 'both', got {offsets!r}")
    return KINDS[:2] + {"snippet": KINDS[2:], "kept": (AMONG_KEPT,), "both": (*KINDS[2:], AMONG_KEPT)}[offsets]


class CatAccumulator(SnippetMapAccumulator):
    """Counts for the CAT-scores of all layers and heads and of two null models, from batches of `align_code`.

    Args:
        examples: all snippets that can occur.
        types: [layer]: the types of leaves that count in each layer and for its heads; None for all leaves.
        quantile: the share of pairs that count as high in attention, and as near in the tree.
        upgraded: whether distances are those of the upgraded tree (U-AST).
        nulls: whether null models are scored as well, which takes twice as long.
        seed: the seed of the shuffled pairs.
        offsets: among which leaves the positional null model counts offsets: see `cat_scores`.
        means: the attention at each offset of other snippets, by kind, for a positional null model of other snippets.
        weighting: "attention", or "norm" for the norms of what arrives.
    """

    matched: Tensor = stat("kind layer example", torch.int64)
    either: Tensor = stat("kind layer example", torch.int64)
    head_matched: Tensor = stat("kind layer head example", torch.int64)
    head_either: Tensor = stat("kind layer head example", torch.int64)

    def __init__(
        self, examples: Sequence[AlignedCode], *, types: Types | None = None, quantile: float = QUARTER,
        upgraded: bool = True, nulls: bool = True, seed: int = 0, offsets: Offsets = "snippet",
        means: Mapping[str, PositionMeans] | None = None, weighting: Weighting = "attention",
    ) -> None:  # fmt: skip
        super().__init__(examples)
        self.weighting = check_weighting(weighting)
        self._types, self._quantile, self._upgraded, self._seed = types, quantile, upgraded, seed
        self._kinds, self._means = kinds_of(offsets) if nulls else KINDS[:1], means or {}

    def settings(self) -> str:
        """The snippets, and everything that changes their counts."""
        types = None if self._types is None else [None if some is None else list(some) for some in self._types]
        return f"{list(self._names)} {types} {self._quantile} {self._upgraded} {self._kinds} {self._seed}"

    def sizes(self) -> dict[str, int]:
        """The numbers of kinds of attention and of snippets."""
        return {"kind": len(self._kinds), **super().sizes()}

    def zero(self, anatomy: Anatomy) -> CatAccumulator:
        """Set all counts to 0, for a model."""
        if self._types is not None and len(self._types) != len(anatomy.labels):
            raise DataError(f"types must have one list per layer, {len(anatomy.labels)}, got {len(self._types)}")
        return super().zero(anatomy)

    def start_batch(self, batch: Batch) -> None:
        """Compute what is the same for all layers."""
        super().start_batch(batch)
        self._each = [_Snippet(one, self._quantile, self._upgraded, self._seed) for one in self.snippets]

    def read_leaves(self, site: Site, example: int, maps: LeafMaps, causal: bool) -> None:
        """Count for a layer and its heads."""
        one = self._each[example]
        self._count(site, one, maps, causal, self._place[one.number])

    def _count(self, site: Site, one: _Snippet, maps: LeafMaps, causal: bool, place: int) -> None:
        heads, valid = list(site.kept), visible(len(maps.kept)) if causal else None
        values = torch.cat([maps.values.mean(0, keepdim=True), maps.values])
        some = one.leaves(maps.kept, None if self._types is None else self._types[site.row])
        near = one.near(maps.kept[some], causal)
        left = None if valid is None else restricted(valid, some)
        high = attention_mask(restricted(values, some), quantile=self._quantile, valid=left)
        found = [overlap(high, near)]
        if len(self._kinds) > 1:
            found.append(overlap(high, one.shuffled(near, left)))
            for null in self._kinds[2:]:
                by_offset = self._positional(null, site, values, some, valid)
                found.append(overlap(attention_mask(by_offset, quantile=self._quantile, valid=left), near))
        for kind, counts in enumerate(found):
            matched, either = (x.to(self.matched.device) for x in counts)
            self.matched[kind, site.row, place], self.either[kind, site.row, place] = matched[0], either[0]
            self.head_matched[kind, site.row, heads, place] = matched[1:]
            self.head_either[kind, site.row, heads, place] = either[1:]

    def _positional(self, kind: str, site: Site, values: Tensor, some: Tensor, valid: Tensor | None) -> Tensor:
        """[1 + head, leaf, leaf]: the map of a positional null model, over the leaves that count."""
        # Two leaves that count see each other in a decoder as before, because leaves are in the order of the text.
        inside = restricted(values, some) if kind == AMONG_KEPT else values
        means = self._means.get(kind)
        if means is not None:
            found = means.map(site.row, site.kept, inside.shape[-1], inside)
        else:
            left = None if valid is None else visible(inside.shape[-1])
            found = positional(inside, valid=left)
        return found if kind == AMONG_KEPT else restricted(found, some)

    def compute(self) -> CatComparison:
        """The counts as a result."""
        self.check_measured(len(self._names), "snippet")
        return CatComparison(
            matched=self.matched.cpu().int(),
            either=self.either.cpu().int(),
            head_matched=self.head_matched.cpu().int(),
            head_either=self.head_either.cpu().int(),
            kinds=tuple(kind + ELSEWHERE if kind in self._means else kind for kind in self._kinds),
            types=tuple(None if some is None else tuple(some) for some in self._types or [None] * self.anatomy.layers),
            names=self._names,
            quantile=self._quantile,
            upgraded=self._upgraded,
            labels=self.anatomy.labels,
        )


class _Snippet:
    """The parts of a snippet that are computed once for all layers."""

    def __init__(self, one: AlignedCode, quantile: float, upgraded: bool, seed: int) -> None:
        self.number, self._types = one.number, one.tree.types
        self._distance = torch.from_numpy(leaf_distances(one.tree, upgraded=upgraded))
        self._quantile, self._seed = quantile, seed
        self._near: dict[tuple[bool, bytes], Tensor] = {}

    def leaves(self, kept: Tensor, types: Sequence[str] | None) -> Tensor:
        """[leaf] int64: the leaves that count, as places in `kept`, the leaves that have tokens."""
        if types is None:
            return torch.arange(len(kept))
        return leaves_of([self._types[leaf] for leaf in kept.tolist()], types)

    def near(self, leaves: Tensor, causal: bool) -> Tensor:
        """[leaf, leaf] bool: which leaves are near in the tree. Cached, because most layers use the same leaves."""
        key = (causal, leaves.numpy().tobytes())
        if key not in self._near:
            valid = visible(len(leaves)) if causal else None
            distance = restricted(self._distance, leaves)
            self._near[key] = distance_mask(distance, quantile=self._quantile, valid=valid)
        return self._near[key]

    def shuffled(self, near: Tensor, valid: Tensor | None) -> Tensor:
        """[leaf, leaf] bool: as `near`, with the pairs in another order."""
        return shuffled(near, snippet=self.number, seed=self._seed, valid=valid)


RANDOM = "random weights"


@merges
@checked
def cat_scores(
    model: nn.Module, batches: Batches, *, types: Literal["frequent", "published", "all"] | Sequence[str] = "frequent",
    top: int = TOP, quantile: float = QUARTER, upgraded: bool = True, offsets: Offsets = "snippet",
    means_from: Batches | None = None, random_weights: bool = False, seed: int = 0,
    weighting: Weighting = "attention", progress: Progress = None, merge: Merge = "all",
) -> CatComparison:  # fmt: skip
    """Measure how well the attention of each layer and head agrees with the structure of code (Chen et al. 2022).

    In each snippet, the quarter of the pairs of leaves with the highest attention is compared with the quarter that is
    nearest in the U-AST. The score is |both| / |either|, and the CAT-score is its mean over snippets. Local attention
    has a high score by itself, because neighbours are near in the tree. So two null models are scored as well: the
    model's attention with its pairs shuffled (at most 1/7), and maps with their mean at every offset, which depend on
    positions alone.

    Args:
        model: any model with self attention over the text, under any attention implementation; left as it was found.
            In a decoder, the pairs of a leaf with itself and with earlier leaves count.
        batches: the batches of `align_code`, or some of them. The score of a layer is that of the mean over its heads.
        types: which leaves count: those of the `top` types with the most high attention in each layer ("frequent", as
            in the released code), those of the published scores ("published"), "all", or the types given.
        top: the number of frequent types.
        quantile: the share of pairs that count as high in attention, and as near in the tree.
        upgraded: whether distances are those of the U-AST, or of the tree alone.
        offsets: among which leaves the positional null model counts offsets and takes means. "snippet": all leaves of
            the snippet, and the leaves that count are picked out of the map afterwards ("positional"). It knows how far
            apart two leaves are in the text, and also the attention to leaves of other types. "kept": only the leaves
            that count ("positional, kept leaves"), so that it knows nothing but what is scored. "both": two null
            models. Without a selection of types they are the same.
        means_from: batches of other snippets, over which the positional null models take their means in a pass before
            ("positional, other snippets"), and on which frequent types are chosen. So nothing is chosen or learned on
            the snippets that are scored. By default each map has its own means: then the null model is a smoothed
            version of the map that it is compared with, and not one that knows positions only.
        random_weights: whether to also measure the model with random weights, on the same types of leaves.
        seed: the seed of shuffled pairs and random weights.
        weighting: "attention" measures attention weights; "norm" each query's shares of |α f(x)|, the norms of what
            arrives from the keys (see `attention_maps`).
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for batches that are not from `align_code`, for an iterator of batches, for "frequent" or
    "published" types of code in several languages, for types that no leaf has, for other offsets, and if no layer reads
    the code.

        >>> from transformers import AutoTokenizer, BertConfig, BertModel
        >>> from bertology.code_structure import align_code, cat_scores, parse_code
        >>> from bertology.demo import minilm_path
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> batches = align_code(tokenizer, [parse_code("def f(x):\\n    return g(x) + 1", "python")])
        >>> found = cat_scores(model, batches, types="all")
        >>> found.scores.head_macro.shape, found.kinds
        (torch.Size([2, 4]), ('attention', 'shuffled', 'positional'))
    """
    kinds_of(offsets)
    if random_weights:
        check_not_divided(model, "random_weights needs a copy of the model")
    snippets = snippets_in(batches)
    choose_on = batches if means_from is None else means_from
    chosen = _chosen(model, choose_on, snippets, types, top, quantile, weighting, progress)
    means = None if means_from is None else _means(model, means_from, chosen, offsets, weighting, progress)
    counter = partial(
        CatAccumulator, snippets, types=chosen, quantile=quantile, upgraded=upgraded, seed=seed, offsets=offsets,
        means=means, weighting=weighting,
    )  # fmt: skip
    found: CatComparison = accumulate(model, batches, counter(), progress=progress)[0]
    if random_weights:
        title = titled(progress, RANDOM)
        other = accumulate(randomized(model, seed=seed), batches, counter(nulls=False), progress=title)[0]
        found = found.joined(other, RANDOM)
    return replace(found, skipped=skipped_in(batches))


@merges
@checked
def leaf_types(
    model: nn.Module, batches: Batches, *, quantile: float = QUARTER, weighting: Weighting = "attention",
    progress: Progress = None, merge: Merge = "all",
) -> LeafTypes:  # fmt: skip
    """Count how often each layer's attention is high at leaves of each type (Chen et al. 2022).

    Args:
        model: as in `cat_scores`.
        batches: the batches of `align_code`.
        quantile: the share of pairs that count as high in attention.
        weighting: "attention" measures attention weights; "norm" each query's shares of |α f(x)|, the norms of what
            arrives from the keys (see `attention_maps`).
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for batches that are not from `align_code`, for an iterator, and if no layer reads the code.

        >>> from transformers import AutoTokenizer, BertConfig, BertModel
        >>> from bertology.code_structure import align_code, leaf_types, parse_code
        >>> from bertology.demo import minilm_path
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> leaf_types(model, align_code(tokenizer, [parse_code("x = x + 1", "python")])).types
        ('+', '=', 'identifier', 'integer')
    """
    every = {kind for one in snippets_in(batches) for kind in one.tree.types}
    counter = TypesAccumulator(sorted(every), quantile=quantile, weighting=weighting)
    found: LeafTypes = accumulate(model, batches, counter, progress=progress)[0]
    return found


def _means(
    model: nn.Module, batches: Batches, types: Types | None, offsets: Offsets, weighting: Weighting,
    progress: Progress,
) -> dict[str, PositionMeans]:  # fmt: skip
    """The means at each offset over other snippets, by kind of null model."""
    snippets, kinds = snippets_in(batches), kinds_of(offsets)[2:]
    counters = [
        PositionAccumulator(snippets, types=types if kind == AMONG_KEPT else None, weighting=weighting)
        for kind in kinds
    ]
    found = accumulate(model, batches, *counters, progress=titled(progress, "means at each offset"))
    return dict(zip(kinds, found, strict=True))


def _chosen(
    model: nn.Module, batches: Batches, snippets: Sequence[AlignedCode], types: str | Sequence[str], top: int,
    quantile: float, weighting: Weighting, progress: Progress,
) -> Types | None:  # fmt: skip
    """[layer]: the types of leaves that count in each layer; None for all."""
    if types == "all":
        return None
    languages = sorted({one.tree.language for one in snippets})
    if types in ("frequent", "published") and len(languages) > 1:
        raise DataError(
            f"types of leaves are those of one language, got code in {', '.join(languages)}: measure each language "
            "separately, or pass types='all'"
        )
    if types == "frequent":
        title = titled(progress, "types of leaves")
        found = leaf_types(model, batches, quantile=quantile, weighting=weighting, progress=title)
        return [found.frequent(row, top=top) if found.snippets[row] else None for row in range(len(found.labels))]
    if isinstance(types, str) and types != "published":
        raise DataError(f"types must be 'frequent', 'published', 'all' or a list of types, got {types!r}")
    given = published_types(languages[0]) if types == "published" else tuple(types)
    there = {kind for one in snippets for kind in one.tree.types}
    if not there.intersection(given):
        some = ", ".join(sorted(there)[:10])
        raise DataError(f"no leaf of the code is of the types {list(given)}: its own are such as {some}")
    return [given] * len(dissect(model).labels)
