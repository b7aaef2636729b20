"""How does each layer's attention between leaves of code come out of a model?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from ..anatomy.sites import Anatomy, Site
from ..data.batches import ANNOTATIONS, Batch, Batches, check_fits, check_repeatable, reads_text
from ..errors import DataError
from ..tap import tap
from .aligning import PADDING, AlignedCode
from .leaf_maps import LeafMaps, token_map

Read = Callable[[Site, int, LeafMaps, bool], None]
"""What gets a layer's maps, [head, leaf, leaf]: the layer, the example's place in the batch, the maps, and whether
they are causal."""


def code_in(batch: Batch) -> list[AlignedCode]:
    """The batch's snippets, or a `DataError` that says where to get them."""
    found = batch.get(ANNOTATIONS)
    if not found or not all(isinstance(one, AlignedCode) for one in found):
        raise DataError(
            "these batches do not say which leaf of which tree each token is part of: make them with "
            "bertology.code_structure.align_code"
        )
    return list(found)


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


@contextmanager
def leaf_maps(anatomy: Anatomy, batch: Batch, read: Read) -> Iterator[None]:
    """Give `read` each layer's attention between the leaves of each snippet.

    Layers that do not attend from the text's tokens to themselves (decoders behind an encoder) are passed over, and
    so are those whose heads are all pruned. Raises `DataError` where no layer is left.
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
