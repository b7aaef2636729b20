"""The first example of a pass, run alone: is that what the model computes for it in its batch?"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.names import DECODER_PREFIX, MASK_ARGUMENT
from ..anatomy.sites import Anatomy
from ..data.batches import Batch, reads_text, run_with_labels, some_examples, without_labels
from ..data.losses import ExampleLoss, check_own_loss
from ..data.padding import alone, padded_example
from ..data.positions import padded_before
from ..errors import BertologyError
from ..tap import tap, uncompiled

Read = Callable[[Any, Batch], Tensor]
"""`f(outputs, batch) -> [row, ...]`: what a measure reads of a model's outputs; an example has one row, or several."""
CANNOT_RUN = (BertologyError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)


class FirstExample:
    """Compares an example of the first batch with the same example alone.

    Its loss must be that of the model itself, where `loss` is the one that `find_loss` found: `check` raises
    `LossError` otherwise. What is read of a padded example must not depend on the padding: `compare` warns otherwise.
    """

    def __init__(self, model: nn.Module, read: Read, loss: ExampleLoss | None = None) -> None:
        self._model, self._read, self._loss = model, read, loss
        self._is_first = True
        self._expected: Tensor | None = None
        self._example = 0

    def check(self, batch: Batch) -> None:
        """Run the first example with padding, or the first one, by itself. No tap may be open."""
        if not self._is_first:
            return
        self._is_first = False
        padded = padded_example(batch)
        if padded is None and self._loss is None:
            return
        one, self._example = alone(self._model, batch, padded or 0), padded or 0
        try:
            with torch.no_grad(), uncompiled():
                expected = self._read(self._model(**without_labels(self._model, one)), one)
                outputs = run_with_labels(self._model, one) if self._loss is not None else None
        except CANNOT_RUN:  # such as gates for each example of the batch; a fault of the batch itself comes again
            return
        if self._loss is not None:
            check_own_loss(self._model, self._loss, outputs, one)
        self._expected = expected if padded is not None else None

    def compare(self, values: Tensor, example_of: Tensor | None = None) -> None:
        """Warn where what was read of the whole batch depends on the padding of the example.

        `values` has one row for each example, or `example_of` says which example a row is of.
        """
        expected, self._expected = self._expected, None
        if expected is None:
            return
        rows = slice(self._example, self._example + 1) if example_of is None else example_of == self._example
        if _apart(values[rows].detach(), expected) > _tolerance(self._model):
            _warn(f"padding changes what {type(self._model).__name__} computes for example {self._example} of a batch")


def check_padding_before(anatomy: Anatomy, batch: Batch) -> bool:
    """Whether padding stands before tokens. Warn where it changes the hidden states of these tokens."""
    masks = {prefix: batch.get(prefix + MASK_ARGUMENT) for prefix in ("", DECODER_PREFIX)}
    reals = {prefix: x != 0 for prefix, x in masks.items() if isinstance(x, Tensor) and x.dim() == 2}
    prefix = next((prefix for prefix, real in reals.items() if padded_before(real)), None)
    if prefix is None:
        return False
    example = int((reals[prefix][:, 1:] & ~reals[prefix][:, :-1]).any(1).int().argmax())
    padded, kind = some_examples(batch, slice(example, example + 1)), type(anatomy.model).__name__
    try:
        with torch.no_grad():
            without = _last_states(anatomy, alone(anatomy.model, batch, example))
            given = _last_states(anatomy, padded)
    except CANNOT_RUN:
        _warn(f"it is not known whether padding before the text changes what {kind} computes")
        return True
    for stack, x in given.items():
        kept = reals.get("" if reads_text(anatomy.model, stack) else DECODER_PREFIX)
        if kept is None or x.shape[1] != kept.shape[1] or stack not in without:
            continue
        if _apart(x[:, kept[example]], without[stack]) > _tolerance(anatomy.model):
            _warn(f"padding before the text changes the hidden states of {kind}, whose positions count it")
            break
    return True


def _last_states(anatomy: Anatomy, batch: Batch) -> dict[str, Tensor]:
    """{stack: [row, token, hidden]}: what the last block of each stack returns."""
    last: dict[str, Tensor] = {}

    def read(stack: str, layer: int, x: Tensor) -> None:
        last[stack] = x

    with tap(anatomy, "block", read=read):
        anatomy.model(**without_labels(anatomy.model, batch))
    return last


def _apart(x: Tensor, y: Tensor) -> float:
    """The largest difference, as a share of the largest element, or of 1 if that is more."""
    if x.shape != y.shape or not x.numel():
        return float("inf") if x.shape != y.shape else 0.0
    x, y = x.double(), y.double()
    return ((x - y).abs().max() / max(1.0, y.abs().max().item())).item()


def _tolerance(model: nn.Module) -> float:
    size = min((p.element_size() for p in model.parameters() if p.is_floating_point()), default=4)
    return 1e-4 if size > 2 else 5e-2


def _warn(what: str) -> None:
    warnings.warn(
        f"{what}, so results depend on it. Pad on the other side, or pass texts of equal length without padding",
        stacklevel=2,
    )
