"""Batches of model arguments, and which of their tokens are real.

`batches` is one mapping of model arguments, or an iterable of such mappings (a DataLoader, a list). Under the key
`annotations` a batch may carry a list with what is known of each example, such as its words and its syntax tree:
measures see it, the model does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy.names import (
    DECODER_IDS_ARGUMENT,
    DECODER_PREFIX,
    EMBEDS_ARGUMENT,
    IDS_ARGUMENT,
    LABELS_ARGUMENT,
    MASK_ARGUMENT,
    NO_TEXT_ARGUMENTS,
    PADDED_STACKS,
    PREFIXED_STACKS,
    SPAN_ARGUMENTS,
    USE_CACHE_ARGUMENT,
)
from ..errors import DataError

Batch = Mapping[str, Any]
Batches = Batch | Iterable[Batch]

IGNORED = -100
"""A label that does not count, in transformers and torch."""
LABELS = (LABELS_ARGUMENT, *SPAN_ARGUMENTS)
ANNOTATIONS = "annotations"
"""What a batch carries for the measures alone: a list with one entry an example."""
INPUTS = (IDS_ARGUMENT, EMBEDS_ARGUMENT, *NO_TEXT_ARGUMENTS)


def each_batch(model: nn.Module, batches: Batches) -> Iterator[dict[str, Any]]:
    """Yield each batch, checked and on the model's device.

    Raises `DataError` for a batch without inputs, for lists in the place of tensors, and when there is no batch.
    """
    device = device_of(model)
    none_yet = True
    for batch in [batches] if isinstance(batches, Mapping) else batches:
        none_yet = False
        yield on_device(batch, device)
    if none_yet:
        raise DataError("no batches: wanted one mapping of model arguments or an iterable of them, got an empty one")


def device_of(model: nn.Module) -> torch.device:
    """Where a model wants its inputs: where accelerate brings its weights to, or where its first weights are."""
    for module in model.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(parameter.device for parameter in model.parameters())


def on_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Check one batch and move its tensors to `device`."""
    if not isinstance(batch, Mapping):
        raise DataError(
            f"a batch must be a mapping of model arguments such as a tokenizer returns, got {type(batch).__name__}"
        )
    name = _input_name(batch)
    if not isinstance(batch[name], Tensor):
        raise DataError(
            f"{name} must be a tensor, got {type(batch[name]).__name__}: "
            "call the tokenizer with return_tensors='pt' and padding=True"
        )
    if batch[name].shape[0] == 0 or batch[name].numel() == 0:
        raise DataError(f"{name} is empty: its shape is {list(batch[name].shape)}")
    if ANNOTATIONS in batch and len(batch[ANNOTATIONS]) != batch[name].shape[0]:
        raise DataError(
            f"{ANNOTATIONS} must have one entry an example: got {len(batch[ANNOTATIONS])} for {batch[name].shape[0]}"
        )
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def check_repeatable(batches: Batches, *, why: str) -> None:
    """Raise `DataError` for an iterator, which gives its batches only once."""
    if isinstance(batches, Iterator):
        raise DataError(f"{why} goes over the batches several times: pass a list or a DataLoader, not an iterator")


def examples(batch: Batch) -> int:
    """How many examples the batch holds."""
    return int(batch[_input_name(batch)].shape[0])


def some_examples(batch: Batch, chosen: slice | Tensor) -> dict[str, Any]:
    """The batch with some of its examples only; what has no row for each example stays whole."""
    count = examples(batch)
    rows = {name: isinstance(x, Tensor) and x.dim() > 0 and len(x) == count for name, x in batch.items()}
    some = {name: x[chosen] if rows[name] else x for name, x in batch.items()}
    if ANNOTATIONS in batch:
        some[ANNOTATIONS] = [batch[ANNOTATIONS][i] for i in torch.arange(count)[chosen].tolist()]
    return some


def rows_per_example(batch: Batch) -> int:
    """How many rows of the model's own batch an example makes: the choices of multiple choice, else 1."""
    ids = batch.get(IDS_ARGUMENT)
    return int(ids.shape[1]) if isinstance(ids, Tensor) and ids.dim() == 3 else 1


def token_mask(model: nn.Module, batch: Batch, stack: str = "encoder") -> Tensor:
    """[row, token], bool: which tokens of a stack are real; the others are padding.

    Without an attention mask every token is real. The choices of multiple choice are rows of their own.
    Raises `DataError` for attention masks that are not `[batch, token]`.
    """
    decoding = not reads_text(model, stack)
    labels = batch.get(LABELS_ARGUMENT)
    if decoding and DECODER_PREFIX + MASK_ARGUMENT not in batch and isinstance(labels, Tensor) and labels.dim() == 2:
        return labels != IGNORED  # the decoder reads its labels, shifted
    prefix = DECODER_PREFIX if decoding else ""
    mask = batch.get(prefix + MASK_ARGUMENT)
    if mask is None:
        return _all_tokens(batch, prefix)
    flat = mask.reshape(-1, mask.shape[-1]) if mask.dim() == 3 and rows_per_example(batch) > 1 else mask
    if flat.dim() != 2:
        raise DataError(
            f"{prefix}attention_mask must be [batch, token], got {list(mask.shape)}: "
            "only from such a mask can padding be told from text"
        )
    return flat != 0


def reads_text(model: nn.Module, stack: str) -> bool:
    """Whether a stack reads the text itself: a decoder behind an encoder reads another, or this one shifted (BART)."""
    return stack.startswith("encoder") or not is_encoder_decoder(model)


