"""Which head is best at which relation, and how much better than a fixed offset?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..anatomy.sites import Head, head_at
from ..errors import DataError
from ..results.statistics import Interval, gain_interval, wilson_interval
from .picks import DIRECTIONS

OFFSETS = (-3, -2, -1, 0, 1, 2)
"""The offsets of the paper's baseline: 0 is among them, 3 is not."""
ALL = "all"


class Counts(Protocol):
    """What a table is made of: `DependencyHeads`."""

    @property
    def right(self) -> Tensor:
        """As in `DependencyHeads`."""

    @property
    def right_with_offset(self) -> Tensor:
        """As in `DependencyHeads`."""

    @property
    def offset_right(self) -> Tensor:
        """As in `DependencyHeads`."""

    @property
    def arcs(self) -> Tensor:
        """As in `DependencyHeads`."""

    @property
    def relations(self) -> tuple[str, ...]:
        """As in `DependencyHeads`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """As in `DependencyHeads`."""


@dataclass(frozen=True)
class RelationScore:
    """One relation: the head that follows it best, and the best fixed offset."""

    relation: str
    arcs: int
    head: Head
    direction: str
    """Whether the word's own attention was asked ("from dependent") or the attention that it gets ("from head")."""
    accuracy: float
    interval: Interval
    offset: int
    """Where the word's head is guessed by the best fixed offset: -1 is the word before."""
    baseline: float
    gain: float
    """How much more often the head is right than the offset."""
    gain_interval: Interval
    best_here: float
    """The accuracy of the head that is best on these very arcs: the paper's figure, which flatters."""


@dataclass(frozen=True)
class RelationTable:
    """The relations, most frequent first, and `all` of them together."""

    rows: tuple[RelationScore, ...]
    elsewhere: bool
    """Whether heads and offsets were chosen on other data."""

    def __iter__(self) -> Iterator[RelationScore]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, relation: str) -> RelationScore:
        for row in self.rows:
            if row.relation == relation:
                return row
        raise DataError(f"no relation {relation!r}: there are {', '.join(row.relation for row in self.rows)}")

    def __str__(self) -> str:
        chosen = "chosen elsewhere" if self.elsewhere else "chosen here"
        lines = [
            f"| relation | arcs | head, {chosen} | direction | accuracy | offset | its accuracy | gain | best here |",
            f"|{'---|' * 9}",
        ]
        for r in self.rows:
            low, high = (f"{100 * end:.1f}" for end in r.interval)
            gain_low, gain_high = (f"{100 * end:+.1f}" for end in r.gain_interval)
            lines.append(
                f"| {r.relation} | {r.arcs} | {r.head} | {r.direction} | {100 * r.accuracy:.1f} ({low} to {high}) "
                f"| {r.offset:+d} | {100 * r.baseline:.1f} | {100 * r.gain:+.1f} ({gain_low} to {gain_high}) "
                f"| {100 * r.best_here:.1f} |"
            )
        return "\n".join(lines)


def relation_table(scored: Counts, chosen: Counts, elsewhere: bool, least: int, level: float) -> RelationTable:
    """Score the heads and offsets that are best in `chosen`."""
    if scored.labels != chosen.labels or scored.right.shape[2:] != chosen.right.shape[2:]:
        raise DataError(
            f"choose_on is of a model of {chosen.right.shape[2]} layers of {chosen.right.shape[3]} heads, this result "
            f"of {scored.right.shape[2]} of {scored.right.shape[3]}: wanted the same model on other data"
        )
    here, there = _by_name(scored), _by_name(chosen)
    names = [name for name in here if name in there and min(here[name][3], there[name][3]) >= max(1, least)]
    names.sort(key=lambda name: (name == ALL, here[name][3]), reverse=True)
    return RelationTable(
        tuple(_score(name, here[name], there[name], scored.labels, level) for name in names), elsewhere
    )


_Sums = tuple[Tensor, Tensor, Tensor, int]


def _by_name(counts: Counts) -> dict[str, _Sums]:
    """{relation: (right, right with the offset, offset right, arcs)}, and the sums over all."""
    sums = (counts.right, counts.right_with_offset, counts.offset_right)
    found = {
        name: (*(x[number] for x in sums), int(counts.arcs[number])) for number, name in enumerate(counts.relations)
    }
    gone = counts.right[0] < 0
    found[ALL] = (
        counts.right.sum(0).masked_fill(gone, -1), counts.right_with_offset.sum(0), counts.offset_right.sum(0),
        int(counts.arcs.sum()),
    )  # fmt: skip
    return found  # type: ignore[return-value]


def _score(name: str, here: _Sums, there: _Sums, labels: tuple[str, ...], level: float) -> RelationScore:
    best = int(there[0].argmax())
    direction, row, head = (int(i) for i in torch.unravel_index(torch.tensor(best), there[0].shape))
    offset = int(there[2].argmax())
    right, together, by_offset, arcs = here
    hits, shared, baseline = (
        int(right[direction, row, head]), int(together[offset, direction, row, head]), int(by_offset[offset]),
    )  # fmt: skip
    return RelationScore(
        name, arcs, head_at(labels, row, head), DIRECTIONS[direction], hits / arcs, wilson_interval(hits, arcs, level),
        OFFSETS[offset], baseline / arcs, (hits - baseline) / arcs,
        gain_interval(hits - shared, baseline - shared, arcs, level), int(right.max()) / arcs,
    )  # fmt: skip
