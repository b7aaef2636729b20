"""Which heads follow which dependency relations?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ..anatomy.sites import Site
from ..corpora.treebank import Sentence
from ..corpora.words import Rows
from ..data.batches import Batch, Batches, check_repeatable
from ..errors import DataError, checked, how_many
from ..results.axes import axes
from ..results.result import Result
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import Names, stat
from ..streaming.map_accumulator import Weighting, check_weighting
from ..streaming.processes import Merge, gathered, merges, skipped_in
from ..streaming.progress import Progress
from .best_heads import OFFSETS, Counts, RelationTable, relation_table
from .picks import DIRECTIONS, WordMapAccumulator, padded, picks, sentences_in

NO_HEAD = -2
"""The head of the root and of padding. No attention head can pick it."""


@dataclass(frozen=True, eq=False, repr=False)
class DependencyHeads(Result):
    """How often each head picks each word's syntactic head, by relation (Clark et al. 2019, §4.2)."""

    main: ClassVar[str | None] = "accuracy"
    instead_of_top: ClassVar[str] = "table() has the best head of each relation"
    axis_names: ClassVar[Mapping[str, tuple[Any, ...]]] = {"direction": DIRECTIONS, "offset": OFFSETS}

    right: Annotated[Tensor, axes("relation direction layer head")]
    """[relation, direction, layer, head], int64: for how many words the syntactic head was picked; -1 for pruned heads,
    and in layers that do not read the text."""
    right_with_offset: Annotated[Tensor, axes("relation offset direction layer head")]
    """[relation, offset, direction, layer, head], int64: for how many of these words the offset is correct too."""
    offset_right: Annotated[Tensor, axes("relation offset")]
    """[relation, offset], int64: for how many words the syntactic head is at a fixed offset, from -3 to 2."""
    arcs: Annotated[Tensor, axes("relation")]
    """[relation], int64: how many words have this relation, to another word or as the root of their sentence."""
    relations: Annotated[tuple[str, ...], axes("relation")]
    """[relation]: the names."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks."""
    skipped: int = 0
    """The number of sentences that `align` left out of the batches."""
    roots: Annotated[Tensor, axes("relation")] = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """[relation], int64: how many of `arcs` are roots, which have no syntactic head among the words."""
    root_offset_right: Annotated[Tensor, axes("relation offset")] = field(
        default_factory=lambda: torch.empty(0, dtype=torch.int64)
    )
    """[relation, offset], int64: for how many of `roots` the offset reaches before the sentence: it means the root."""
    weighting: str = "attention"
    """Whether attention weights were measured, "attention", or the norms of what arrives, "norm"."""

    def __post_init__(self) -> None:
        if self.relations and not self.roots.numel():  # a file of an earlier version, which did not count them
            named = torch.tensor([name.lower() == "root" for name in self.relations])
            object.__setattr__(self, "roots", self.arcs * named)
            object.__setattr__(self, "root_offset_right", self.offset_right * named[:, None])

    @property
    def accuracy(self) -> Annotated[Tensor, axes("relation direction layer head")]:
        """[relation, direction, layer, head], 0 to 1: the share of words whose syntactic head is picked.

        Roots have no head to pick, and do not count. NaN where `right` is -1, and for a relation of roots only.
        """
        share = self.right.double() / (self.arcs - self.roots)[:, None, None, None]
        return share.masked_fill(self.right < 0, float("nan"))

    @checked
    def table(self, choose_on: DependencyHeads | None = None, *, least: int = 1, level: float = 0.95) -> RelationTable:
        """The best head and the best offset of each relation, chosen on other data if given, with intervals.

        No head can pick the root of a sentence. The rows of relations are therefore about words with a head, and a
        relation that only roots have is left out. The row `all` is about all words, with roots and punctuation, as in
        the paper: there the root counts as missed by heads, and an offset that reaches before the sentence finds it.

        Args:
            choose_on: the same model's result on another treebank, on which head, direction and offset are chosen. If
                the best head is chosen and scored on the same data, as in the paper, its score is optimistic; the table
                shows this score as well.
            least: relations with fewer arcs in either result are left out.
            level: the level of the confidence intervals.
        """
        chosen = self if choose_on is None else choose_on
        return relation_table(self._counts(), chosen._counts(), choose_on is not None, least, level)

    def _counts(self) -> Counts:
        words, by_offset = self.arcs - self.roots, self.offset_right - self.root_offset_right
        counts = Counts(
            self.relations, DIRECTIONS, self.labels, self.right, self.right_with_offset, by_offset, words
        )  # fmt: skip
        if not words.any():
            return counts
        return counts._replace(rest=int(self.roots.sum()), rest_by_rule=self.root_offset_right.sum(0))

    def _table_html(self) -> str | None:
        return self.table()._repr_html_()

    def __str__(self) -> str:
        return f"{self.table()}\n{how_many(self.skipped, 'sentence')} skipped"


