"""Batches of model arguments, and which of their tokens are real.

`batches` is one mapping of model arguments, or an iterable of such mappings (a DataLoader, a list). A batch may have
the key `annotations`: a list with one entry per example, such as its words and its syntax tree. Measures read it; it is
not passed to the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy.forward_source import first_weight
from ..anatomy.modules import Modules, each_module
from ..anatomy.names import (
    DECODER_IDS_ARGUMENT,
    DECODER_PREFIX,
    EMBEDS_ARGUMENT,
    IDS_ARGUMENT,
    LABELS_ARGUMENT,
    MASK_ARGUMENT,
    NO_TEXT_ARGUMENTS,
    SPAN_ARGUMENTS,
    USE_CACHE_ARGUMENT,
)
from ..anatomy.oddities import block_oddities_of
from ..anatomy.sites import Anatomy
from ..errors import DataError, how_many
from .batch_checks import Batch as Batch
from .batch_checks import check_inputs, check_masks, check_padding, input_name, without_weights
from .batch_errors import explained
from .caches import check_no_cache, has_cache, own_caches
from .models import config_of, is_encoder_decoder, not_taken, prompt_tokens, takes_one_mapping, writes
from .positions import room_of, with_positions

Batches = Batch | Iterable[Batch]
BatchesOrTexts = Batch | str | Iterable[Any]
"""Batches, or texts, of which a tokenizer makes batches: see `make_batches`."""

IGNORED = -100
"""The label that losses ignore, in transformers and torch."""
LABELS = (LABELS_ARGUMENT, *SPAN_ARGUMENTS)
ANNOTATIONS = "annotations"
"""The key of a batch's list with one entry per example, which is not passed to the model."""


