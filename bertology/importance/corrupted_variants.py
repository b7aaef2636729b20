"""Sets of gates whose closed heads have the outputs that they have on corrupted inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..anatomy.names import LABELS_ARGUMENT
from ..anatomy.sites import Anatomy, Site
from ..data.batches import Batch, BatchesOrTexts, each_batch, examples
from ..data.caches import check_no_cache
from ..data.losses import ExampleLoss
from ..data.make_batches import as_batches
from ..data.metrics import Metric
from ..errors import DataError
from ..tap import tap, uncached
from ..tap.branches import call
from ..tap.gates import Replacement
from .many_gates import VariantAccumulator
from .paired_inputs import Aligned


class _OfCorrupted(Replacement):
    """Heads' outputs on the corrupted inputs of the batch at hand, at the same positions."""

    def __init__(self, anatomy: Anatomy) -> None:
        super().__init__(anatomy, "corrupted")
        self.outputs: dict[int, Tensor] = {}

    def values(self, x: Tensor, site: Site, batch: Batch) -> Tensor:
        """The outputs for x, [..., batch, token, head, dim]. A batch of some examples is the first of all."""
        found = self.outputs[site.row]
        if found.shape[1] != x.shape[-3]:
            raise DataError(
                f"{site.label} has {x.shape[-3]} positions on a batch and {found.shape[1]} on its corrupted inputs: "
                "each head's output is put in at the same position, so there must be as many"
            )
        return found[: x.shape[-4]].to(x)


class CorruptedVariants(VariantAccumulator):
    """Runs every batch under many sets of gates; closed heads have their outputs on the corrupted batch."""

    def __init__(
        self,
        make_gates: Callable[[Anatomy], Tensor],
        metric: str | Metric,
        corrupted: BatchesOrTexts,
        tokenizer: Any = None,
        loss: ExampleLoss | None = None,
    ) -> None:
        super().__init__(make_gates, metric, loss, "zero")
        self._corrupted, self._tokenizer = corrupted, tokenizer

    def zero(self, anatomy: Anatomy) -> VariantAccumulator:
        """Begin with the first corrupted batch."""
        anatomy.check_readable()
        model = anatomy.model
        self._others = each_batch(model, as_batches(model, self._corrupted, self._tokenizer, sort=False))
        return super().zero(anatomy)

    def replacement(self, anatomy: Anatomy) -> Replacement:
        """The outputs on corrupted inputs."""
        self._put_in = _OfCorrupted(anatomy)
        return self._put_in

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Run the corrupted batch first, then record the pass of the batch."""
        self._put_in.outputs = self._outputs_on(self._next(batch))
        with super().watch(batch):
            yield

    def _next(self, batch: Batch) -> Batch:
        found = next(self._others, None)
        if found is None:
            raise DataError("corrupted must have as many batches as the inputs: there are too few of them")
        check_no_cache(found, why="a batch is run in several copies at once")
        if examples(found) != examples(batch):
            raise DataError(
                f"corrupted must have the same examples in the same order: a batch has {examples(batch)}, its "
                f"corrupted one {examples(found)}"
            )
        other = {name: x for name, x in found.items() if name != LABELS_ARGUMENT}
        other |= {name: batch[name] for name in (LABELS_ARGUMENT,) if name in batch}
        Aligned(self.anatomy, batch, other, None).check(list(dict.fromkeys(site.stack for site in self.anatomy.sites)))
        return other

    @torch.no_grad()
    def _outputs_on(self, batch: Batch) -> dict[int, Tensor]:
        """{row: [batch, token, head, dim]} on corrupted inputs."""
        found: dict[int, Tensor] = {}
        with uncached(self.anatomy.model), tap(self.anatomy, "heads", read=lambda site, x: found.update({site.row: x})):
            call(self.anatomy.model, self._inputs(batch))
        return found

    def compute(self) -> Any:
        """Score the model and each of its variants, if no corrupted batch is left."""
        if next(self._others, None) is not None:
            raise DataError("corrupted must have as many batches as the inputs: there are more of them")
        return super().compute()
