"""The outputs that heads have on corrupted inputs, in the place of their own, one batch after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.sites import Site
from ..data.batches import Batch, BatchesOrTexts, call, each_batch
from ..data.make_batches import as_batches
from ..errors import DataError, how_many
from ..tap import tap, uncached
from ..tap.gates import Replacement
from .paired_inputs import Aligned, matched


class CorruptedHeads(Replacement):
    """Heads' outputs on corrupted inputs, at the same positions. Each batch has one of these inputs, in their order."""

    def __init__(self, model: nn.Module, corrupted: BatchesOrTexts, tokenizer: Any = None) -> None:
        super().__init__(dissect(model), "corrupted")
        self._anatomy.check_readable()
        self._others = each_batch(model, as_batches(model, corrupted, tokenizer, sort=False))
        self._outputs: dict[int, Tensor] = {}

    def start_batch(self, batch: Batch, inputs: Callable[[Batch], Batch]) -> None:
        """Run the corrupted inputs of this batch; `inputs` turns a batch into the arguments of the model."""
        other = self._next(batch)
        found: dict[int, Tensor] = {}

        def read(site: Site, x: Tensor) -> None:
            found[site.row] = x

        with torch.no_grad(), uncached(self._anatomy.model), tap(self._anatomy, "heads", read=read):
            call(self._anatomy.model, inputs(other))
        self._outputs = found

    def _next(self, batch: Batch) -> dict[str, Any]:
        found = next(self._others, None)
        if found is None:
            raise DataError("corrupted must have as many batches as the inputs: there are too few of them")
        other = matched(batch, found, "a batch and its corrupted one")
        Aligned(self._anatomy, batch, other, None).check(
            list(dict.fromkeys(site.stack for site in self._anatomy.sites))
        )
        return other

    def values(self, x: Tensor, site: Site, batch: Batch) -> Tensor:
        """The outputs for x, [..., batch, token, head, dim]. A batch of some examples is the first of all."""
        found = self._outputs[site.row]
        if found.shape[1] != x.shape[-3]:
            raise DataError(
                f"{site.label} has {how_many(x.shape[-3], 'position')} on a batch and {found.shape[1]} on its "
                "corrupted inputs: each head's output is put in at the same position, so there must be as many"
            )
        return found[: x.shape[-4]].to(x)

    def check_end(self) -> None:
        """Raise `DataError` if corrupted inputs are left."""
        if next(self._others, None) is not None:
            raise DataError("corrupted must have as many batches as the inputs: there are more of them")