def each_batch(
    model: nn.Module, batches: Batches, *, device: torch.device | None = None, may_be_empty: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield each batch, checked and on the model's device, where that is not given.

    Raises `DataError` for a batch without inputs, for lists instead of tensors, and, unless `may_be_empty`, when there
    is no batch.
    """
    device = device_of(model) if device is None else device
    none_yet = True
    for batch in [batches] if isinstance(batches, Mapping) else batches:
        none_yet = False
        check_inputs(batch)
        check_padding(batch)
        yield on_device(batch, device)
    if none_yet and not may_be_empty:
        raise DataError("no batches: wanted one mapping of model arguments or an iterable of them, got an empty one")


def device_of(model: nn.Module, modules: Modules | None = None) -> torch.device:
    """The device for a model's inputs: the execution device of accelerate, or else that of the first weights.

    `modules` are all of the model, where they were listed just now.
    """
    modules = each_module(model) if modules is None else modules
    for module in modules.with_attribute("_hf_hook"):
        device = getattr(module._hf_hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
    found = weights_device(model)
    if found.type == "meta":
        raise DataError(without_weights(model))
    return found


def weights_device(model: nn.Module) -> torch.device:
    """The device of a model's first weights."""
    weight = first_weight(model)
    assert weight is not None
    return weight.device


def on_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Check one batch and move its tensors to `device`."""
    name = check_inputs(batch)
    empty = [key for key, x in batch.items() if isinstance(x, Tensor) and x.is_meta and device.type != "meta"]
    if empty:
        raise DataError(f"{empty[0]} is on the meta device, where it has no values: make the batch on a real device")
    check_masks(batch)
    for label in LABELS:
        if batch.get(label) is not None and not isinstance(batch[label], Tensor):
            raise DataError(f"{label} must be a tensor, got {type(batch[label]).__name__}: make one with torch.tensor")
    if ANNOTATIONS in batch and not isinstance(batch[ANNOTATIONS], (list, tuple)):
        raise DataError(
            f"{ANNOTATIONS} must be a list with one entry per example, got {type(batch[ANNOTATIONS]).__name__}"
        )
    if ANNOTATIONS in batch and len(batch[ANNOTATIONS]) != batch[name].shape[0]:
        raise DataError(
            f"{ANNOTATIONS} must have one entry per example, got {how_many(len(batch[ANNOTATIONS]), 'entry')} for "
            f"{how_many(batch[name].shape[0], 'example')}"
        )
    return {key: _moved(key, value, device) for key, value in batch.items()}


def _moved(name: str, x: Any, device: torch.device) -> Any:
    """A tensor on the device; labels that are whole numbers are made int64, the one type that losses take."""
    if isinstance(x, dict):  # a mask for each kind of layer
        return {key: _moved(name, one, device) for key, one in x.items()}
    if not isinstance(x, Tensor):
        return x
    whole = name in LABELS and not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
    if x.is_inference() and not torch.is_inference_mode_enabled():
        x = x.clone()  # no graph can hold a tensor that was made in inference mode
    return x.to(device, torch.int64 if whole else x.dtype)


def check_repeatable(batches: BatchesOrTexts, *, why: str) -> None:
    """Raise `DataError` for an iterator, which can be read only once."""
    if isinstance(batches, Iterator):
        raise DataError(f"{why} goes over the batches several times: pass a list or a DataLoader, not an iterator")


def examples(batch: Batch) -> int:
    """The number of examples in the batch."""
    return int(batch[input_name(batch)].shape[0])


def some_examples(batch: Batch, chosen: slice | Tensor) -> dict[str, Any]:
    """Some examples of the batch. Values without one row per example are kept as they are.

    Raises `DataError` for a batch with a cache.
    """
    check_no_cache(batch, why="some examples are taken out of the batch")
    count = examples(batch)
    rows = {name: isinstance(x, Tensor) and x.dim() > 0 and len(x) == count for name, x in batch.items()}
    some = {name: x[chosen] if rows[name] else x for name, x in batch.items()}
    if ANNOTATIONS in batch:
        some[ANNOTATIONS] = [batch[ANNOTATIONS][i] for i in torch.arange(count)[chosen].tolist()]
    return some


def has_rows(batch: Batch) -> bool:
    """Whether every tensor of images or sounds in the batch has one row for each example."""
    others = [batch[name] for name in NO_TEXT_ARGUMENTS if isinstance(batch.get(name), Tensor)]
    return all(len(x) == examples(batch) for x in others)


def rows_per_example(batch: Batch) -> int:
    """The number of rows per example: the number of choices in multiple choice, else 1."""
    ids = batch.get(IDS_ARGUMENT)
    return int(ids.shape[1]) if isinstance(ids, Tensor) and ids.dim() == 3 else 1


def token_mask(model: nn.Module, batch: Batch, stack: str = "encoder") -> Tensor:
    """[row, token], bool: which tokens of a stack are real; the others are padding.

    Without an attention mask every token is real. In multiple choice each choice is one row. Earlier tokens in a cache
    are not among them.
    Raises `DataError` for attention masks that are not `[batch, token]`.
    """
    mask = key_mask(model, batch, stack)
    ids = token_ids(model, batch, stack) if has_cache(batch) else None
    return mask if ids is None else mask[:, -ids.shape[1] :]


def key_mask(model: nn.Module, batch: Batch, stack: str = "encoder") -> Tensor:
    """[row, key], bool: as `token_mask`, with earlier tokens in a cache, where the attention mask has them."""
    decoding = not reads_text(model, stack)
    labels = batch.get(LABELS_ARGUMENT)
    unmasked = decoding and DECODER_PREFIX + MASK_ARGUMENT not in batch
    if unmasked and isinstance(labels, Tensor) and labels.dim() == 2 and writes(model):
        return labels != IGNORED  # the decoder reads the shifted labels
    prefix = DECODER_PREFIX if decoding else ""
    mask = batch.get(prefix + MASK_ARGUMENT)
    if mask is None:
        return _all_tokens(batch, prefix)
    if not shows_padding(model, batch, stack):
        came = list(mask.shape) if isinstance(mask, Tensor) else f"a mask for each of {', '.join(mask)}"
        raise DataError(
            f"{prefix}attention_mask must be [batch, token], got {came}: another shape does not show which tokens are "
            "padding"
        )
    return mask.reshape(-1, mask.shape[-1]) != 0


def shows_padding(model: nn.Module, batch: Batch, stack: str) -> bool:
    """Whether a stack's attention mask, if there is one, has one value per token."""
    mask = batch.get(MASK_ARGUMENT if reads_text(model, stack) else DECODER_PREFIX + MASK_ARGUMENT)
    several = rows_per_example(batch) > 1
    return mask is None or (isinstance(mask, Tensor) and (mask.dim() == 2 or (mask.dim() == 3 and several)))


def token_count(model: nn.Module, batch: Batch, stack: str) -> int:
    """How many tokens the texts of a stack have, padding included."""
    ids = batch.get(IDS_ARGUMENT)
    if isinstance(ids, Tensor) and reads_text(model, stack):
        return ids.shape[-1]
    known = shows_padding(model, batch, stack)
    prefix = "" if reads_text(model, stack) else DECODER_PREFIX
    return int((token_mask(model, batch, stack) if known else _all_tokens(batch, prefix)).shape[1])


def reads_text(model: nn.Module, stack: str) -> bool:
    """Whether a stack reads the input text. The decoder of an encoder-decoder reads another text, or shifted labels."""
    return stack.startswith("encoder") or not is_encoder_decoder(model)


def token_ids(model: nn.Module, batch: Batch, stack: str) -> Tensor | None:
    """[row, token]: the ids of the tokens that a stack attends from and to, or None.

    They are None in cross attention, and when the batch does not hold them. In multiple choice each choice is one row.
    """
    ids = batch.get(IDS_ARGUMENT if reads_text(model, stack) else DECODER_IDS_ARGUMENT)
    return ids.reshape(-1, ids.shape[-1]) if isinstance(ids, Tensor) and "cross" not in stack else None


def adds_before(anatomy: Anatomy, stack: str) -> bool:
    """Whether positions that the model itself adds are before the text: prompts (CPM-Ant, prompt tuning)."""
    learned = reads_text(anatomy.model, stack) and prompt_tokens(anatomy.model) > 0
    return learned or block_oddities_of(anatomy.runner(stack)).prefixes


def with_added_positions(x: Tensor, positions: int, anatomy: Anatomy, stack: str) -> Tensor:
    """[..., position]: `[..., token]`, and 0 for what a model itself adds to a text: padding (Longformer), or a prompt
    before it."""
    extra, before = positions - x.shape[-1], adds_before(anatomy, stack)
    if extra <= 0 or not (before or block_oddities_of(anatomy.runner(stack)).pads):
        return x
    return F.pad(x, (extra, 0) if before else (0, extra))


def fit_mask(mask: Tensor, positions: int, anatomy: Anatomy, stack: str) -> Tensor:
    """[row, position], bool: `token_mask` for a stack with another number of positions than tokens.

    What the model adds is not real. If a model pools tokens or has its own positions (CANINE, Perceiver), all positions
    are real when all tokens are; otherwise `DataError` is raised.
    """
    mask, kind = with_added_positions(mask, positions, anatomy, stack), type(anatomy.runner(stack)).__name__
    if mask.shape[1] == positions:
        return mask
    if mask.all():
        return torch.ones(mask.shape[0], positions, dtype=torch.bool, device=mask.device)
    raise DataError(
        f"{kind} has {how_many(positions, 'position')}, but the attention mask marks "
        f"{how_many(mask.shape[1], 'token')}, some of them padding: it is not known which positions are padding. Pass "
        "inputs of equal length, without padding"
    )


def _all_tokens(batch: Batch, prefix: str) -> Tensor:
    for name in (IDS_ARGUMENT, EMBEDS_ARGUMENT):
        x = batch.get(prefix + name)
        if isinstance(x, Tensor):
            shape = x.shape if name == IDS_ARGUMENT else x.shape[:-1]
            return torch.ones(shape[:-1].numel(), shape[-1], dtype=torch.bool, device=x.device)
    for name in () if prefix else NO_TEXT_ARGUMENTS:
        # The number of positions of an image or a sound is not known here: one value is used for all of them.
        if isinstance(batch.get(name), Tensor):
            return torch.ones(batch[name].shape[0], 1, dtype=torch.bool, device=batch[name].device)
    raise DataError(
        f"the batch has neither {prefix}attention_mask nor {prefix}input_ids, so its tokens cannot be counted: "
        "pass one of them"
    )


def model_arguments(batch: Batch) -> dict[str, Any]:
    """The batch without its annotations, and with a cache of its own: call this for each pass of a model."""
    return own_caches({key: value for key, value in batch.items() if key != ANNOTATIONS})


def without_labels(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The model's arguments without labels, so that the model computes no loss itself.

    An encoder-decoder that makes its decoder inputs from labels still gets these decoder inputs; where only its forward
    pass can make them, it gets the labels. Its cache is turned off, as it is in a pass with labels: with a cache,
    FSMT's decoder attends to later tokens.
    Raises `DataError` for an argument that the forward pass does not take.
    """
    arguments = with_positions(model, model_arguments(batch))
    inputs = {key: value for key, value in arguments.items() if key not in LABELS}
    if unknown := not_taken(model, inputs):
        raise DataError(_unknown(model, unknown))
    if LABELS_ARGUMENT not in batch or not writes(model):
        return inputs
    if hasattr(config_of(model), USE_CACHE_ARGUMENT):
        inputs.setdefault(USE_CACHE_ARGUMENT, False)
    if not {DECODER_IDS_ARGUMENT, DECODER_PREFIX + EMBEDS_ARGUMENT} & inputs.keys():
        shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if shift is not None:
            inputs[DECODER_IDS_ARGUMENT] = shift(labels=batch[LABELS_ARGUMENT])
        elif batch[LABELS_ARGUMENT].dim() == 2 and any(name in batch for name in NO_TEXT_ARGUMENTS):
            inputs[DECODER_IDS_ARGUMENT] = _shifted(batch[LABELS_ARGUMENT], config_of(model))
        elif batch[LABELS_ARGUMENT].dim() == 2:
            inputs[LABELS_ARGUMENT] = batch[LABELS_ARGUMENT]
    return inputs


def with_labels(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The model's arguments with what it takes of the labels; the rest of the batch is for a custom loss."""
    inputs = with_positions(model, model_arguments(batch))
    unknown = not_taken(model, inputs)
    return {key: value for key, value in inputs.items() if key not in unknown}


def run_model(model: nn.Module, batch: Batch, *, labels: bool) -> Any:
    """Run the model on a batch, with the labels that it takes or without any.

    Raises `DataError` for a batch that the model does not run on.
    """
    with explained(model, batch):
        return call(model, with_labels(model, batch)) if labels else call(model, without_labels(model, batch))


def call(model: nn.Module, inputs: Batch) -> Any:
    """Run the model. Labels that a wrapper passes on to a model that takes none are left out."""
    if takes_one_mapping(model, inputs):
        return model(dict(inputs))
    try:
        return model(**inputs)
    except TypeError as error:
        if not any(name in inputs and f"keyword argument '{name}'" in str(error) for name in LABELS):
            raise
        return model(**{key: value for key, value in inputs.items() if key not in LABELS})


class ReadBatch(dict[str, Any]):
    """A batch that notes which of its keys were read, for keys that only a custom loss may need."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default."""
        self.read.add(key)
        return super().get(key, default)

    def check(self, model: nn.Module) -> None:
        """Raise `DataError` for a key that neither the model took nor a loss read: it may be misspelt."""
        unread = [key for key in not_taken(model, model_arguments(self)) if key not in self.read and key not in LABELS]
        if unread:
            raise DataError(_unknown(model, unread) + ", and the loss does not read it")


def _unknown(model: nn.Module, names: list[str]) -> str:
    takes = ", ".join(inspect.signature(model.forward).parameters)
    return f"the forward pass of {type(model).__name__} takes no {' and no '.join(names)}: it takes {takes}"


def _shifted(labels: Tensor, config: Any) -> Tensor:
    """[batch, token]: decoder_input_ids for these labels, shifted as in the speech models of transformers."""
    start, padding = (getattr(config, name, None) for name in ("decoder_start_token_id", "pad_token_id"))
    if start is None or padding is None:
        raise DataError(
            "decoder_input_ids cannot be made from the labels: the config has no decoder_start_token_id or no "
            "pad_token_id. Pass decoder_input_ids in every batch"
        )
    shifted = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORED, padding)


def check_fits(model: nn.Module, tokens: int) -> None:
    """Raise `DataError` for texts that are longer than the model's longest input."""
    longest = room_of(model)
    if longest is not None and tokens > longest:
        raise DataError(
            f"a text has {how_many(tokens, 'token')}, the model takes {longest}: pass max_length={longest} to align or "
            "align_code, which leave out longer texts and list them"
        )
