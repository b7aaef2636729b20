"""Variants of a model in which MLPs or blocks return what they returned in another run."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import ClassVar

import torch
from torch import Tensor

from ..anatomy.sites import Anatomy, Site
from ..data.batches import Batch
from .hooks import tap
from .resume import Recording
from .variants import MlpVariants, Variants

Place = tuple[str, int]
"""A stack, and the row of an MLP, or the number of a block from 1; 0 for the input of its first block."""
PutIn = Callable[[Place, Tensor, int | None], Tensor]
"""`f(place, x, token) -> x`, both [row, position, hidden]: what is there when the other run's states are put in at one
of the tokens that are patched, by its number, or at all."""


def gate_of(token: int | None) -> int:
    """The gate of a place at which another run's states are put in at a token, or at all that are patched."""
    return 0 if token is None else -1 - token


def _patched(put_in: PutIn, place: Place, x: Tensor, gates: Tensor) -> Tensor:
    """[(copy row), position, hidden]: what is at a place under `gates [copy]`."""
    each = x.reshape(len(gates), -1, *x.shape[1:]).clone()
    for copy, gate in enumerate(map(int, gates.tolist())):
        if gate != 1:
            each[copy] = put_in(place, each[copy], None if gate == 0 else -1 - gate)
    return each.reshape(x.shape)


class _Patches(Variants):
    """Gates [copy, place, 1], other than 1 where another run's states are put in: see `gate_of`."""

    starts: ClassVar[tuple[str, ...]] = ("block", "copies", "alone")
    copied: ClassVar[bool] = True
    shared: ClassVar[bool] = True

    @abstractmethod
    def ended(self, record: Recording, row: int) -> set[int]:
        """The calls of blocks that have ended when what is at a place is changed."""

    def tried(self, copies: int) -> int:
        """Two, where several run at once."""
        return min(2, max(1, copies))

    def trial(self, row: int, copies: int, later: Sequence[int]) -> Tensor:
        """One copy without a change, and another one: what one place changes may be lost in rounding."""
        gates = self.changing_all().new_ones(copies, *self.changing_all().shape[1:])
        gates[1:, list(later)] = 0
        return gates

    def can_start(self, start: str, record: Recording, row: int) -> bool:
        """A pass resumes if blocks have ended before the place."""
        return start != "block" or bool(self.ended(record, row))


class MlpPatches(_Patches, MlpVariants):
    """MLPs that return what they returned in another run."""

    def __init__(self, anatomy: Anatomy, parts: Anatomy, put_in: PutIn) -> None:
        super().__init__(anatomy, parts)
        self._put_in = put_in

    def ended(self, record: Recording, row: int) -> set[int]:
        """The calls of blocks that had ended before that of the MLP."""
        return record.ended_before(record.parts[row])

    def _edited(self, record: Recording, site: Site, x: Tensor, gates: Tensor) -> Tensor:
        # OPT has the tokens of all examples in one row.
        rows = x.reshape(len(gates) * record.rows, -1, x.shape[-1])
        return _patched(self._put_in, (site.stack, site.row), rows, gates).reshape(x.shape)


class BlockPatches(_Patches):
    """Blocks that return what they returned in another run, or whose stack is given what it was given there."""

    def __init__(self, anatomy: Anatomy, places: Sequence[Place], put_in: PutIn) -> None:
        super().__init__(anatomy)
        self._rows = {place: row for row, place in enumerate(places)}
        self._put_in = put_in

    def _calls(self, record: Recording) -> dict[int, set[int]]:
        """{row of a place: the calls of blocks that have ended there}, in the order in which blocks run."""
        found: dict[int, set[int]] = {}
        layers: Counter[str] = Counter()
        for number, call in enumerate(record.blocks):
            stack, before = call.stack.name, record.ended_before(number)
            if not layers[stack]:
                found[self._rows[stack, 0]] = before
            layers[stack] += 1
            found[self._rows[stack, layers[stack]]] = before | {number}
        return found

    def ran(self, record: Recording) -> Collection[int]:
        """The places that ran."""
        return self._calls(record).keys()

    def changing_all(self) -> Tensor:
        """All states put in."""
        return torch.zeros(1, len(self._rows), 1)

    def ended(self, record: Recording, row: int) -> set[int]:
        """The calls of the blocks before the place, and of the block that returns what is there."""
        return self._calls(record)[row]

    def open(self, record: Recording, row: int, gates: Tensor, batch: Batch, start: str, undo: ExitStack) -> None:
        """Resume after the block, and put states in."""
        if start == "block":
            undo.enter_context(record.resumed_after(self.ended(record, row), len(gates)))
        changing = (gates != 1).any(-1).any(0)

        def edit(stack: str, layer: int, x: Tensor) -> Tensor:
            at = self._rows[stack, layer]
            return _patched(self._put_in, (stack, layer), x, gates[:, at, 0]) if changing[at] else x

        if changing.any():
            undo.enter_context(tap(self.anatomy, "block", edit=edit, once=True))
