"""Heads, the sites where they are, and the anatomy of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import HeadError, UnknownAnatomy, how_many
from .modules import Modules, each_module
from .oddities import oddities_of
from .part_names import PartNames


@dataclass(frozen=True, order=True, repr=False)
class Head:
    """One attention head, printed `L5H3`, or `EL0H1`, `DL0H1`, `XL0H1` in models with several stacks.

    `head` is its index in the unpruned layer: a head keeps its index when other heads are removed.

        >>> str(Head(5, 3)), str(Head(0, 1, "cross"))
        ('L5H3', 'XL0H1')
        >>> Head(5, 3), Head(0, 1, "cross")
        (Head(5, 3), Head(0, 1, 'cross'))
    """

    layer: int
    head: int
    stack: str = ""

    def __post_init__(self) -> None:
        """Raise `HeadError` for what is no whole number."""
        HEADS.check(self.layer, self.head, self.stack)

    def __str__(self) -> str:
        return HEADS.printed(self.layer, self.head, self.stack)

    def __repr__(self) -> str:
        return HEADS.as_code(self.layer, self.head, self.stack)


class HeadScore(NamedTuple):
    """A head and its value in a result; wherever heads are taken, the pair stands for the head."""

    head: Head
    score: float

    def __repr__(self) -> str:
        return f"{self.head}: {self.score:.4g}"


HEADS = PartNames(Head, "head", "H", HeadError, HeadScore)
"""How heads are named."""

Heads = Mapping[int, Iterable[int]] | Iterable[Head | tuple[int, int] | str | HeadScore]
"""Heads as `{layer: [heads]}`, as `(layer, head)` pairs, as `Head`s, by their printed names, `"L5H3"`, or as the heads
with their values that a result's `top` and `bottom` return."""

OneHead = Head | tuple[int, int] | str | HeadScore
"""One head: a `Head`, a (layer, head) pair, a printed name, `"L5H3"`, or a head with its value."""


class LayerLabels(tuple[str, ...]):
    """The labels of the layers of a model with one stack: numbers, which do not show the stack's name; `stack` does.

    >>> labels = LayerLabels(("0", "1"), "encoder")
    >>> labels, labels.stack
    (('0', '1'), 'encoder')
    """

    stack: str

    def __new__(cls, labels: Iterable[str], stack: str) -> LayerLabels:
        """Labels, and the name of the stack."""
        made = super().__new__(cls, tuple(labels))
        made.stack = stack
        return made

    def __getnewargs__(self) -> tuple[tuple[str, ...], str]:
        """What copies are made of."""
        return tuple(self), self.stack


def head_at(labels: tuple[str, ...], row: int, head: int) -> Head:
    """Name the head at `[row, head]` of a result with these labels."""
    return HEADS.at(labels, row, head)


def heads_where(labels: tuple[str, ...], chosen: Tensor) -> list[Head]:
    """The heads that are chosen in a `[layer, head]` bool tensor, in the order of layers and heads."""
    return [head_at(labels, row, head) for row, head in chosen.nonzero().tolist()]


def each_head(heads: Heads) -> list[Head | tuple[int, int]]:
    """List heads, however given, or raise `HeadError`."""
    return HEADS.each(heads)


