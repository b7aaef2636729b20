"""What a model returns: its tensors by name, and the logits of tokens beside the labels that they predict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..anatomy.names import LOGITS_OUTPUT
from ..errors import LossError
from .batches import IGNORED


def found(outputs: Any, *names: str) -> list[Tensor]:
    """Tensors among a model's outputs, by name; where outputs have no names, the first ones that are not a loss.

    Raises `LossError` where they are not there.
    """
    if isinstance(outputs, (Tensor, tuple, list)) and not hasattr(outputs, names[0]):
        each = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        while each and isinstance(each[0], Tensor) and each[0].dim() == 0:
            del each[0]
        some = (each + [None] * len(names))[: len(names)]
    else:
        some = [named(outputs, name) for name in names]
    for name, x in zip(names, some, strict=True):
        if not isinstance(x, Tensor):
            there = ", ".join(map(str, outputs)) if isinstance(outputs, Mapping) else type(outputs).__name__
            raise LossError(
                f"the model must return {name}, got {there}: "
                "for such a model pass loss=f, where f(outputs, batch) returns one value per example"
            )
    return some


def named(outputs: Any, name: str) -> Any:
    """An output by its name, as an attribute or as a key."""
    attribute = getattr(outputs, name, None)
    return outputs.get(name) if attribute is None and isinstance(outputs, Mapping) else attribute


def check_token_labels(labels: Tensor, real: Tensor) -> None:
    """Raise `LossError` unless there is a label for each token, as `real`, [batch, token], says which there are."""
    if labels.shape != real.shape:
        raise LossError(
            f"labels must have a value for each token, [batch, token] = {list(real.shape)}, got {list(labels.shape)}; "
            f"{IGNORED} is for a token without a label"
        )


def token_logits(outputs: Any, labels: Tensor) -> Tensor:
    """[batch, token, class]: the logits of the tokens that have labels, without those of prompts before the text."""
    logits = _of_tokens(outputs, labels)
    return logits[:, logits.shape[1] - labels.shape[1] :]


def _of_tokens(outputs: Any, labels: Tensor) -> Tensor:
    """[batch, token, class]: the logits, of at least as many tokens as there are labels. Raises `LossError`."""
    (logits,) = found(outputs, LOGITS_OUTPUT)
    fits = logits.dim() == 3 and labels.dim() == 2 and len(logits) == len(labels)
    if not fits or logits.shape[1] < labels.shape[1]:
        raise LossError(wrong_shape("logits", [*labels.shape, "class"], logits))
    return logits


def next_tokens(outputs: Any, labels: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, the labels that they predict, and which of them count: each real token is predicted from the one before.

    Padding predicts nothing and is not predicted. Where it lies between two tokens, it is passed over. The first token
    is predicted where a prompt is before it, which has logits and no labels.
    """
    check_token_labels(labels, real)
    logits = _of_tokens(outputs, labels)
    prompt = logits.shape[1] - labels.shape[1]
    if prompt:
        labels, real = F.pad(labels, (prompt, 0), value=IGNORED), F.pad(real, (prompt, 0), value=True)
    if real.all():
        return logits[:, :-1], labels[:, 1:], real[:, 1:]
    counts = real[:, 1:] & (real.cumsum(1)[:, :-1] > 0)
    if not (counts & ~real[:, :-1]).any():
        return logits[:, :-1], labels[:, 1:], counts
    places = torch.arange(real.shape[1], device=real.device).expand_as(real)
    before = places.masked_fill(~real, 0).cummax(1).values[:, :-1]
    return logits.gather(1, before[..., None].expand(-1, -1, logits.shape[-1])), labels[:, 1:], counts


def wrong_shape(what: str, wanted: Any, got: Tensor) -> str:
    """Why logits of this shape do not fit to the labels, and what to do about it."""
    return (
        f"{what} must have the shape [{', '.join(map(str, wanted))}], as the labels say, got {list(got.shape)}: "
        "look at the labels, or pass loss=f, where f(outputs, batch) returns one value per example"
    )
