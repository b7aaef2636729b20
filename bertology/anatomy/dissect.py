"""Where are the heads?

`dissect(model)` finds, by the names of the modules, every place where heads are concatenated: the input of an
attention's output projection.
"""

from __future__ import annotations

import re
import warnings
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from ..errors import UnknownAnatomy, UnmeasuredAttention, checked, how_many
from .divided import check_whole_layers
from .forward_source import acts_on_record
from .kept import kept_anatomy
from .names import (
    COUNT_NAMES,
    CROSS_NAMES,
    DIFFERENCE_NAME,
    MORE_THAN_HEADS,
    NAMES,
    NORMS_ELSEWHERE,
    PRUNED_NAME,
    TORCH_NAMES,
    TOTAL_NAMES,
    UNPRUNED_NAME,
    WIDTH_NAMES,
    Names,
)
from .oddities import oddities_of
from .sites import Anatomy, Site, Stack
from .stacks import Found, configs_around, make_stack, name_stacks, running_order
from .unmeasured import find_unmeasured, has_no_heads, is_recurrent, parts_of, told

_BLOCK = re.compile(r"(.*\.\d+|\d+)(?:\.|$)")
# T5's blocks hold their parts in a list of their own.
_SUBLAYER = re.compile(r"((?:^|\.)block\.\d+)\.layer\.\d+$")


def find_attentions(modules: dict[str, nn.Module]) -> list[Found]:
    """Every attention module with all the parts that some line of the table asks for, once for each block around it."""
    found = []
    seen = set()
    lines = _lines_by_start()
    children: dict[str, list[str]] = {path: [] for path in modules}
    for path in filter(None, modules):
        parent, _, name = path.rpartition(".")
        children[parent].append(name)
    for path, module in modules.items():
        # Of nearly all modules no line of the table begins with a child.
        near_lines = sorted(line for start in ("", *children[path]) for line in lines.get(start, ()))
        names = _names_of(modules, path, module, [names for _, names in near_lines])
        if names is None or has_no_heads(module):
            continue
        block = _SUBLAYER.sub(r"\1", _block(path))
        # A module known by two names (an alias) is one; a module that several blocks share is one in each.
        if (module, modules.get(block)) in seen:
            continue
        seen.add((module, modules.get(block)))
        near = path.split(".")[-2:]
        found.append(Found(path, block, names, any(name in CROSS_NAMES for name in near)))
    return found


def _lines_by_start() -> dict[str, list[tuple[int, Names]]]:
    """The numbered lines of the table, by the child in which the query is; "" where it is in no child."""
    lines: dict[str, list[tuple[int, Names]]] = {}
    for number, names in enumerate(NAMES):
        start = "" if names.bare or names.query.startswith("../") else names.query.partition(".")[0]
        lines.setdefault(start, []).append((number, names))
    return lines


def _names_of(modules: dict[str, nn.Module], path: str, module: nn.Module, lines: list[Names]) -> Names | None:
    """The first of these lines of the table that fits a module."""
    if isinstance(module, nn.MultiheadAttention):
        return TORCH_NAMES if type(module).forward is nn.MultiheadAttention.forward else None
    held = {name for name, _ in module.named_parameters(recurse=False, remove_duplicate=False)}
    return next((names for names in lines if _fits(modules, path, module, names, held)), None)


def _fits(modules: dict[str, nn.Module], path: str, module: nn.Module, names: Names, held: set[str]) -> bool:
    if names.bare:
        return held.issuperset((names.query, names.key, names.value, names.projection))
    parts = [names.query, names.key, names.value, names.projection, *([names.norm] if names.norm else [])]
    return all(path_of(path, part) in modules for part in parts) and (not names.mark or hasattr(module, names.mark))


def path_of(attention: str, part: str) -> str:
    """The path of a part of an attention module, where each leading `../` goes up to what holds it."""
    while part.startswith("../"):
        attention, part = attention.rpartition(".")[0], part.removeprefix("../")
    if not part:
        return attention
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


