"""Which modules are attention, and what is around them?"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from .names import CROSS_NAMES, NAMES, RECURRENT_NAMES, Names

_BLOCK = re.compile(r"(.*\.\d+|\d+)(?:\.|$)")
# T5's blocks hold their parts in a list of their own.
_SUBLAYER = re.compile(r"((?:^|\.)block\.\d+)\.layer\.\d+$")


class Found(NamedTuple):
    """An attention module on the way to a site."""

    path: str
    block: str
    names: Names
    cross: bool


def find_attentions(modules: dict[str, nn.Module]) -> list[Found]:
    """Every attention module with all the parts that some line of the table asks for, once for each block around it."""
    found = []
    seen = set()
    for path, module in modules.items():
        names = next((names for names in NAMES if _fits(modules, path, module, names)), None)
        if names is None or any(hasattr(module, name) for name in RECURRENT_NAMES):
            continue
        block = _SUBLAYER.sub(r"\1", _block(path))
        # A module known by two names (an alias) is one; a module that several blocks share is one in each.
        if (module, modules.get(block)) in seen:
            continue
        seen.add((module, modules.get(block)))
        near = path.split(".")[-2:]
        found.append(Found(path, block, names, any(name in CROSS_NAMES for name in near)))
    return found


def _fits(modules: dict[str, nn.Module], path: str, module: nn.Module, names: Names) -> bool:
    if names.bare:
        held = module._parameters
        return all(held.get(part) is not None for part in (names.query, names.key, names.value, names.projection))
    if names.query.partition(".")[0] not in module._modules or (names.mark and not hasattr(module, names.mark)):
        return False
    parts = [names.query, names.key, names.value, names.projection, *([names.norm] if names.norm else [])]
    return all(path_of(path, part) in modules for part in parts)


def path_of(attention: str, part: str) -> str:
    """The path of a part of an attention module, where each leading `../` goes up to what holds it."""
    while part.startswith("../"):
        attention, part = attention.rpartition(".")[0], part.removeprefix("../")
    return f"{attention}.{part}" if attention else part


def _block(path: str) -> str:
    """The innermost numbered module around an attention, or the next one where the attention itself is numbered."""
    found = _BLOCK.match(path)
    if not found:
        return path
    if found[1] == path:
        outer = _BLOCK.match(path.rpartition(".")[0])
        # Of `layers.0.self_attn.1` it is `layers.0`; `attentions.0` (XLM) has no block.
        return outer[1] if outer else path
    return found[1]


def name_by_hand(modules: dict[str, nn.Module]) -> str:
    """What an error says to whoever must name the parts of an attention: what was seen, and what to call."""
    inside = {
        tuple(name for name, child in module.named_children() if _is_linear(child))
        for path, module in modules.items()
        if "att" in path.rpartition(".")[2].lower()
    }
    told = "; ".join(", ".join(names) for names in sorted(inside) if names)
    return (
        (f"Modules that look like attention hold {told}. " if told else "")
        + "To name the parts by hand: register_names(Names(query, key, value, projection)), each a path below the "
        "attention module"
    )


def _is_linear(module: nn.Module) -> bool:
    return hasattr(module, "in_features") or type(module).__name__ == "Conv1D"


def configs_around(modules: dict[str, nn.Module], path: str) -> Iterable[Any]:
    """The configs of the modules around a path, the nearest first."""
    while path:
        path = path.rpartition(".")[0]
        if hasattr(modules[path], "config"):
            yield modules[path].config
