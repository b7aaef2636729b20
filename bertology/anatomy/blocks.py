"""The blocks of a model as the rows of a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import UnknownAnatomy
from .sites import Anatomy, Site


@dataclass(frozen=True, eq=False)
class Block(Site):
    """One block of a stack. `layer` is its number there, from 0; `place` and all other modules are the block itself."""

    unit: ClassVar[str] = "block"


class BlockAnatomy(Anatomy):
    """The blocks of `model`. The axis `layer` of results of blocks runs over `sites`, in this order."""


def blocks_of(anatomy: Anatomy) -> BlockAnatomy:
    """The blocks of all stacks, in the order in which they run.

    Raises `UnknownAnatomy` for a model in which no module is a block.
    """
    if isinstance(anatomy, BlockAnatomy):
        return anatomy
    paths = {module: path for path, module in anatomy.model.named_modules()}
    sites: list[Block] = []
    for stack in anatomy.stacks:
        for layer, block in enumerate(() if stack.single else stack.blocks):
            call = stack.blocks[:layer].count(block)
            parts = (block, block, block, block, block, block, block)
            sites.append(Block(len(sites), stack.name, layer, call, 1, 1, (0,), paths[block], stack.layout, "", *parts))
    if not sites:
        raise UnknownAnatomy(f"no module of {type(anatomy.model).__name__} is a block: its layers are several lists")
    return BlockAnatomy(anatomy.model, tuple(sites), anatomy.stacks, modules=anatomy.modules)
