"""Which blocks make a stack, in what order do they run, and what is it called?"""

from __future__ import annotations

import math
import re
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel

from .attentions import Found, configs_around
from .names import BLOCK_LAYOUTS, REPEATS, UNCALLED_BLOCKS, UNTIED_4
from .site import Stack


def make_stack(modules: dict[str, nn.Module], name: str, blocks: list[str], one: Found) -> Stack:
    """The stack of these blocks, given in the order in which they run, with one of its attentions."""
    kind = type(modules[blocks[0]]).__name__
    layout = (
        "token batch hidden" if one.names.layout.startswith("token") else BLOCK_LAYOUTS.get(kind, "batch token hidden")
    )
    known = one.block != one.path and kind not in UNCALLED_BLOCKS
    there = tuple(modules[block] for block in blocks) if known else ()
    last = _returned(modules, blocks[0])
    return Stack(name, _called(modules, blocks[0]), last, _ties_last(last), layout, there)


def _ties_last(module: nn.Module) -> bool:
    """Whether transformers puts a model's last hidden state, behind a final norm, in the place of its last block's."""
    method: Any = type(module).forward
    while method is not None:
        kept = (
            dict(zip(method.__code__.co_freevars, method.__closure__ or (), strict=True))
            if hasattr(method, "__code__")
            else {}
        )
        if "tie_last_hidden_states" in kept:
            return bool(kept["tie_last_hidden_states"].cell_contents)
        method = getattr(method, "__wrapped__", None)
    return not (transformers.__version__.startswith("4.") and type(module).__name__ in UNTIED_4)


def _called(modules: dict[str, nn.Module], block: str) -> nn.Module:
    """The module whose forward pass runs the blocks: a list has none, its owner has."""
    owner = block.rpartition(".")[0]
    while owner and (isinstance(modules[owner], (nn.ModuleList, nn.ModuleDict)) or owner.rpartition(".")[2].isdigit()):
        owner = owner.rpartition(".")[0]
    return modules[owner]


def _returned(modules: dict[str, nn.Module], block: str) -> nn.Module:
    """The module that returns the stack's last hidden state, whatever norm is behind the blocks."""
    path = block
    while path:
        path = path.rpartition(".")[0]
        if isinstance(modules[path], PreTrainedModel):
            return modules[path]
    return _called(modules, block)


def name_stacks(modules: dict[str, nn.Module], towers: dict[str, list[Found]]) -> dict[str, str]:
    """{tower: what its stack is called}: "encoder" and "decoder", or parts of paths where several are of a kind."""
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
    if not any(".albert_layer_groups." in f".{block}" for block in blocks):
        return blocks
    # ALBERT runs each group of blocks in several layers in a row.
    groups: dict[str, list[str]] = {}
    for block in blocks:
        groups.setdefault(block.rpartition(".albert_layers.")[0], []).append(block)
    config = next(iter(configs_around(modules, blocks[0])))
    each, layers = list(groups.values()), int(config.num_hidden_layers)
    return [block for layer in range(layers) for block in each[layer * len(each) // layers]]
