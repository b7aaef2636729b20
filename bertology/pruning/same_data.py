"""Is the data of several passes the same?"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ..anatomy.names import EMBEDS_ARGUMENT, IDS_ARGUMENT, LABELS_ARGUMENT, MASK_ARGUMENT, NO_TEXT_ARGUMENTS
from ..data.batches import IGNORED, Batch, examples
from ..errors import DataError
from ..importance.score import Score
from ..streaming.accumulator import Accumulator, stat


class SameDataAccumulator(Accumulator):
    """Sums what tells one data set from another, whatever the order of its examples and the width of their padding."""

    examples: Tensor = stat("", torch.int64)
    tokens: Tensor = stat("", torch.int64)
    inputs: Tensor = stat("")
    labels: Tensor = stat("")

    def __init__(self) -> None:
        self._first: tuple[float, ...] | None = None

    def update(self, batch: Batch, outputs: Any) -> None:
        """Add the tokens that the mask shows, their ids or values, and the labels."""
        self.examples += examples(batch)
        mask = batch.get(MASK_ARGUMENT)
        for name in (IDS_ARGUMENT, EMBEDS_ARGUMENT, *NO_TEXT_ARGUMENTS):
            x = batch.get(name)
            if isinstance(x, Tensor):
                real = (mask != 0) if isinstance(mask, Tensor) and mask.shape == x.shape else torch.ones_like(x).bool()
                self.tokens += real.sum().to(self.tokens.device)
                self.inputs += x.double().masked_fill(~real, 0).sum().to(self.inputs.device)
        labels = batch.get(LABELS_ARGUMENT)
        if isinstance(labels, Tensor):
            self.labels += labels.double().masked_fill(labels == IGNORED, 0).sum().to(self.labels.device)

    def compute(self) -> Score:
        """The number of examples, and the sum of the labels."""
        return Score(self.labels.item(), "data", int(self.examples))

    def compare(self) -> None:
        """Raise `DataError` for another number of examples than in the first pass; warn of other examples."""
        found = tuple(x.item() for x in (self.examples, self.tokens, self.inputs, self.labels))
        first = self._first = self._first or found
        if found[0] != first[0]:
            raise DataError(
                f"the data changed between two passes over the batches: {int(first[0])} examples came first, then "
                f"{int(found[0])}. Pass batches that are the same each time, such as a list"
            )
        if any(abs(one - other) > 1e-6 * max(abs(one), 1) for one, other in zip(found, first, strict=True)):
            warnings.warn(
                "the data changed between two passes over the batches, such as by random masking or cropping: the "
                "scores of a curve are then of different data. Pass a list of batches that are made once",
                UserWarning,
                stacklevel=4,
            )
