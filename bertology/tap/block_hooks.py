"""Hooks that read or edit hidden states between blocks."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..anatomy.forward_source import is_transformers_4
from ..anatomy.names import STATES_ARGUMENT
from ..anatomy.sites import Anatomy
from ..errors import UnknownAnatomy
from .calls import Calls
from .edits import same_shape
from .private_api import Hook, edit_output, has_own_hooks, hook_behind_own, set_hooks
from .recompute import recomputing
from .states import flat_states, laid_out, state_of, with_state


class _Block(NamedTuple):
    stack: str
    layer: int

    def __str__(self) -> str:
        return f"block {self.layer} of the {self.stack}"


def tap_blocks(anatomy: Anatomy, undo: ExitStack, read: Any, edit: Any, once: bool) -> None:
    """Read or edit what blocks return, and what the first of a stack is given, while `undo` is open."""
    tapped = _TappedBlocks(anatomy, read, edit, once)

    def place(undo: ExitStack) -> None:
        set_hooks(tapped.hooks(anatomy), undo)
        if edit is None:
            return
        # An editor comes behind hooks of the user's own, as a reader does, but before transformers notes the hidden
        # states, which some models go on with: a hook of its own, and before transformers 5 a wrapper of `forward`.
        plain = []
        for block in tapped.calls.modules:
            if has_own_hooks(block):
                undo.callback(hook_behind_own(block, tapped.edit_output).remove)
            elif is_transformers_4():
                edit_output(block, tapped.edit_output, undo)
            else:
                plain.append(block)
        set_hooks([Hook(plain, tapped.edit_output, prepend=True)], undo)

    place(undo)
    if edit is not None:
        tapped.calls.edit_again(place, undo)


class _TappedBlocks:
    """The hooks around each block, with the reader or the editor that they call."""

    def __init__(self, anatomy: Anatomy, read: Any, edit: Any, once: bool) -> None:
        places = [
            (block, _Block(stack.name, layer))
            for stack in anatomy.stacks
            for layer, block in enumerate(stack.blocks, start=1)
        ]
        self.calls = Calls(places, once=once)
        self.firsts = list(dict.fromkeys(stack.blocks[0] for stack in anatomy.stacks if stack.blocks))
        self._layouts = {stack.name: stack.layout for stack in anatomy.stacks}
        self._read, self._edit = read, edit

    def hooks(self, anatomy: Anatomy) -> list[Hook]:
        """What counts, and what reads; an edit of what blocks return has a place of its own among other hooks."""
        hooks = [*self.calls.hooks(anatomy), Hook(self.firsts, self.before, before=True, with_kwargs=True)]
        return hooks if self._edit is not None else [*hooks, Hook(self.calls.modules, self.read_output)]

    def before(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Read or edit what the first block of a stack is given."""
        if not self.calls.count:
            return None
        stack, layer = self.calls.coming(block)
        if layer > 1:
            return None  # a block that is shared by all layers
        named = not args
        if named and STATES_ARGUMENT not in kwargs:
            raise UnknownAnatomy(f"the first block of the {stack} gets no {STATES_ARGUMENT}, but {', '.join(kwargs)}")
        new = self._apply(_Block(stack, 0), kwargs[STATES_ARGUMENT] if named else args[0])
        if new is None:
            return None
        return (args, kwargs | {STATES_ARGUMENT: new}) if named else ((new, *args[1:]), kwargs)

    def read_output(self, block: nn.Module, args: Any, output: Any) -> None:
        """Read what a block returns."""
        if recomputing():
            return
        x = output if isinstance(output, Tensor) else state_of(output)
        if isinstance(x, tuple):
            x = x[0]  # LiLT of transformers 4: its text beside its layout
        at = self.calls.counted(block)
        self._read(at.stack, at.layer, flat_states(x, self._layouts[at.stack], at))

    def edit_output(self, block: nn.Module, args: Any, output: Any) -> Any:
        """Edit what a block returns."""
        if recomputing() and not self.calls.count:
            return None
        new = self._apply(self.calls.counted(block), output if isinstance(output, Tensor) else state_of(output))
        return None if new is None else with_state(output, new)

    def _apply(self, at: _Block, x: Tensor) -> Tensor | None:
        stack, layer = at
        layout = self._layouts[stack]
        states = flat_states(x, layout, at)
        if self._edit is None:
            self._read(stack, layer, states)
            return None
        return laid_out(same_shape(self._edit(stack, layer, states), states, at), layout, x)


def tap_last(anatomy: Anatomy, undo: ExitStack, read: Any, edit: Any, once: bool) -> None:
    """Read the last hidden states of stacks while `undo` is open."""
    set_hooks(_of_last(anatomy, read), undo)


def read_states(anatomy: Anatomy, undo: ExitStack, read: Any, read_last: Any) -> None:
    """Read what blocks return in every run of a stack, and the last hidden states, while `undo` is open."""
    set_hooks([*_TappedBlocks(anatomy, read, None, once=False).hooks(anatomy), *_of_last(anatomy, read_last)], undo)


def _of_last(anatomy: Anatomy, read: Any) -> list[Hook]:
    """What reads the last hidden states of stacks."""

    def after(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            read(name, output)
        else:
            read(name, output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0])

    return [Hook([stack.last], partial(after, stack.name)) for stack in anatomy.stacks]
