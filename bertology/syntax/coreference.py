"""Which heads attend from a mention to its antecedent?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor, nn

from ..anatomy.sites import Site
from ..corpora.documents import KINDS, Document, document_of
from ..corpora.words import Rows
from ..data.batches import Batch, Batches
from ..errors import DataError
from ..results.axes import axes
from ..results.result import Result
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import stat
from ..streaming.processes import skipped_in
from ..streaming.progress import Progress
from .antecedents import BASELINES, Candidates, Question, picks_of, questions
from .best_heads import CoreferenceTable, Counts, KindScore, coreference_table
from .picks import WordMapAccumulator, aligned_in

DIRECTIONS = ("from mention", "to mention")
"""Whether a mention picks its antecedent by the attention that it pays, or by the attention that it gets."""


@dataclass(frozen=True, eq=False, repr=False)
class CoreferenceHeads(Result):
    """How often each head picks an antecedent, by kind of mention (Clark et al. 2019, §4.3).

    Kinds are those of `KINDS`, baselines those of `BASELINES`, directions those of `DIRECTIONS`, in their order.
    """

    right: Annotated[Tensor, axes("kind direction layer head")]
    """[kind, direction, layer, head], int64: of how many mentions an antecedent was picked; -1 for heads not there."""
    right_with_baseline: Annotated[Tensor, axes("kind baseline direction layer head")]
    """[kind, baseline, direction, layer, head], int64: of how many the head and the baseline both pick one."""
    baseline_right: Annotated[Tensor, axes("kind baseline")]
    """[kind, baseline], int64: of how many mentions the baseline picks an antecedent."""
    chance: Annotated[Tensor, axes("kind", unit="mentions")]
    """[kind], mentions: of how many a blind choice would pick one, on average."""
    mentions: Annotated[Tensor, axes("kind")]
    """[kind], int64: how many mentions were asked: those with an antecedent."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks."""
    candidates: str = "mentions"
    """What was chosen among."""
    skipped: int = 0
    """The number of documents that `align` left out of the batches."""

    @property
    def accuracy(self) -> Tensor:
        """[kind, direction, layer, head], 0 to 1: the share of mentions whose antecedent was picked; NaN for no head.

        NaN too for kinds that do not occur.
        """
        share = self.right / self.mentions[:, None, None, None]
        return share.masked_fill(self.right < 0, float("nan"))

    def best(self, kind: str = "all") -> KindScore:
        """The head that is best at a kind of mention, "pronoun", "proper", "nominal" or "all", on this very data."""
        return self.table()[kind]

    def table(
        self, choose_on: CoreferenceHeads | None = None, *, least: int = 1, level: float = 0.95
    ) -> CoreferenceTable:
        """The best head of each kind of mention beside the baselines, with intervals, as the paper's table 2.

        Args:
            choose_on: the same model's result on other documents, on which head and direction are chosen. The best of
                many heads on the data that is scored, as in the paper, is too optimistic; the table shows it as well.
            least: kinds of fewer mentions, here or there, are left out.
            level: of the confidence intervals, which take mentions for independent of one another.
        """
        chosen = self if choose_on is None else choose_on
        if self.candidates != chosen.candidates:
            raise DataError(
                f"choose_on chooses among {chosen.candidates}, this result among {self.candidates}: wanted the same"
            )
        counts = self._counts(), chosen._counts()
        return coreference_table(*counts, self.chance, choose_on is not None, least, level)

    def _counts(self) -> Counts:
        counts = self.right, self.right_with_baseline, self.baseline_right, self.mentions
        return Counts(KINDS, DIRECTIONS, self.labels, *counts)

    def __str__(self) -> str:
        return f"{self.table()}\n{self.skipped} documents skipped"


