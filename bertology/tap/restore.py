"""Leaving a model as it was found: modes, configs, random state, compilation and caches.

Taps may be opened and closed by generators and in threads, and one config may belong to several models: a setting that
several of them change returns to its first value in whatever order they end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any, NamedTuple

import numpy
import torch
from torch import nn

from ..anatomy.modules import Modules, attributes_of, each_module, each_weight
from ..anatomy.names import SWITCHED_NAME, USE_CACHE_ARGUMENT
from ..anatomy.oddities import block_oddities_of
from .listed import modules_of, take_as_listed
from .private_api import may_be_compiled
from .threads import claim
from .wrapped import run_alone

_switching = threading.Lock()
# {(id of the owner, attribute): (owner, first value, {who set it: value})}
_turned: dict[tuple[int, str], tuple[Any, Any, dict[object, Any]]] = {}


def turn(owner: Any, name: str, value: Any, undo: ExitStack) -> None:
    """Set an attribute while `undo` is open. Of several values the last holds; at the end the first is restored."""
    key, who = (id(owner), name), object()
    with _switching:
        before = _value(owner, name)
        _turned.setdefault(key, (owner, before, {}))[2][who] = value
        if before is not value:
            setattr(owner, name, value)
    undo.callback(_turn_back, key, who)


def _value(owner: Any, name: str) -> Any:
    held = attributes_of(owner)
    return held[name] if name in held else getattr(owner, name)


def _turn_back(key: tuple[int, str], who: object) -> None:
    with _switching:
        owner, before, values = _turned[key]
        del values[who]
        if not values:
            del _turned[key]
        value = next(reversed(values.values()), before)
        if _value(owner, key[1]) is not value:
            setattr(owner, key[1], value)


def first_value(owner: Any, name: str) -> Any:
    """What an attribute is when no tap sets it; None where there is none."""
    with _switching:
        return _turned[id(owner), name][1] if (id(owner), name) in _turned else getattr(owner, name, None)


_lock = threading.Lock()
_uncompiled: list[Any] = []


@contextmanager
def uncompiled() -> Iterator[None]:
    """`run_uncompiled` while the `with` lasts."""
    with ExitStack() as undo:
        run_uncompiled(undo)
        yield


def run_uncompiled(undo: ExitStack) -> None:
    """Run compiled models uncompiled: a graph that was compiled before a hook was set silently skips it.

    The switch is torch's own, for the whole process; several taps at once, in threads too, turn it once.
    """
    if not may_be_compiled():
        return  # nothing was ever compiled
    with _lock:
        if not _uncompiled:
            _uncompiled.append(torch.compiler.set_stance("force_eager"))  # which sets it; at its end, what was before
        _uncompiled.append(None)
    undo.callback(_compile_again)


def _compile_again() -> None:
    with _lock:
        _uncompiled.pop()
        if len(_uncompiled) == 1:
            _uncompiled.pop().__exit__(None, None, None)


@contextmanager
def undisturbed(model: nn.Module, modules: Modules | None = None) -> Iterator[None]:
    """Run the model in eval mode; put back every module's mode, the random state and what passes set in configs.

    `modules` are all of the model, each once, where they were listed just now.

    A pass on a short text makes BigBird replace its attention for good. That is taken back after every pass, so that a
    long text is read as if it came first, and left as the model wants it at the end.
    Raises `BertologyError` while another thread measures or edits the model.
    """
    with ExitStack() as undo:
        claim(model, undo)  # first: a mode that another thread set is not the one to restore
        run_alone(model, undo)
        take_as_listed(model, modules, undo)
        modules = each_module(model) if modules is None else modules
        # Where CUDA was not used yet, no weight is there.
        weights = each_weight(modules) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
        devices = {x.device.index for x in weights if x.is_cuda}
        # As `torch.random.fork_rng` does, which takes as long as a layer to find out which kinds of devices there are.
        undo.callback(torch.set_rng_state, torch.get_rng_state())
        for device in sorted(one for one in devices if one is not None):
            undo.callback(torch.cuda.set_rng_state, torch.cuda.get_rng_state(device), device)
        for config in modules.configs:
            held = attributes_of(config)
            if "return_dict" in held or hasattr(config, "return_dict"):
                turn(config, "return_dict", True, undo)  # outputs are read by name
            if "problem_type" in held or hasattr(config, "problem_type"):
                # A sequence classifier that is given labels writes the problem type that it guessed into its config.
                turn(config, "problem_type", _value(config, "problem_type"), undo)
        _keep_attention(modules, undo)
        modes = list(map(_mode, modules))
        undo.callback(_set_modes, modules, modes)
        if any(modes):
            _set_modes(modules, [False] * len(modes))
        yield


_mode = attrgetter("training")


def _set_modes(modules: Sequence[nn.Module], modes: list[bool]) -> None:
    if list(map(_mode, modules)) == modes:
        return
    for module, mode in zip(modules, modes, strict=True):
        if module.training is not mode:
            module.training = mode


def _keep_attention(modules: Modules, undo: ExitStack) -> None:
    """Put back attention that is replaced in a pass after every pass, while `undo` is open, and numpy's random state.

    At the end the model is as its passes would have left it without this library: transformers can return no attention
    maps of a short text before BigBird has changed.
    """
    switched = modules.with_attribute(SWITCHED_NAME)
    if not switched:
        return
    before = _held(switched)
    changed: list[_Held] = []

    def put_back(*_: Any) -> None:
        if any(getattr(one.module, SWITCHED_NAME) != one.kind for one in before):
            changed[:] = _held(switched)
            _hold(before)

    def leave() -> None:
        _hold(changed)
        for one in changed:
            for part in one.module.modules():
                if part not in known:
                    part.training = one.module.training

    known = set(modules)
    inner = {part for module in switched for part in module.modules() if part is not module}
    undo.callback(leave)
    for module in switched:
        if module not in inner:
            undo.callback(module.register_forward_hook(put_back, always_call=True).remove)
    # Its block-sparse attention seeds numpy in every pass.
    undo.callback(numpy.random.set_state, numpy.random.get_state())


class _Held(NamedTuple):
    """A module, its kind of attention, and what it holds."""

    module: nn.Module
    kind: str
    children: dict[str, nn.Module]


def _held(switched: list[nn.Module]) -> list[_Held]:
    return [_Held(module, getattr(module, SWITCHED_NAME), dict(module.named_children())) for module in switched]


def _hold(states: list[_Held]) -> None:
    for module, kind, children in states:
        setattr(module, SWITCHED_NAME, kind)
        for name, child in children.items():
            if getattr(module, name) is not child:
                setattr(module, name, child)


@contextmanager
def uncached(model: nn.Module) -> Iterator[None]:
    """Turn off the cache of keys and values: a pass that skips blocks would leave gaps in it."""
    modules = modules_of(model)
    one_of_each = dict(zip(map(type, modules), modules, strict=True)).values()
    needed = any(block_oddities_of(module).needs_cache for module in one_of_each)
    with ExitStack() as undo:
        for config in () if needed else modules.configs:
            # Another model with this config may have turned it off just now, and on again before this one has ended.
            if attributes_of(config).get(USE_CACHE_ARGUMENT) or first_value(config, USE_CACHE_ARGUMENT):
                turn(config, USE_CACHE_ARGUMENT, False, undo)
        yield
