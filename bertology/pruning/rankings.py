"""By what are heads ranked before some of them go?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ..anatomy.sites import Anatomy, Site
from ..errors import DataError, PruningError, UnknownAnatomy
from ..importance.head_importance import HeadImportance, normalized
from ..importance.neuron_importance import NeuronImportance
from ..results.result import cpu64
from .parts_of_heads import (
    check_in_memory,
    check_parts,
    count_key_heads,
    indices_of,
    inner_layer,
    kept_outputs,
    listed_parameters,
)

ESTIMATED = ("importance", "fisher")
RANKINGS = (*ESTIMATED, "magnitude", "random")


@torch.no_grad()
def head_magnitudes(anatomy: Anatomy) -> Tensor:
    """[layer, head]: the l2 norm of a head's query, key and value rows and output projection columns together.

    Biases do not count. Keys and values that several heads share (Llama) count for each of them. Heads that are not
    there are NaN. Known is what `prune_heads` knows.

    Raises `UnknownAnatomy` where it is not known which weights are a head's own.
    """
    check_in_memory(anatomy.model, "the size of its weights cannot be measured", UnknownAnatomy)
    out = torch.full((anatomy.layers, anatomy.heads), float("nan"), dtype=torch.float64)
    for site in anatomy.sites:
        if site.kept:
            _check_weights(site)
        for place, head in enumerate(site.kept):
            squares = [part.double().square().sum().cpu() for part in _own_weights(site, place)]
            out[site.row, head] = torch.stack(squares).sum().sqrt()
    return out


def check_known(site: Site, check: Callable[[], None]) -> None:
    """Raise `UnknownAnatomy` where a check of `prune_heads`, or of `prune_neurons`, does not know the weights."""
    try:
        check()
    except PruningError as error:
        told = str(error).partition(" cannot be cut out: ")[2].partition("; silence them")[0]
        raise UnknownAnatomy(
            f"it is not known which weights are the own of each {site.unit} of {site.label}: {told}. "
            f"Rank the {site.unit}s by something else"
        ) from error


def _check_weights(site: Site) -> None:
    check_known(site, partial(check_parts, site))
    if "group" in site.layout.split():
        raise UnknownAnatomy(
            f"the heads of {site.label} have no columns of their own: {site.path} takes them in groups"
        )


def _own_weights(site: Site, place: int) -> Iterator[Tensor]:
    """The weights of the head at `place` among those that are there."""
    heads = len(site.kept)
    if site.weight:
        for owner, name, axis in listed_parameters(site):
            if "bias" not in name:
                weight: Tensor = getattr(owner, name)
                yield weight.narrow(axis, place * weight.shape[axis] // heads, weight.shape[axis] // heads)
        return
    group = place // (heads // count_key_heads(site))
    for module in dict.fromkeys((site.query, site.key, site.value)):
        inner = inner_layer(module)
        rows = kept_outputs(site, module, [place], [group])
        yield inner.weight[:, rows] if isinstance(inner, Conv1D) else inner.weight[rows]
    projection, columns = inner_layer(site.projection), indices_of([place], site.dim)
    yield projection.weight[columns] if isinstance(projection, Conv1D) else projection.weight[:, columns]


def check_ranking(by: str | Tensor, importance: object, reestimate: bool, normalize: str | None) -> None:
    """Raise `DataError` for options that make no sense or do not fit together."""
    name = by_name(by)
    if not isinstance(by, Tensor) and by not in RANKINGS:
        told = ", ".join(map(repr, RANKINGS))
        raise DataError(f"by is {told} or a tensor [layer, head] of scores, highest last to go, got {by!r}")
    if name not in ESTIMATED and (reestimate or importance is not None):
        option = "reestimate=True" if reestimate else "importance="
        raise DataError(f"{option} is for by='importance' and by='fisher', which come from data, got by={name!r}")
    if isinstance(importance, HeadImportance) and reestimate:
        raise DataError("reestimate=True estimates importance at every step: pass data, or nothing, as importance")
    if normalize not in ("auto", "layer", "all", None):
        raise DataError(f"normalize takes 'auto', 'layer', 'all' or None, got {normalize!r}")
    if name == "random" and normalize in ("layer", "all"):
        raise DataError(f"a random order has no scale: leave normalize={normalize!r} out")


def by_name(by: str | Tensor) -> str:
    """The name of a ranking: "given" for a tensor of scores."""
    return "given" if isinstance(by, Tensor) else by


def fixed_scores(anatomy: Anatomy, by: str | Tensor, importance: object, seed: int) -> Tensor | None:
    """[layer, head]: the scores for a ranking that needs no data; otherwise None."""
    if isinstance(by, Tensor):
        return _checked(anatomy, cpu64(by), "by is of another model: wanted ")
    if by == "magnitude":
        return head_magnitudes(anatomy)
    if by == "random":
        return random_scores([anatomy], seed)[0]
    if isinstance(importance, HeadImportance):
        return _checked(anatomy, estimated_scores(importance, by), "importance is of another model: wanted scores ")
    return None


def random_scores(parts: Sequence[Anatomy], seed: int) -> list[Tensor]:
    """[layer, unit] for each part, drawn one after the other."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(part.present.shape, dtype=torch.float64, generator=generator) for part in parts]


def _checked(anatomy: Anatomy, scores: Tensor, wanted: str) -> Tensor:
    there = anatomy.present
    if scores.shape != there.shape:
        raise DataError(f"{wanted}[layer, head] = {list(there.shape)}, got {list(scores.shape)}")
    if not scores[there].isfinite().all():
        row, head = (there & ~scores.isfinite()).nonzero()[0].tolist()
        raise DataError(f"a score must be a finite number, got {scores[row, head]} at layer {row}, head {head}")
    return scores


def estimated_scores(importance: HeadImportance | NeuronImportance, by: str | Tensor) -> Tensor:
    """[layer, unit]: the scores, or the Fisher information."""
    return importance.fisher if by == "fisher" else importance.scores


def scaled(scores: Tensor, by: str | Tensor, normalize: str | None) -> Tensor:
    """[layer, head]: the scores on the scale on which layers are compared.

    "auto" is as each ranking was published: importance over the layer's l2 norm, all others as they are.
    """
    how = ("layer" if by_name(by) == "importance" else None) if normalize == "auto" else normalize
    return normalized(scores, how)[0] if how else scores