class CoreferenceAccumulator(WordMapAccumulator):
    """Counts how often every head picks an antecedent, for `accumulate` over batches made by `align`.

    `candidates` and `rows` are those of `coreference_heads`.
    """

    right: Tensor = stat("kind direction layer head", torch.int64)
    right_with_baseline: Tensor = stat("kind baseline direction layer head", torch.int64)
    baseline_right: Tensor = stat("kind baseline", torch.int64)
    chance: Tensor = stat("kind")
    mentions: Tensor = stat("kind", torch.int64)
    seen: Tensor = stat("layer", torch.int64)

    def __init__(self, *, candidates: Candidates = "mentions", rows: Rows = "mean") -> None:
        self._candidates, self.word_rows = candidates, rows

    def settings(self) -> str:
        """What is chosen among, and how words' rows are made."""
        return f"{self._candidates} {self.word_rows}"

    def sizes(self) -> dict[str, int]:
        """How many kinds, baselines and directions there are."""
        return {"kind": len(KINDS), "baseline": len(BASELINES), "direction": len(DIRECTIONS)}

    def start_batch(self, batch: Batch) -> None:
        """Count the mentions, and how many of them each baseline gets right."""
        self._asked = [_Asked(document_of(one.source), self._candidates) for one in aligned_in(batch)]
        device = self.right.device
        self._kind = torch.cat([one.kind for one in self._asked]).to(device)
        self._baselines = torch.cat([one.baselines for one in self._asked]).to(device)
        self.mentions += torch.bincount(self._kind, minlength=len(KINDS))
        self.chance.index_add_(0, self._kind, torch.cat([one.chance for one in self._asked]).to(device))
        self.baseline_right.index_add_(0, self._kind, self._baselines)
        super().start_batch(batch)

    def read_words(self, site: Site, maps: list[Tensor]) -> None:
        """Count the mentions that each head gets right."""
        hits = torch.cat([one.hits(m) for one, m in zip(self._asked, maps, strict=True)]).to(self.right.device)
        heads = list(site.kept)
        self.right[:, :, site.row, heads] += _by_kind(hits, self._kind)
        for number in range(len(BASELINES)):
            both = hits * self._baselines[:, number, None, None]
            self.right_with_baseline[:, number, :, site.row, heads] += _by_kind(both, self._kind)
        self.seen[site.row] += 1

    def compute(self) -> CoreferenceHeads:
        """Mark the heads that are not there."""
        if not self.seen.any():
            raise DataError("no layer attends from the text's tokens to themselves: there is nothing to measure")
        if not self.mentions.any():
            raise DataError("no mention has an antecedent in its document: there is nothing to ask")
        gone = ~(self.anatomy.present & (self.seen.cpu() > 0)[:, None])
        return CoreferenceHeads(
            self.right.cpu().masked_fill(gone, -1), self.right_with_baseline.cpu().masked_fill(gone, -1),
            self.baseline_right.cpu(), self.chance.cpu(), self.mentions.cpu(), self.anatomy.labels, self._candidates,
        )  # fmt: skip


class _Asked:
    """The questions of a document, as tensors."""

    def __init__(self, document: Document, candidates: Candidates) -> None:
        asked = questions(document, candidates)
        words = len(document.words)
        self.kind = torch.tensor([KINDS.index(q.mention.kind) for q in asked], dtype=torch.int64)
        self.chance = torch.tensor([q.chance for q in asked], dtype=torch.float64)
        found = [[pick in q.antecedents for pick in picks_of(document, q)] for q in asked]
        self.baselines = torch.tensor(found, dtype=torch.int64).reshape(len(asked), len(BASELINES))
        self._word = torch.tensor([q.mention.head for q in asked], dtype=torch.int64)
        self._places = _marks(asked, words, "places")
        self._right = _marks(asked, words, "antecedents")

    def hits(self, maps: Tensor) -> Tensor:
        """[mention, direction, head], int64: 1 where a head picks an antecedent, of maps `[head, word, word]`.

        A word that no candidate attends to picks nothing (in a decoder, one with later candidates only).
        """
        word, places, right = (x.to(maps.device) for x in (self._word, self._places, self._right))
        asked = torch.stack([maps[:, word], maps.mT[:, word]])  # [direction, head, mention, word]
        best = asked.masked_fill(~places, -1).max(-1)
        picked = right[torch.arange(len(word), device=maps.device), best.indices]
        return (picked & (best.values > 0)).long().permute(2, 0, 1)


def _marks(asked: Sequence[Question], words: int, name: str) -> Tensor:
    """[mention, word], bool: which words are in a field of each question."""
    marks = torch.zeros(len(asked), words, dtype=torch.bool)
    for number, question in enumerate(asked):
        marks[number, sorted(getattr(question, name))] = True
    return marks


def _by_kind(hits: Tensor, kind: Tensor) -> Tensor:
    """[kind, direction, head]: the sums of `[mention, direction, head]`."""
    return hits.new_zeros(len(KINDS), *hits.shape[1:]).index_add_(0, kind, hits)


def coreference_heads(
    model: nn.Module, batches: Batches, *, candidates: Candidates = "mentions", rows: Rows = "mean",
    progress: Progress = None,
) -> CoreferenceHeads:  # fmt: skip
    """Measure how often each head picks an antecedent of a mention (Clark et al. 2019, §4.3).

    A mention picks the candidate whose head word its own head word attends to most, or whose head word attends most
    to it: two directions. That is right when it is the head word of an antecedent, an earlier mention of the same
    thing. Asked are all mentions with an antecedent in their document (cut long ones with `pieces`), or those that the
    document names: the pronoun in `read_gap` (which may choose a later name) and `read_winobias`.

    Args:
        model: any model with self attention over the text, under any attention implementation; left as it was found.
        batches: what `align` makes of documents.
        candidates: "mentions" chooses among the head words of the earlier mentions that the file marks; OntoNotes and
            OntoGUM mark those alone that have a partner. "words" chooses among all earlier words outside the mention,
            which is harder. The paper does not say which it does.
        rows: how the attention from a word's tokens becomes one: their "mean" (the paper's text), the "first" or the
            "max".
        progress: True for a progress bar, or its title; no bar without it.

    Raises `DataError` for batches without mentions, and where no mention has an antecedent.

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
    counter = CoreferenceAccumulator(candidates=candidates, rows=rows)
    found = accumulate(model, batches, counter, progress=progress)[0]
    return replace(found, skipped=skipped_in(batches))
