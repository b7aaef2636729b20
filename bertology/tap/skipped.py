"""Blocks that are skipped, and MLPs that are closed, while the model runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.blocks import BlockAnatomy
from ..anatomy.names import STATES_ARGUMENT
from ..anatomy.sites import Anatomy, Site
from ..errors import ShapeError, UnknownAnatomy
from .hooks import tap
from .states import flat_states


@contextmanager
def skipping(blocks: BlockAnatomy, rows: Collection[int]) -> Iterator[set[int]]:
    """Skip these blocks while the `with` lasts: each passes on what it gets. They run all the same.

    The set that is given holds the rows of those that have run.

    What a block gets is not always what the block before it returns: some models change the states in between (Dory).
    """
    skipped = {(site.stack, site.layer + 1): site for site in (blocks.sites[row] for row in rows)}
    layouts = {stack.name: stack.layout for stack in blocks.stacks}
    ran: set[int] = set()

    def edit(stack: str, layer: int, x: Tensor) -> Tensor:
        site = skipped.get((stack, layer))
        if site is None:
            return x
        ran.add(site.row)
        return passed_on(site, got.pop(site.place), layouts[stack], x)

    with ExitStack() as undo:
        undo.enter_context(tap(blocks, "block", edit=edit))
        got = undo.enter_context(given_noted({site.place for site in skipped.values()}))
        yield ran


@contextmanager
def given_noted(blocks: Collection[nn.Module]) -> Iterator[dict[nn.Module, Any]]:
    """Note the hidden states that these blocks are given, while the `with` lasts, in the mapping that is yielded."""
    got: dict[nn.Module, Any] = {}

    def note(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        got[block] = given_states(args, kwargs)

    with ExitStack() as undo:
        for block in blocks:
            undo.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield got


def given_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A copy of the hidden states among the arguments of a block: the block, or what comes later, may change them."""
    if not args and STATES_ARGUMENT not in kwargs:
        raise UnknownAnatomy(f"a block gets no {STATES_ARGUMENT}, but {', '.join(kwargs)}")
    given = args[0] if args else kwargs[STATES_ARGUMENT]
    return given.clone() if isinstance(given, Tensor) else given


def passed_on(site: Site, given: Any, layout: str, x: Tensor) -> Tensor:
    """[batch, token, hidden]: the states that a block was given, for it to return them in place of x."""
    states = flat_states(given, layout, site.label)
    if states.shape != x.shape:
        raise ShapeError(
            f"block {site.label} of the {site.stack} cannot be skipped: it gets {list(states.shape)}, and returns "
            f"{list(x.shape)}"
        )
    return states


@contextmanager
def mlps_closed(mlps: Anatomy, rows: Collection[int]) -> Iterator[set[int]]:
    """Let these MLPs return 0 while the `with` lasts. The set that is given holds the rows of those that have run."""
    ran: set[int] = set()

    def edit(site: Site, x: Tensor) -> Tensor:
        if site.row not in rows:
            return x
        ran.add(site.row)
        return torch.zeros_like(x)

    with tap(mlps, "mlp", edit=edit):
        yield ran
