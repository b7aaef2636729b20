"""Attention between the leaves of a snippet, from attention between tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..anatomy.sites import Site
from ..data.batches import ANNOTATIONS, Batch, Batches, check_fits, check_repeatable
from ..errors import DataError, ShapeError, check_least, checked, how_many
from ..streaming.accumulator import Names
from ..streaming.map_accumulator import MapAccumulator
from ..streaming.processes import gathered, process
from .align import PADDING, AlignedCode
from .masks import as_floats, check_finite


class LeafMaps(NamedTuple):
    """The attention between leaves."""

    values: Tensor
    """[..., leaf, leaf]: from the leaf of the row to that of the column; only the leaves in `kept`."""
    kept: Tensor
    """[leaf] int64: the numbers of the leaves that have tokens, ascending."""


@checked
def token_map(attention: Tensor, leaf_of: Sequence[int], leaves: int, *, causal: bool = False) -> LeafMaps:
    """The attention between two leaves: the mean over all pairs of a token of the first and a token of the second.

    Both sides are averaged without normalization (as in the code of Chen et al. 2022), so rows do not sum to 1. A leaf
    without tokens is left out; `kept` has the others.

    Args:
        attention: [..., token, token]: maps of one snippet. Rows and columns of tokens in no leaf are ignored.
        leaf_of: [token]: the leaf that each token is part of; any negative number for a token in no leaf.
        leaves: the number of leaves in the tree.
        causal: average only over the pairs that a decoder can see, of a token with itself or an earlier one. This
            matters for a leaf of several tokens, because about half of its pairs are masked.

    Raises `ShapeError` for maps of other tokens, `DataError` for a leaf that does not exist, for leaves out of order
    with `causal`, and for attention that is not finite.

        >>> import torch
        >>> uniform = torch.full((2, 4, 4), 0.25)
        >>> maps = token_map(uniform, [-1, 0, 0, 2], leaves=3)
        >>> maps.values.shape, maps.kept
        (torch.Size([2, 2, 2]), tensor([0, 2]))
    """
    part = torch.as_tensor(leaf_of, dtype=torch.int64)
    if attention.dim() < 2 or attention.shape[-2:] != (len(part), len(part)):
        raise ShapeError(
            f"attention must be [..., token, token] over the {how_many(len(part), 'token')} of leaf_of, got "
            f"{list(attention.shape)}"
        )
    if len(part) and int(part.max()) >= leaves:
        raise DataError(f"leaf_of names leaf {int(part.max())}, but there are {leaves}, counted from 0")
    if causal and bool((part[part >= 0].diff() < 0).any()):
        raise DataError("with causal=True the tokens must be in the order of their leaves; else pass causal=False")
    kept, place = (torch.from_numpy(x) for x in np.unique(part.clamp_min(-1).numpy(), return_inverse=True))
    if not len(kept) or kept[0] >= 0:
        kept, place = torch.cat([torch.tensor([-1]), kept]), place + 1
    values = as_floats(attention.detach())
    # Row 0 gets the tokens of no leaf, and is dropped. Summing rows twice, transposed, is faster than summing columns.
    for _ in range(2):
        rows = values.new_zeros(*values.shape[:-2], len(kept), values.shape[-1])
        values = rows.index_add_(-2, place.to(values.device), values)[..., 1:, :].mT.contiguous()
    check_finite(values)
    many = place.bincount(minlength=len(kept))[1:].to(values)
    pairs = many[:, None] * many
    if causal:
        pairs.diagonal().copy_(many * (many + 1) / 2)
    return LeafMaps(values.div_(pairs), kept[1:])


@checked
def visible(leaves: int, device: torch.device | str | None = None) -> Tensor:
    """[leaf, leaf] bool: the pairs that a decoder can see, of a leaf with itself or an earlier one; pass it as `valid`.

    >>> visible(2)
    tensor([[ True, False],
            [ True,  True]])
    """
    check_least("leaves", leaves, 0)
    return torch.ones(leaves, leaves, dtype=torch.bool, device=device).tril()


def code_in(batch: Batch) -> list[AlignedCode]:
    """The batch's snippets. Raises `DataError` if the batch has none."""
    found = batch.get(ANNOTATIONS) if isinstance(batch, Mapping) else None
    if not found or not all(isinstance(one, AlignedCode) for one in found):
        raise DataError(
            "these batches are not annotated with the leaf of each token: make them with "
            "bertology.code_structure.align_code"
        )
    return list(found)


