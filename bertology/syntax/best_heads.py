"""Which head is best at which relation or kind of mention, and how much better than simple rules?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..anatomy.sites import Head, head_at
from ..corpora.documents import KINDS
from ..errors import DataError
from ..results.statistics import Interval, gain_interval, wilson_interval
from .antecedents import ALL, BASELINES

OFFSETS = (-3, -2, -1, 0, 1, 2)
"""The offsets of the paper's baseline: 0 is among them, 3 is not."""

Score = TypeVar("Score", bound="RelationScore | KindScore")


class Sums(NamedTuple):
    """How often heads and simple rules are right about some items."""

    right: Tensor
    """[direction, layer, head], int64; -1 for heads that are not there."""
    right_with_rule: Tensor
    """[rule, direction, layer, head], int64: how often the rule is right too."""
    rule_right: Tensor
    """[rule], int64."""
    items: int


class Counts(NamedTuple):
    """How often heads and simple rules are right about items of several groups: relations, or kinds of mentions."""

    groups: tuple[str, ...]
    """[group]: the names."""
    directions: tuple[str, ...]
    """[direction]: the names."""
    labels: tuple[str, ...]
    """[layer]: as in every result."""
    right: Tensor
    """[group, direction, layer, head], int64; -1 for heads that are not there."""
    right_with_rule: Tensor
    """[group, rule, direction, layer, head], int64: how often the rule is right too."""
    rule_right: Tensor
    """[group, rule], int64."""
    items: Tensor
    """[group], int64: how many items there are."""

    def sums(self) -> dict[str, Sums]:
        """{group: its sums}, and those of all groups together."""
        found = {
            name: Sums(self.right[n], self.right_with_rule[n], self.rule_right[n], int(self.items[n]))
            for n, name in enumerate(self.groups)
        }
        right = self.right.sum(0).masked_fill(self.right[0] < 0, -1)
        found[ALL] = Sums(right, self.right_with_rule.sum(0), self.rule_right.sum(0), int(self.items.sum()))
        return found

    def compared(self, here: Sums, there: Sums, level: float) -> dict[str, Any]:
        """The fields that all scores share: the head that is best in `there`, and how good it is in `here`."""
        place = direction, row, head = tuple(
            int(i) for i in torch.unravel_index(there.right.argmax(), there.right.shape)
        )
        rule = int(there.rule_right.argmax())
        hits, by_rule = int(here.right[place]), int(here.rule_right[rule])
        both = int(here.right_with_rule[(rule, *place)])
        return {
            "head": head_at(self.labels, row, head),
            "direction": self.directions[direction],
            "accuracy": hits / here.items,
            "interval": wilson_interval(hits, here.items, level),
            "gain": (hits - by_rule) / here.items,
            "gain_interval": gain_interval(hits - both, by_rule - both, here.items, level),
            "best_here": int(here.right.max()) / here.items,
        }


@dataclass(frozen=True)
class HeadTable(Generic[Score]):
    """Scores of the best heads, by the name of a relation or kind."""

    _key: ClassVar[str]  # the field of a score that names it
    _what: ClassVar[str]  # what these names are, for the message of an error

    rows: tuple[Score, ...]
    elsewhere: bool
    """Whether heads and rules were chosen on other data."""

    def __iter__(self) -> Iterator[Score]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Score:
        names = [getattr(row, self._key) for row in self.rows]
        if name not in names:
            raise DataError(f"no {self._what} {name!r}: there are {', '.join(names)}")
        return self.rows[names.index(name)]

    @property
    def _chosen(self) -> str:
        return "chosen elsewhere" if self.elsewhere else "chosen here"


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
    """The accuracy of the head that is best on these same arcs: the paper's figure, which is optimistic."""


