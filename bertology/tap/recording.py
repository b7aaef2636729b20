"""What did a pass make, block by block?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from ..anatomy.sites import Anatomy
from .calls import Calls
from .replay import AttentionCall, BlockCall, Recording
from .still import uncompiled


@contextmanager
def recorded(anatomy: Anatomy, rows: int) -> Iterator[Recording]:
    """Record the pass of the model in this `with`, on a batch of so many rows."""
    recording = Recording(anatomy, rows)
    stacks = {block: stack for stack in anatomy.stacks for block in stack.blocks}
    running: list[int] = []
    at_work: list[AttentionCall] = []
    sites = Calls([(site.attention, site) for site in anatomy.sites], may_rest=[s.attention for s in anatomy.sites])

    def start_block(module: nn.Module, args: Any) -> None:
        recording.blocks.append(BlockCall(module, stacks[module], running[-1] if running else None))
        running.append(len(recording.blocks) - 1)

    def end_block(module: nn.Module, args: Any, output: Any) -> None:
        call = recording.blocks[running.pop()]
        call.output, call.ended = output, len(recording.blocks)

    def start_attention(module: nn.Module, args: Any) -> None:
        at_work.append(AttentionCall(running[-1] if running else None))
        recording.attentions[sites.next(module).row] = at_work[-1]

    def end_attention(module: nn.Module, args: Any, output: Any) -> None:
        at_work[-1].output = output

    def end_projection(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if at_work and len(args) == 1 and not kwargs:
            at_work[-1].heads, at_work[-1].projected = args[0], output

    with ExitStack() as undo:
        undo.enter_context(uncompiled())
        sites.watch(anatomy, undo)
        for block in stacks:
            undo.callback(block.register_forward_pre_hook(start_block).remove)
            undo.callback(block.register_forward_hook(end_block).remove)
        for attention in sites.modules:
            undo.callback(attention.register_forward_pre_hook(start_attention).remove)
            undo.callback(attention.register_forward_hook(end_attention).remove)
        for projection in {site.projection for site in anatomy.sites if not site.weight}:
            undo.callback(projection.register_forward_hook(end_projection, with_kwargs=True).remove)
        yield recording
