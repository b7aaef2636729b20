"""Which heads attend from a mention to its antecedent?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ..anatomy.sites import Site
from ..corpora.documents import KINDS, Document, document_of
from ..corpora.words import Rows
from ..data.batches import Batch, Batches
from ..errors import DataError, checked, how_many
from ..results.axes import axes
from ..results.result import Result
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import stat
from ..streaming.map_accumulator import Weighting, check_weighting
from ..streaming.processes import Merge, merges, skipped_in
from ..streaming.progress import Progress
from .antecedents import BASELINES, Candidates, Question, picks_of, questions
from .best_heads import CoreferenceTable, Counts, KindScore, coreference_table
from .picks import WordMapAccumulator, aligned_in

DIRECTIONS = ("from mention", "to mention")
"""Whether a mention picks its antecedent by the attention that it pays, or by the attention that it receives."""


@dataclass(frozen=True, eq=False, repr=False)
class CoreferenceHeads(Result):
    """How often each head picks an antecedent, by kind of mention (Clark et al. 2019, §4.3).

    The order of kinds, baselines and directions is that of `KINDS`, `BASELINES` and `DIRECTIONS`.
    """

    main: ClassVar[str | None] = "accuracy"
    instead_of_top: ClassVar[str] = "table() has the best head of each kind of mention"
    axis_names: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "kind": KINDS,
        "direction": DIRECTIONS,
        "baseline": BASELINES,
    }

    right: Annotated[Tensor, axes("kind direction layer head")]
    """[kind, direction, layer, head], int64: for how many mentions an antecedent was picked; -1 for pruned heads, and
    in layers that do not read the text."""
    right_with_baseline: Annotated[Tensor, axes("kind baseline direction layer head")]
    """[kind, baseline, direction, layer, head], int64: for how many the head and the baseline both pick one."""
    baseline_right: Annotated[Tensor, axes("kind baseline")]
    """[kind, baseline], int64: for how many mentions the baseline picks an antecedent."""
    chance: Annotated[Tensor, axes("kind", unit="mentions")]
    """[kind], mentions: for how many a random choice would pick one, on average."""
    mentions: Annotated[Tensor, axes("kind")]
    """[kind], int64: the number of mentions that were scored: those with an antecedent."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks."""
    candidates: str = "mentions"
    """The candidates: "mentions" or "words"."""
    skipped: int = 0
    """The number of documents that `align` left out of the batches."""
    weighting: str = "attention"
    """Whether attention weights were measured, "attention", or the norms of what arrives, "norm"."""

    @property
    def accuracy(self) -> Annotated[Tensor, axes("kind direction layer head")]:
        """[kind, direction, layer, head], 0 to 1: the share of mentions whose antecedent was picked.

        NaN where `right` is -1, and for kinds that do not occur.
        """
        share = self.right / self.mentions[:, None, None, None]
        return share.masked_fill(self.right < 0, float("nan"))

    @checked
    def best(self, kind: str = "all") -> KindScore:
        """The best head for a kind of mention, "pronoun", "proper", "nominal" or "all", chosen on this same data."""
        return self.table()[kind]

    @checked
    def table(
        self, choose_on: CoreferenceHeads | None = None, *, least: int = 1, level: float = 0.95
    ) -> CoreferenceTable:
        """The best head of each kind of mention beside the baselines, with intervals, as the paper's table 2.

        Args:
            choose_on: the same model's result on other documents, on which head and direction are chosen. If the best
                head is chosen and scored on the same data, as in the paper, its score is optimistic; the table shows
                this score as well.
            least: kinds with fewer mentions in either result are left out.
            level: the level of the confidence intervals, which treat mentions as independent.
        """
        chosen = self if choose_on is None else choose_on
        if self.candidates != chosen.candidates:
            raise DataError(
                f"the candidates of choose_on are {chosen.candidates}, those of this result {self.candidates}: they "
                "must be the same"
            )
        counts = self._counts(), chosen._counts()
        return coreference_table(*counts, self.chance, choose_on is not None, least, level)

    def _counts(self) -> Counts:
        counts = self.right, self.right_with_baseline, self.baseline_right, self.mentions
        return Counts(KINDS, DIRECTIONS, self.labels, *counts)

    def _table_html(self) -> str | None:
        return self.table()._repr_html_()

    def __str__(self) -> str:
        return f"{self.table()}\n{how_many(self.skipped, 'document')} skipped"


