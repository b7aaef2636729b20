"""Which heads attend to related code more than position explains?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from ..anatomy.sites import Head, Site, head_at
from ..data.batches import Batch, Batches
from ..errors import DataError, checked, how_many
from ..results.axes import axes
from ..results.result import Result
from ..results.statistics import percentile_interval
from ..results.views import html_table, plain_table, rounded
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import stat
from ..streaming.map_accumulator import Weighting, check_weighting
from ..streaming.processes import Merge, merges, skipped_in
from ..streaming.progress import Progress
from .align import AlignedCode
from .cat_results import bootstrap
from .leaf_maps import LeafMaps, SnippetMapAccumulator, snippets_in, visible
from .leaf_types import restricted
from .relations import RELATIONS, Relation, related, relation_scores


@dataclass(frozen=True)
class RelatedHead:
    """The head that follows one relation best."""

    relation: str
    head: Head
    mean: float
    """Its mean attention to a related leaf."""
    expected: float
    """Its mean attention to unrelated leaves at the same offsets."""
    gain: float
    """`mean` minus `expected`."""
    interval: tuple[float, float]
    """The interval of the gain over snippets. It ignores the choice among many heads: choose on other data."""
    pairs: int
    """The number of related pairs that were compared."""
    elsewhere: bool
    """Whether the head was chosen on other data."""


@dataclass(frozen=True, eq=False, repr=False)
class RelationHeads(Result):
    """How much attention each head pays to related leaves, and to unrelated leaves at the same offsets."""

    main: ClassVar[str | None] = "gain"

    related: Annotated[Tensor, axes("relation layer head example")]
    """[relation, layer, head, example] float64: the sum of the attention to related leaves; NaN for pruned heads."""
    control: Annotated[Tensor, axes("relation layer head example")]
    """[relation, layer, head, example] float64: the same sum after the attention of each pair is replaced by the mean
    attention of the unrelated pairs of its snippet at the same offset."""
    pairs: Annotated[Tensor, axes("relation layer example")]
    """[relation, layer, example] int64: how many related pairs were compared; 0 in layers that do not read the code."""
    unmatched: Annotated[Tensor, axes("relation layer example")]
    """[relation, layer, example] int64: how many related pairs were not compared, because the snippet has no unrelated
    pair at their offset."""
    relations: Annotated[tuple[str, ...], axes("relation")]
    """[relation]: the names."""
    names: Annotated[tuple[str, ...], axes("example")]
    """[example]: the snippets' names."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks."""
    skipped: int = 0
    """The number of snippets that were left out of the batches, such as those that are too long for the model."""

    @property
    def mean(self) -> Annotated[Tensor, axes("relation layer head", words="attention to related leaves")]:
        """[relation, layer, head], 0 to 1: the mean attention to a related leaf, over all pairs of all snippets; NaN
        for pruned heads, and where no pair was compared."""
        return self.related.sum(-1) / self.pairs.sum(-1)[:, :, None]

    @property
    def expected(self) -> Annotated[Tensor, axes("relation layer head", words="attention at the same offset")]:
        """[relation, layer, head], 0 to 1: the mean attention to unrelated leaves at the same offsets."""
        return self.control.sum(-1) / self.pairs.sum(-1)[:, :, None]

    @property
    def gain(self) -> Annotated[Tensor, axes("relation layer head", words="attention beyond position", scale="signed")]:
        """[relation, layer, head], -1 to 1: how much more attention related leaves get than position explains."""
        return self.mean - self.expected

    @property
    def ratio(self) -> Annotated[Tensor, axes("relation layer head")]:
        """[relation, layer, head]: `mean` divided by `expected`."""
        return self.mean / self.expected

    @checked
    def interval(self, level: float = 0.95, *, resamples: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
        """The ends of the intervals of `gain`, [relation, layer, head] each: percentiles of a bootstrap over snippets.

        NaN where one resample in twenty or more has no pair. Raises `DataError` for a level that is not between 0 and
        1, and for fewer than 1 resamples.
        """
        more = self.related - self.control
        return percentile_interval(
            bootstrap(more, self.pairs[:, :, None].expand(more.shape), "micro", resamples, seed), level
        )

    @checked
    def best(self, relation: str, choose_on: RelationHeads | None = None, *, level: float = 0.95) -> RelatedHead:
        """The head with the highest gain.

        Args:
            relation: one of `relations`.
            choose_on: the same model's result on other snippets, on which the head is chosen. If the head is chosen
                and scored on the same snippets, its score is optimistic.
            level: the confidence level of the interval.

        Raises `DataError` for another relation, for the result of another model, and where no pair was compared.
        """
        chosen = self if choose_on is None else choose_on
        if chosen.labels != self.labels or chosen.related.shape[2] != self.related.shape[2]:
            raise DataError(
                f"choose_on has {how_many(len(chosen.labels), 'layer')} of "
                f"{how_many(chosen.related.shape[2], 'head')}, this result has {how_many(len(self.labels), 'layer')} "
                f"of {self.related.shape[2]}: wanted the same model on other snippets"
            )
        here, there = self._only(relation), chosen._only(relation)
        row, head = divmod(int(there.gain.nan_to_num(-torch.inf).argmax()), there.related.shape[2])
        if not here.pairs[0, row].any() or not there.pairs[0, row].any():
            raise DataError(f"no pair of leaves of {relation!r} was compared: no head can be chosen or scored")
        one = replace(here, related=here.related[:, [row]][:, :, [head]], control=here.control[:, [row]][:, :, [head]],
                      pairs=here.pairs[:, [row]], labels=(self.labels[row],))  # fmt: skip
        low, high = one.interval(level)
        return RelatedHead(
            relation, head_at(self.labels, row, head), one.mean.item(), one.expected.item(), one.gain.item(),
            (low.item(), high.item()), int(one.pairs.sum()), choose_on is not None,
        )  # fmt: skip

    def __str__(self) -> str:
        rows = []
        for place, relation in enumerate(self.relations):
            if self.pairs[place].any():
                one = self.best(relation)
                gain, low, high = (rounded(x, "+.3f") for x in (one.gain, *one.interval))
                means = (f"{one.mean:.3f}", f"{one.expected:.3f}")
                rows.append((relation, str(one.pairs), str(one.head), *means, f"{gain} ({low}, {high})"))
            else:
                rows.append((relation, "0", "", "", "", ""))
        left = f", {self.skipped} skipped" if self.skipped else ""
        titles = ("relation", "pairs", "head", "attention", "expected", "gain, 95 %")
        told = f"attention to related leaves in {how_many(len(self.names), 'snippet')}{left}; heads chosen here"
        return f"{plain_table(titles, rows)}\n{told}"

    def _table_html(self) -> str | None:
        some = [one for place, one in enumerate(self.relations) if self.pairs[place].any()]
        return html_table([vars(self.best(relation)) for relation in some])

    def _only(self, relation: str) -> RelationHeads:
        """The result of one relation alone."""
        if relation not in self.relations:
            raise DataError(f"no relation {relation!r}: this result has {', '.join(self.relations)}")
        some = slice((place := self.relations.index(relation)), place + 1)
        cut = {name: getattr(self, name)[some] for name in ("related", "control", "pairs", "unmatched")}
        return replace(self, relations=(relation,), **cut)


class RelationAccumulator(SnippetMapAccumulator):
    """Sums for `RelationHeads`, from batches of `align_code`. `examples` are all snippets that can occur."""

    related: Tensor = stat("relation layer head example")
    control: Tensor = stat("relation layer head example")
    pairs: Tensor = stat("relation layer example", torch.int64)
    unmatched: Tensor = stat("relation layer example", torch.int64)

    def __init__(
        self, examples: Sequence[AlignedCode], *, relations: Sequence[Relation] = RELATIONS,
        weighting: Weighting = "attention",
    ) -> None:  # fmt: skip
        super().__init__(examples)
        self.weighting = check_weighting(weighting)
        self._relations = tuple(relations)

    def settings(self) -> str:
        """The snippets and the relations."""
        return f"{self._names} {self._relations}"

    def sizes(self) -> dict[str, int]:
        """The numbers of relations and snippets."""
        return {"relation": len(self._relations), **super().sizes()}

    def start_batch(self, batch: Batch) -> None:
        """Find the related leaves."""
        super().start_batch(batch)
        self._marked = [[related(one.tree, relation) for relation in self._relations] for one in self.snippets]

    def read_leaves(self, site: Site, example: int, maps: LeafMaps, causal: bool) -> None:
        """Add the attention of a layer's heads to related leaves."""
        valid = visible(len(maps.kept)) if causal else None
        place, heads = self._place[self.snippets[example].number], list(site.kept)
        for number, pairs in enumerate(self._marked[example]):
            found = relation_scores(maps.values, restricted(pairs, maps.kept), valid=valid)
            self.related[number, site.row, heads, place] = found.related.to(self.related)
            self.control[number, site.row, heads, place] = found.control.to(self.control)
            self.pairs[number, site.row, place] = found.pairs
            self.unmatched[number, site.row, place] = found.unmatched

    def compute(self) -> RelationHeads:
        """The sums as a result; NaN for pruned heads."""
        self.check_measured(len(self._names), "snippet")
        pairs, unmatched = self.pairs.cpu(), self.unmatched.cpu()
        gone = ~self.anatomy.present[:, :, None]
        return RelationHeads(
            self.related.cpu().masked_fill(gone, torch.nan), self.control.cpu().masked_fill(gone, torch.nan),
            pairs, unmatched, self._relations, self._names, self.anatomy.labels,
        )  # fmt: skip


@merges
@checked
def relation_heads(
    model: nn.Module,
    batches: Batches,
    *,
    relations: Sequence[Relation] = RELATIONS,
    weighting: Weighting = "attention",
    progress: Progress = None,
    merge: Merge = "all",
) -> RelationHeads:
    """Measure how much attention each head pays to related leaves of code, beyond what their position explains.

    Each related pair is compared with the mean attention between the unrelated pairs of its snippet at the same signed
    offset. So a head gains nothing by attending to near leaves, which are related more often than distant leaves.

    Args:
        model: any model with self attention over the text, under any attention implementation; left as it was found.
            In a decoder, the pairs of a leaf with itself and with earlier leaves count.
        batches: the batches of `align_code` for code in languages that have relations (see `related`), or some of these
            batches.
        relations: "same block", "same call", "definition to use" and "matching brackets", or some of them, or the
            control relation "same name, no definition"; `related` defines them.
        weighting: "attention" measures attention weights; "norm" each query's shares of |α f(x)|, the norms of what
            arrives from the keys (see `attention_maps`).
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for batches that are not from `align_code`, for an iterator of batches, and for another relation
    or language.

        >>> from transformers import AutoTokenizer, BertConfig, BertModel
        >>> from bertology.code_structure import align_code, parse_code, relation_heads
        >>> from bertology.demo import minilm_path
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> found = relation_heads(model, align_code(tokenizer, [parse_code("f(g(x), h(y))", "python")]))
        >>> found.gain.shape, found.pairs[:, 0, 0]
        (torch.Size([4, 2, 4]), tensor([0, 2, 0, 6]))
    """
    if not relations:
        raise DataError(f"relations must name one relation or more, got none: {', '.join(RELATIONS)}")
    snippets = snippets_in(batches)
    for one in {one.tree.language: one for one in snippets}.values():
        for relation in relations:  # raises for an unknown relation or language before the model runs
            related(one.tree, relation)
    counter = RelationAccumulator(snippets, relations=relations, weighting=weighting)
    found: RelationHeads = accumulate(model, batches, counter, progress=progress)[0]
    return replace(found, skipped=skipped_in(batches))
