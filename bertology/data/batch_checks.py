"""What a batch must be: tensors with a batch axis, and masks that mark real tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.names import (
    CACHE_ARGUMENTS,
    DECODER_IDS_ARGUMENT,
    DECODER_PREFIX,
    EMBEDS_ARGUMENT,
    IDS_ARGUMENT,
    LEAST_AXES,
    MASK_ARGUMENT,
    NO_TEXT_ARGUMENTS,
)
from ..errors import DataError, how_many
from .caches import cached_tokens
from .rows import PASS_TOKENIZER, is_columns, is_row

Batch = Mapping[str, Any]
INPUTS = (IDS_ARGUMENT, EMBEDS_ARGUMENT, *NO_TEXT_ARGUMENTS)


def without_weights(model: nn.Module) -> str:
    """The part of an error about a model on the meta device."""
    return (
        f"the weights of {type(model).__name__} are on the meta device, where they have no values: load them, for "
        "example with from_pretrained, without device_map='meta' or torch.device('meta')"
    )


def check_inputs(batch: Batch) -> str:
    """The name of the argument that holds the inputs, which must be a tensor with a batch axis, or `DataError`."""
    if not isinstance(batch, Mapping):
        hint = f": {PASS_TOKENIZER}, if these are texts" if isinstance(batch, (str, list, tuple)) else ""
        if isinstance(batch, Tensor) and not batch.is_floating_point():
            hint = ": pass {'input_ids': x}, if x is this tensor of token ids"
        got = f"{type(batch).__name__}{hint}"
        raise DataError(f"a batch must be a mapping of model arguments such as a tokenizer returns, got {got}")
    name = input_name(batch)
    x = batch[name]
    if not isinstance(x, Tensor):
        raise DataError(
            f"{name} must be a tensor, got {type(x).__name__}: "
            f"call the tokenizer with return_tensors='pt' and padding=True, or {PASS_TOKENIZER}"
        )
    if x.dim() < LEAST_AXES.get(name, 1):
        raise DataError(
            f"{name} must be {'[batch, token, hidden]' if name == EMBEDS_ARGUMENT else '[batch, token]'}, got "
            f"{list(x.shape)}: make a batch of one example by x[None] of each of its tensors x, or of several with a "
            "DataLoader"
        )
    if name == EMBEDS_ARGUMENT and not x.is_floating_point():
        raise DataError(f"{name} must hold floating-point numbers, got {str(x.dtype).removeprefix('torch.')}")
    if x.numel() == 0:
        raise DataError(f"{name} is empty: its shape is {list(x.shape)}")
    if x.layout != torch.strided:
        raise DataError(f"{name} must be a dense tensor, got one of layout {x.layout}: call to_dense()")
    words = [key for key in batch if not isinstance(key, str)]
    if words:
        raise DataError(f"the keys of a batch are names of model arguments, got {words[0]!r}")
    return name


def check_masks(batch: Batch) -> None:
    """Raise `DataError` for masks that are not of the text's shape, or hold NaN; the latter on the CPU alone."""
    for prefix in ("", DECODER_PREFIX):
        name, ids = prefix + MASK_ARGUMENT, batch.get(prefix + IDS_ARGUMENT)
        mask = batch.get(name)
        if mask is None or isinstance(mask, Mapping):
            continue
        if not isinstance(mask, Tensor):
            raise DataError(f"{name} must be a tensor [batch, token], got {type(mask).__name__}")
        if isinstance(ids, Tensor):
            # In an encoder-decoder, earlier tokens are those of the decoder.
            of_cache = bool(prefix) or DECODER_IDS_ARGUMENT not in batch
            _check_shape(name, mask, ids, batch if of_cache else {})
        if mask.is_floating_point() and mask.device.type == "cpu" and mask.isnan().any():
            raise DataError(f"{name} holds NaN: wanted 1 for real tokens and 0 for padding")


def _check_shape(name: str, mask: Tensor, ids: Tensor, batch: Batch) -> None:
    """Raise `DataError` unless a mask has a value for each token, earlier tokens in a cache of the batch included."""
    text = name.replace(MASK_ARGUMENT, IDS_ARGUMENT)
    cached = any(batch.get(one) is not None for one in CACHE_ARGUMENTS)
    if mask.dim() <= 2 and mask.shape != ids.shape and not cached:
        raise DataError(f"{name} must have the shape of {text}, {list(ids.shape)}, got {list(mask.shape)}")
    if mask.dim() > 2 and mask.shape != ids.shape and mask.shape[-1] < ids.shape[-1]:
        raise DataError(
            f"{name} must be [batch, token], or have a value for each of the {how_many(ids.shape[-1], 'key')}, got "
            f"{list(mask.shape)}"
        )
    earlier, room = cached_tokens(batch) if cached else (0, 0)
    wanted = [len(ids), earlier + ids.shape[-1]]
    if earlier and mask.dim() == 2 and list(mask.shape) not in (wanted, [len(ids), room]):
        raise DataError(
            f"{name} must be {wanted}, with a value for each of the {earlier} earlier tokens in the cache and of the "
            f"{how_many(ids.shape[-1], 'token')} in {text}, got {list(mask.shape)}"
        )


def check_padding(batch: Batch) -> None:
    """Raise `DataError` for masks [batch, token] on the CPU that are no masks, or give an example no real token."""
    for name in (MASK_ARGUMENT, DECODER_PREFIX + MASK_ARGUMENT):
        mask = batch.get(name)
        if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.device.type != "cpu":
            continue
        if mask.is_complex():
            raise DataError(f"{name} must be 1 for real tokens and 0 for padding, got complex numbers")
        wrong = mask[(mask < 0) | (mask == float("inf"))] if mask.dtype != torch.bool else mask[:0]
        if wrong.numel():
            raise DataError(f"{name} must be 1 for real tokens and 0 for padding, got {wrong.flatten()[0].item()}")
        check_real(mask, name)


def check_real(mask: Tensor, name: str = MASK_ARGUMENT) -> None:
    """Raise `DataError` for a mask [row, token] of which a row has no real token."""
    none = ((mask != 0).sum(1) == 0).nonzero().flatten().tolist()
    if none:
        raise DataError(f"{name} marks no real token in example(s) {none} of the batch: leave such examples out")


def input_name(batch: Batch) -> str:
    """The name of the argument that holds the inputs."""
    for name in INPUTS:
        if batch.get(name) is not None:
            return name
    hint = f": {PASS_TOKENIZER}, if these are texts" if is_row(batch) or is_columns(batch) else ""
    came = ", ".join(map(str, batch)) or "no keys at all"
    raise DataError(f"a batch needs input_ids or inputs_embeds, got {came}{hint}")
