"""One batch: run under taps, and what was read of it by stack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.sites import Anatomy, LayerLabels, Site
from ..data.batch_checks import input_name
from ..data.batches import Batch, BatchesOrTexts, device_of, on_device, run_model, shows_padding
from ..data.captured_texts import CapturedTexts
from ..data.make_batches import as_batch
from ..data.padding import real_positions
from ..errors import DataError, checked
from ..results.result import Result
from ..tap import undisturbed
from .first_example import check_padding

C = TypeVar("C", bound="Capture")


class Capture(CapturedTexts, Result):
    """Mixin of the captures of one batch: dataclasses whose tensors are kept by stack, `{stack: tensor}`."""

    main: ClassVar[str | None] = "stacks"

    stacks: dict[str, Tensor]
    masks: dict[str, Tensor]

    @property
    def mask(self) -> Tensor:
        """[batch, token], bool: which tokens of the model's only stack are real."""
        return only(self.masks)

    @checked
    def stack(self: C, name: str) -> C:
        """Only one stack: "encoder", "decoder" or "cross"; its `values` can then be taken."""
        if name not in self.stacks:
            raise DataError(f"no stack {name!r} in this result: it has {', '.join(self.stacks)}")
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        cut: dict[str, Any] = {
            key: {name: part[name]} if isinstance(part, dict) else part for key, part in parts.items()
        }
        if len(self.stacks) > 1:
            cut["labels"] = tuple(label for label in self.labels if label.rpartition(".")[0] == name)
        return replace(self, **cut)


def only(stacks: dict[str, Tensor]) -> Tensor:
    """The only stack's tensor, or a `DataError` that names the stacks."""
    if not stacks:
        raise DataError(
            "it is not known which tokens are real: the attention mask is not [batch, token]. Pass one that is, or"
            " leave padding out yourself"
        )
    if len(stacks) != 1:
        raise DataError(f"this model has several stacks: take .stack(name) first, of {', '.join(map(repr, stacks))}")
    return next(iter(stacks.values()))


@contextmanager
def one_batch(
    model: nn.Module, inputs: BatchesOrTexts, tokenizer: Any = None
) -> Iterator[tuple[Anatomy, dict[str, Any]]]:
    """Check one batch, or make one of texts, and keep the model in eval mode and unchanged while it is captured."""
    anatomy = dissect(model)
    # No graph can hold a batch that was made in inference mode.
    with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
        batch = on_device(as_batch(model, inputs, tokenizer), device_of(model, anatomy.modules))
    with undisturbed(model, anatomy.modules):
        check_padding(anatomy, batch)
        yield anatomy, batch


@torch.no_grad()
def run(model: nn.Module, batch: Batch) -> Any:
    """Run the model on a batch, without labels and without gradients."""
    return run_model(model, batch, labels=False)


def by_stack(sites: Sequence[Site], found: Mapping[Site, Tensor]) -> dict[str, list[Tensor]]:
    """{stack: a tensor for each of these sites}, in their order; NaN where all heads of a site were pruned."""
    if not found:
        raise DataError("there is nothing to capture: every head of this model, or of these layers, was pruned")
    stacks: dict[str, list[Tensor | None]] = {}
    for site in sites:
        if site in found or not site.kept:
            stacks.setdefault(site.stack, []).append(found.get(site))
    # A stack of which every head was pruned is left out.
    return {name: _filled(layers) for name, layers in stacks.items() if any(x is not None for x in layers)}


def _filled(layers: list[Tensor | None]) -> list[Tensor]:
    some = next(x for x in layers if x is not None)
    return [torch.full_like(some, float("nan")) if x is None else x for x in layers]


def layer_labels(sites: Sequence[Site], found: Mapping[Site, Tensor]) -> tuple[str, ...]:
    """[layer]: the labels of the layers that `by_stack` returns."""
    sites = [site for site in sites if site in found or not site.kept]
    stacks = {site.stack for site in sites}
    if len(stacks) == 1:
        return LayerLabels((str(site.layer) for site in sites), *stacks)
    return tuple(site.label for name in dict.fromkeys(s.stack for s in sites) for site in sites if site.stack == name)


def pile(layers: list[Tensor]) -> Tensor:
    """[layer, ...]: the layers stacked; smaller layers (pooled tokens, narrower heads) are filled up with NaN."""
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
    """[batch, token], bool, for each stack: which of the positions along `axis` are real.

    A stack whose attention mask does not show its padding, since it is not `[batch, token]`, is left out, and so is one
    that ran several times: the batch does not say which of its texts has which mask.
    """
    device = batch[input_name(batch)].device
    known = {site.stack for site in anatomy.sites} | {stack.name for stack in anatomy.stacks}
    return {
        name: real_positions(anatomy, batch, name, x.shape[1], x.shape[axis]).to(device)
        for name, x in stacks.items()
        if name in known and shows_padding(anatomy.model, batch, name)
    }
