"""Which head is best for each relation or kind of mention, and how much better is it than simple rules?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..anatomy.sites import Head, head_at
from ..corpora.documents import KINDS
from ..errors import DataError, how_many
from ..results.frames import frame_of
from ..results.statistics import Interval, gain_interval, wilson_interval
from ..results.views import html_table, markdown_table, plain_table, rounded, short
from .antecedents import ALL, BASELINES

if TYPE_CHECKING:
    from pandas import DataFrame

OFFSETS = (-3, -2, -1, 0, 1, 2)
"""The offsets of the paper's baseline, which include 0 but not 3."""

_ALSO = "intervals and more by to_frame()"

Score = TypeVar("Score", bound="RelationScore | KindScore")


class Sums(NamedTuple):
    """For how many items, of all those in a group, heads and simple rules are correct."""

    right: Tensor
    """[direction, layer, head], int64: for how many items the head is correct; -1 for pruned heads."""
    right_with_rule: Tensor
    """[rule, direction, layer, head], int64: for how many items both the head and the rule are correct."""
    rule_right: Tensor
    """[rule], int64: for how many items the rule is correct."""
    items: int
    """The number of items."""


class Counts(NamedTuple):
    """For how many items of each group heads and rules are correct. Groups are relations or kinds of mentions."""

    groups: tuple[str, ...]
    """[group]: their names."""
    directions: tuple[str, ...]
    """[direction]: their names."""
    labels: tuple[str, ...]
    """[layer]: as in every result."""
    right: Tensor
    """[group, direction, layer, head], int64: for how many items the head is correct; -1 for pruned heads."""
    right_with_rule: Tensor
    """[group, rule, direction, layer, head], int64: for how many items both the head and the rule are correct."""
    rule_right: Tensor
    """[group, rule], int64: for how many items the rule is correct."""
    items: Tensor
    """[group], int64: the number of items."""
    rest: int = 0
    """The number of items in no group, for which no head can be correct. They count only among all items."""
    rest_by_rule: Tensor | int = 0
    """[rule], int64: for how many of them the rule is correct."""

    def sums(self) -> dict[str, Sums]:
        """{group: its sums}, and those of all groups together."""
        found = {
            name: Sums(self.right[n], self.right_with_rule[n], self.rule_right[n], int(self.items[n]))
            for n, name in enumerate(self.groups)
        }
        right = self.right.sum(0).masked_fill(self.right[0] < 0, -1)
        by_rule, items = self.rule_right.sum(0) + self.rest_by_rule, int(self.items.sum()) + self.rest
        found[ALL] = Sums(right, self.right_with_rule.sum(0), by_rule, items)
        return found

    def compared(self, here: Sums, there: Sums, level: float) -> dict[str, Any]:
        """The fields that all scores share: the head that is best in `there`, and its score in `here`."""
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


@dataclass(frozen=True, repr=False)
class HeadTable(Generic[Score]):
    """Scores of the best heads, by the name of a relation or kind."""

    _key: ClassVar[str]  # the field of a score with its name: "relation" or "kind"

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
            raise DataError(f"no {self._key} {name!r}: this result has {', '.join(names)}")
        return self.rows[names.index(name)]

    def to_frame(self) -> DataFrame:
        """A pandas frame (extra `frames`) with a row for each relation or kind, and a column for each field."""
        return frame_of(self._records())

    def _records(self) -> list[dict[str, Any]]:
        return [_record(row) for row in self.rows]

    def __repr__(self) -> str:
        names = [getattr(row, self._key) for row in self.rows]
        return f"{type(self).__name__}({self._key}={short(names)}, {self._chosen})"

    def _repr_html_(self) -> str:
        return f"<div>heads {self._chosen}</div>{html_table(self._records())}"

    @property
    def _chosen(self) -> str:
        return "chosen elsewhere" if self.elsewhere else "chosen here"


@dataclass(frozen=True)
class RelationScore:
    """One relation: the head that picks its syntactic heads best, and the best fixed offset."""

    relation: str
    arcs: int
    """The number of words with this relation to another word; for `all`, of all words, with roots."""
    head: Head
    direction: str
    """Whether a word picks by the attention that it pays ("from dependent") or receives ("from head")."""
    accuracy: float
    interval: Interval
    offset: int
    """The best fixed offset: -1 guesses that the previous word is the syntactic head."""
    baseline: float
    gain: float
    """The accuracy of the head minus that of the offset."""
    gain_interval: Interval
    best_here: float
    """The accuracy of the head that is best on these same arcs. The paper reports this; it is optimistic."""


