"""Attention between the leaves of a snippet, from attention between tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..anatomy.sites import Site
from ..data.batches import ANNOTATIONS, Batch, Batches, check_fits, check_repeatable
from ..errors import DataError, ShapeError
from ..streaming.accumulator import MapAccumulator
from .align import PADDING, AlignedCode
from .masks import as_floats, check_finite


class LeafMaps(NamedTuple):
    """How much leaves attend to one another."""

    values: Tensor
    """[..., leaf, leaf]: from the leaf of the row to that of the column; only the leaves in `kept`."""
    kept: Tensor
    """[leaf] int64: the leaves that have tokens, by number in their tree, ascending."""


def token_map(attention: Tensor, leaf_of: Sequence[int], leaves: int, *, causal: bool = False) -> LeafMaps:
    """How much leaves attend to one another: the mean over all pairs of a token of one and a token of the other.

    Both sides are averaged and nothing is divided by its sum (Chen et al. 2022, as their code does it), so that rows
    do not sum to 1. A leaf without tokens is left out: `kept` names the others.

    Args:
        attention: [..., token, token]: maps of one snippet. Rows and columns of other tokens may hold anything.
        leaf_of: [token]: the leaf that each token is part of; any negative number for one that is in none.
        leaves: how many leaves the tree has.
        causal: average over the pairs that a decoder can see, those of a token with itself or an earlier one. It
            matters within a leaf of several tokens, half of whose pairs are 0 by the model's making.

    Raises `ShapeError` for maps that are not of these tokens, `DataError` for a leaf that is not there, for leaves out
    of order under `causal`, and for attention that is not finite.

        >>> import torch
        >>> uniform = torch.full((2, 4, 4), 0.25)
        >>> maps = token_map(uniform, [-1, 0, 0, 2], leaves=3)
        >>> maps.values.shape, maps.kept
        (torch.Size([2, 2, 2]), tensor([0, 2]))
    """
    part = torch.as_tensor(leaf_of, dtype=torch.int64)
    if attention.dim() < 2 or attention.shape[-2:] != (len(part), len(part)):
        raise ShapeError(
            f"attention must be [..., token, token] over the {len(part)} tokens of leaf_of, got {list(attention.shape)}"
        )
    if len(part) and int(part.max()) >= leaves:
        raise DataError(f"leaf_of names leaf {int(part.max())}, but there are {leaves}, counted from 0")
    if causal and bool((part[part >= 0].diff() < 0).any()):
        raise DataError("the tokens of a causal model must come in the order of their leaves, causal=False takes any")
    kept, place = (torch.from_numpy(x) for x in np.unique(part.clamp_min(-1).numpy(), return_inverse=True))
    if not len(kept) or kept[0] >= 0:
        kept, place = torch.cat([torch.tensor([-1]), kept]), place + 1
    values = as_floats(attention.detach())
    # Row 0 takes the tokens of no leaf, and is dropped. To sum over rows twice, turned, is faster than over columns.
    for _ in range(2):
        rows = values.new_zeros(*values.shape[:-2], len(kept), values.shape[-1])
        values = rows.index_add_(-2, place.to(values.device), values)[..., 1:, :].mT.contiguous()
    check_finite(values)
    many = place.bincount(minlength=len(kept))[1:].to(values)
    pairs = many[:, None] * many
    if causal:
        pairs.diagonal().copy_(many * (many + 1) / 2)
    return LeafMaps(values.div_(pairs), kept[1:])


def visible(leaves: int, device: torch.device | str | None = None) -> Tensor:
    """[leaf, leaf] bool: the pairs that a decoder can see, of a leaf with itself or an earlier one: `valid` for it.

    >>> visible(2)
    tensor([[ True, False],
            [ True,  True]])
    """
    return torch.ones(leaves, leaves, dtype=torch.bool, device=device).tril()


def code_in(batch: Batch) -> list[AlignedCode]:
    """The batch's snippets, or a `DataError` that says where to get them."""
    found = batch.get(ANNOTATIONS)
    if not found or not all(isinstance(one, AlignedCode) for one in found):
        raise DataError(
            "these batches do not say which leaf of which tree each token is part of: make them with "
            "bertology.code_structure.align_code"
        )
    return list(found)


def check_announced(snippets: Sequence[AlignedCode], numbers: Collection[int]) -> None:
    """Raise `DataError` for a snippet that is not among those that a measure knows by their numbers."""
    if strange := [one for one in snippets if one.number not in numbers]:
        raise DataError(f"snippet number {strange[0].number} is not among the {len(numbers)} announced")


def snippets_in(batches: Batches) -> list[AlignedCode]:
    """All snippets of some batches, by their numbers. Raises `DataError` where one is there twice, or none is."""
    check_repeatable(batches, why="a measure of code, which first looks which types of leaves there are,")
    every = [batches] if isinstance(batches, Mapping) else batches
    found = sorted((one for batch in every for one in code_in(batch)), key=lambda one: one.number)
    numbers = [one.number for one in found]
    if not found or len(set(numbers)) < len(numbers):
        raise DataError(
            f"wanted batches of one call of align_code, got {len(numbers)} snippets with {len(set(numbers))} numbers"
        )
    return found


def is_causal(x: Tensor) -> bool:
    """Whether tokens see themselves and earlier ones alone, in [head, token, token] without padding.

    A model need not say so: BERT can be made a decoder, and is still called an encoder.
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
    """A measure of the attention between leaves, of batches that `align_code` makes: see `read_leaves`.

    Raises `DataError` for a batch of which no layer attends from the text's tokens to themselves.
    """

    text_only = True

    def start_batch(self, batch: Batch) -> None:
        """Check that the snippets fit into the model."""
        self.snippets, self._seen = code_in(batch), False
        check_fits(self.anatomy.model, len(self.snippets[0].leaf_of))

    def read(self, site: Site, weights: Tensor, rows: slice, real: Tensor) -> None:
        """Give a layer's attention between the leaves of each snippet to `read_leaves`."""
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
