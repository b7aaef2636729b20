"""How does each layer's attention between leaves of code come out of a model?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from ..batches import ANNOTATIONS, Batch, Batches, check_repeatable, reads_text
from ..errors import DataError
from ..site import Anatomy, Site
from ..syntax.predicting import check_fits
from ..tap import tap
from .aligning import AlignedCode
from .leaf_maps import LeafMaps, token_map


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


def is_causal(site: Site) -> bool:
    """Whether a layer's tokens see themselves and earlier ones alone."""
    return site.stack.startswith("decoder")


@contextmanager
def leaf_maps(anatomy: Anatomy, batch: Batch, read: Callable[[Site, int, LeafMaps], None]) -> Iterator[None]:
    """Give `read` each layer's attention between the leaves of each snippet: the site, the example and [head, ...].

    Layers that do not attend from the text's tokens to themselves (decoders behind an encoder) are passed over.
    """
    aligned = code_in(batch)
    tokens = len(aligned[0].leaf_of)
    check_fits(anatomy.model, tokens)

    def look(site: Site, x: Tensor, _: slice) -> None:
        if not reads_text(anatomy.model, site.stack) or x.shape[2:] != (tokens, tokens):
            return
        for example, one in enumerate(aligned):
            maps = token_map(x[example], one.leaf_of, len(one.tree), causal=is_causal(site))
            read(site, example, maps)

    with tap(anatomy, "attention", read=look, whole=True):
        yield
