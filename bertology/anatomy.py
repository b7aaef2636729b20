"""Where are the heads?

`dissect(model)` finds, by the names of the modules, every place where heads are concatenated: the input of an
attention's output projection. This file alone knows how the architectures name their parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .errors import HeadError, UnknownAnatomy
from .head import Head, Heads, each_head, head_at


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


@dataclass(frozen=True, eq=False)
class Site:
    """One attention layer, at the place where its heads are concatenated: the input of `projection`.

    `kept` are the numbers of the heads that are there, out of `width` before pruning, each `dim` wide.
    A module that runs in several layers (ALBERT) has one site for each `call`.
    `record` is the module that writes down which heads were pruned.
    """

    stack: str
    layer: int
    call: int
    dim: int
    width: int
    kept: tuple[int, ...]
    path: str
    names: Names = field(repr=False)
    attention: nn.Module = field(repr=False)
    projection: nn.Module = field(repr=False)
    record: nn.Module = field(repr=False)

    @property
    def label(self) -> str:
        """`encoder.0`, `decoder.0`, `cross.0`."""
        return f"{self.stack}.{self.layer}"

    def __str__(self) -> str:
        return self.label

    def spread(self, x: Tensor, heads: int, axis: int) -> Tensor:
        """Lay the heads that are there, along `axis` of `x`, at their numbers among `heads`; NaN where none is."""
        x = x.narrow(axis, 0, len(self.kept))
        if self.kept == tuple(range(heads)):
            return x
        shape = list(x.shape)
        shape[axis] = heads
        return x.new_full(shape, float("nan")).index_copy(axis, torch.tensor(self.kept, device=x.device), x)


@dataclass(frozen=True, eq=False)
class Stack:
    """A tower of blocks: `module` runs them in turn, and returns the last hidden state first."""

    name: str
    module: nn.Module = field(repr=False)
    blocks: tuple[nn.Module, ...] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Where the heads of `model` are. The axis `layer` of every result runs over `sites`, in this order."""

    model: nn.Module = field(repr=False)
    sites: tuple[Site, ...]
    stacks: tuple[Stack, ...]

    @property
    def layers(self) -> int:
        """How many attention layers there are, over all stacks."""
        return len(self.sites)

    @property
    def heads(self) -> int:
        """How wide the axis `head` of a result is: the heads of the widest layer, before pruning."""
        return max(site.width for site in self.sites)

    @property
    def labels(self) -> tuple[str, ...]:
        """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""
        several = len({site.stack for site in self.sites}) > 1
        return tuple(site.label if several else str(site.layer) for site in self.sites)

    @property
    def present(self) -> Tensor:
        """[layer, head], bool: which heads there are; a pruned one is not."""
        there = torch.zeros(self.layers, self.heads, dtype=torch.bool)
        for row, site in enumerate(self.sites):
            there[row, list(site.kept)] = True
        return there

    def resolve(self, heads: Heads) -> list[tuple[int, int]]:
        """Turn heads into sorted places `(row, head)` of a `[layer, head]` result, or raise `HeadError`."""
        places = sorted({self._place(head) for head in each_head(heads)})
        for row, head in places:
            if head not in self.sites[row].kept:
                raise HeadError(
                    f"head {head_at(self.labels, row, head)} was pruned before; "
                    f"of layer {row} the heads {list(self.sites[row].kept)} are left"
                )
        return places

    def _place(self, head: Head | tuple[int, int]) -> tuple[int, int]:
        if isinstance(head, Head):
            rows = [r for r, s in enumerate(self.sites) if s.layer == head.layer and head.stack in ("", s.stack)]
            if len(rows) != 1:
                what = "in several stacks; say which" if rows else "not in this model"
                raise HeadError(f"head {head} is {what}: its layers are {', '.join(self.labels)}")
            row, number = rows[0], head.head
        else:
            row, number = head
        if not 0 <= row < self.layers:
            raise HeadError(f"layer {row} is out of range: this model's attention layers are 0 to {self.layers - 1}")
        if not 0 <= number < self.sites[row].width:
            raise HeadError(
                f"head {number} of layer {row} is out of range: its heads are 0 to {self.sites[row].width - 1}"
            )
        return row, number


def dissect(model: nn.Module) -> Anatomy:
    """Find the attention heads of a model, whatever task head or wrapper is around it.

    Raises `UnknownAnatomy` when no attention output projection is found.

        >>> from transformers import BertConfig, BertModel
        >>> dissect(BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))).labels
        ('0', '1')
    """
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
        for cross in (False, True):
            for layer, block in enumerate(order):
                for names in found[block]:
                    if (names.stack == "cross") == cross:
                        calls = order[:layer].count(block)
                        sites.append(_site(modules, block, names, "cross" if cross else name, layer, calls))
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


def _site(modules: dict[str, nn.Module], block: str, names: Names, stack: str, layer: int, call: int) -> Site:
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
    return Site(stack, layer, call, dim, width, kept, path, names, attention, projection, record)


def input_width(projection: nn.Module) -> int:
    """How many numbers a token the projection takes (a Linear, or transformers' Conv1D)."""
    if hasattr(projection, "in_features"):
        return int(projection.in_features)  # type: ignore[arg-type]
    weight: Any = projection.weight
    return int(weight.shape[0])
