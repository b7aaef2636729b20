"""Caches in a batch: keys, values and states of earlier tokens, which a model changes as it runs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import FunctionType, MethodType
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ..anatomy.names import CACHE_ARGUMENTS, STATE_ARGUMENTS
from ..errors import DataError


def own_caches(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with a copy of each cache: every pass starts from the same one, and the batch's own never changes."""
    return {name: _copy(value, {}) if holds_cache(name, value) else value for name, value in batch.items()}


def holds_cache(name: str, value: Any) -> bool:
    """Whether an argument of a model holds a cache, or another state of earlier tokens."""
    return value is not None and (name in STATE_ARGUMENTS or type(value).__name__.endswith("Cache"))


def has_cache(batch: Mapping[str, Any]) -> bool:
    """Whether a batch holds a cache."""
    return any(holds_cache(name, value) for name, value in batch.items())


def cached_tokens(batch: Mapping[str, Any]) -> tuple[int, int]:
    """How many earlier tokens the cache of a batch holds, and how many it has room for; 0 where it does not say."""
    for name in CACHE_ARGUMENTS:
        count = getattr(batch.get(name), "get_seq_length", None)
        if count is None:
            continue
        try:
            return int(count()), int(getattr(batch[name], "max_cache_len", 0))
        except (AttributeError, IndexError, TypeError, ValueError, NotImplementedError):  # it has no keys, but states
            continue
    return 0, 0


def check_no_cache(batch: Mapping[str, Any], *, why: str) -> None:
    """Raise `DataError` for a batch with a cache."""
    for name, value in batch.items():
        if holds_cache(name, value):
            raise DataError(
                f"{why}, but the rows of a cache cannot be told apart, got {name} ({type(value).__name__}): "
                "pass whole texts, with the earlier tokens in input_ids"
            )


def _copy(value: Any, done: dict[int, Any]) -> Any:
    """A copy of all tensors in a value, which no graph holds."""
    if id(value) in done:
        return done[id(value)]
    new = value
    if isinstance(value, Tensor):
        new = value.detach().clone()
    elif isinstance(value, (list, tuple, dict, set)):
        new = _copy_of_container(value, done)
    elif hasattr(value, "__dict__") and not isinstance(value, (*_SHARED, transformers.PretrainedConfig)):
        new = copy.copy(value)
        done[id(value)] = new
        for name, part in vars(value).items():
            vars(new)[name] = _copy(part, done)
    done[id(value)] = new
    return new


# What a cache refers to but does not own.
_SHARED = (type, nn.Module, FunctionType, MethodType, torch.device, torch.dtype)


def _copy_of_container(value: Any, done: dict[int, Any]) -> Any:
    if isinstance(value, dict):
        new = copy.copy(value)
        for key, part in value.items():
            new[key] = _copy(part, done)
        return new
    parts = [_copy(part, done) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
