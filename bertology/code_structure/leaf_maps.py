"""Attention between the leaves of a snippet, from attention between tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..anatomy.sites import Anatomy, Site
from ..data.batches import ANNOTATIONS, Batch, Batches, check_fits, check_repeatable, reads_text
from ..errors import DataError, ShapeError
from ..tap import tap
from .align import PADDING, AlignedCode
from .masks import as_floats, check_finite


class LeafMaps(NamedTuple):
    """The attention between leaves."""

    values: Tensor
    """[..., leaf, leaf]: from the leaf of the row to that of the column; only the leaves in `kept`."""
    kept: Tensor
    """[leaf] int64: the numbers of the leaves that have tokens, ascending."""


def token_map(attention: Tensor, leaf_of: Sequence[int], leaves: int, *, causal: bool = False) -> LeafMaps:
    """The attention between two leaves: the mean over all pairs of a token of the first and a token of the second.

    Both sides are averaged without normalization (as in the code of Chen et al. 2022), so rows do not sum to 1. A leaf
    without tokens is left out; `kept` has the others.

    Args:
        attention: [..., token, token]: maps of one snippet. Rows and columns of other tokens may hold anything.
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
            f"attention must be [..., token, token] over the {len(part)} tokens of leaf_of, got {list(attention.shape)}"
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


def visible(leaves: int, device: torch.device | str | None = None) -> Tensor:
    """[leaf, leaf] bool: the pairs that a decoder can see, of a leaf with itself or an earlier one; pass it as `valid`.

    >>> visible(2)
    tensor([[ True, False],
            [ True,  True]])
    """
    return torch.ones(leaves, leaves, dtype=torch.bool, device=device).tril()


Read = Callable[[Site, int, LeafMaps, bool], None]
"""A function that receives the layer, the example's index in the batch, the maps [head, leaf, leaf], and whether they
are causal."""


def code_in(batch: Batch) -> list[AlignedCode]:
    """The batch's snippets. Raises `DataError` if the batch has none."""
    found = batch.get(ANNOTATIONS)
    if not found or not all(isinstance(one, AlignedCode) for one in found):
        raise DataError(
            "these batches are not annotated with the leaf of each token: make them with "
            "bertology.code_structure.align_code"
        )
    return list(found)


def snippets_in(batches: Batches) -> list[AlignedCode]:
    """All snippets of the batches, by number. Raises `DataError` if a snippet occurs twice, or if there is none."""
    check_repeatable(batches, why="a measure of code, which first lists the types of leaves,")
    every = [batches] if isinstance(batches, Mapping) else batches
    found = sorted((one for batch in every for one in code_in(batch)), key=lambda one: one.number)
    numbers = [one.number for one in found]
    if not found or len(set(numbers)) < len(numbers):
        raise DataError(
            f"wanted batches of one call of align_code, got {len(numbers)} snippets with {len(set(numbers))} numbers"
        )
    return found


def is_causal(x: Tensor) -> bool:
    """Whether tokens attend only to themselves and earlier ones, in [head, token, token] without padding.

    The name of the stack does not show this: BERT can be used as a decoder, and is still named an encoder.
    """
    return not x[:, :1, 1:].any() and not x.triu(1).any()


@contextmanager
def leaf_maps(anatomy: Anatomy, batch: Batch, read: Read) -> Iterator[None]:
    """Call `read` with each layer's attention between the leaves of each snippet.

    Layers that do not attend from the text's tokens to themselves (the decoder of an encoder-decoder) are left out,
    and so are layers whose heads are all pruned. Raises `DataError` when no layer is left.
    """
    aligned = code_in(batch)
    tokens, seen = len(aligned[0].leaf_of), False
    check_fits(anatomy.model, tokens)

    def look(site: Site, x: Tensor, _: slice) -> None:
        nonlocal seen
        if not reads_text(anatomy.model, site.stack) or x.shape[2:] != (tokens, tokens):
            return
        seen = True
        for example, one in enumerate(aligned):
            many = len(one.leaf_of) - one.leaf_of.count(PADDING)
            real = x[example, :, :many, :many]
            causal = is_causal(real)
            read(site, example, token_map(real, one.leaf_of[:many], len(one.tree), causal=causal), causal)

    with tap(anatomy, "attention", read=look, whole=True):
        yield
    if not seen:
        raise DataError("no layer attends from the text's tokens to themselves: there is nothing to measure")