def token_ids(model: nn.Module, batch: Batch, stack: str) -> Tensor | None:
    """[row, token]: the ids of the tokens that a stack attends from and to, or None.

    None in cross attention, and where the batch does not hold them. The choices of multiple choice are rows of their
    own.
    """
    ids = batch.get(IDS_ARGUMENT if reads_text(model, stack) else DECODER_IDS_ARGUMENT)
    return ids.reshape(-1, ids.shape[-1]) if isinstance(ids, Tensor) and "cross" not in stack else None


def fit_mask(mask: Tensor, positions: int, runner: nn.Module) -> Tensor:
    """[row, position], bool: `token_mask` for a stack, run by `runner`, that works on another number of positions.

    A stack's own padding is not real (Longformer), tokens that it puts in front are (CPM-Ant). Where it pools tokens or
    has positions of its own (CANINE, Perceiver), they are real if all tokens are; else `DataError` is raised.
    """
    extra, kind = positions - mask.shape[1], type(runner).__name__
    if extra == 0:
        return mask
    if extra > 0 and kind in PADDED_STACKS:
        return F.pad(mask, (0, extra), value=False)
    if mask.all() or kind in PREFIXED_STACKS:
        own = torch.ones(mask.shape[0], positions, dtype=torch.bool, device=mask.device)
        return own if mask.all() else torch.cat([own[:, :extra], mask], dim=1)
    raise DataError(
        f"{kind} works on {positions} positions, the batch marks {mask.shape[1]} tokens, some of them padding: padding "
        "cannot be told there, so pass inputs of equal length without any"
    )


def _all_tokens(batch: Batch, prefix: str) -> Tensor:
    for name in (IDS_ARGUMENT, EMBEDS_ARGUMENT):
        x = batch.get(prefix + name)
        if isinstance(x, Tensor):
            shape = x.shape if name == IDS_ARGUMENT else x.shape[:-1]
            return torch.ones(shape, dtype=torch.bool, device=x.device).reshape(-1, shape[-1])
    for name in () if prefix else NO_TEXT_ARGUMENTS:
        # Of an image or a sound it is not known here how many positions it makes: one stands for all of them.
        if isinstance(batch.get(name), Tensor):
            return torch.ones(batch[name].shape[0], 1, dtype=torch.bool, device=batch[name].device)
    raise DataError(f"the batch has neither {prefix}attention_mask nor {prefix}input_ids: its tokens cannot be counted")


def model_arguments(batch: Batch) -> dict[str, Any]:
    """The batch without its annotations."""
    return {key: value for key, value in batch.items() if key != ANNOTATIONS}


def without_labels(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The batch as the model is run on: labels are left out, so that it computes no loss of its own.

    An encoder-decoder that reads its labels as decoder input gets them as such, and keeps no cache, which it does not
    do with labels either: FSMT's decoder looks ahead when it does.
    """
    inputs = {key: value for key, value in model_arguments(batch).items() if key not in LABELS}
    if LABELS_ARGUMENT not in batch or not is_encoder_decoder(model):
        return inputs
    if hasattr(config_of(model), USE_CACHE_ARGUMENT):
        inputs.setdefault(USE_CACHE_ARGUMENT, False)
    if not {DECODER_IDS_ARGUMENT, DECODER_PREFIX + EMBEDS_ARGUMENT} & inputs.keys():
        shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if shift is not None:
            inputs[DECODER_IDS_ARGUMENT] = shift(labels=batch[LABELS_ARGUMENT])
        elif batch[LABELS_ARGUMENT].dim() == 2 and any(name in batch for name in NO_TEXT_ARGUMENTS):
            inputs[DECODER_IDS_ARGUMENT] = _shifted(batch[LABELS_ARGUMENT], config_of(model))
    return inputs


def _shifted(labels: Tensor, config: Any) -> Tensor:
    """[batch, token]: what a decoder reads to write these labels, as transformers' speech models shift them."""
    start, padding = (getattr(config, name, None) for name in ("decoder_start_token_id", "pad_token_id"))
    if start is None or padding is None:
        raise DataError(
            "the labels cannot be made decoder_input_ids: the config has no decoder_start_token_id or no pad_token_id. "
            "Pass decoder_input_ids in every batch"
        )
    shifted = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORED, padding)


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model, whatever is wrapped around it, reads one text and writes another."""
    return bool(getattr(config_of(model), "is_encoder_decoder", False))


def room_of(model: nn.Module) -> int | None:
    """How many tokens a model takes at once, or None where it does not say, or has no end of them."""
    most = getattr(config_of(model), "max_position_embeddings", None)
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        return None
    words = getattr(model, "get_input_embeddings", lambda: None)()
    for module in model.modules():
        # RoBERTa counts positions from behind the number that stands for padding.
        if isinstance(module, nn.Embedding) and module.num_embeddings == most and module is not words:
            return most - (0 if module.padding_idx is None else module.padding_idx + 1)
    return most


def check_fits(model: nn.Module, tokens: int) -> None:
    """Raise `DataError` for texts of more tokens than the model has positions for."""
    longest = room_of(model)
    if longest is not None and tokens > longest:
        raise DataError(
            f"a text has {tokens} tokens, the model takes {longest}: pass max_length={longest} to align or "
            "align_code, which leave out and list what is longer"
        )


def config_of(model: nn.Module) -> Any:
    """The outermost config in the model, or None."""
    return next((module.config for module in model.modules() if hasattr(module, "config")), None)


def _input_name(batch: Batch) -> str:
    for name in INPUTS:
        if batch.get(name) is not None:
            return name
    raise DataError(f"a batch needs input_ids or inputs_embeds, got {', '.join(map(str, batch)) or 'no keys at all'}")
