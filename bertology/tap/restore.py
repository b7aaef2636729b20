"""Leaving a model as it was found: modes, configs, random state, compilation and caches.

Taps may be opened and closed by generators and in threads, and one config may belong to several models: a setting that
several of them change returns to its first value in whatever order they end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ..anatomy.names import USE_CACHE_ARGUMENT, block_oddities_of
from .private_api import may_be_compiled

_switching = threading.Lock()
# {(id of the owner, attribute): (owner, first value, {who set it: value})}
_turned: dict[tuple[int, str], tuple[Any, Any, dict[object, Any]]] = {}


def turn(owner: Any, name: str, value: Any, undo: ExitStack) -> None:
    """Set an attribute while `undo` is open. Of several values the last holds; at the end the first is restored."""
    key, who = (id(owner), name), object()
    with _switching:
        _turned.setdefault(key, (owner, getattr(owner, name), {}))[2][who] = value
        setattr(owner, name, value)
    undo.callback(_turn_back, key, who)


def _turn_back(key: tuple[int, str], who: object) -> None:
    with _switching:
        owner, before, values = _turned[key]
        del values[who]
        if not values:
            del _turned[key]
        setattr(owner, key[1], next(reversed(values.values()), before))


def first_value(owner: Any, name: str) -> Any:
    """What an attribute is when no tap sets it; None where there is none."""
    with _switching:
        return _turned[id(owner), name][1] if (id(owner), name) in _turned else getattr(owner, name, None)


_lock = threading.Lock()
_uncompiled: list[Any] = []


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled models uncompiled: a graph that was compiled before a hook was set silently skips it.

    The switch is torch's own, for the whole process; several taps at once, in threads too, turn it once.
    """
    if not may_be_compiled():
        yield  # nothing was ever compiled
        return
    with _lock:
        if not _uncompiled:
            _uncompiled.append(torch.compiler.set_stance("force_eager"))
            _uncompiled[0].__enter__()
        _uncompiled.append(None)
    try:
        yield
    finally:
        with _lock:
            _uncompiled.pop()
            if len(_uncompiled) == 1:
                _uncompiled.pop().__exit__(None, None, None)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the model in eval mode; put back every module's mode, the random state and what passes set in configs."""
    modes = [(module, module.training) for module in model.modules()]
    configs: list[Any] = list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with ExitStack() as undo:
        undo.enter_context(torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)))
        for config in configs:
            if hasattr(config, "return_dict"):
                turn(config, "return_dict", True, undo)  # outputs are read by name
            if hasattr(config, "problem_type"):
                # A sequence classifier that is given labels writes the problem type that it guessed into its config.
                turn(config, "problem_type", config.problem_type, undo)
        for module, mode in modes:
            undo.callback(setattr, module, "training", mode)
            module.training = False
        yield


@contextmanager
def uncached(model: nn.Module) -> Iterator[None]:
    """Turn off the cache of keys and values: a pass that skips blocks would leave gaps in it."""
    configs: dict[int, Any] = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    if any(block_oddities_of(module).needs_cache for module in model.modules()):
        configs = {}
    with ExitStack() as undo:
        for config in configs.values():
            if getattr(config, USE_CACHE_ARGUMENT, False):
                turn(config, USE_CACHE_ARGUMENT, False, undo)
        yield