def what_was_seen(modules: dict[str, nn.Module]) -> str:
    """The part of an error that says what looks like attention, and how to name its parts."""
    unmeasured = find_unmeasured(modules, ())
    parts = dict.fromkeys(", ".join(parts_of(modules[path])) for path in unmeasured)
    seen = f"Modules that look like attention hold {'; '.join(parts)}: {told(unmeasured)}. " if unmeasured else ""
    return (
        f"{seen}To name the parts by hand: register_names(Names(query, key, value, projection)), each a path below the "
        "attention module"
    )


_NUMBERS = re.compile(r"\.\d+(?=\.|$)|^\d+(?:\.|$)")
# The models of which a warning said what is not measured.
_warned: WeakSet[nn.Module] = WeakSet()


@checked
def dissect(model: nn.Module) -> Anatomy:
    """Find the attention heads of a model, whatever task head or wrapper is around it.

    What looks like attention but is not known is in `unmeasured` of what comes, with the reason, and is named in one
    warning for each model, `bertology.errors.UnmeasuredAttention`.

    Raises `UnknownAnatomy` when no attention output projection is found, when what is found does not fit together, or
    when each process holds some of the heads (tensor parallelism).

        >>> from transformers import BertConfig, BertModel
        >>> dissect(BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))).labels
        ('0', '1')
    """
    check_whole_layers(model)
    return kept_anatomy(model, _dissected)


def _dissected(model: nn.Module) -> Anatomy:
    modules = dict(model.named_modules(remove_duplicate=False))
    found = find_attentions(modules)
    if not found:
        raise UnknownAnatomy(
            f"no attention heads found in {type(model).__name__}. A model without attention (Mamba, RWKV, FNet) has no "
            f"heads. {what_was_seen(modules)}"
        )
    towers: dict[str, list[Found]] = {}
    for one in found:
        towers.setdefault(_NUMBERS.sub("", one.block), []).append(one)
    unread = _unread_towers(modules, towers)
    towers = {tower: some for tower, some in towers.items() if tower not in unread}
    sites, stacks = _sites_of(modules, towers)
    if len({site.label for site in sites}) < len(sites):
        raise UnknownAnatomy(
            f"{type(model).__name__} has several stacks of one kind, at {', '.join(map(repr, towers))}: "
            "pass the part of the model that you mean"
        )
    unmeasured = find_unmeasured(modules, [modules[one.path] for one in found])
    unmeasured |= {path: why for paths in unread.values() for path, why in paths.items()}
    _warn(model, modules, unmeasured)
    return Anatomy(model, tuple(sites), tuple(stacks), unmeasured)


def _unread_towers(modules: dict[str, nn.Module], towers: dict[str, list[Found]]) -> dict[str, dict[str, str]]:
    """{tower: {path: why}} of towers whose heads cannot be told from what their attention says of itself.

    Raises `UnknownAnatomy` where that is true of all towers.
    """
    unread: dict[str, dict[str, str]] = {}
    for tower, attentions in towers.items():
        try:
            for one in attentions:
                _head_widths(modules, one)
        except UnknownAnatomy as error:
            if len(unread) == len(towers) - 1:
                raise
            unread[tower] = {one.path: str(error) for one in attentions}
    return unread


def _warn(model: nn.Module, modules: dict[str, nn.Module], unmeasured: dict[str, str]) -> None:
    """Say once what is not measured; recurrent layers are no attention."""
    left_out = {path: why for path, why in unmeasured.items() if not is_recurrent(modules[path])}
    if left_out and model not in _warned:
        warnings.warn(
            f"{type(model).__name__} has attention that is not measured: {told(left_out)}. It has no rows in results, "
            "and nothing edits it. To name its parts by hand: register_names(Names(query, key, value, projection))",
            UnmeasuredAttention,
            stacklevel=5,
        )
        _warned.add(model)


