"""Where are the heads?

`dissect(model)` finds, by the names of the modules, every place where heads are concatenated: the input of an
attention's output projection. This file alone knows how the architectures name their parts.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from torch import nn

from .errors import UnknownAnatomy
from .site import Anatomy, Site, Stack


class Names(NamedTuple):
    """How a family of architectures names the parts of its attention."""

    stack: str
    """Which stack it is where the path does not say: encoder, decoder or cross."""
    attention: str
    """The attention module, as a path below a block such as `encoder.layer.3`."""
    projection: str
    """Its output projection, as a path below the block."""
    query: str
    """The query projection, as a name in the attention module; key and value likewise."""
    key: str
    value: str
    prunable: bool = True
    """Whether its heads can be cut out: T5's share a position bias with one entry a head."""


# A fused projection is named three times.
NAMES = (
    # BERT, RoBERTa, ELECTRA and their kin
    Names("encoder", "attention.self", "attention.output.dense", "query", "key", "value"),
    Names("cross", "crossattention.self", "crossattention.output.dense", "query", "key", "value"),
    # ALBERT
    Names("encoder", "attention", "attention.dense", "query", "key", "value"),
    # DistilBERT
    Names("encoder", "attention", "attention.out_lin", "q_lin", "k_lin", "v_lin"),
    # GPT, GPT-2
    Names("decoder", "attn", "attn.c_proj", "c_attn", "c_attn", "c_attn"),
    Names("cross", "crossattention", "crossattention.c_proj", "q_attn", "c_attn", "c_attn"),
    # Llama, Mistral, Qwen
    Names("decoder", "self_attn", "self_attn.o_proj", "q_proj", "k_proj", "v_proj"),
    # BART, OPT
    Names("decoder", "self_attn", "self_attn.out_proj", "q_proj", "k_proj", "v_proj"),
    Names("cross", "encoder_attn", "encoder_attn.out_proj", "q_proj", "k_proj", "v_proj"),
    # T5
    Names("encoder", "layer.0.SelfAttention", "layer.0.SelfAttention.o", "q", "k", "v", prunable=False),
    Names("cross", "layer.1.EncDecAttention", "layer.1.EncDecAttention.o", "q", "k", "v", prunable=False),
)
# Norms over all heads together, before the projection: there the projection's input is no place for gates.
NORMS_BETWEEN = ("attn_sub_norm", "inner_attn_ln", "o_norm", "groupnorm")
# Where an attention module says how wide a head is or, failing that, how many heads it has; the first found counts.
WIDTH_NAMES = ("attention_head_size", "head_dim", "key_value_proj_dim")
COUNT_NAMES = ("num_attention_heads", "num_heads", "n_heads", "n_head")
# Where it remembers the width of all heads together, and how many query heads share a key.
TOTAL_NAMES = ("all_head_size", "split_size", "inner_dim", "dim")
GROUPS_NAME = "num_key_value_groups"
# Where the numbers of pruned heads are written down: transformers 4's name, and ours for the count before pruning.
PRUNED_NAME, UNPRUNED_NAME = "pruned_heads", "unpruned_heads"

_TOWER = re.compile(r"(?:(?:^|\.)\w+\.\d+)+$")


def dissect(model: nn.Module) -> Anatomy:
    """Find the attention heads of a model, whatever task head or wrapper is around it.

    Raises `UnknownAnatomy` when no attention output projection is found.

        >>> from transformers import BertConfig, BertModel
        >>> dissect(BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))).labels
        ('0', '1')
    """
    if not isinstance(model, nn.Module):
        raise UnknownAnatomy(f"wanted a model, such as AutoModel.from_pretrained returns, got {type(model).__name__}")
    modules = dict(model.named_modules())
    found: dict[str, list[Names]] = {}
    for path in modules:
        for names in NAMES:
            block = path.removesuffix(f".{names.attention}")
            if block != path and block.rpartition(".")[2].isdigit() and _parts_are_there(modules, block, names):
                found.setdefault(block, []).append(names)
    if not found:
        raise UnknownAnatomy(
            f"no attention heads found in {type(model).__name__}: wanted blocks with an output projection named "
            f"{', '.join(sorted({names.projection for names in NAMES}))}. A model without attention (Mamba, RWKV) has "
            "no heads; another attention model needs a line in bertology.anatomy.NAMES"
        )
    towers: dict[str, list[str]] = {}
    for block in found:
        towers.setdefault(_TOWER.sub("", block), []).append(block)
    sites: list[Site] = []
    stacks: list[Stack] = []
    for tower, blocks in towers.items():
        order = _running_order(modules[tower], blocks)
        name = _stack_name(tower, [names for block in blocks for names in found[block]])
        stacks.append(Stack(name, modules[tower], tuple(modules[block] for block in order)))
        places = [(layer, block, names) for layer, block in enumerate(order) for names in found[block]]
        for layer, block, names in sorted(places, key=lambda place: place[2].stack == "cross"):
            stack = "cross" if names.stack == "cross" else name
            sites.append(_site(modules, block, names, len(sites), stack, layer, order[:layer].count(block)))
    if len({site.label for site in sites}) < len(sites):
        raise UnknownAnatomy(
            f"{type(model).__name__} has several stacks of one kind, at {', '.join(map(repr, towers))}: "
            "pass the part of the model that you mean"
        )
    return Anatomy(model, tuple(sites), tuple(stacks))


