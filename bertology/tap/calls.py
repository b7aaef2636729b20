"""Which layer is running?

A module that several layers share (ALBERT) runs several times in one forward pass: its calls are counted.
Counting also proves that every layer ran, for a tap on a module that the model goes around would see nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Generic, TypeVar

from torch import nn

from ..errors import UnknownAnatomy
from ..site import Anatomy

Place = TypeVar("Place")


class Calls(Generic[Place]):
    """For each module the places that its calls stand for, in order; counted anew in every forward pass."""

    def __init__(self, places: Sequence[tuple[nn.Module, Place]], *, may_rest: Iterable[nn.Module] = ()) -> None:
        self._places: dict[nn.Module, list[Place]] = {}
        for module, place in places:
            self._places.setdefault(module, []).append(place)
        self._done = dict.fromkeys(self._places, 0)
        self._may_rest = set(may_rest)

    @property
    def modules(self) -> list[nn.Module]:
        """Each module once."""
        return list(self._places)

    def next(self, module: nn.Module) -> Place:
        """The place that this call of `module` stands for."""
        done, places = self._done[module], self._places[module]
        if len(places) > 1 and done >= len(places):
            raise UnknownAnatomy(
                f"a shared {type(module).__name__} ran more than {len(places)} times in one forward pass, so its calls "
                "cannot be told apart (gradient checkpointing runs them again: turn it off)"
            )
        self._done[module] = done + 1
        return places[done] if len(places) > 1 else places[0]

    def watch(self, anatomy: Anatomy, undo: ExitStack) -> None:
        """Start counting at every forward pass of a stack, and check at its end that every module ran.

        Modules that may rest need not: a decoder without an encoder's states goes around its cross attention.
        """
        for stack in anatomy.stacks:
            inside = set(stack.module.modules())
            modules = [module for module in self._places if module in inside]

            def start(module: nn.Module, args: Any, modules: list[nn.Module] = modules) -> None:
                self._done.update(dict.fromkeys(modules, 0))

            def end(module: nn.Module, args: Any, output: Any, modules: list[nn.Module] = modules) -> None:
                if module.training:
                    return  # LayerDrop skips layers in training
                for m in modules:
                    if self._done[m] < len(self._places[m]) and m not in self._may_rest:
                        raise UnknownAnatomy(
                            f"{self._places[m][0]} was not reached in the forward pass: its module ran "
                            f"{self._done[m]} times, wanted {len(self._places[m])}. The model goes around it"
                        )

            undo.callback(stack.module.register_forward_pre_hook(start).remove)
            undo.callback(stack.module.register_forward_hook(end).remove)