class DependencyAccumulator(WordMapAccumulator):
    """Counts how often every head picks the syntactic head of a word, for `accumulate` over batches of `align`.

    `relations` are all relations that can occur; `rows` says how the rows of a word's tokens are combined (the paper's
    text averages, its code takes the first). If a word of a relation in `possessives` is followed by a separate "'s",
    the pick of the "'s" counts as the word's pick.
    """

    right: Tensor = stat("relation direction layer head", torch.int64)
    right_with_offset: Tensor = stat("relation offset direction layer head", torch.int64)
    offset_right: Tensor = stat("relation offset", torch.int64)
    arcs: Tensor = stat("relation", torch.int64)
    roots: Tensor = stat("relation", torch.int64)
    root_offset_right: Tensor = stat("relation offset", torch.int64)
    seen: Tensor = stat("layer", torch.int64)

    @checked
    def __init__(
        self,
        relations: Sequence[str],
        *,
        rows: Rows = "mean",
        possessives: Sequence[str] = ("poss",),
        weighting: Weighting = "attention",
    ) -> None:
        self.weighting = check_weighting(weighting)
        self._relations = {name: number for number, name in enumerate(sorted(set(relations)))}
        self.word_rows, self._possessives = rows, tuple(possessives)

    def names(self) -> Names:
        """The relations."""
        return {"relation": tuple(self._relations)}

    def rename(self, names: Names) -> None:
        """Count other relations."""
        self._relations = {name: number for number, name in enumerate(names["relation"])}

    def settings(self) -> str:
        """The relations, and how the rows of words are made."""
        return f"{list(self._relations)} {self.word_rows} {self._possessives}"

    def sizes(self) -> dict[str, int]:
        """The numbers of relations, directions and offsets."""
        return {"relation": len(self._relations), "direction": len(DIRECTIONS), "offset": len(OFFSETS)}

    def start_batch(self, batch: Batch) -> None:
        """Count the arcs, and how many of them each offset gets right."""
        self._arcs = _Arcs(sentences_in(batch), self._relations, self._possessives)
        number = self._arcs.number.to(self.right.device)
        guesses = self._arcs.by_offset().to(self.right.device)
        self.arcs += torch.bincount(number, minlength=len(self._relations))
        self.offset_right.index_add_(0, number, guesses)
        root = (self._arcs.head == 0).to(self.right.device)
        self.roots += torch.bincount(number[root], minlength=len(self._relations))
        self.root_offset_right.index_add_(0, number[root], guesses[root])
        # Each arc counts for its relation, and once more for each offset that gets it right.
        guessed, offset = guesses.nonzero(as_tuple=True)
        self._counted = torch.cat([torch.arange(len(number), device=number.device), guessed])
        self._places = torch.cat([number, number[guessed] + (1 + offset) * len(self._relations)])
        super().start_batch(batch)

    def read_words(self, site: Site, maps: Tensor) -> None:
        """Count the arcs that each head gets right."""
        hits = self._arcs.hits(picks(maps)).to(self.right.device)  # [arc, direction, head]
        right = hits.new_zeros((1 + len(OFFSETS)) * len(self._relations), *hits.shape[1:])
        right.index_add_(0, self._places, hits[self._counted])
        right = right.view(1 + len(OFFSETS), len(self._relations), *hits.shape[1:])
        heads = list(site.kept)
        self.right[:, :, site.row, heads] += right[0]
        self.right_with_offset[:, :, :, site.row, heads] += right[1:].transpose(0, 1)
        self.seen[site.row] += 1

    def compute(self) -> DependencyHeads:
        """The counts as a result; -1 for pruned heads."""
        if not self.seen.any():
            raise DataError("no layer attends from the text's tokens to themselves: there is nothing to measure")
        gone = ~(self.anatomy.present & (self.seen.cpu() > 0)[:, None])
        return DependencyHeads(
            self.right.cpu().masked_fill(gone, -1),
            self.right_with_offset.cpu().masked_fill(gone, -1),
            self.offset_right.cpu(), self.arcs.cpu(), tuple(self._relations), self.anatomy.labels,
            roots=self.roots.cpu(), root_offset_right=self.root_offset_right.cpu(), weighting=self.weighting,
        )  # fmt: skip


