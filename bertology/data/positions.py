"""The positions of a model's tokens: how many it has, and which they are where padding stands before tokens."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from ..anatomy.forward_source import may_pack
from ..anatomy.names import (
    EMBEDS_ARGUMENT,
    IDS_ARGUMENT,
    MASK_ARGUMENT,
    MOST_POSITIONS_NAME,
    NO_TEXT_ARGUMENTS,
    POSITIONS_ARGUMENT,
    POSITIONS_NAME,
    USE_CACHE_ARGUMENT,
)
from ..errors import DataError
from .caches import has_cache
from .models import config_of, not_taken, task_model


def room_of(model: nn.Module) -> int | None:
    """The longest input of a model in tokens, or None when its config names no limit."""
    most = getattr(config_of(model), MOST_POSITIONS_NAME, None)
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        return None
    table = position_table(model)
    # RoBERTa's positions begin after the padding index.
    return most - (0 if table is None or table.padding_idx is None else table.padding_idx + 1)


def position_table(model: nn.Module) -> Any:
    """The embeddings of absolute positions, which are as many as the config says, or None."""
    most = getattr(config_of(model), MOST_POSITIONS_NAME, None)
    try:
        words = getattr(model, "get_input_embeddings", lambda: None)()
    except NotImplementedError:  # models of characters
        words = None
    for module in model.modules():
        # I-BERT's table is of a class of its own.
        weights = getattr(module, "weight", None) if hasattr(module, "padding_idx") else None
        if isinstance(weights, Tensor) and len(weights) == most and module is not words:
            return module
    return None


def with_positions(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with `position_ids` where padding stands before tokens, derived from the mask as `generate` does.

    Without them, a model with absolute positions would count the padding, also among the earlier tokens in a cache.
    They are not added to a batch that has some, to images and sounds, for which models count in other ways, to multiple
    choice, and where the model does not take them. Raises `DataError` for packed texts of which it is not said whether
    they see each other.
    """
    mask, text = batch.get(MASK_ARGUMENT), batch.get(IDS_ARGUMENT, batch.get(EMBEDS_ARGUMENT))
    _check_packed(model, batch)
    if POSITIONS_ARGUMENT in batch or any(name in batch for name in NO_TEXT_ARGUMENTS) or not isinstance(mask, Tensor):
        return batch
    if mask.dim() != 2 or not isinstance(text, Tensor):
        return batch
    tokens, earlier = text.shape[1], mask.shape[1] - text.shape[1] if has_cache(batch) else 0
    if mask.shape != (len(text), earlier + tokens):
        return batch
    real = mask != 0
    counted = padded_before(real) or not real[:, :earlier].all()
    if not counted or not _takes_positions(model):
        return batch
    positions = (real.long().cumsum(-1) - 1).clamp_min(0) + _first_position(model)
    return batch | {POSITIONS_ARGUMENT: positions[:, earlier:]}


def _check_packed(model: nn.Module, batch: dict[str, Any]) -> None:
    """Raise `DataError` for positions that start again in a row of a decoder, unless the batch turns the cache off.

    transformers keeps such texts apart in a pass without a cache, and lets them see each other in one with a cache.
    """
    positions = batch.get(POSITIONS_ARGUMENT)
    if not isinstance(positions, Tensor) or positions.dim() != 2 or batch.get(MASK_ARGUMENT) is not None:
        return
    most = getattr(config_of(model), MOST_POSITIONS_NAME, None)
    if isinstance(most, int) and bool((positions >= most).any()):
        return  # the model's own error says more
    told = batch.get(USE_CACHE_ARGUMENT) is False or has_cache(batch) or not_taken(model, [USE_CACHE_ARGUMENT])
    if not told and bool((positions.diff(dim=1) != 1).any()) and may_pack(model):
        raise DataError(
            f"{POSITIONS_ARGUMENT} do not go up by 1 throughout each row, as in a row of several packed texts: "
            "transformers lets these see each other in a pass with a cache, and not in one without. Pass "
            f"{USE_CACHE_ARGUMENT}=False in the batch, which keeps them apart, or one text in each row"
        )


def padded_before(real: Tensor) -> bool:
    """Whether some rows of `real [..., token]` begin with padding, and all rows hold their tokens in one piece.

    What is masked between two tokens is taken for a part of the text that is not to be seen, and not for padding.
    """
    begins = (real[..., 1:] & ~real[..., :-1]).sum(-1) + real[..., 0].long()
    return bool((~real[..., 0]).any()) and bool((begins <= 1).all())


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