@dataclass(frozen=True)
class RelationTable(HeadTable[RelationScore]):
    """The relations, most frequent first, and `all` of them together."""

    _key, _what = "relation", "relation"

    def __str__(self) -> str:
        lines = [
            f"| relation | arcs | head, {self._chosen} | direction | accuracy | offset | its accuracy | gain "
            "| best here |",
            f"|{'---|' * 9}",
        ]
        for r in self.rows:
            lines.append(
                f"| {r.relation} | {r.arcs} | {r.head} | {r.direction} | {_accuracy(r)} | {r.offset:+d} "
                f"| {100 * r.baseline:.1f} | {_gain(r)} | {100 * r.best_here:.1f} |"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class KindScore:
    """One kind of mention: the head that picks antecedents best, and the baselines."""

    kind: str
    mentions: int
    head: Head
    direction: str
    """Whether the mention's own attention was asked ("from mention") or the attention that it gets ("to mention")."""
    accuracy: float
    interval: Interval
    chance: float
    """How often a blind choice among the candidates is right."""
    baselines: dict[str, float]
    """{baseline: its accuracy}, by the names in `BASELINES`."""
    baseline: str
    """The best of them, with which the head is compared."""
    gain: float
    """How much more often the head is right than that baseline."""
    gain_interval: Interval
    best_here: float
    """The accuracy of the head that is best on these same mentions: the paper's figure, which is optimistic."""


@dataclass(frozen=True)
class CoreferenceTable(HeadTable[KindScore]):
    """`all` mentions, and each kind of them."""

    _key, _what = "kind", "mentions of the kind"

    def __str__(self) -> str:
        lines = [
            f"| kind | mentions | chance | {' | '.join(BASELINES)} | head, {self._chosen} | direction | accuracy "
            "| gain over the best rule | best here |",
            f"|{'---|' * (8 + len(BASELINES))}",
        ]
        for r in self.rows:
            rules = " | ".join(f"{100 * r.baselines[name]:.1f}" for name in BASELINES)
            lines.append(
                f"| {r.kind} | {r.mentions} | {100 * r.chance:.1f} | {rules} | {r.head} | {r.direction} "
                f"| {_accuracy(r)} | {_gain(r)} | {100 * r.best_here:.1f} |"
            )
        return "\n".join(lines)


def relation_table(scored: Counts, chosen: Counts, elsewhere: bool, least: int, level: float) -> RelationTable:
    """Score the heads and offsets that are best in `chosen`."""
    check_same_model(scored, chosen)
    here, there = scored.sums(), chosen.sums()
    names = [name for name in here if name in there and min(here[name].items, there[name].items) >= max(1, least)]
    names.sort(key=lambda name: (name == ALL, here[name].items), reverse=True)
    rows = []
    for name in names:
        arcs, offset = here[name].items, int(there[name].rule_right.argmax())
        rows.append(
            RelationScore(
                relation=name,
                arcs=arcs,
                offset=OFFSETS[offset],
                baseline=int(here[name].rule_right[offset]) / arcs,
                **scored.compared(here[name], there[name], level),
            )
        )
    return RelationTable(tuple(rows), elsewhere)


def coreference_table(
    scored: Counts, chosen: Counts, chance: Tensor, elsewhere: bool, least: int, level: float
) -> CoreferenceTable:
    """Score the heads that are best in `chosen`; `chance [kind]` is of how many mentions a blind choice is right."""
    check_same_model(scored, chosen)
    here, there = scored.sums(), chosen.sums()
    by_chance = {ALL: float(chance.sum()), **dict(zip(KINDS, chance.tolist(), strict=True))}
    rows = []
    for name in by_chance:
        mentions, rules = here[name].items, here[name].rule_right.tolist()
        if min(mentions, there[name].items) >= max(1, least):
            rows.append(
                KindScore(
                    kind=name,
                    mentions=mentions,
                    chance=by_chance[name] / mentions,
                    baselines={rule: n / mentions for rule, n in zip(BASELINES, rules, strict=True)},
                    baseline=BASELINES[int(there[name].rule_right.argmax())],
                    **scored.compared(here[name], there[name], level),
                )
            )
    return CoreferenceTable(tuple(rows), elsewhere)


def check_same_model(scored: Counts, chosen: Counts) -> None:
    """Raise `DataError` unless both counts are of the same layers and heads."""
    if scored.labels != chosen.labels or scored.right.shape[2:] != chosen.right.shape[2:]:
        raise DataError(
            f"choose_on is of a model of {chosen.right.shape[2]} layers of {chosen.right.shape[3]} heads, this result "
            f"of {scored.right.shape[2]} of {scored.right.shape[3]}: wanted the same model on other data"
        )


def _accuracy(row: RelationScore | KindScore) -> str:
    low, high = row.interval
    return f"{100 * row.accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _gain(row: RelationScore | KindScore) -> str:
    low, high = row.gain_interval
    return f"{100 * row.gain:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
