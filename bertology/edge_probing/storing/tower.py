"""Which part of a model reads a text, and how long may the text be?"""

from __future__ import annotations

import inspect
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ...anatomy.dissect import dissect
from ...data.batches import Batch, is_encoder_decoder, model_arguments, room_of
from ...errors import DataError, UnknownAnatomy
from ...measures.captures import hidden_states

SEGMENTS = "token_type_ids"


def text_tower(model: nn.Module) -> nn.Module:
    """The part of a model that reads a text: without a task head, and without a decoder behind an encoder."""
    if is_encoder_decoder(model) and len(dissect(model).stacks) > 1 and hasattr(model, "get_encoder"):
        find: Any = model.get_encoder
        return find()
    # Heads that predict words cost a third of the pass, and nobody looks at what they say.
    return model.base_model if isinstance(model, PreTrainedModel) else model


def text_states(model: nn.Module, batch: Batch) -> Tensor:
    """[layer, batch, token, hidden]: the hidden states of a batch of texts.

    Raises `UnknownAnatomy` where several stacks read it.
    """
    stacks = hidden_states(model, accepted(model, batch)).stacks
    if len(stacks) != 1:
        raise UnknownAnatomy(
            f"the text runs through the stacks {', '.join(map(repr, stacks))} of {type(model).__name__}: wanted one; "
            "pass that part of the model"
        )
    return next(iter(stacks.values()))


def input_table(model: nn.Module) -> nn.Module:
    """The model's table of token embeddings. Raises `UnknownAnatomy` where it names none."""
    find: Any = getattr(model, "get_input_embeddings", None)
    table: Any = None
    with suppress(AttributeError, NotImplementedError):
        table = find() if find is not None else None
    if not isinstance(table, nn.Module) or not isinstance(getattr(table, "weight", None), Tensor):
        raise UnknownAnatomy(
            f"{type(model).__name__} has no table of token embeddings, so its tokens have no vectors of their own: "
            "pass lexical='embeddings', which takes the first hidden state for layer 0"
        )
    return table


def longest_text(model: nn.Module, tokenizer: Any, max_length: int | None) -> int:
    """How many tokens a text may have: `max_length`, or what the tokenizer and the model's table of positions allow.

    Raises `DataError` for a `max_length` that is no such number, or for which the model has no positions.
    """
    room = room_of(model)
    if max_length is None:
        said = getattr(tokenizer, "model_max_length", None)
        limits = [limit for limit in (room, said) if limit is not None]
        return int(min(limits)) if limits else 2**31
    if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1:
        raise DataError(f"max_length is a number of tokens, 1 or more, got {max_length!r}")
    if room is not None and max_length > room:
        raise DataError(f"max_length is {max_length}, the model takes {room} tokens: pass {room} or less, or None")
    return max_length


def accepted(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The batch without what the model's forward pass does not take, and without segments where there is but one.

    GPT-2 takes segments, too, and adds the embedding of the word 0 to every token that is in segment 0.
    """
    names = inspect.signature(model.forward).parameters
    everything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in names.values())
    taken = {name: x for name, x in model_arguments(batch).items() if everything or name in names}
    if SEGMENTS in taken and not taken[SEGMENTS].any():
        del taken[SEGMENTS]
    return taken