@dataclass(frozen=True, eq=False)
class Site:
    """One attention layer, at the place where its heads are concatenated: the input of `place`.

    That is the output projection, or a norm over all heads before it (BitNet); `path` names it.
    `row` is its place on the axis `layer` of results, `layer` its place in its stack.
    `kept` are the indices of the heads that are left, out of `width` before pruning, each `dim` wide.
    A module that runs in several layers (ALBERT) has one site for each `call`.
    A fused projection is `query`, `key` and `value` at once. `record` is the module that writes down which heads
    were pruned. `layout` says, in the notation of einops, how the heads are laid out there,
    and `fused` how the output of a fused projection is ordered. Where the projection is a bare parameter of the
    attention (XLNet), `weight` is its name, and all these modules are the attention itself. `runs` says how often
    `place` runs in one pass of the attention, on several kinds of tokens. `unit` is what is concatenated there.
    """

    unit: ClassVar[str] = "head"

    row: int
    stack: str
    layer: int
    call: int
    dim: int
    width: int
    kept: tuple[int, ...]
    path: str
    layout: str
    fused: str
    attention: nn.Module = field(repr=False)
    query: nn.Module = field(repr=False)
    key: nn.Module = field(repr=False)
    value: nn.Module = field(repr=False)
    place: nn.Module = field(repr=False)
    projection: nn.Module = field(repr=False)
    record: nn.Module = field(repr=False)
    weight: str = ""
    runs: int = 1

    @property
    def crosses(self) -> bool:
        """Whether this is cross attention, in which queries and keys come from different tokens."""
        return self.stack.rpartition(".")[2] == "cross"

    @property
    def label(self) -> str:
        """`encoder.0`, `decoder.0`, `cross.0`."""
        return f"{self.stack}.{self.layer}"

    def __str__(self) -> str:
        return self.label

    def spread(self, x: Tensor, heads: int, axis: int) -> Tensor:
        """Place the heads that are left, along `axis` of `x`, at their indices among `heads`; NaN for pruned heads."""
        if x.shape[axis] == len(self.kept) == heads:
            return x
        x = x.narrow(axis, 0, len(self.kept))
        if len(self.kept) == heads:
            return x
        shape = list(x.shape)
        shape[axis] = heads
        return x.new_full(shape, float("nan")).index_copy(
            axis, torch.tensor(self.kept, dtype=torch.long, device=x.device), x
        )


