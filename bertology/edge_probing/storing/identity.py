"""Were these vectors made of this model, these data and these settings?"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from ...data.batches import config_of
from ..tasks.records import EdgeTask

# Text in which tokenizers differ: case, accents, digits, signs, scripts, blanks.
_SAMPLE = "Él ate 1,234.5 naïve cafés, isn't HE?  日本語 x_y@z.com — №7"
# Settings that change no hidden state of a model in eval mode.
_IDLE = ("drop", "cache", "initializer", "token_id", "gradient_checkpointing")


def identity(model: nn.Module, tokenizer: Any, task: EdgeTask, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What tells one encoding from another, as JSON takes it."""
    return {
        "model": type(model).__name__,
        "weights": weights_digest(model),
        "config": _config(model),
        "tokenizer": tokenizer_digest(tokenizer),
        "data": data_digest(task),
        "labels": list(task.labels),
        "counted": list(task.counted),
        **settings,
    }


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What of an encoding is other than asked for, in words; empty if nothing is."""
    found = []
    for name, wanted in here.items():
        got = there.get(name)
        if name == "config":
            # Versions of transformers write down more settings or fewer: those in both are compared.
            found += [
                f"the model's {key} ({got[key]!r} there, {value!r} here)"
                for key, value in wanted.items()
                if isinstance(got, Mapping) and key in got and got[key] != value
            ]
        elif name in ("weights", "data", "tokenizer", "labels", "counted"):
            said = {"counted": "labels that count", "weights": "model's weights"}.get(name, name)
            found += [f"the {said}"] if got != wanted else []
        elif got != wanted:
            found.append(f"{name} ({got!r} there, {wanted!r} here)")
    return found


def weights_digest(model: nn.Module) -> str:
    """A digest of all weights: names, shapes, types and every byte, wherever they are. Modes and hooks don't count."""
    kept = set(model.state_dict())
    digest = hashlib.sha256()
    for name, x in [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in kept)]:
        digest.update(f"{name} {list(x.shape)} {x.dtype}\n".encode())
        if not x.is_meta:  # weights that are not loaded yet have no bytes
            digest.update(_bytes(x))
    return digest.hexdigest()


def data_digest(task: EdgeTask) -> str:
    """A digest of all words, spans and labels of a task, in their order. Names and further information don't count."""
    digest = hashlib.sha256()
    for record in task.records:
        targets = [(target.span1, target.span2, target.labels) for target in record.targets]
        digest.update(repr((record.words, targets)).encode())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """A digest of a tokenizer's vocabulary, and of what it makes of a text in which tokenizers differ."""
    made: list[Any] = []
    with suppress(Exception):  # of what is no tokenizer, or has no token for such text, only `align` complains
        made.append(sorted(tokenizer.get_vocab().items()))
        made.append(sorted((name, list(x)) for name, x in dict(tokenizer(_SAMPLE, verbose=False)).items()))
    return hashlib.sha256(repr(made).encode()).hexdigest()


def _bytes(x: Tensor) -> Any:
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _config(model: nn.Module) -> dict[str, Any]:
    """The settings that an architecture has of its own, such as its activation or its number of heads."""
    config = config_of(model)
    if not isinstance(config, PretrainedConfig):
        return {}
    return dict(_own(config.to_dict(), set(PretrainedConfig().to_dict()) | {"model_type"}))


def _own(settings: Mapping[str, Any], common: Collection[str], above: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by name, those inside others by both names: `rope_parameters.rope_theta`."""
    for name, value in settings.items():
        if name in common or any(part in str(name) for part in _IDLE):
            continue
        if isinstance(value, Mapping):
            yield from _own(value, common, f"{above}{name}.")
        elif isinstance(value, (list, tuple)):
            yield f"{above}{name}", [str(one) for one in value]
        elif isinstance(value, (bool, int, float, str)):
            yield f"{above}{name}", value
