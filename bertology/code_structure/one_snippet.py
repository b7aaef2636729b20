"""How much does one layer, or one head, attend from leaf to leaf in one snippet?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.sites import Anatomy, OneHead, Site, head_at
from ..data.batches import check_fits, reads_text
from ..errors import DataError, HeadError, checked, is_whole
from ..results.result import cpu64
from ..results.views import brief
from ..streaming.one_batch import one_batch, run
from ..tap import tap
from .align import align_code
from .leaf_maps import LeafMaps, code_in, leaf_maps, visible
from .leaf_types import restricted
from .masks import QUARTER, CatCounts, attention_mask, distance_mask, overlap
from .trees import CodeTree, leaf_distances


@dataclass(frozen=True, eq=False)
class LeafAttention:
    """The attention between the leaves of one snippet, and how far these are apart in its upgraded tree (U-AST)."""

    weights: Tensor
    """[leaf, leaf] float64, 0 to 1: from the leaf of the row to that of the column."""
    kept: tuple[int, ...]
    """[leaf]: the leaves that have tokens, by number in the tree."""
    name: str
    """The head, `L5H3`, or the layer."""
    causal: bool
    """Whether leaves see only themselves and earlier leaves."""
    tree: CodeTree

    __repr__ = brief

    @cached_property
    def distances(self) -> Tensor:
        """[leaf, leaf]: edges from leaf to leaf in the U-AST."""
        return restricted(torch.from_numpy(leaf_distances(self.tree)), torch.tensor(self.kept))

    @property
    def valid(self) -> Tensor | None:
        """[leaf, leaf] bool: the pairs that count; None for all."""
        return visible(len(self.kept)) if self.causal else None

    @cached_property
    def near(self) -> Tensor:
        """[leaf, leaf] bool: the pairs that are near in the U-AST, as the CAT-score has it."""
        return distance_mask(self.distances, quantile=QUARTER, valid=self.valid)

    @property
    def counts(self) -> CatCounts:
        """The pairs of high attention that are near, and those that are either: of all leaves."""
        return overlap(attention_mask(self.weights, quantile=QUARTER, valid=self.valid), self.near)

    @checked
    def strongest(self, pairs: int, *, apart: int = 1) -> list[tuple[int, int]]:
        """The pairs of highest attention, strongest first, with leaves `apart` or more positions apart in the text.

        Raises `DataError` for fewer than 1 pair or place.
        """
        if pairs < 1 or apart < 1:
            raise DataError(f"wanted 1 or more pairs, of leaves 1 or more apart, got {pairs} and {apart}")
        place = torch.arange(len(self.kept))
        some = ((place - place[:, None]).abs() >= apart) & (self.weights > 0)
        order = self.weights.masked_fill(~some, -1).flatten().argsort(descending=True, stable=True)
        return [divmod(one, len(self.kept)) for one in order[: min(pairs, int(some.sum()))].tolist()]


@checked
def leaf_attention(model: nn.Module, tokenizer: Any, tree: CodeTree, where: int | OneHead) -> LeafAttention:
    """Read the attention from leaf to leaf in one snippet.

    Args:
        model: any model with self attention over the text, under any attention implementation; left as it was found.
        tokenizer: the model's, a fast one.
        tree: a tree from `parse_code`.
        where: a layer, by its row in results, for the mean over its heads; or a head, as a `Head`, by its name such as
            "L5H3", or as a pair of its layer and number.

    Raises `HeadError` for a layer or head that is not there, `DataError` for code that does not fit the tokenizer or
    the model, and for a layer that does not read the text.

        >>> from transformers import AutoTokenizer, BertConfig, BertModel
        >>> from bertology.code_structure import leaf_attention, parse_code
        >>> from bertology.demo import minilm_path
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> found = leaf_attention(model, tokenizer, parse_code("x = x + 1", "python"), (1, 3))
        >>> found.name, found.weights.shape, found.distances[0].tolist()
        ('L1H3', torch.Size([5, 5]), [0, 1, 1, 2, 3])
    """
    inputs = next(iter(align_code(tokenizer, [tree])))
    snippets = code_in(inputs)
    tokens = len(snippets[0].leaf_of)
    found: list[tuple[Tensor, LeafMaps, bool]] = []
    with one_batch(model, inputs) as (anatomy, batch):
        check_fits(model, tokens)
        row, number, name = _place(anatomy, where)

        def read(site: Site, x: Tensor, rows: slice) -> None:
            if site.row == row and reads_text(model, site.stack) and x.shape[2:] == (tokens, tokens):
                ((maps, causal),) = leaf_maps(x, snippets)
                wanted = maps.values.mean(0) if number is None else maps.values[site.kept.index(number)]
                found.append((cpu64(wanted), maps, causal))

        with tap(anatomy, "attention", read=read, whole=True):
            run(model, batch)
    if not found:
        raise DataError(f"{name} does not attend from the text's tokens to themselves: there is nothing to show")
    weights, maps, causal = found[0]
    return LeafAttention(weights, tuple(maps.kept.tolist()), name, causal, tree)


def _place(anatomy: Anatomy, where: Any) -> tuple[int, int | None, str]:
    """The row of the layer, the number of the head if there is one, and its name."""
    if not is_whole(where):
        try:
            row, head = anatomy.resolve([where])[0]
        except HeadError as error:
            raise HeadError(f"where must be the number of a layer, or a head of the model: {error}") from error
        return row, head, str(head_at(anatomy.labels, row, head))
    if not 0 <= where < anatomy.layers:
        raise HeadError(f"layer {where} is out of range: this model's attention layers are 0 to {anatomy.layers - 1}")
    return int(where), None, f"layer {anatomy.labels[where]}"
