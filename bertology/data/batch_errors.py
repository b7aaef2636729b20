"""What is wrong with a batch that a model does not run on.

A token that a model does not have ends in the error of an embedding deep inside it. `explained` looks for the cause in
the batch, and only after the model has failed: a pass that runs costs nothing more, and a model that takes unusual
inputs is not refused. Where no cause is found, it says what the batch holds.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.names import (
    AROUND_MODELS,
    DECODER_IDS_ARGUMENT,
    DECODER_PREFIX,
    EMBEDS_ARGUMENT,
    IDS_ARGUMENT,
    LABELS_ARGUMENT,
    MASK_ARGUMENT,
    MODEL_LIBRARIES,
    MOST_POSITIONS_NAME,
    NO_TEXT_ARGUMENTS,
    POSITIONS_ARGUMENT,
    SEGMENT_KINDS_NAME,
    SEGMENTS_ARGUMENT,
)
from ..errors import BertologyError, DataError, how_many
from .batch_checks import INPUTS, Batch, without_weights
from .models import config_of, is_encoder_decoder
from .positions import room_of

NUMBERED = (IDS_ARGUMENT, DECODER_IDS_ARGUMENT, SEGMENTS_ARGUMENT, POSITIONS_ARGUMENT)


@contextmanager
def explained(model: nn.Module, batch: Batch) -> Iterator[None]:
    """Run the model inside: an error of the model becomes a `DataError` that says what is wrong with the batch.

    Errors of the user's own code (a hook, a custom model) stay, unless a cause is found in the batch; so do warnings
    that are raised as errors, and a lack of memory.
    """
    try:
        yield
    except (BertologyError, Warning, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        why = _cause(model, batch) if isinstance(error, _OF_BATCHES) else ""
        kind, came = type(model).__name__, type(error).__name__
        if why:
            raise DataError(f"{why}. {kind} raised {came}") from error
        if _is_of_library(error):
            raise DataError(
                f"{kind} does not run on this batch, which holds {_held(batch)}. It raised {came}: {error}. If "
                "model(**batch) runs outside this library, please report that"
            ) from error
        raise


_OF_BATCHES = (IndexError, KeyError, TypeError, ValueError, AttributeError, RuntimeError)


def _cause(model: nn.Module, batch: Batch) -> str:
    try:
        return next((why for find in _CAUSES if (why := find(model, batch))), "")
    except RuntimeError:  # an accelerator that has failed does not show the batch either
        return ""


def _is_of_library(error: Exception) -> bool:
    """Whether an error was raised by the code of a model's library, and not by code of the user that it ran."""
    own = __name__.partition(".")[0]
    if type(error).__module__.partition(".")[0] == own:  # such as one that ends a pass early
        return False
    frames = traceback.walk_tb(error.__traceback__)
    rooms = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in frames]
    others = [room for room in rooms if room not in (own, *AROUND_MODELS) and room not in sys.stdlib_module_names]
    return not others or others[-1] in MODEL_LIBRARIES


def _held(batch: Batch) -> str:
    """The arguments in a batch, with the shapes and types of tensors."""
    told = []
    for name, x in batch.items():
        if isinstance(x, Tensor):
            told.append(f"{name} {list(x.shape)} {str(x.dtype).removeprefix('torch.')}")
        else:
            told.append(f"{name} ({type(x).__name__})")
    return ", ".join(told)


def _without_weights(model: nn.Module, batch: Batch) -> str:
    return without_weights(model) if any(parameter.is_meta for parameter in model.parameters()) else ""


def _wrong_type(model: nn.Module, batch: Batch) -> str:
    for name in NUMBERED:
        x = batch.get(name)
        if isinstance(x, Tensor) and x.dtype not in (torch.int64, torch.int32):
            return f"{name} must hold whole numbers of type int64, got {str(x.dtype).removeprefix('torch.')}"
    return ""


def _wrong_inputs(model: nn.Module, batch: Batch) -> str:
    """Inputs that exclude each other, or that no argument of the model is for."""
    given = [name for name in INPUTS if batch.get(name) is not None]
    if {IDS_ARGUMENT, EMBEDS_ARGUMENT} <= set(given):
        return f"a batch holds {IDS_ARGUMENT} or {EMBEDS_ARGUMENT}, got both: leave one out"
    parameters = inspect.signature(model.forward).parameters
    unknown = [name for name in given if name in NO_TEXT_ARGUMENTS and name not in parameters]
    if unknown and len(given) == 1:
        return f"the batch holds {unknown[0]}, which the model does not take: it takes {', '.join(parameters)}"
    if isinstance(batch.get(MASK_ARGUMENT), Mapping):
        return f"{MASK_ARGUMENT} is a mapping, got {', '.join(map(str, batch[MASK_ARGUMENT]))}: pass [batch, token]"
    embeds, table = batch.get(EMBEDS_ARGUMENT), _token_table(model)
    if isinstance(embeds, Tensor) and table is not None and embeds.shape[-1] != table.embedding_dim:
        return f"{EMBEDS_ARGUMENT} must be [batch, token, hidden = {table.embedding_dim}], got {list(embeds.shape)}"
    if isinstance(embeds, Tensor) and table is not None and embeds.dtype != table.weight.dtype:
        came, wanted = (str(x.dtype).removeprefix("torch.") for x in (embeds, table.weight))
        return f"{EMBEDS_ARGUMENT} must be of the model's type, {wanted}, got {came}"
    return ""