class CoreferenceAccumulator(WordMapAccumulator):
    """Counts how often every head picks an antecedent, for `accumulate` over batches of `align`.

    `candidates` and `rows` are those of `coreference_heads`.
    """

    right: Tensor = stat("kind direction layer head", torch.int64)
    right_with_baseline: Tensor = stat("kind baseline direction layer head", torch.int64)
    baseline_right: Tensor = stat("kind baseline", torch.int64)
    chance: Tensor = stat("kind")
    mentions: Tensor = stat("kind", torch.int64)
    seen: Tensor = stat("layer", torch.int64)

    @checked
    def __init__(
        self, *, candidates: Candidates = "mentions", rows: Rows = "mean", weighting: Weighting = "attention"
    ) -> None:
        self.weighting = check_weighting(weighting)
        self._candidates, self.word_rows = candidates, rows

    def settings(self) -> str:
        """The candidates, and how the rows of words are made."""
        return f"{self._candidates} {self.word_rows}"

    def sizes(self) -> dict[str, int]:
        """The numbers of kinds, baselines and directions."""
        return {"kind": len(KINDS), "baseline": len(BASELINES), "direction": len(DIRECTIONS)}

    def start_batch(self, batch: Batch) -> None:
        """Count the mentions, and how many of them each baseline gets right."""
        self._questions = [_Questions(document_of(one.source), self._candidates) for one in aligned_in(batch)]
        device = self.right.device
        self._kind = torch.cat([one.kind for one in self._questions]).to(device)
        self._baselines = torch.cat([one.baselines for one in self._questions]).to(device)
        self.mentions += torch.bincount(self._kind, minlength=len(KINDS))
        self.chance.index_add_(0, self._kind, torch.cat([one.chance for one in self._questions]).to(device))
        self.baseline_right.index_add_(0, self._kind, self._baselines)
        super().start_batch(batch)

    def read_words(self, site: Site, maps: Tensor) -> None:
        """Count the mentions that each head gets right."""
        found = [one.hits(m[:, : one.words, : one.words]) for one, m in zip(self._questions, maps, strict=True)]
        hits = torch.cat(found).to(self.right.device)
        heads = list(site.kept)
        self.right[:, :, site.row, heads] += _by_kind(hits, self._kind)
        for number in range(len(BASELINES)):
            both = hits * self._baselines[:, number, None, None]
            self.right_with_baseline[:, number, :, site.row, heads] += _by_kind(both, self._kind)
        self.seen[site.row] += 1

    def compute(self) -> CoreferenceHeads:
        """The counts as a result; -1 for pruned heads."""
        if not self.seen.any():
            raise DataError("no layer attends from the text's tokens to themselves: there is nothing to measure")
        if not self.mentions.any():
            raise DataError("no mention has an antecedent in its document: there is nothing to score")
        gone = ~(self.anatomy.present & (self.seen.cpu() > 0)[:, None])
        return CoreferenceHeads(
            self.right.cpu().masked_fill(gone, -1), self.right_with_baseline.cpu().masked_fill(gone, -1),
            self.baseline_right.cpu(), self.chance.cpu(), self.mentions.cpu(), self.anatomy.labels, self._candidates,
            weighting=self.weighting,
        )  # fmt: skip