def _parts_are_there(modules: dict[str, nn.Module], block: str, names: Names) -> bool:
    inside = [f"{names.attention}.{part}" for part in (names.query, names.key, names.value)]
    return all(f"{block}.{part}" in modules for part in (names.projection, *inside))


def _stack_name(tower: str, names: list[Names]) -> str:
    if any(some.stack == "cross" for some in names):
        return "decoder"
    said = [word for word in tower.split(".") if word in ("encoder", "decoder")]
    return said[-1] if said else names[0].stack


def _running_order(tower: nn.Module, blocks: list[str]) -> list[str]:
    if not any(".albert_layer_groups." in f".{block}" for block in blocks):
        return blocks
    # ALBERT runs each group of blocks in several layers in a row.
    groups: dict[str, list[str]] = {}
    for block in blocks:
        groups.setdefault(block.rpartition(".albert_layers.")[0], []).append(block)
    each, layers = list(groups.values()), int(tower.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    return [block for layer in range(layers) for block in each[layer * len(each) // layers]]


def _site(modules: dict[str, nn.Module], block: str, names: Names, row: int, stack: str, layer: int, call: int) -> Site:
    attention, projection = modules[f"{block}.{names.attention}"], modules[f"{block}.{names.projection}"]
    path = f"{block}.{names.projection}"
    inputs = input_width(projection)
    between = [name for name in NORMS_BETWEEN if hasattr(attention, name)]
    if between:
        raise UnknownAnatomy(
            f"{path} comes after {between[0]}, a norm over all heads: gates there would not be heads' gates"
        )
    widths = [getattr(attention, name) for name in WIDTH_NAMES if hasattr(attention, name)]
    counts = [getattr(attention, name) for name in COUNT_NAMES if hasattr(attention, name)]
    if not widths and not counts:
        raise UnknownAnatomy(f"{path}: its attention names neither a head width nor a head count")
    dim = int(widths[0]) if widths else inputs // int(counts[0])
    here, left_over = divmod(inputs, dim)
    if left_over:
        raise UnknownAnatomy(f"{path} takes {inputs} numbers a token, which is no multiple of the head width {dim}")
    parent = modules[f"{block}.{names.attention}".rpartition(".")[0]]
    record = parent if isinstance(getattr(parent, PRUNED_NAME, None), set) else attention
    pruned = {int(head) for head in getattr(record, PRUNED_NAME, ())}
    width = int(getattr(record, UNPRUNED_NAME, here + len(pruned)))
    kept = tuple(head for head in range(width) if head not in pruned)
    # A layer that lost all its heads keeps one of zeros, which is no head.
    if len(kept) != here and not (not kept and here == 1):
        raise UnknownAnatomy(f"{path} has {here} heads, but of {width} heads {sorted(pruned)} are said to be pruned")
    query, key, value = (attention.get_submodule(name) for name in (names.query, names.key, names.value))
    return Site(
        row, stack, layer, call, dim, width, kept, path, names.prunable,
        attention, query, key, value, projection, record,
    )  # fmt: skip


def input_width(projection: nn.Module) -> int:
    """How many numbers a token the projection takes (a Linear, or transformers' Conv1D)."""
    if hasattr(projection, "in_features"):
        return int(projection.in_features)  # type: ignore[arg-type]
    weight: Any = projection.weight
    return int(weight.shape[0])