def snippets_in(batches: Batches) -> list[AlignedCode]:
    """All snippets of the batches, by number. Raises `DataError` if a snippet occurs twice, or if there is none.

    With several processes these are the snippets of all of them, because their results share one axis of examples. If
    each process aligned its own code, the snippets of the other processes get numbers that it does not use itself.
    """
    every = gathered(_own_snippets(batches), "snippets")
    found = [one for part in every for one in part]
    numbers = {one.number for one in found}
    if not found or any(len({one.number for one in part}) < len(part) for part in every):
        raise DataError(
            f"wanted batches of one call of align_code, got {how_many(len(found), 'snippet')} with "
            f"{how_many(len(numbers), 'number')}"
        )
    if len(numbers) == len(found):
        return sorted(found, key=lambda one: one.number)
    mine = process()
    return [
        one if rank == mine else replace(one, number=-1 - place)
        for place, (rank, one) in enumerate((rank, one) for rank, part in enumerate(every) for one in part)
    ]


def _own_snippets(batches: Batches) -> list[AlignedCode]:
    check_repeatable(batches, why="a measure of code, which first lists the types of leaves,")
    every = [batches] if isinstance(batches, Mapping) else batches
    return sorted((one for batch in every for one in code_in(batch)), key=lambda one: one.number)


def is_causal(x: Tensor) -> bool:
    """Whether tokens attend only to themselves and earlier ones, in [head, token, token] without padding.

    The name of the stack does not show this: BERT can be used as a decoder, and is still named an encoder.
    """
    return not x[:, :1, 1:].any() and not x.triu(1).any()


def leaf_maps(weights: Tensor, snippets: Sequence[AlignedCode]) -> Iterator[tuple[LeafMaps, bool]]:
    """Yield the attention between the leaves of each snippet, and whether it is causal.

    Args:
        weights: [snippet, head, token, token]: a layer's maps.
        snippets: the snippets of the batch, with padding.
    """
    for values, one in zip(weights, snippets, strict=True):
        many = len(one.leaf_of) - one.leaf_of.count(PADDING)
        real = values[:, :many, :many]
        causal = is_causal(real)
        yield token_map(real, one.leaf_of[:many], len(one.tree), causal=causal), causal


class LeafMapAccumulator(MapAccumulator):
    """The base class for measures of the attention between leaves, in batches of `align_code`: see `read_leaves`.

    Raises `DataError` for a batch in which no layer attends from the tokens of the text to themselves.
    """

    text_only = True

    def start_batch(self, batch: Batch) -> None:
        """Check that the snippets fit into the model."""
        self.snippets, self._seen = code_in(batch), False
        check_fits(self.anatomy.model, len(self.snippets[0].leaf_of))

    def read(self, site: Site, weights: Tensor, rows: slice, real: Tensor) -> None:
        """Pass a layer's attention between the leaves of each snippet to `read_leaves`."""
        self._seen = True
        for example, (maps, causal) in enumerate(leaf_maps(weights, self.snippets)):
            self.read_leaves(site, example, maps, causal)

    def end_batch(self, batch: Batch) -> None:
        """Check that a layer was read."""
        if not self._seen:
            raise DataError("no layer attends from the text's tokens to themselves: there is nothing to measure")

    @abstractmethod
    def read_leaves(self, site: Site, example: int, maps: LeafMaps, causal: bool) -> None:
        """Add a layer's maps, [head, leaf, leaf], to the sums.

        Args:
            site: the layer.
            example: the snippet's place in the batch, and in `self.snippets`.
            maps: the attention between leaves.
            causal: whether tokens see only themselves and earlier ones.
        """


class SnippetMapAccumulator(LeafMapAccumulator):
    """The base class for measures that keep the values of each snippet. `examples` are all snippets that can occur.

    Raises `DataError` for a snippet that is not among them.
    """

    def __init__(self, examples: Sequence[AlignedCode]) -> None:
        self._names = tuple(one.tree.name or str(one.number) for one in examples)
        self._place = {one.number: place for place, one in enumerate(examples)}

    def names(self) -> Names:
        """The snippets."""
        return {"example": self._names}

    def rename(self, names: Names) -> None:
        """Have the scores of other snippets."""
        self._names = tuple(names["example"])

    def sizes(self) -> dict[str, int]:
        """The number of snippets."""
        return {"example": len(self._names)}

    def start_batch(self, batch: Batch) -> None:
        """Check that the snippets are known, and fit into the model."""
        super().start_batch(batch)
        if unknown := [one for one in self.snippets if one.number not in self._place]:
            raise DataError(
                f"snippet number {unknown[0].number} is not among the {how_many(len(self._place), 'snippet')} of this "
                "measure"
            )
