"""Stacks of blocks: their names, and the order in which their blocks run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import transformers
from torch import nn

from .forward_source import ties_last
from .names import IMAGE_CONFIG_NAMES, LOOPS, REPEATS, Loop, Names
from .oddities import block_oddities_of
from .sites import Stack


class Found(NamedTuple):
    """An attention module that was found, not yet a site."""

    path: str
    block: str
    names: Names
    cross: bool


def configs_around(modules: dict[str, nn.Module], path: str) -> Iterable[Any]:
    """The configs of the modules around a path, the nearest first."""
    while path:
        path = path.rpartition(".")[0]
        if hasattr(modules[path], "config"):
            yield modules[path].config


def make_stack(modules: dict[str, nn.Module], name: str, blocks: list[str], one: Found) -> Stack:
    """The stack of these blocks, given in the order in which they run, with one of its attentions."""
    odd = block_oddities_of(modules[blocks[0]])
    token_first = one.names.layout.startswith("token") or getattr(modules[one.path], "batch_first", True) is False
    layout = "token batch hidden" if token_first else odd.layout
    known = one.block != one.path and odd.called
    there = tuple(modules[block] for block in blocks) if known else ()
    last = _returned(modules, blocks[0])
    single = not there and not any(part.isdigit() for part in blocks[0].split("."))
    images = _reads_images(modules, blocks[0])
    return Stack(name, _called(modules, blocks[0]), last, ties_last(last), layout, there, images, single)


def _reads_images(modules: dict[str, nn.Module], block: str) -> bool:
    """Whether the config nearest to a block is that of images."""
    config = next(iter(configs_around(modules, f"{block}.")), None)
    return any(hasattr(config, name) for name in IMAGE_CONFIG_NAMES) and not hasattr(config, "vocab_size")


def _called(modules: dict[str, nn.Module], block: str) -> nn.Module:
    """The module whose forward pass runs the blocks: a list has none, its owner has."""
    owner = block.rpartition(".")[0]
    while owner and (isinstance(modules[owner], (nn.ModuleList, nn.ModuleDict)) or owner.rpartition(".")[2].isdigit()):
        owner = owner.rpartition(".")[0]
    return modules[owner]


def _returned(modules: dict[str, nn.Module], block: str) -> nn.Module:
    """The module that returns the stack's last hidden state, after any norm that follows the blocks."""
    path = block
    while path:
        path = path.rpartition(".")[0]
        if isinstance(modules[path], transformers.PreTrainedModel):
            return modules[path]
    return _called(modules, block)


def name_stacks(modules: dict[str, nn.Module], towers: dict[str, list[Found]]) -> dict[str, str]:
    """{tower: name of its stack}: "encoder" and "decoder", or parts of paths where several are of one kind."""
    kinds = {tower: _kind(modules, tower, found) for tower, found in towers.items()}
    if len(set(kinds.values())) == len(kinds):
        return kinds
    # Several of a kind (CANINE, CLIP): what their paths do not share tells them apart.
    paths = [tower.split(".") for tower in towers]
    while all(len(path) > 1 for path in paths) and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    for parts in range(1, max(map(len, paths)) + 1):
        short = [".".join(path[:parts]) for path in paths]
        if len(set(short)) == len(short):
            break
    return dict(zip(towers, short, strict=True))


def _kind(modules: dict[str, nn.Module], tower: str, found: list[Found]) -> str:
    if any(one.cross for one in found):
        return "decoder"
    said = [word for part in tower.split(".") for word in ("encoder", "decoder") if word in part]
    if said:
        return said[-1]
    causal = getattr(modules[found[0].path], "is_causal", found[0].block.split(".")[-2:-1] == ["h"])
    return "decoder" if causal else "encoder"


def running_order(modules: dict[str, nn.Module], tower: str, found: list[Found]) -> list[str]:
    """The paths of a tower's blocks in the order in which they run, those without attention among them."""
    blocks: list[str] = []
    for one in found:
        folder, _, number = one.block.rpartition(".")
        whole = modules.get(folder)
        listed = number.isdigit() and isinstance(whole, nn.ModuleList) and one.block != one.path
        paths = [f"{folder}.{i}" if folder else str(i) for i in range(len(whole))] if listed else [one.block]  # type: ignore[arg-type]
        blocks += [path for path in paths if path not in blocks]
    for folder, counts in REPEATS.items():
        if re.search(rf"(^|\.){re.escape(folder)}\.\d+$", blocks[0]):
            config = next(iter(configs_around(modules, blocks[0])))
            return blocks * math.prod(int(getattr(config, count)) for count in counts)
    loop = LOOPS.get(type(modules[blocks[0].rpartition(".")[0].rpartition(".")[0]]).__name__)
    if loop is not None:
        return _looped(blocks, loop, next(iter(configs_around(modules, blocks[0]))))
    if not any(".albert_layer_groups." in f".{block}" for block in blocks):
        return blocks
    # ALBERT runs each group of blocks in several layers in a row.
    groups: dict[str, list[str]] = {}
    for block in blocks:
        groups.setdefault(block.rpartition(".albert_layers.")[0], []).append(block)
    config = next(iter(configs_around(modules, blocks[0])))
    each, layers = list(groups.values()), int(config.num_hidden_layers)
    return [block for layer in range(layers) for block in each[layer * len(each) // layers]]


def _looped(blocks: list[str], loop: Loop, config: Any) -> list[str]:
    """The blocks in the order in which they run, those in the middle several times over."""
    start = int(getattr(config, loop.before))
    end = int(getattr(config, loop.end)) if loop.end else len(blocks) - int(getattr(config, loop.after))
    # The slices of a list: a loop may end after the last block.
    return blocks[:start] + blocks[start:end] * int(getattr(config, loop.passes)) + blocks[end:]
