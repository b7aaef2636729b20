"""How hidden states lie in what a block gets and returns."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor

from ..errors import UnknownAnatomy

_PLAIN = "batch token hidden"


def flat_states(x: Any, layout: str, where: object) -> Tensor:
    """[batch, token, hidden] of hidden states in the layout of a stack; several streams are one after the other.

    Raises `UnknownAnatomy` for another number of axes.
    """
    if layout == _PLAIN and isinstance(x, Tensor) and x.dim() == 3:
        return x
    if not isinstance(x, Tensor):
        raise UnknownAnatomy(f"{where} passes on {type(x).__name__}, wanted a tensor [{layout.replace(' ', ', ')}]")
    layout = _layout(x, layout)
    if x.dim() != len(layout.split()):
        raise UnknownAnatomy(f"{where} passes on {list(x.shape)}, wanted [{layout.replace(' ', ', ')}]")
    return x if layout == _PLAIN else rearrange(x, f"{layout} -> {_flat(layout)}")


def laid_out(states: Tensor, layout: str, like: Tensor) -> Tensor:
    """Hidden states [batch, token, hidden] in the layout of a stack, as `like` has it."""
    layout = _layout(like, layout)
    if layout == _PLAIN:
        return states
    sizes = {"hidden": like.shape[-1]} if "stream" in layout else {}
    return rearrange(states, f"{_flat(layout)} -> {layout}", **sizes)


def state_of(output: Any) -> Any:
    """The hidden states in what a block returns."""
    return output if isinstance(output, Tensor) else output[0]


def with_state(output: Any, new: Tensor) -> Any:
    """What a block returns, with other hidden states."""
    if isinstance(output, Tensor):
        return new
    rest = [new, *output[1:]]
    return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)  # a named tuple (Reformer)


def _layout(x: Tensor, layout: str) -> str:
    # The patches of all images in one row.
    return "token hidden" if x.dim() == 2 and layout == _PLAIN else layout


def _flat(layout: str) -> str:
    if layout == "token hidden":
        return "1 token hidden"
    return "batch token (stream hidden)" if "stream" in layout else _PLAIN