@dataclass(frozen=True, eq=False)
class Stack:
    """A tower of blocks: `module` runs them in turn, and `last` returns the last hidden state.

    `ties_last` says whether transformers counts that among the hidden states in the place of what the last block
    returns, `layout`, in the notation of einops, how a hidden state is laid out. `blocks` is empty where no module is a
    block: transformers is then asked for the hidden states. `reads_images` says whether its positions are patches of
    images, none of which are padding, and `single` whether it is one attention outside of any list of blocks, such as a
    pooling head, which passes on no hidden states.
    """

    name: str
    module: nn.Module = field(repr=False)
    last: nn.Module = field(repr=False)
    ties_last: bool
    layout: str
    blocks: tuple[nn.Module, ...] = field(repr=False)
    reads_images: bool = False
    single: bool = False


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Where the heads of `model` are. The axis `layer` of every result runs over `sites`, in this order."""

    names: ClassVar[PartNames[Any]] = HEADS
    holders: ClassVar[str] = "attention layers"
    """What holds these parts, in words."""

    model: nn.Module = field(repr=False)
    sites: tuple[Site, ...]
    stacks: tuple[Stack, ...]
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    """{path of a module that looks like attention and is not among the sites: why}."""
    modules: Modules | None = field(default=None, repr=False)
    """All modules of the model, each once, as they were when the heads were looked for, if they were listed then."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "modules": None}  # of a copy, or of what is loaded again, they are others

    def __repr__(self) -> str:
        stacks = ", ".join(dict.fromkeys(site.stack for site in self.sites))
        some = ", ".join(map(repr, list(self.unmeasured)[:3])) + ", ..." * (len(self.unmeasured) > 3)
        left = f"; unmeasured={{{some}}}" if self.unmeasured else ""
        size = f"{how_many(self.layers, 'layer')} of {how_many(self.heads, 'head')}"
        return f"Anatomy({type(self.model).__name__}: {size} in {stacks}{left})"

    @property
    def layers(self) -> int:
        """How many attention layers there are, over all stacks."""
        return len(self.sites)

    @cached_property
    def heads(self) -> int:
        """How wide the axis `head` of a result is: the heads of the widest layer, before pruning."""
        return max(site.width for site in self.sites)

    @property
    def labels(self) -> tuple[str, ...]:
        """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""
        stacks = {site.stack for site in self.sites}
        if len(stacks) > 1:
            return tuple(site.label for site in self.sites)
        return LayerLabels((str(site.layer) for site in self.sites), *stacks)

    @property
    def present(self) -> Tensor:
        """[layer, head], bool: which heads there are; a pruned one is not."""
        if {len(site.kept) for site in self.sites} == {self.heads}:
            return torch.ones(self.layers, self.heads, dtype=torch.bool)
        there = torch.zeros(self.layers, self.heads, dtype=torch.bool)
        for row, site in enumerate(self.sites):
            there[row, list(site.kept)] = True
        return there

    @cached_property
    def parts_of_stacks(self) -> dict[nn.Module, frozenset[nn.Module]]:
        """{module that runs a stack: all modules in it}, as they were when the heads were looked for."""
        return {stack.module: frozenset(each_module(stack.module)) for stack in self.stacks}

    def runner(self, stack: str) -> nn.Module:
        """The module that runs a stack: for cross attention, the decoder."""
        names = {one.name: one.module for one in self.stacks}
        owner = "decoder" if stack == "cross" else stack.removesuffix(".cross")
        return names.get(owner, self.model)

    def reads_images(self, stack: str) -> bool:
        """Whether the queries of a stack are patches of images."""
        runner = self.runner(stack)
        return any(one.reads_images for one in self.stacks if one.name == stack or one.module is runner)

    def check_readable(self) -> None:
        """Check that the heads, or neurons, of each layer come once in a pass, or raise `UnknownAnatomy`."""
        for site in self.sites:
            if site.runs > 1:
                raise UnknownAnatomy(
                    f"{site.path} runs on {site.runs} kinds of tokens in turn: the {site.unit}s of {site.label} can be "
                    "edited (gated, ablated), but not read"
                )

    def check_exact_gradient(self, otherwise: str) -> None:
        """Check that gradients of the attention are exact, or raise `UnknownAnatomy`, which says what they would be."""
        for site in self.sites:
            if why := oddities_of(site.attention).inexact_gradient:
                raise UnknownAnatomy(f"the attention of {site.label} {why}: {otherwise}")

    def resolve(self, heads: Heads) -> list[tuple[int, int]]:
        """Turn heads into sorted places `(row, head)` of a `[layer, head]` result, or raise `HeadError`.

        Heads are given as `{layer: [heads]}`, as names, `["L1H0"]`, as (layer, head) pairs or as `Head`s.
        """
        places = sorted({self._place(part) for part in self.names.each(heads)})
        for row, number in places:
            if number not in self.sites[row].kept:
                raise self.names.error(
                    f"{self.names.word} {self.names.at(self.labels, row, number)} was pruned before; "
                    f"of layer {self.labels[row]} {self._left(self.sites[row])}"
                )
        return places

    def _left(self, site: Site) -> str:
        return f"the heads {list(site.kept)} are left"

    def _place(self, part: Any) -> tuple[int, int]:
        word, error = self.names.word, self.names.error
        if not isinstance(part, tuple):
            rows = [s.row for s in self.sites if s.layer == part.layer and part.stack in ("", s.stack)]
            if len(rows) != 1:
                what = "in several stacks; say which" if rows else "not in this model"
                raise error(f"{word} {part} is {what}: its layers are {', '.join(self.labels)}")
            row, number = rows[0], getattr(part, word)
        else:
            row, number = part
        if not 0 <= row < self.layers:
            numbered = self.labels == tuple(str(i) for i in range(self.layers))
            named = "" if numbered else f" (rows of results, which are the layers {', '.join(self.labels)})"
            raise error(f"layer {row} is out of range: this model's {self.holders} are 0 to {self.layers - 1}{named}")
        if not 0 <= number < self.sites[row].width:
            raise error(
                f"{word} {number} of layer {row} is out of range: its {word}s are 0 to {self.sites[row].width - 1}"
            )
        return row, number