@dataclass(frozen=True, repr=False)
class RelationTable(HeadTable[RelationScore]):
    """The relations, most frequent first, and `all` words together, with roots, as in the paper."""

    _key = "relation"

    def __str__(self) -> str:
        titles = ("relation", "arcs", "head", "direction", "accuracy", "offset", "gain, %")
        rows = [
            (r.relation[:16], str(r.arcs), str(r.head), r.direction, _percent(r.accuracy), f"{r.offset:+d}", _gain(r))
            for r in self.rows
        ]
        return f"{plain_table(titles, rows)}\n(heads {self._chosen}; {_ALSO})"

    def to_markdown(self) -> str:
        """A table in Markdown for reports, with intervals, the offset's accuracy and the head that is best here."""
        first = ("relation", "arcs", f"head, {self._chosen}", "direction")
        titles = (*first, "accuracy", "offset", "its accuracy", "gain", "best here")
        rows = [
            (r.relation, str(r.arcs), str(r.head), r.direction, _accuracy(r), f"{r.offset:+d}", _percent(r.baseline),
             _gain(r), _percent(r.best_here)) for r in self.rows
        ]  # fmt: skip
        return markdown_table(titles, rows)


@dataclass(frozen=True)
class KindScore:
    """One kind of mention: the head that picks its antecedents best, and the baselines."""

    kind: str
    mentions: int
    head: Head
    direction: str
    """Whether a mention picks by the attention that it pays ("from mention") or receives ("to mention")."""
    accuracy: float
    interval: Interval
    chance: float
    """The expected accuracy of a random choice among the candidates."""
    baselines: dict[str, float]
    """{baseline: its accuracy}, by the names in `BASELINES`."""
    baseline: str
    """The best baseline, with which the head is compared."""
    gain: float
    """The accuracy of the head minus that of this baseline."""
    gain_interval: Interval
    best_here: float
    """The accuracy of the head that is best on these same mentions. The paper reports this; it is optimistic."""


@dataclass(frozen=True, repr=False)
class CoreferenceTable(HeadTable[KindScore]):
    """`all` mentions, and each kind of them."""

    _key = "kind"

    def __str__(self) -> str:
        titles = ("kind", "mentions", "head", "direction", "accuracy", "chance", "gain, %")
        rows = [
            (r.kind, str(r.mentions), str(r.head), r.direction, _percent(r.accuracy), _percent(r.chance), _gain(r))
            for r in self.rows
        ]
        return f"{plain_table(titles, rows)}\n(gain over the best rule; heads {self._chosen}; {_ALSO})"

    def to_markdown(self) -> str:
        """A table in Markdown for reports, with intervals, all baselines and the head that is best here."""
        titles = ("kind", "mentions", "chance", *BASELINES, f"head, {self._chosen}", "direction", "accuracy",
                  "gain over the best rule", "best here")  # fmt: skip
        rows = [
            (r.kind, str(r.mentions), _percent(r.chance), *(_percent(r.baselines[name]) for name in BASELINES),
             str(r.head), r.direction, _accuracy(r), _gain(r), _percent(r.best_here)) for r in self.rows
        ]  # fmt: skip
        return markdown_table(titles, rows)


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
    """Score the heads that are best in `chosen`; `chance` [kind]: for how many mentions a random choice is correct."""
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
            f"choose_on has {how_many(chosen.right.shape[2], 'layer')} of {how_many(chosen.right.shape[3], 'head')}, "
            f"this result has {how_many(scored.right.shape[2], 'layer')} of {scored.right.shape[3]}: wanted the same "
            "model on other data"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _record(row: Any) -> dict[str, Any]:
    """{column: value} of a row: both ends of an interval have a column, and so has each baseline."""
    record: dict[str, Any] = {}
    for f in fields(row):
        value = getattr(row, f.name)
        if isinstance(value, tuple):
            record |= {f"{f.name}_low": value[0], f"{f.name}_high": value[1]}
        else:
            record |= {f"by_{name}": x for name, x in value.items()} if isinstance(value, dict) else {f.name: value}
    return record


def _accuracy(row: RelationScore | KindScore) -> str:
    low, high = row.interval
    return f"{100 * row.accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _gain(row: RelationScore | KindScore) -> str:
    gain, low, high = (rounded(100 * x, "+.1f") for x in (row.gain, *row.gain_interval))
    return f"{gain} ({low}, {high})"
