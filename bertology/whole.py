"""What stays whole when heads are cut out of a layer?

A norm that runs over all queries or keys needs all of them, and a config that all layers share knows one number of
heads only. Both are wrapped for the layer that has fewer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class OfAllHeads(nn.Module):
    """A norm over all heads of an unpruned layer, of which only those that stay go on."""

    def __init__(self, norm: nn.Module, width: int) -> None:
        super().__init__()
        self.norm = norm
        # No tensor: transformers loads models without values for the buffers that are not in their files.
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
        out: Tensor = self.norm(x)
        return out.index_select(-1, torch.tensor(self._numbers, device=out.device))


def own_config(config: Any, own: dict[str, int]) -> Any:
    """The config, but for a layer's own numbers; of those, only what the config has."""
    whole = config.whole if isinstance(config, OfOneLayer) else config
    return OfOneLayer(whole, {name: number for name, number in own.items() if hasattr(whole, name)})


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