class _Arcs:
    """The arcs of a batch of sentences: the example, word, head and relation number of each arc."""

    def __init__(self, sentences: Sequence[Sentence], relations: dict[str, int], possessives: Sequence[str]) -> None:
        places = [(example, word) for example, s in enumerate(sentences) for word in range(len(s.words))]
        self.example, self.word = torch.tensor(places).T
        self.head = torch.tensor([head for s in sentences for head in s.heads])  # from 1, 0 is the root
        self.length = torch.tensor([len(s.words) for s in sentences])[self.example]
        self.number = torch.tensor([_number(name, relations) for s in sentences for name in s.relations])
        self._picker = padded([_pickers(s, possessives) for s in sentences], 0)[self.example, self.word]

    def by_offset(self) -> Tensor:
        """[arc, offset], int64: 1 if the syntactic head is at the offset.

        An offset that reaches beyond the sentence means the root, or the last word.
        """
        guess = self.word[:, None] + 1 + torch.tensor(OFFSETS)
        guess = guess.clamp_min(0).minimum(self.length[:, None])
        return (guess == self.head[:, None]).long()

    def hits(self, picked: Tensor) -> Tensor:
        """[arc, direction, head], int64: 1 where `picked`, [direction, batch, head, word], is the syntactic head."""
        example, picker = (x.to(picked.device) for x in (self.example, self._picker))
        head = torch.where(self.head == 0, NO_HEAD, self.head - 1).to(picked.device)
        return (picked[:, example, :, picker] == head[:, None, None]).long()


def _pickers(sentence: Sentence, possessives: Sequence[str]) -> list[int]:
    """[word]: the word whose pick counts for this word: the word itself, or the 's after it."""
    after = [*sentence.words[1:], ""]
    return [
        word + (relation in possessives and after[word] in ("'s", "s'"))
        for word, relation in enumerate(sentence.relations)
    ]


def _number(relation: str, relations: dict[str, int]) -> int:
    if relation not in relations:
        raise DataError(
            f"relation {relation!r} is not among the {how_many(len(relations), 'relation')} of this accumulator"
        )
    return relations[relation]


def _relations_in(batches: Batches) -> set[str]:
    check_repeatable(batches, why="dependency_heads, which first looks which relations there are,")
    every = [batches] if isinstance(batches, Mapping) else batches
    return {name for batch in every for sentence in sentences_in(batch) for name in sentence.relations}


@merges
@checked
def dependency_heads(
    model: nn.Module, batches: Batches, *, rows: Rows = "mean", possessives: Sequence[str] = ("poss",),
    weighting: Weighting = "attention", progress: Progress = None, merge: Merge = "all",
) -> DependencyHeads:  # fmt: skip
    """Measure how often each head picks each word's syntactic head, by relation (Clark et al. 2019, §4.2).

    There are two directions. In one, a word picks the word that it attends to most; in the other, the word that attends
    to it most. Special tokens and the word itself are left out. The root of a sentence has no head among the words: it
    does not count in the accuracy of its relation. As a baseline, the fixed offsets from -3 to 2 are scored too.

    Args:
        model: any model with self attention over the text, under any attention implementation; left as it was found.
        batches: the batches of `align` for a treebank, or some of these batches.
        rows: how the attention from the tokens of a word is combined: their "mean" (as in the paper's text), the
            "first" (as in its code) or the "max".
        possessives: relations in which, if "'s" follows the word, the pick of the "'s" counts as the word's pick, as in
            the paper.
        weighting: "attention" measures attention weights; "norm" each query's shares of |α f(x)|, the norms of what
            arrives from the keys (see `attention_maps`).
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for batches without trees.

        >>> import torch
        >>> from transformers import AutoTokenizer, BertConfig, BertModel
        >>> from bertology.demo import minilm_path
        >>> from bertology.syntax import Sentence, align, dependency_heads
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> batches = align(tokenizer, [Sentence(("Birds", "sing"), (2, 0), ("nsubj", "root"))])
        >>> dependency_heads(model, batches).accuracy.shape
        torch.Size([2, 2, 2, 4])
    """
    relations = set().union(*gathered(_relations_in(batches), "relations"))
    counter = DependencyAccumulator(sorted(relations), rows=rows, possessives=possessives, weighting=weighting)
    found = accumulate(model, batches, counter, progress=progress)[0]
    return replace(found, skipped=skipped_in(batches))
