"""What holds the tensors of one batch, one stack beside the other?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .anatomy.dissect import dissect
from .anatomy.sites import Anatomy, Site
from .data.batches import Batch, device_of, on_device, without_labels
from .data.padding import real_positions
from .errors import DataError
from .results.result import Result
from .tap import undisturbed

C = TypeVar("C", bound="Capture")


class Capture(Result):
    """Mixin of the captures of one batch: dataclasses whose tensors are kept by stack, `{stack: tensor}`."""

    labels = ()
    stacks: dict[str, Tensor]
    masks: dict[str, Tensor]

    @property
    def mask(self) -> Tensor:
        """[batch, token], bool: which tokens of the model's only stack are real."""
        return only(self.masks)

    def stack(self: C, name: str) -> C:
        """Only one stack: "encoder", "decoder" or "cross"; its `values` can then be taken."""
        if name not in self.stacks:
            raise DataError(f"no stack {name!r} in this capture: it has {', '.join(self.stacks)}")
        parts = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        cut = {key: {name: part[name]} if isinstance(part, dict) else part for key, part in parts.items()}
        return replace(self, **cut)  # type: ignore[type-var]


def only(stacks: dict[str, Tensor]) -> Tensor:
    """The only stack's tensor, or a `DataError` that names the stacks."""
    if len(stacks) != 1:
        raise DataError(f"this model has several stacks: take .stack(name) first, of {', '.join(map(repr, stacks))}")
    return next(iter(stacks.values()))


@contextmanager
def one_batch(model: nn.Module, inputs: Batch) -> Iterator[tuple[Anatomy, dict[str, Any]]]:
    """Check one batch and hold the model still while it is captured."""
    anatomy = dissect(model)
    batch = on_device(inputs, device_of(model))
    with undisturbed(model):
        yield anatomy, batch


@torch.no_grad()
def run(model: nn.Module, batch: Batch) -> Any:
    """Run the model on a batch, without labels and without gradients."""
    return model(**without_labels(model, batch))


def by_stack(anatomy: Anatomy, found: dict[Site, Tensor], head_axis: int) -> dict[str, Tensor]:
    """Stack the sites' tensors to one tensor a stack, `[layer, ...]`, NaN at the heads that are not there."""
    if not found:
        raise DataError("there is nothing to capture: every head of this model was pruned")
    stacks: dict[str, list[tuple[Site, Tensor]]] = {}
    for site in anatomy.sites:
        if site in found or not site.kept:
            stacks.setdefault(site.stack, []).append((site, found.get(site)))  # type: ignore[arg-type]
    return {name: _pile(anatomy, pairs, head_axis) for name, pairs in stacks.items()}


def _pile(anatomy: Anatomy, pairs: list[tuple[Site, Tensor]], head_axis: int) -> Tensor:
    some = next(x for _, x in pairs if x is not None)
    layers = []
    for site, x in pairs:
        # A layer without any head left has nothing to show.
        x = some.narrow(head_axis, 0, 0) if x is None else x
        layers.append(site.spread(x, anatomy.heads, head_axis))
    return pile(layers)


def pile(layers: list[Tensor]) -> Tensor:
    """[layer, ...]: one layer on the other; what a layer has fewer of (pooled tokens, narrower heads) is NaN there."""
    if len({x.shape for x in layers}) == 1:
        return torch.stack(layers)
    widest = [max(sizes) for sizes in zip(*(x.shape for x in layers), strict=True)]
    out = layers[0].new_full((len(layers), *widest), float("nan"))
    for layer, x in enumerate(layers):
        corner = out[layer]
        for axis, size in enumerate(x.shape):
            corner = corner.narrow(axis, 0, size)
        corner.copy_(x)
    return out


def masks(anatomy: Anatomy, batch: Batch, stacks: dict[str, Tensor], axis: int) -> dict[str, Tensor]:
    """[batch, token], bool, for each stack: which of the positions along `axis` are real."""
    device = device_of(anatomy.model)
    return {
        name: real_positions(anatomy, batch, name, x.shape[1], x.shape[axis]).to(device) for name, x in stacks.items()
    }
