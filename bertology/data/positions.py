"""The positions of tokens where padding stands before them."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from ..anatomy.names import (
    EMBEDS_ARGUMENT,
    IDS_ARGUMENT,
    MASK_ARGUMENT,
    NO_TEXT_ARGUMENTS,
    POSITIONS_ARGUMENT,
    POSITIONS_NAME,
)
from .batches import not_taken, position_table, rows_per_example, task_model


def with_positions(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with `position_ids` where padding stands before tokens, derived from the mask as `generate` does.

    Without them, a model with absolute positions would count the padding. They are not added to a batch that has some,
    to images and sounds, for which models count in other ways, and where the model does not take them.
    """
    mask, text = batch.get(MASK_ARGUMENT), batch.get(IDS_ARGUMENT, batch.get(EMBEDS_ARGUMENT))
    tokens = 2 if rows_per_example(batch) > 1 else 1
    if POSITIONS_ARGUMENT in batch or any(name in batch for name in NO_TEXT_ARGUMENTS) or not isinstance(mask, Tensor):
        return batch
    if mask.dim() != tokens + 1 or not isinstance(text, Tensor) or text.shape[: tokens + 1] != mask.shape:
        return batch
    real = mask != 0
    if not padded_before(real) or not _takes_positions(model):
        return batch
    positions = (real.long().cumsum(-1) - 1).clamp_min(0) + _first_position(model)
    return batch | {POSITIONS_ARGUMENT: positions}


def padded_before(real: Tensor) -> bool:
    """Whether padding stands before a token anywhere in `real [..., token]`."""
    return bool((real[..., 1:] & ~real[..., :-1]).any())


def _takes_positions(model: nn.Module) -> bool:
    """Whether the forward pass names this argument, or passes what it is given on to a model that does."""
    if POSITIONS_ARGUMENT in inspect.signature(model.forward).parameters:
        return True
    inner = task_model(model)
    return inner is not model and not not_taken(model, [POSITIONS_ARGUMENT]) and _takes_positions(inner)


def _first_position(model: nn.Module) -> int:
    """The position of a text's first token: behind the padding index in RoBERTa, 2 in Nyströmformer, most often 0."""
    table = position_table(model)
    if table is not None and table.padding_idx is not None:
        return table.padding_idx + 1
    buffers = [x for name, x in model.named_buffers() if name.rpartition(".")[2] == POSITIONS_NAME and x.numel()]
    return int(buffers[0].flatten()[0]) if buffers else 0
