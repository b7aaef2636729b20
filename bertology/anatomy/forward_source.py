"""What the forward method of an attention module reads, told from its compiled code."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from .names import COUNT_NAMES, KEY_COUNT_NAMES, PRUNED_NAME


def acts_on_record(attention: nn.Module) -> bool:
    """Whether it reads which of its heads were pruned, as T5's does in transformers 4."""
    return PRUNED_NAME in _names(attention)


def asks_config(attention: nn.Module) -> bool:
    """Whether it may take its numbers of heads from the config that all layers share (Phi-3)."""
    return hasattr(attention, "config") and not {*COUNT_NAMES, *KEY_COUNT_NAMES}.isdisjoint(_names(attention))


def _names(attention: nn.Module) -> tuple[str, ...]:
    code: Any = getattr(inspect.unwrap(type(attention).forward), "__code__", None)
    return () if code is None else code.co_names
