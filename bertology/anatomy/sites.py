"""Heads, the sites where they are, and the anatomy of a model."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import HeadError, UnknownAnatomy, described

PREFIXES = {"encoder": "E", "decoder": "D", "cross": "X"}


@dataclass(frozen=True, order=True)
class Head:
    """One attention head, printed `L5H3`, or `EL0H1`, `DL0H1`, `XL0H1` in models with several stacks.

    `head` is its index in the unpruned layer: a head keeps its index when other heads are removed.

        >>> str(Head(5, 3)), str(Head(0, 1, "cross"))
        ('L5H3', 'XL0H1')
    """

    layer: int
    head: int
    stack: str = ""

    def __post_init__(self) -> None:
        """Raise `HeadError` for what is no whole number."""
        for name, number in (("layer", self.layer), ("head", self.head)):
            if type(number) is not int and (isinstance(number, bool) or not hasattr(number, "__index__")):
                raise HeadError(f"the {name} of a Head must be a whole number, got {described(number)}")
        if not isinstance(self.stack, str):
            raise HeadError(f"the stack of a Head must be a string such as 'encoder', got {described(self.stack)}")

    def __str__(self) -> str:
        prefix = PREFIXES.get(self.stack, f"{self.stack}." if self.stack else "")
        return f"{prefix}L{self.layer}H{self.head}"


class HeadScore(NamedTuple):
    """A head and its value in a result; wherever heads are taken, the pair stands for the head."""

    head: Head
    score: float

    def __repr__(self) -> str:
        return f"{self.head}: {self.score:.4g}"


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
    stack, _, layer = labels[row].rpartition(".")
    return Head(int(layer), head, stack)


def each_head(heads: Heads) -> list[Head | tuple[int, int]]:
    """List heads, however given, or raise `HeadError`."""
    if isinstance(heads, Mapping):
        return [(_number(layer, heads), head) for layer, some in heads.items() for head in _numbers(some, heads)]
    if isinstance(heads, (str, bytes, Head)) or not isinstance(heads, Iterable):
        raise _no_heads(heads, heads)
    return [_one_head(head, heads) for head in heads]


def _one_head(head: Any, heads: Any) -> Head | tuple[int, int]:
    if isinstance(head, str):
        return head_named(head)
    head = head.head if isinstance(head, HeadScore) else head
    if isinstance(head, Head):
        return Head(_number(head.layer, head), _number(head.head, head), head.stack)
    try:
        pair = None if isinstance(head, (Mapping, set, frozenset)) else list(head)
    except TypeError:
        pair = None
    if pair is None or len(pair) != 2:
        raise _no_heads(heads, head)
    return _number(pair[0], heads), _number(pair[1], heads)


def _numbers(some: Any, heads: Any) -> list[int]:
    """The heads of a layer: a string is not taken for the list of its digits."""
    if isinstance(some, (str, bytes, Mapping)) or not isinstance(some, Iterable):
        raise _no_heads(heads, some)
    return [_number(head, heads) for head in some]


def _number(value: Any, heads: Any) -> int:
    """A whole number; True and 1.0 are none, nor is a tensor of several."""
    kind = getattr(value, "dtype", None)
    try:
        if isinstance(value, bool) or (kind is not None and str(kind).endswith(("bool", "bool_"))):
            raise TypeError
        if isinstance(value, Tensor) and value.dim():
            raise TypeError
        return operator.index(value)
    except TypeError as error:
        raise _no_heads(heads, value) from error


def _no_heads(heads: Any, part: Any) -> HeadError:
    came = "" if part is heads else f", in which {part!r} is none of these"
    return HeadError(
        "heads must be {layer: [heads]}, (layer, head) pairs of whole numbers, Heads or their names such as 'L5H3', "
        f"got {heads!r}{came}"
    )


def head_named(name: str) -> Head:
    """The head with a printed name: `L5H3`, `EL0H1`, `DL0H1`, `XL0H1`, or `tower.L0H1`. Raises `HeadError`."""
    found = re.fullmatch(r"(.*?)L(\d+)H(\d+)", name)
    stacks = {prefix: stack for stack, prefix in PREFIXES.items()} | {"": ""}
    if found is None or not (found[1] in stacks or found[1].endswith(".")):
        raise _no_heads(name, name)
    return Head(int(found[2]), int(found[3]), stacks.get(found[1], found[1][:-1]))


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
        x = x.narrow(axis, 0, len(self.kept))
        if self.kept == tuple(range(heads)):
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

    model: nn.Module = field(repr=False)
    sites: tuple[Site, ...]
    stacks: tuple[Stack, ...]
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    """{path of a module that looks like attention and is not among the sites: why}."""

    def __repr__(self) -> str:
        stacks = ", ".join(dict.fromkeys(site.stack for site in self.sites))
        some = ", ".join(map(repr, list(self.unmeasured)[:3])) + ", ..." * (len(self.unmeasured) > 3)
        left = f"; unmeasured={{{some}}}" if self.unmeasured else ""
        return f"Anatomy({type(self.model).__name__}: {self.layers} layers of {self.heads} heads in {stacks}{left})"

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
        stacks = {site.stack for site in self.sites}
        if len(stacks) > 1:
            return tuple(site.label for site in self.sites)
        return LayerLabels((str(site.layer) for site in self.sites), *stacks)

    @property
    def present(self) -> Tensor:
        """[layer, head], bool: which heads there are; a pruned one is not."""
        there = torch.zeros(self.layers, self.heads, dtype=torch.bool)
        for row, site in enumerate(self.sites):
            there[row, list(site.kept)] = True
        return there

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
        """Check that each layer's heads come once in a forward pass, or raise `UnknownAnatomy`."""
        for site in self.sites:
            if site.runs > 1:
                raise UnknownAnatomy(
                    f"{site.path} runs on {site.runs} kinds of tokens in turn: the heads of {site.label} can be edited "
                    "(gated, ablated), but not read"
                )

    def resolve(self, heads: Heads) -> list[tuple[int, int]]:
        """Turn heads into sorted places `(row, head)` of a `[layer, head]` result, or raise `HeadError`.

        Heads are given as `{layer: [heads]}`, as names, `["L1H0"]`, as (layer, head) pairs or as `Head`s.
        """
        places = sorted({self._place(head) for head in each_head(heads)})
        for row, head in places:
            if head not in self.sites[row].kept:
                raise HeadError(
                    f"head {head_at(self.labels, row, head)} was pruned before; "
                    f"of layer {self.labels[row]} the heads {list(self.sites[row].kept)} are left"
                )
        return places

    def _place(self, head: Head | tuple[int, int]) -> tuple[int, int]:
        if isinstance(head, Head):
            rows = [s.row for s in self.sites if s.layer == head.layer and head.stack in ("", s.stack)]
            if len(rows) != 1:
                what = "in several stacks; say which" if rows else "not in this model"
                raise HeadError(f"head {head} is {what}: its layers are {', '.join(self.labels)}")
            row, number = rows[0], head.head
        else:
            row, number = head
        if not 0 <= row < self.layers:
            numbered = self.labels == tuple(str(i) for i in range(self.layers))
            named = "" if numbered else f" (rows of results, which are the layers {', '.join(self.labels)})"
            raise HeadError(
                f"layer {row} is out of range: this model's attention layers are 0 to {self.layers - 1}{named}"
            )
        if not 0 <= number < self.sites[row].width:
            raise HeadError(
                f"head {number} of layer {row} is out of range: its heads are 0 to {self.sites[row].width - 1}"
            )
        return row, number
