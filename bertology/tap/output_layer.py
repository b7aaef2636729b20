"""The output layer of a language model, left out of a pass: it is applied later, to the positions that are read.

A vocabulary has tens of thousands of tokens, and a loss reads the logits of labelled positions alone. A pass without
the output layer returns the states before it in place of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ..anatomy.names import LOGITS_OUTPUT
from ..anatomy.sites import Anatomy
from ..data.outputs import found
from ..errors import LossError
from .private_api import replace_forward
from .resume import is_matrix

Noted = list[tuple[nn.Module, Any]]


@contextmanager
def products_noted(anatomy: Anatomy) -> Iterator[Noted]:
    """Yield a list that holds, after the pass in this `with`, the matrix products outside all blocks, and what they
    returned."""
    inside = {module for stack in anatomy.stacks for block in stack.blocks for module in block.modules()}
    noted: Noted = []
    with ExitStack() as undo:
        for module in anatomy.model.modules():
            if is_matrix(module) and module not in inside:
                undo.callback(module.register_forward_hook(lambda m, _, output: noted.append((m, output))).remove)
        yield noted


def output_layer(noted: Noted, outputs: Any) -> nn.Module | None:
    """The module that made the model's logits, if they are its output as it is, and it ran once."""
    try:
        (logits,) = found(outputs, LOGITS_OUTPUT)
    except LossError:
        return None
    for module, output in noted:
        if output is logits and sum(other is module for other, _ in noted) == 1:
            return module
    return None


@contextmanager
def output_layer_left_out(layer: nn.Module) -> Iterator[None]:
    """Let a model return, in place of its logits, the states that its output layer would make them of."""
    with ExitStack() as undo:
        replace_forward(layer, _unchanged, undo)
        yield


def _unchanged(states: Tensor) -> Tensor:
    return states
