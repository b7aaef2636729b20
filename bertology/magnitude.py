"""How large are each head's own weights?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from .anatomy.sites import Anatomy, Site
from .errors import PruningError, UnknownAnatomy
from .parts import check_parts, count_key_heads, inner_layer, listed, numbers_of, outputs_that_stay


@torch.no_grad()
def head_magnitudes(anatomy: Anatomy) -> Tensor:
    """[layer, head]: the l2 norm of a head's query, key and value rows and of its output projection columns, together.

    Biases do not count. Keys and values that several heads share (Llama) count for each of them. Heads that are not
    there are NaN. Known is what `prune_heads` knows.

    Raises `UnknownAnatomy` where it is not known which weights are a head's own.
    """
    out = torch.full((anatomy.layers, anatomy.heads), float("nan"), dtype=torch.float64)
    for site in anatomy.sites:
        if site.kept:
            _check(site)
        for place, head in enumerate(site.kept):
            squares = [part.double().square().sum().cpu() for part in _own_weights(site, place)]
            out[site.row, head] = torch.stack(squares).sum().sqrt()
    return out


def _check(site: Site) -> None:
    try:
        check_parts(site)
    except PruningError as error:
        told = str(error).partition(" cannot be cut out: ")[2].partition("; silence them")[0]
        raise UnknownAnatomy(
            f"it is not known which weights are the own of each head of {site.label}: {told}. "
            "Rank the heads by something else"
        ) from error
    if "group" in site.layout.split():
        raise UnknownAnatomy(
            f"the heads of {site.label} have no columns of their own: {site.path} takes them in groups"
        )


def _own_weights(site: Site, place: int) -> Iterator[Tensor]:
    """The weights of the head at `place` among those that are there."""
    heads = len(site.kept)
    if site.weight:
        for owner, name, axis in listed(site):
            if "bias" not in name:
                weight: Tensor = getattr(owner, name)
                yield weight.narrow(axis, place * weight.shape[axis] // heads, weight.shape[axis] // heads)
        return
    group = place // (heads // count_key_heads(site))
    for module in dict.fromkeys((site.query, site.key, site.value)):
        inner = inner_layer(module)
        rows = outputs_that_stay(site, module, [place], [group])
        yield inner.weight[:, rows] if isinstance(inner, Conv1D) else inner.weight[rows]
    projection, columns = inner_layer(site.projection), numbers_of([place], site.dim)
    yield projection.weight[columns] if isinstance(projection, Conv1D) else projection.weight[:, columns]
