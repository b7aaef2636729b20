"""What of the last block does nobody read?

Many classifiers read the first position of each row, and nothing else of what their last block puts out. The products
with matrices behind its attention, which are taken position by position, are then needed for that position alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..anatomy.sites import Anatomy
from .replay import is_matrix, replace_forward


@contextmanager
def tail_noted(anatomy: Anatomy) -> Iterator[list[nn.Module]]:
    """Yields a list: once the pass in this `with` is over, of the products behind the attention of the last block."""
    tail: list[nn.Module] = []
    counts: Counter[nn.Module] = Counter()
    projections = {site.projection for site in anatomy.sites}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        counts[module] += 1
        if module in projections:
            tail.clear()
        tail.append(module)

    with ExitStack() as undo:
        for block in (stack.blocks[-1] for stack in anatomy.stacks if stack.blocks):
            undo.callback(block.register_forward_pre_hook(lambda *_: tail.clear()).remove)
            for module in filter(is_matrix, block.modules()):
                undo.callback(module.register_forward_hook(note).remove)
        yield tail
    tail[:] = [module for module in tail if counts[module] == 1]


@contextmanager
def first_only(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Take these products for the first position of each row alone; all others get what that one gets."""
    with ExitStack() as undo:
        for module in modules:
            replace_forward(module, partial(_of_first, module.forward), undo)
        yield


def _of_first(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return forward(x[:, :1]).expand(-1, x.shape[1], -1) if x.dim() == 3 else forward(x)