class _Questions:
    """The questions of a document, as tensors."""

    def __init__(self, document: Document, candidates: Candidates) -> None:
        every = questions(document, candidates)
        self.words = words = len(document.words)
        self.kind = torch.tensor([KINDS.index(q.mention.kind) for q in every], dtype=torch.int64)
        self.chance = torch.tensor([q.chance for q in every], dtype=torch.float64)
        found = [[pick in q.antecedents for pick in picks_of(document, q)] for q in every]
        self.baselines = torch.tensor(found, dtype=torch.int64).reshape(len(every), len(BASELINES))
        self._word = torch.tensor([q.mention.head for q in every], dtype=torch.int64)
        self._places = _marks(every, words, "places")
        self._right = _marks(every, words, "antecedents")

    def hits(self, maps: Tensor) -> Tensor:
        """[mention, direction, head], int64: 1 where a head picks an antecedent, of maps `[head, word, word]`.

        A mention picks nothing if there is no attention between it and its candidates, as in a decoder if all
        candidates come later.
        """
        word, places, right = (x.to(maps.device) for x in (self._word, self._places, self._right))
        weights = torch.stack([maps[:, word], maps.mT[:, word]])  # [direction, head, mention, word]
        best = weights.masked_fill(~places, -1).max(-1)
        picked = right[torch.arange(len(word), device=maps.device), best.indices]
        return (picked & (best.values > 0)).long().permute(2, 0, 1)


def _marks(every: Sequence[Question], words: int, name: str) -> Tensor:
    """[mention, word], bool: which words are in a field of each question."""
    marks = torch.zeros(len(every), words, dtype=torch.bool)
    for number, question in enumerate(every):
        marks[number, sorted(getattr(question, name))] = True
    return marks


def _by_kind(hits: Tensor, kind: Tensor) -> Tensor:
    """[kind, direction, head]: the sums of `[mention, direction, head]`."""
    return hits.new_zeros(len(KINDS), *hits.shape[1:]).index_add_(0, kind, hits)


@merges
@checked
def coreference_heads(
    model: nn.Module, batches: Batches, *, candidates: Candidates = "mentions", rows: Rows = "mean",
    weighting: Weighting = "attention", progress: Progress = None,
    merge: Merge = "all",
) -> CoreferenceHeads:  # fmt: skip
    """Measure how often each head picks an antecedent of a mention (Clark et al. 2019, §4.3).

    There are two directions. In one, a mention picks the candidate that receives most attention from it; in the other,
    it picks the candidate that pays most attention to it. The attention is that between head words. A pick is correct
    if it is the head word of an antecedent, which is an earlier mention of the same entity. All mentions with an
    antecedent in their document are scored, or only the mentions that the document names: the pronoun in `read_gap`
    (which may also pick a later name) and in `read_winobias`. Split long documents with `pieces`.

    Args:
        model: any model with self attention over the text, under any attention implementation; left as it was found.
        batches: the batches of `align` for documents.
        candidates: "mentions" for the head words of the earlier mentions that are marked in the file; OntoNotes and
            OntoGUM mark only mentions that corefer with another one. "words" for all earlier words outside the mention,
            which is harder. The paper does not say which of the two it uses.
        rows: how the attention from the tokens of a word is combined: their "mean" (as in the paper's text), the
            "first" or the "max".
        weighting: "attention" measures attention weights; "norm" each query's shares of |α f(x)|, the norms of what
            arrives from the keys (see `attention_maps`).
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for batches without mentions, and if no mention has an antecedent.

        >>> from transformers import AutoTokenizer, BertConfig, BertModel
        >>> from bertology.demo import minilm_path
        >>> from bertology.corpora.documents import Document, Mention
        >>> from bertology.corpora.words import align
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> words = ("Ann", "saw", "Eve", "as", "she", "left")
        >>> mentions = (Mention(0, 1, 0, 1, "proper"), Mention(2, 3, 2, 2, "proper"), Mention(4, 5, 4, 2, "pronoun"))
        >>> coreference_heads(model, align(tokenizer, [Document(words, mentions)])).accuracy.shape
        torch.Size([3, 2, 2, 4])
    """
    if isinstance(batches, Sequence) and batches:
        aligned_in(batches[0])
    counter = CoreferenceAccumulator(candidates=candidates, rows=rows, weighting=weighting)
    found = accumulate(model, batches, counter, progress=progress)[0]
    return replace(found, skipped=skipped_in(batches))
