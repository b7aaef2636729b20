"""What is kept of a capture: which layers and positions, in which type, and where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..anatomy.sites import Anatomy
from ..data.batches import Batch, shows_padding, token_ids
from ..data.padding import check_tokens, real_positions
from ..errors import DataError, described, how_many, is_whole
from ..streaming.one_batch import pile


class Layers:
    """Which layers are kept: numbers, which count in every stack, and labels such as "decoder.3"; None for all."""

    def __init__(self, given: Any = None) -> None:
        if given is not None and (isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable)):
            raise DataError(
                f"layers must be a list of numbers or labels, such as [0, 5] or ['decoder.3'], got {given!r}"
            )
        named = () if given is None else tuple(given)
        for one in named:
            if not isinstance(one, str) and not is_whole(one):
                raise DataError(f"layers must be numbers, or labels such as 'decoder.3', got {described(one)}")
        self._given = None if given is None else [one if isinstance(one, str) else int(one) for one in named]
        if self._given == []:
            raise DataError("layers is empty: name a layer, or leave it out for all layers")
        self._names = frozenset(self._given or ())

    @property
    def are_all(self) -> bool:
        """Whether every layer is kept."""
        return self._given is None

    def wants(self, stack: str, layer: int) -> bool:
        """Whether a layer is kept."""
        return self._given is None or not self._names.isdisjoint((layer, str(layer), f"{stack}.{layer}"))

    def check(self, kinds: Mapping[str, Sequence[tuple[str, int]]]) -> None:
        """Raise `DataError` for a layer that is not there, before the model runs.

        `kinds` are the stacks and numbers of all layers, by the name of what is captured of them. A number must be that
        of a layer of each kind, a label of one of them; and each kind must have a layer that is kept.
        """
        for one in self._given or ():
            missing = [what for what, there in kinds.items() if one not in _names_of(there)]
            if missing and (not isinstance(one, str) or len(missing) == len(kinds)):
                raise DataError(f"layer {one} is out of range: {_told(missing[0], kinds[missing[0]])}")
        for what, there in kinds.items():
            if not any(self.wants(stack, layer) for stack, layer in there):
                raise DataError(f"none of the layers {self} is one of the {what}: {_told(what, there)}")

    def __repr__(self) -> str:
        return "all" if self._given is None else repr(sorted(map(str, self._names)))


def _names_of(there: Sequence[tuple[str, int]]) -> set[int | str]:
    """All names by which these layers may be chosen."""
    return {name for stack, layer in there for name in (layer, str(layer), f"{stack}.{layer}")}


def _told(what: str, there: Sequence[tuple[str, int]]) -> str:
    """The layers that there are, in words."""
    stacks = list(dict.fromkeys(stack for stack, _ in there))
    each = {stack: _numbers([layer for name, layer in there if name == stack]) for stack in stacks}
    layers = each[stacks[0]] if len(stacks) == 1 else ", ".join(f"{stack}: {told}" for stack, told in each.items())
    return f"the {what} of this model have the layers {layers}"


def _numbers(layers: list[int]) -> str:
    """The numbers of layers in words: "0 to 11", or one by one where some are missing."""
    if layers == list(range(layers[0], layers[-1] + 1)) and len(layers) > 1:
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))


class Positions:
    """Which tokens of each text are kept: counted from 0 at its first real token, and from -1 back from its last one.

    So they are the same tokens on whichever side a text is padded, and with or without padding.
    """

    def __init__(self, given: Any, *, all_short: bool = False) -> None:
        """With `all_short`, no text needs to have these tokens."""
        if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
            raise DataError(f"positions must be a list of whole numbers, such as [0, -1], got {described(given)}")
        found = tuple(given.tolist() if isinstance(given, Tensor) else given)
        if not found or not all(is_whole(one) for one in found):
            raise DataError(f"positions must be one whole number or more, such as [0, -1], got {list(found)}")
        self.given = tuple(map(int, found))
        self._all_short = all_short
        self.there: dict[str, Tensor] = {}
        """{stack: [batch, position]}, bool: which of the chosen tokens each text has."""
        self._where: dict[tuple[str, int, int], tuple[Tensor, Tensor]] = {}

    def of(self, anatomy: Anatomy, batch: Batch, stack: str, x: Tensor, axis: int) -> Tensor:
        """The chosen positions of `x [batch, ...]` along an axis; NaN where a text does not have one."""
        key = (stack, x.shape[0], x.shape[axis])
        if key not in self._where:
            self._where[key] = self._find(anatomy, batch, *key)
        where, there = (one.to(x.device) for one in self._where[key])
        shape = [1] * x.dim()
        shape[0], shape[axis] = where.shape
        sizes = list(x.shape)
        sizes[axis] = where.shape[1]
        chosen = x.gather(axis, where.view(shape).expand(sizes))
        return chosen if bool(there.all()) else chosen.masked_fill(~there.view(shape), float("nan"))

    def _find(self, anatomy: Anatomy, batch: Batch, stack: str, rows: int, many: int) -> tuple[Tensor, Tensor]:
        """[batch, position]: where the chosen tokens are among `many` positions, and whether they are there."""
        if not shows_padding(anatomy.model, batch, stack):
            raise DataError(
                "positions count the real tokens of a text, but the attention mask is not [batch, token], which does "
                "not show which these are: pass a mask that is, or take all positions"
            )
        real = real_positions(anatomy, batch, stack, rows, many).cpu()
        if token_ids(anatomy.model, batch, stack) is not None and not anatomy.reads_images(stack):
            check_tokens(anatomy, batch, stack, many)
        wanted, lengths = torch.tensor(self.given), real.sum(1, keepdim=True)
        counted = torch.where(wanted < 0, lengths + wanted, wanted)
        there = (counted >= 0) & (counted < lengths)
        if not self._all_short and not bool(there.any(0).all()):
            missing = self.given[int((~there.any(0)).nonzero()[0])]
            raise DataError(
                f"position {missing} is out of range: the longest text has {how_many(int(lengths.max()), 'token')}"
            )
        # The real tokens first, in their order: their places in the row are then those that count.
        order = (~real).to(torch.int8).argsort(dim=1, stable=True)
        self.there[stack] = there
        return order.gather(1, counted.clamp(0, many - 1)), there


class Place(Protocol):
    """Where captured tensors are kept."""

    def keep(self, kind: str, stack: str, x: Tensor) -> Tensor:
        """Store the tensor of a layer as soon as it is read; what is returned is used in its place."""

    def pile(self, kind: str, stack: str, layers: list[Tensor]) -> Tensor:
        """[layer, ...]: the layers of a stack, one after the other."""


class InMemory:
    """Captured tensors stay where they are."""

    def keep(self, kind: str, stack: str, x: Tensor) -> Tensor:
        """The tensor itself."""
        return x

    def pile(self, kind: str, stack: str, layers: list[Tensor]) -> Tensor:
        """[layer, ...]: the layers stacked."""
        return pile(layers)


@dataclass(frozen=True)
class Keeping:
    """What is kept of a capture, by default all of it as the model computed it."""

    layers: Layers = field(default_factory=Layers)
    positions: Positions | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    place: Place = field(default_factory=InMemory)

    @property
    def is_plain(self) -> bool:
        """Whether tensors are kept as they are."""
        return (self.positions or self.dtype or self.device) is None and type(self.place) is InMemory

    def converted(self, x: Tensor) -> Tensor:
        """The tensor in the type and on the device that are asked for. Raises `DataError` where float16 overflows."""
        if self.dtype is None and self.device is None:
            return x
        new = x.to(device=self.device or x.device, dtype=self.dtype or x.dtype)
        if new.dtype == torch.float16 != x.dtype and bool((new.isinf() & ~x.isinf().to(new.device)).any()):
            raise DataError(
                f"a value of {float(x.nan_to_num().abs().max()):.4g} was captured, but the limit of float16 is 65504: "
                "pass dtype=torch.bfloat16 or dtype=torch.float32"
            )
        return new