def _sites_of(modules: dict[str, nn.Module], towers: dict[str, list[Found]]) -> tuple[list[Site], list[Stack]]:
    """The sites and stacks of these towers, in the order in which their blocks run."""
    names = name_stacks(modules, towers)
    crossing = sum(any(one.cross for one in attentions) for attentions in towers.values())
    sites: list[Site] = []
    stacks: list[Stack] = []
    for tower, attentions in towers.items():
        blocks = running_order(modules, tower, attentions)
        stacks.append(make_stack(modules, names[tower], blocks, attentions[0]))
        # Where a block holds several attentions of one kind, layers are counted by attentions.
        sorts = [(one.block, one.cross) for one in attentions]
        by_block = len(set(sorts)) == len(sorts)
        for cross in (False, True):
            running = [
                (i, one) for i, b in enumerate(blocks) for one in attentions if (one.block, one.cross) == (b, cross)
            ]
            done: list[nn.Module] = []
            for count, (place, one) in enumerate(running):
                layer = place if by_block else count
                stack = ("cross" if crossing == 1 else f"{names[tower]}.cross") if cross else names[tower]
                sites.append(_site(modules, one, len(sites), stack, layer, done.count(modules[one.path])))
                done.append(modules[one.path])
    return sites, stacks


@checked
def register_names(names: Names) -> None:
    """Name the parts of an attention module that `dissect` does not know, for all models from now on.

    Prove them on the model at hand: `check_anatomy(model, inputs)`.

        >>> register_names(Names("to_q", "to_k", "to_v", "to_out"))
    """
    if names not in NAMES:
        NAMES.insert(0, names)


def _site(modules: dict[str, nn.Module], one: Found, row: int, stack: str, layer: int, call: int) -> Site:
    names, attention = one.names, modules[one.path]
    path = path_of(one.path, names.norm or names.projection)
    query, key, value, projection = (
        attention if names.bare else modules[path_of(one.path, part)]
        for part in (names.query, names.key, names.value, names.projection)
    )
    record = _record(attention, modules[one.path.rpartition(".")[0]])
    weight = names.projection if names.bare else ""
    dim, here = _head_widths(modules, one)
    pruned = {int(head) for head in getattr(record, PRUNED_NAME, ())}
    width = int(getattr(record, UNPRUNED_NAME, here + len(pruned)))
    kept = tuple(head for head in range(width) if head not in pruned)
    # A layer that lost all its heads keeps one of zeros, which is no head.
    if len(kept) != here and not (not kept and here == 1):
        raise UnknownAnatomy(
            f"{path} has {how_many(here, 'head')}, but of {how_many(width, 'head')} {sorted(pruned)} are said to be "
            "pruned"
        )
    # BigCode's projection is fused head by head where it is not multi-query.
    fused = oddities_of(attention).fused or names.fused
    fused = "heads" if getattr(attention, "multi_query", True) is False else fused
    return Site(
        row, stack, layer, call, dim, width, kept, path, names.layout, fused,
        attention, query, key, value, attention if weight else modules[path], projection, record, weight, names.runs,
    )  # fmt: skip


def _head_widths(modules: dict[str, nn.Module], one: Found) -> tuple[int, int]:
    """The width of a head of an attention, and how many heads there are."""
    names, attention = one.names, modules[one.path]
    _check_hooks_run(modules, path_of(one.path, names.projection))
    unplaced = [n for n, m in attention.named_children() if is_norm(m) and n not in (*NORMS_ELSEWHERE, names.norm)]
    if unplaced:
        raise UnknownAnatomy(
            f"{one.path} has {unplaced[0]}, a norm that may stand between the heads and {names.projection}: "
            "gates there would not be heads' gates. If it does, say so with "
            f"register_names(Names(..., norm={unplaced[0]!r}))"
        )
    if names.bare:
        inputs = int(getattr(attention, names.projection)[0].numel())
    else:
        inputs = _inputs(attention, modules[path_of(one.path, names.projection)])
    dim = _head_width(modules, one.path, inputs) * (2 if hasattr(attention, DIFFERENCE_NAME) else 1)
    return dim, inputs // dim


