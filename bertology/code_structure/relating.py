"""How much attention does each head pay to what belongs together in code?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.sites import Site
from ..data.batches import Batch, Batches
from ..errors import DataError
from ..streaming.accumulate import Accumulator, accumulate, stat
from .aligning import AlignedCode
from .filtering import restricted
from .leaf_maps import LeafMaps, visible
from .reading import code_in, leaf_maps, snippets_in
from .related_heads import RelationHeads
from .relations import RELATIONS, Relation, related, relation_scores


class RelationAccumulator(Accumulator):
    """Sums for `RelationHeads`, of batches that `align_code` makes. `examples` are all snippets that can occur."""

    related: Tensor = stat("relation layer head example")
    control: Tensor = stat("relation layer head example")
    pairs: Tensor = stat("relation layer example", torch.int64)
    unmatched: Tensor = stat("relation layer example", torch.int64)

    def __init__(self, examples: Sequence[AlignedCode], *, relations: Sequence[Relation] = RELATIONS) -> None:
        self._names = tuple(one.tree.name or str(one.number) for one in examples)
        self._place = {one.number: place for place, one in enumerate(examples)}
        self._relations = tuple(relations)

    def settings(self) -> str:
        """What is counted, and of what."""
        return f"{self._names} {self._relations}"

    def sizes(self) -> dict[str, int]:
        """How many relations and snippets there are."""
        return {"relation": len(self._relations), "example": len(self._names)}

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Read the attention between leaves, layer by layer."""
        snippets = code_in(batch)
        if strange := [one for one in snippets if one.number not in self._place]:
            raise DataError(f"snippet number {strange[0].number} is not among the {len(self._place)} announced")
        marked = [[related(one.tree, relation) for relation in self._relations] for one in snippets]

        def read(site: Site, example: int, maps: LeafMaps, causal: bool) -> None:
            valid = visible(len(maps.kept)) if causal else None
            place, heads = self._place[snippets[example].number], list(site.kept)
            for number, pairs in enumerate(marked[example]):
                found = relation_scores(maps.values, restricted(pairs, maps.kept), valid=valid)
                self.related[number, site.row, heads, place] = found.related.to(self.related)
                self.control[number, site.row, heads, place] = found.control.to(self.control)
                self.pairs[number, site.row, place] = found.pairs
                self.unmatched[number, site.row, place] = found.unmatched

        with leaf_maps(self.anatomy, batch, read):
            yield

    def update(self, batch: Batch, outputs: Any) -> None:
        """The sums were made while the model ran."""

    def compute(self) -> RelationHeads:
        """Mark the heads that are not there."""
        pairs, unmatched = self.pairs.cpu(), self.unmatched.cpu()
        gone = ~self.anatomy.present[:, :, None]
        return RelationHeads(
            self.related.cpu().masked_fill(gone, torch.nan), self.control.cpu().masked_fill(gone, torch.nan),
            pairs, unmatched, self._relations, self._names, self.anatomy.labels,
        )  # fmt: skip


def relation_heads(
    model: nn.Module, batches: Batches, *, relations: Sequence[Relation] = RELATIONS, progress: str | None = None
) -> RelationHeads:
    """Measure how much attention each head pays to related leaves of code, beyond what their position explains.

    Each related pair is held against the mean attention between the unrelated pairs of its snippet that stand at the
    same offset, before or behind: a head that looks at near leaves, which are more often related, gains nothing by it.

    Args:
        model: any model with self attention over the text, under any attention implementation; left as it was found.
            Of a decoder the pairs of a leaf with itself and earlier ones count.
        batches: what `align_code` makes of Python, Java, JavaScript or Go, or some of these batches.
        relations: "same block", "same call", "definition to use" and "matching brackets", or some of them: `related`.
        progress: the title of a progress bar; no bar without it.

    Raises `DataError` for batches of something else, for an iterator of batches, for another relation or language.

        >>> from transformers import AutoTokenizer, BertConfig, BertModel
        >>> from bertology.code_structure import align_code, parse_code, relation_heads
        >>> from bertology.demo import minilm_path
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> found = relation_heads(model, align_code(tokenizer, [parse_code("f(g(x), h(y))", "python")]))
        >>> found.gain.shape, found.pairs[:, 0, 0]
        (torch.Size([4, 2, 4]), tensor([0, 2, 0, 6]))
    """
    snippets = snippets_in(batches)
    for one in {one.tree.language: one for one in snippets}.values():
        for relation in relations:  # before the model runs: what is not known is refused
            related(one.tree, relation)
    counter = RelationAccumulator(snippets, relations=relations)
    found: RelationHeads = accumulate(model, batches, counter, progress=progress)[0]
    return replace(found, skipped=len(getattr(batches, "skipped", ())))