def _wrong_rank(model: nn.Module, batch: Batch) -> str:
    ids = batch.get(IDS_ARGUMENT)
    if isinstance(ids, Tensor) and ids.dim() not in (2, 3):
        return f"{IDS_ARGUMENT} must be [batch, token], or [batch, choice, token], got {list(ids.shape)}"
    return ""


def _no_decoder_inputs(model: nn.Module, batch: Batch) -> str:
    given = (DECODER_IDS_ARGUMENT, DECODER_PREFIX + EMBEDS_ARGUMENT, LABELS_ARGUMENT)
    if not is_encoder_decoder(model) or any(batch.get(name) is not None for name in given):
        return ""
    return f"an encoder-decoder needs {DECODER_IDS_ARGUMENT}, or {LABELS_ARGUMENT} from which it can make them"


def _unknown_token(model: nn.Module, batch: Batch) -> str:
    names = [IDS_ARGUMENT, DECODER_IDS_ARGUMENT, *([LABELS_ARGUMENT] if is_encoder_decoder(model) else [])]
    for name in names:
        ids, many = batch.get(name), _tokens_of(model)
        if not isinstance(ids, Tensor) or ids.is_floating_point() or many is None:
            continue
        ignored = -100 if name == LABELS_ARGUMENT else 0
        wrong = ids[((ids < 0) | (ids >= many)) & (ids != ignored)]
        if wrong.numel():
            return (
                f"{name} holds the token {int(wrong[0])}, but the model has {how_many(many, 'token')}, from 0 to "
                f"{many - 1}: use the model's own tokenizer"
            )
    return ""


def _unknown_segment(model: nn.Module, batch: Batch) -> str:
    return _out_of_range(batch, SEGMENTS_ARGUMENT, getattr(config_of(model), SEGMENT_KINDS_NAME, None))


def _too_long(model: nn.Module, batch: Batch) -> str:
    room = room_of(model)
    for name in (IDS_ARGUMENT, DECODER_IDS_ARGUMENT):
        ids = batch.get(name)
        if room is not None and isinstance(ids, Tensor) and ids.shape[-1] > room:
            return (
                f"a text has {how_many(ids.shape[-1], 'token')}, the model takes {room}: shorten it, with the "
                f"tokenizer by truncation=True, max_length={room}"
            )
    return ""


def _unknown_position(model: nn.Module, batch: Batch) -> str:
    return _out_of_range(batch, POSITIONS_ARGUMENT, getattr(config_of(model), MOST_POSITIONS_NAME, None))


def _out_of_range(batch: Batch, name: str, count: int | None) -> str:
    """A message about the first value of an argument that is not below `count`, if there is one."""
    values = batch.get(name)
    if not isinstance(values, Tensor) or not isinstance(count, int):
        return ""
    wrong = values[(values < 0) | (values >= count)]
    return f"{name} must be from 0 to {count - 1}, got {int(wrong[0])}" if wrong.numel() else ""


def _wrong_shape(model: nn.Module, batch: Batch) -> str:
    for prefix in ("", DECODER_PREFIX):
        ids = batch.get(prefix + IDS_ARGUMENT)
        for name in (prefix + MASK_ARGUMENT, *(() if prefix else (SEGMENTS_ARGUMENT,))):
            x = batch.get(name)
            if isinstance(ids, Tensor) and isinstance(x, Tensor) and x.shape != ids.shape:
                return f"{name} must have the shape of {prefix}{IDS_ARGUMENT}, {list(ids.shape)}, got {list(x.shape)}"
    return ""


def _tokens_of(model: nn.Module) -> int | None:
    """How many tokens a model has, where a table of them is its input."""
    table = _token_table(model)
    return None if table is None else table.num_embeddings


def _token_table(model: nn.Module) -> nn.Embedding | None:
    """The embeddings of tokens, where a table of them is the model's input."""
    for module in model.modules():
        table: Any = getattr(module, "get_input_embeddings", None)
        if table is not None:
            try:
                found = table()
            except (NotImplementedError, AttributeError):
                continue
            return found if isinstance(found, nn.Embedding) else None
    return None


_CAUSES = (
    _without_weights,
    _wrong_type,
    _wrong_inputs,
    _wrong_rank,
    _unknown_token,
    _unknown_segment,
    _too_long,
    _unknown_position,
    _wrong_shape,
    _no_decoder_inputs,
)
