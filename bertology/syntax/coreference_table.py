"""Which head is best at which kind of mention, and how much better than simple rules?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..anatomy.sites import Head, head_at
from ..corpora.documents import KINDS
from ..errors import DataError
from ..results.statistics import Interval, gain_interval, wilson_interval
from .antecedents import ALL, BASELINES

DIRECTIONS = ("from mention", "to mention")
"""Whether a mention picks its antecedent by the attention that it pays, or by the attention that it gets."""


class Counts(Protocol):
    """What a table is made of: `CoreferenceHeads`."""

    @property
    def right(self) -> Tensor:
        """As in `CoreferenceHeads`."""

    @property
    def right_with_baseline(self) -> Tensor:
        """As in `CoreferenceHeads`."""

    @property
    def baseline_right(self) -> Tensor:
        """As in `CoreferenceHeads`."""

    @property
    def chance(self) -> Tensor:
        """As in `CoreferenceHeads`."""

    @property
    def mentions(self) -> Tensor:
        """As in `CoreferenceHeads`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """As in `CoreferenceHeads`."""

    @property
    def candidates(self) -> str:
        """As in `CoreferenceHeads`."""


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
    """The accuracy of the head that is best on these very mentions: the paper's figure, which flatters."""


@dataclass(frozen=True)
class CoreferenceTable:
    """`all` mentions, and each kind of them."""

    rows: tuple[KindScore, ...]
    elsewhere: bool
    """Whether heads were chosen on other data."""

    def __iter__(self) -> Iterator[KindScore]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, kind: str) -> KindScore:
        for row in self.rows:
            if row.kind == kind:
                return row
        raise DataError(f"no mentions of the kind {kind!r}: there are {', '.join(row.kind for row in self.rows)}")

    def __str__(self) -> str:
        chosen = "chosen elsewhere" if self.elsewhere else "chosen here"
        lines = [
            f"| kind | mentions | chance | {' | '.join(BASELINES)} | head, {chosen} | direction | accuracy "
            "| gain over the best rule | best here |",
            f"|{'---|' * (8 + len(BASELINES))}",
        ]
        for r in self.rows:
            low, high = (f"{100 * end:.1f}" for end in r.interval)
            gain_low, gain_high = (f"{100 * end:+.1f}" for end in r.gain_interval)
            rules = " | ".join(f"{100 * r.baselines[name]:.1f}" for name in BASELINES)
            lines.append(
                f"| {r.kind} | {r.mentions} | {100 * r.chance:.1f} | {rules} | {r.head} | {r.direction} "
                f"| {100 * r.accuracy:.1f} ({low} to {high}) | {100 * r.gain:+.1f} ({gain_low} to {gain_high}) "
                f"| {100 * r.best_here:.1f} |"
            )
        return "\n".join(lines)


_Sums = tuple[Tensor, Tensor, Tensor, float, int]


def coreference_table(scored: Counts, chosen: Counts, elsewhere: bool, least: int, level: float) -> CoreferenceTable:
    """Score the heads that are best in `chosen`."""
    if scored.labels != chosen.labels or scored.right.shape != chosen.right.shape:
        raise DataError(
            f"choose_on is of a model of {chosen.right.shape[2]} layers of {chosen.right.shape[3]} heads, this result "
            f"of {scored.right.shape[2]} of {scored.right.shape[3]}: wanted the same model on other data"
        )
    if scored.candidates != chosen.candidates:
        raise DataError(
            f"choose_on chooses among {chosen.candidates}, this result among {scored.candidates}: wanted the same"
        )
    here, there = _by_name(scored), _by_name(chosen)
    names = [name for name in (ALL, *KINDS) if min(here[name][4], there[name][4]) >= max(1, least)]
    return CoreferenceTable(
        tuple(_score(name, here[name], there[name], scored.labels, level) for name in names), elsewhere
    )


def _by_name(counts: Counts) -> dict[str, _Sums]:
    """{kind: (right, right with each baseline, baselines right, right by chance, mentions)}, and the sums over all."""
    sums = (counts.right, counts.right_with_baseline, counts.baseline_right)
    found: dict[str, _Sums] = {
        name: (sums[0][n], sums[1][n], sums[2][n], float(counts.chance[n]), int(counts.mentions[n]))
        for n, name in enumerate(KINDS)
    }
    right = sums[0].sum(0).masked_fill(counts.right[0] < 0, -1)
    found[ALL] = (right, sums[1].sum(0), sums[2].sum(0), float(counts.chance.sum()), int(counts.mentions.sum()))
    return found


def _score(name: str, here: _Sums, there: _Sums, labels: tuple[str, ...], level: float) -> KindScore:
    best = torch.unravel_index(there[0].argmax(), there[0].shape)
    direction, row, head = (int(i) for i in best)
    right, together, by_rule, chance, mentions = here
    rule = int(there[2].argmax())
    place = direction, row, head
    hits, both, baseline = int(right[place]), int(together[(rule, *place)]), int(by_rule[rule])
    return KindScore(
        name, mentions, head_at(labels, row, head), DIRECTIONS[direction], hits / mentions,
        wilson_interval(hits, mentions, level), chance / mentions,
        {rule_name: int(n) / mentions for rule_name, n in zip(BASELINES, by_rule, strict=True)}, BASELINES[rule],
        (hits - baseline) / mentions, gain_interval(hits - both, baseline - both, mentions, level),
        int(right.max()) / mentions,
    )  # fmt: skip
