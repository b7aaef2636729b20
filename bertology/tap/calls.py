"""Which layer is running.

A module that several layers share (ALBERT) runs several times in one run of its stack: its calls are counted.
Counting also proves that every layer ran as often as it should: a hook on a module that the model bypasses
would see nothing, and one on a module that runs again would count it twice.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

from torch import nn

from ..anatomy.modules import each_module
from ..anatomy.oddities import oddities_of
from ..anatomy.sites import Anatomy, Site
from ..errors import UnknownAnatomy, how_many
from .listed import is_listed
from .private_api import Hook, set_hooks
from .recompute import Edit, applies, keep_for_recomputation, recomputing

Place = TypeVar("Place")


def attention_modules(anatomy: Anatomy) -> dict[Site, nn.Module]:
    """{site: what runs its attention}: the attention itself, or what holds it where the model replaces it (BigBird)."""
    remade = {site.attention for site in anatomy.sites if oddities_of(site.attention).remade}
    modules = anatomy.model.modules() if remade else ()
    holders = {child: module for module in modules for child in module.children() if child in remade}
    return {site: holders.get(site.attention, site.attention) for site in anatomy.sites}


class Calls(Generic[Place]):
    """For each module the layers or sites of its calls, in order, counted from 0 in every run of its stack.

    A model may run a stack several times in one forward pass (an encoder that two texts share). With `once` that is
    refused: what is read would be of several texts, and would be taken for that of one.
    """

    def __init__(
        self, places: Sequence[tuple[nn.Module, Place]], *, may_rest: Iterable[nn.Module] = (), once: bool = True
    ) -> None:
        self._places: dict[nn.Module, list[Place]] = {}
        for module, place in places:
            self._places.setdefault(module, []).append(place)
        self._done = dict.fromkeys(self._places, 0)
        self._may_rest = set(may_rest)
        self._once = once
        self._model: nn.Module | None = None
        self._in_model = False
        # {what runs a stack: the modules in it}, and those that ran in the pass at hand.
        self._inside: dict[nn.Module, list[nn.Module]] = {}
        self._ran: set[nn.Module] = set()
        self._edit: weakref.ref[Edit] | None = None

    @property
    def count(self) -> bool:
        """Whether what runs now is to be read or edited: a part that runs again was read in its first run."""
        return applies(None if self._edit is None else self._edit())

    def edit_again(self, place: Callable[[ExitStack], None], undo: ExitStack) -> None:
        """Let parts that run again in a backward pass be edited again: `place` sets the hooks for that."""
        assert self._model is not None  # `watch` has set it
        edit = Edit(self._model, place, self._note)
        self._edit = weakref.ref(edit)  # which holds these calls: a cycle would keep the model in memory
        keep_for_recomputation(edit, undo)

    def _note(self) -> Callable[[], AbstractContextManager[None]]:
        return partial(self._counting_from, dict(self._done))

    @contextmanager
    def _counting_from(self, counts: dict[nn.Module, int]) -> Iterator[None]:
        before, self._done = self._done, dict(counts)
        try:
            yield
        finally:
            self._done = before

    @property
    def modules(self) -> list[nn.Module]:
        """Each module once."""
        return list(self._places)

    def next(self, module: nn.Module) -> Place:
        """The layer or site of this call of `module`, which is counted."""
        return self.counted(module) if self.count else self._places[module][0]

    def counted(self, module: nn.Module) -> Place:
        """`next`, where it is known that what runs now is to be read or edited."""
        places, done = self._places[module], self._done[module]
        place = places[0] if len(places) == 1 else self._place(module, done)
        self._done[module] = done + 1
        return place

    def coming(self, module: nn.Module) -> Place:
        """The layer or site of this call of `module`."""
        places = self._places[module]
        return places[0] if len(places) == 1 or not self.count else self._place(module, self._done[module])

    def _place(self, module: nn.Module, done: int) -> Place:
        """The layer or site of the call of `module` after so many others."""
        places = self._places[module]
        if done >= len(places):
            raise UnknownAnatomy(
                f"a shared {type(module).__name__} ran more than {how_many(len(places), 'time')} in one forward pass, "
                "so its calls cannot be told apart (gradient checkpointing runs them again: turn it off)"
            )
        return places[done]

    def watch(self, anatomy: Anatomy, undo: ExitStack) -> None:
        """Set the hooks that count, while `undo` is open."""
        set_hooks(self.hooks(anatomy), undo)

    def hooks(self, anatomy: Anatomy) -> list[Hook]:
        """What counts from 0 in every forward pass of the model, or of a stack that is run by itself, and checks it.

        A stack that does not run is not checked (an image tower without an image), and modules that may rest need
        not run: a decoder without an encoder's states skips its cross attention.
        """
        self._model = anatomy.model
        self._inside = self._by_stack(anatomy)
        hooks = [Hook(self._inside, self._start_stack, before=True), Hook(self._inside, self._end_stack)]
        if anatomy.model not in self._inside:
            model = [anatomy.model]
            hooks += [Hook(model, self._start_model, before=True), Hook(model, self._end_model)]
            hooks.append(Hook(model, self._leave_model, always_call=True))
        return hooks

    def _start_stack(self, stack: nn.Module, args: Any) -> None:
        if self._in_model and not self._is_complete(stack):
            return  # the first run, or one of several that make up a pass together (`REPEATS`)
        if self._in_model and self._once:
            raise UnknownAnatomy(self._again(stack))
        self._done.update(dict.fromkeys(self._inside[stack], 0))

    def _is_complete(self, stack: nn.Module) -> bool:
        """Whether a stack ran in the pass at hand, each of its modules as often as it should."""
        modules = self._inside[stack]
        return any(map(self._done.__getitem__, modules)) and all(map(self._is_done, modules))

    def _is_done(self, module: nn.Module) -> bool:
        done = self._done[module]
        return done == len(self._places[module]) or (done == 0 and module in self._may_rest)

    def _again(self, stack: nn.Module) -> str:
        assert self._model is not None
        path = next(path for path, module in self._model.named_modules() if module is stack)
        return (
            f"the model runs {path} ({type(stack).__name__}) several times in one forward pass: what is read of it is "
            "of several texts. Read the part of the model that runs several times by itself, on each text in turn; "
            "gates, ablations, importance and pruning work on the whole model, and hold in every run"
        )

    def _end_stack(self, stack: nn.Module, args: Any, output: Any) -> None:
        self._ran.add(stack)
        if not self._in_model:
            self._check_all()

    def _start_model(self, model: nn.Module, args: Any) -> None:
        self._done.update(dict.fromkeys(self._places, 0))
        self._ran.clear()
        self._in_model = True

    def _end_model(self, model: nn.Module, args: Any, output: Any) -> None:
        self._in_model = False
        self._check_all()

    def _leave_model(self, model: nn.Module, args: Any, output: Any) -> None:
        """Called also where the model raised."""
        self._in_model = False

    def _check_all(self) -> None:
        """Check the stacks that ran; not in a part that runs again, which may end early."""
        for stack in self._ran:
            if not stack.training and not recomputing():  # LayerDrop skips layers in training
                self._check(self._inside[stack])
        self._ran.clear()

    def _by_stack(self, anatomy: Anatomy) -> dict[nn.Module, list[nn.Module]]:
        """{module that runs a stack: modules in it}; of nested stacks (a text model, an image tower), the inner one."""
        if is_listed(anatomy):
            all_parts = anatomy.parts_of_stacks
        else:
            all_parts = {stack.module: frozenset(each_module(stack.module)) for stack in anatomy.stacks}
        if len(all_parts) == 1 and all(parts.issuperset(self._places) for parts in all_parts.values()):
            return dict.fromkeys(all_parts, self.modules)
        inner_first = sorted(all_parts, key=lambda stack: len(all_parts[stack]))
        inside: dict[nn.Module, list[nn.Module]] = {stack: [] for stack in inner_first}
        for module, places in self._places.items():
            stack = next((stack for stack in inner_first if module in all_parts[stack]), None)
            if stack is None:
                raise UnknownAnatomy(f"{places[0]} is no longer part of the model: dissect it again")
            inside[stack].append(module)
        return inside

    def _check(self, modules: list[nn.Module]) -> None:
        for module in itertools.filterfalse(self._is_done, modules):
            done, places = self._done[module], self._places[module]
            where = (
                f"{places[0]} was not reached in the forward pass"
                if done < len(places)
                else f"{places[0]} is not alone"
            )
            raise UnknownAnatomy(
                f"{where}: its module ran {how_many(done, 'time')}, wanted {len(places)}. "
                + (
                    "The model bypasses it"
                    if done < len(places)
                    else "The model runs it in a loop, or a reader ran the model"
                )
            )
