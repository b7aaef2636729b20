"""Where are the heads?

`dissect(model)` finds, by the names of the modules, every place where heads are concatenated: the input of an
attention's output projection.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from .attentions import Found, configs_around, find_attentions, name_by_hand, path_of
from .errors import UnknownAnatomy
from .forwards import acts_on_record
from .names import (
    COUNT_NAMES,
    DIFFERENCE_NAME,
    FUSED,
    MORE_THAN_HEADS,
    NAMES,
    NORMS_ELSEWHERE,
    PRUNED_NAME,
    TOTAL_NAMES,
    UNPRUNED_NAME,
    WIDTH_NAMES,
    Names,
)
from .site import Anatomy, Site, Stack
from .stacks import make_stack, name_stacks, running_order

_NUMBERS = re.compile(r"\.\d+(?=\.|$)|^\d+(?:\.|$)")


def dissect(model: nn.Module) -> Anatomy:
    """Find the attention heads of a model, whatever task head or wrapper is around it.

    Raises `UnknownAnatomy` when no attention output projection is found, or when what is found does not fit together.

        >>> from transformers import BertConfig, BertModel
        >>> dissect(BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))).labels
        ('0', '1')
    """
    if not isinstance(model, nn.Module):
        raise UnknownAnatomy(f"wanted a model, such as AutoModel.from_pretrained returns, got {type(model).__name__}")
    modules = dict(model.named_modules(remove_duplicate=False))
    found = find_attentions(modules)
    if not found:
        raise UnknownAnatomy(
            f"no attention heads found in {type(model).__name__}. A model without attention (Mamba, RWKV, FNet) has no "
            f"heads. {name_by_hand(modules)}"
        )
    towers: dict[str, list[Found]] = {}
    for one in found:
        towers.setdefault(_NUMBERS.sub("", one.block), []).append(one)
    names = name_stacks(modules, towers)
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
                stack = "cross" if cross else names[tower]
                sites.append(_site(modules, one, len(sites), stack, layer, done.count(modules[one.path])))
                done.append(modules[one.path])
    if len({site.label for site in sites}) < len(sites):
        raise UnknownAnatomy(
            f"{type(model).__name__} has several stacks of one kind, at {', '.join(map(repr, towers))}: "
            "pass the part of the model that you mean"
        )
    return Anatomy(model, tuple(sites), tuple(stacks))


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
    unplaced = [n for n, m in attention.named_children() if _is_norm(m) and n not in (*NORMS_ELSEWHERE, names.norm)]
    if unplaced:
        raise UnknownAnatomy(
            f"{one.path} has {unplaced[0]}, a norm that may stand between the heads and {names.projection}: "
            "gates there would not be heads' gates. If it does, say so with "
            f"register_names(Names(..., norm={unplaced[0]!r}))"
        )
    record = _record(attention, modules[one.path.rpartition(".")[0]])
    weight = names.projection if names.bare else ""
    inputs = getattr(attention, weight)[0].numel() if weight else _inputs(attention, projection)
    pruned = {int(head) for head in getattr(record, PRUNED_NAME, ())}
    dim = _head_width(modules, one.path, inputs) * (2 if hasattr(attention, DIFFERENCE_NAME) else 1)
    here = inputs // dim
    width = int(getattr(record, UNPRUNED_NAME, here + len(pruned)))
    kept = tuple(head for head in range(width) if head not in pruned)
    # A layer that lost all its heads keeps one of zeros, which is no head.
    if len(kept) != here and not (not kept and here == 1):
        raise UnknownAnatomy(f"{path} has {here} heads, but of {width} heads {sorted(pruned)} are said to be pruned")
    # BigCode's projection is fused head by head where it is not multi-query.
    fused = FUSED.get(type(attention).__name__, names.fused)
    fused = "heads" if getattr(attention, "multi_query", True) is False else fused
    return Site(
        row, stack, layer, call, dim, width, kept, path, names.layout, fused,
        attention, query, key, value, attention if weight else modules[path], projection, record, weight, names.runs,
    )  # fmt: skip


def _record(attention: nn.Module, parent: nn.Module) -> nn.Module:
    """The module that says which heads were pruned."""
    if isinstance(getattr(parent, PRUNED_NAME, None), set):
        return parent
    return parent if acts_on_record(attention) and not getattr(attention, PRUNED_NAME) else attention


def _inputs(attention: nn.Module, projection: nn.Module) -> int:
    """How many numbers a token are heads' outputs."""
    if any(hasattr(attention, name) for name in MORE_THAN_HEADS):
        return int(next(getattr(attention, name) for name in TOTAL_NAMES if hasattr(attention, name)))
    # A projection in groups (DeepSeek V4) has an input for each.
    return input_width(projection) * int(getattr(projection, "n_groups", 1))


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _head_width(modules: dict[str, nn.Module], path: str, inputs: int) -> int:
    """How wide a head is, of `inputs` numbers a token: what the attention says of itself, then what its config says."""
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
            told = " and ".join([*(f"heads of width {w}" for w in widths[:1]), *(f"{c} heads" for c in counts[:1])])
            raise UnknownAnatomy(f"{path} puts out {inputs} numbers a token, which do not fit the {told} that it names")
    raise UnknownAnatomy(f"{path} names neither a head width nor a head count")


def input_width(projection: nn.Module) -> int:
    """How many numbers a token the projection takes (a Linear, a convolution over tokens, or transformers' Conv1D)."""
    for name in ("in_features", "in_channels"):
        if hasattr(projection, name):
            return int(getattr(projection, name))
    weight: Any = getattr(projection, "weight", None)
    if weight is None:  # a Linear inside a wrapper (Moshi)
        return input_width(next(projection.children()))
    return int(weight.shape[0])
