"""What stays whole when heads are cut out of a layer?

A norm that runs over all queries or keys needs all of them, and a config that all layers share knows one number of
heads only. Both are wrapped for the layer that has fewer.
"""

from __future__ import annotations

import dis
import inspect
import itertools
from typing import Any

from torch import Tensor, nn

from .names import COUNT_NAMES, KEY_COUNT_NAMES


class OfAllHeads(nn.Module):
    """A norm over all heads of an unpruned layer, of which only those that stay go on."""

    def __init__(self, norm: nn.Module, width: int) -> None:
        super().__init__()
        self.norm = norm
        self._numbers = list(range(width))

    @property
    def left(self) -> int:
        """How many numbers go on."""
        return len(self._numbers)

    def keep(self, places: list[int]) -> None:
        """Let only these go on, of those that did."""
        self._numbers = [self._numbers[place] for place in places]

    def forward(self, x: Tensor) -> Tensor:
        """[..., the numbers that stay], of the norm of [..., all numbers]."""
        out: Tensor = self.norm(x)[..., self._numbers]
        return out


def own_config(config: Any, own: dict[str, int]) -> Any:
    """The config, but for a layer's own numbers; of those, only what the config has."""
    whole = config.whole if isinstance(config, OfOneLayer) else config
    return OfOneLayer(whole, {name: number for name, number in own.items() if hasattr(whole, name)})


def asks_config(attention: nn.Module) -> bool:
    """Whether the forward pass takes its numbers of heads from the config that all layers share (Phi-3)."""
    code = inspect.unwrap(type(attention).forward).__code__
    return hasattr(attention, "config") and not {*COUNT_NAMES, *KEY_COUNT_NAMES}.isdisjoint(_attributes_of_config(code))


def _attributes_of_config(code: Any) -> set[str]:
    """The attributes that a function takes of something called config."""
    steps = [step for step in dis.get_instructions(code) if step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_FAST")]
    return {b.argval for a, b in itertools.pairwise(steps) if a.argval == "config"}


class OfOneLayer:
    """A model's config, but for a layer's own numbers of heads."""

    def __init__(self, whole: Any, own: dict[str, int]) -> None:
        vars(self).update(own, whole=whole)

    def __getattr__(self, name: str) -> Any:
        if name == "whole" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.whole, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.whole, name, value)