def _check_hooks_run(modules: dict[str, nn.Module], path: str) -> None:
    """Raise `UnknownAnatomy` for a module inside a part in TorchScript, which runs what is in it without its hooks."""
    around = ["", *(path[: dot.start()] for dot in re.finditer(r"\.", path))] if path else []
    for outer in around:
        if isinstance(modules[outer], torch.jit.ScriptModule):
            raise UnknownAnatomy(
                f"{outer or 'the model'} is in TorchScript, where no heads can be read: put the module that it was "
                "made from in its place"
            )


def _record(attention: nn.Module, parent: nn.Module) -> nn.Module:
    """The module that says which heads were pruned."""
    if isinstance(getattr(parent, PRUNED_NAME, None), set):
        return parent
    return parent if acts_on_record(attention) and not getattr(attention, PRUNED_NAME) else attention


def _inputs(attention: nn.Module, projection: nn.Module) -> int:
    """The total width of all heads, for each token."""
    if any(hasattr(attention, name) for name in MORE_THAN_HEADS):
        return int(next(getattr(attention, name) for name in TOTAL_NAMES if hasattr(attention, name)))
    # A projection in groups (DeepSeek V4) has an input for each.
    return input_width(projection) * int(getattr(projection, "n_groups", 1))


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm of hidden states, by the name of its class: not one of torch's, of weights."""
    kind = type(module)
    return "norm" in kind.__name__.lower() and not kind.__module__.startswith("torch.nn.utils.")


def _head_width(modules: dict[str, nn.Module], path: str, inputs: int) -> int:
    """The width of a head, where all have `inputs`: as the attention says of itself, then as its config says."""
    attention = modules[path]
    owners = [attention, modules[path.rpartition(".")[0]], *configs_around(modules, path)]
    for owner in owners:
        widths = [int(getattr(owner, name)) for name in WIDTH_NAMES if isinstance(getattr(owner, name, None), int)]
        counts = [int(getattr(owner, name)) for name in COUNT_NAMES if isinstance(getattr(owner, name, None), int)]
        agreed = [width for width in widths if any(width * count == inputs for count in counts)]
        # The count of a config is that of unpruned layers, what an attention says of itself must fit.
        loose = owner is not attention or not counts
        fit = agreed or [width for width in widths if width and inputs % width == 0 and loose]
        fit = fit or [inputs // count for count in counts if count and inputs % count == 0 and not widths]
        if fit:
            return fit[0]
        if widths or counts:
            told = " and ".join(
                [*(f"heads of width {w}" for w in widths[:1]), *(how_many(c, "head") for c in counts[:1])]
            )
            raise UnknownAnatomy(
                f"{path} returns {inputs} elements for each token, which do not fit the {told} that it names"
            )
    raise UnknownAnatomy(f"{path} names neither a head width nor a head count")


def input_width(projection: nn.Module) -> int:
    """The input size of a projection for each token (a Linear, a convolution over tokens, or transformers' Conv1D)."""
    for name in ("in_features", "in_channels"):
        if hasattr(projection, name):
            return int(getattr(projection, name))
    weight: Any = getattr(projection, "weight", None)
    return int(weight.shape[0]) if weight is not None else input_width(_wrapped_layer(projection))


def output_width(projection: nn.Module) -> int:
    """The output size of a projection for each token, as `input_width`."""
    for name in ("out_features", "out_channels", "nf"):
        if hasattr(projection, name):
            return int(getattr(projection, name))
    return output_width(_wrapped_layer(projection))


def _wrapped_layer(wrapper: nn.Module) -> nn.Module:
    """The layer that takes the input of a wrapper without a weight of its own (Moshi)."""
    inside = {name: child for name, child in wrapper.named_children() if any(True for _ in child.parameters())}
    if not inside or (len(inside) > 1 and not isinstance(wrapper, nn.Sequential)):
        held = f"{', '.join(inside)}, and which of them takes the heads is not known" if inside else "no layer at all"
        raise UnknownAnatomy(
            f"an output projection must be a layer or wrap one, but {type(wrapper).__name__} holds {held}. Name the "
            "layer: register_names(Names(query, key, value, 'o_proj.linear')), each a path below the attention module"
        )
    return next(iter(inside.values()))
