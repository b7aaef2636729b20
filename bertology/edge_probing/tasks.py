"""Edge-probing tasks: records, targets, labels that count, and splits."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal, overload

from ..corpora.skips import Skip, few_of, reasons_for
from ..corpora.treebank import check_spans
from ..errors import DataError, checked, how_many, is_number, is_whole
from ..results.views import brief

Counted = Literal["coref", "srl", "relations"] | Sequence[str] | None
"""A rule by its name, the labels themselves, or None for all."""

_ROLE = re.compile(r"(ARG|A)[0-5A]|(ARGM|AM)(-.+)?")
_RULES: dict[str, Callable[[str], object]] = {
    "coref": lambda label: label == "1",
    "srl": _ROLE.fullmatch,
    "relations": lambda label: label not in ("Other", "no_relation") and not label.startswith("_"),
}


@checked
def counted_labels(labels: Sequence[str], rule: Counted = None) -> tuple[str, ...]:
    """Which of a task's labels count for its F1, in their order (the analysis program of Tenney et al. 2019).

    - None: all, as for parts of speech, constituents, dependencies, entities and proto-roles.
    - "coref": only "1", which means that two mentions refer to the same entity.
    - "srl": core roles and adjuncts, `ARG0` to `ARG5`, `ARGA`, `ARGM-...`, or `A0`, `AM-...` in older files; no
      references `R-...`, continuations `C-...` or verbs.
    - "relations": all but `Other`, `no_relation` and what begins with `_`.
    - labels: these.

    Raises `DataError` for labels that are empty or occur twice, for an unknown rule, for counted labels that are not
    among the labels, and when no label counts.

        >>> counted_labels(["ARG0", "ARGM-TMP", "C-ARG0", "R-ARG1"], "srl")
        ('ARG0', 'ARGM-TMP')
    """
    if isinstance(labels, str) or not all(isinstance(label, str) and label.strip() for label in labels):
        raise DataError(f"labels must be strings that are not empty, got {labels!r}")
    twice = sorted({label for label in labels if labels.count(label) > 1}) if len(set(labels)) < len(labels) else []
    if twice:
        raise DataError(f"labels must differ, got {', '.join(map(repr, twice))} more than once")
    if isinstance(rule, str):
        if rule not in _RULES:
            raise DataError(
                f"what counts must be {', '.join(map(repr, _RULES))}, a list of labels or None, got {rule!r}"
            )
        found = tuple(label for label in labels if _RULES[rule](label))
    else:
        others = [label for label in rule or () if label not in labels]
        if others:
            raise DataError(f"{others[0]!r} is to count, and is none of {listed(labels)}")
        found = tuple(label for label in labels if rule is None or label in rule)
    if not found:
        raise DataError(f"no label counts of {listed(labels)} by the rule {rule!r}: wanted one or more")
    return found


def listed(labels: Sequence[str]) -> str:
    """The labels as messages name them."""
    shown = ", ".join(map(repr, labels[:6]))
    return f"the {how_many(len(labels), 'label')} {shown}{', ...' if len(labels) > 6 else ''}"


def parts_of(texts: Sequence[tuple[str, ...]], sizes: Sequence[float], seed: int | None) -> list[list[int]]:
    """The numbers of the records of each part, rising; neighbours with the same words are in one part.

    Raises `DataError` for sizes that leave a part empty.

        >>> parts_of([("a",), ("b",), ("b",), ("c",)], [0.5], None)
        [[0, 1, 2], [3]]
    """
    wanted = [_many(size, len(texts)) for size in sizes]
    groups = [list(group) for _, group in groupby(range(len(texts)), lambda place: texts[place])]
    if seed is not None:
        random.Random(seed).shuffle(groups)
    parts: list[list[int]] = [[] for _ in range(len(sizes) + 1)]
    now = 0
    for group in groups:
        while now < len(wanted) and len(parts[now]) >= wanted[now]:
            now += 1
        parts[now] += group
    if not all(parts):
        raise DataError(
            f"{how_many(len(texts), 'record')} cannot be split into {', '.join(map(str, sizes))} and a rest: a part "
            "would be empty: wanted shares below 1, or numbers of records, that leave some (neighbours with the same "
            "words stay together)"
        )
    return [sorted(part) for part in parts]


def _many(size: float, records: int) -> int:
    if is_number(size) and 0 < size < 1:
        return max(1, round(float(size) * records))
    if is_whole(size) and size >= 1:
        return int(size)
    raise DataError(f"a part's size must be a share between 0 and 1 or a number of records, got {size!r}")


Span = tuple[int, int]
"""The first word, counted from 0, and the word after the last one."""


@dataclass(frozen=True, slots=True)
class Target:
    """A span of words, or a pair of spans, and the labels that are true of it (Tenney et al. 2019, ICLR, §2).

    Raises `DataError` for a span without words, and for labels that are empty or occur twice.
    """

    span1: Span
    """The first word, counted from 0, and the word after the last one."""
    labels: tuple[str, ...]
    """All labels that are true of it: one in most tasks; several, or none, in proto-roles."""
    span2: Span | None = None
    """The second span of a task over pairs."""
    info: str = ""
    """Other keys of the file, as JSON; they are not used."""

    def __post_init__(self) -> None:
        _check_span("span1", self.span1)
        if self.span2 is not None:
            _check_span("span2", self.span2)
        if not isinstance(self.labels, tuple) or not all(isinstance(x, str) and x.strip() for x in self.labels):
            raise DataError(f"labels must be a tuple of strings that are not empty, got {self.labels!r}")
        if len(set(self.labels)) < len(self.labels):
            raise DataError(f"labels must differ, got {self.labels!r}")


@checked
@dataclass(frozen=True, slots=True)
class Record:
    """The words of a text and the targets in it. Targets may overlap, and several may have the same span.

    Raises `DataError` for a text without words, for spans that end after it, and when only some targets are pairs.
    """

    words: tuple[str, ...]
    targets: tuple[Target, ...]
    name: str = ""
    """Its name in messages."""
    info: str = ""
    """Other keys of the file, as JSON; they are not used."""
    text: str = field(default="", compare=False)
    """The text as it is written, for `encode(..., raw_text=True)`; empty if it is not known."""
    spans: tuple[tuple[int, int], ...] = field(default=(), compare=False)
    """[word] (first character, character after the last): where each word is in `text`; empty if it is not known."""

    __repr__ = brief

    def __post_init__(self) -> None:
        many = len(self.words)
        check_spans(f"record {self.name!r}", self.spans, many, self.text)
        if many == 0 or not all(isinstance(word, str) and word for word in self.words):
            raise DataError(f"record {self.name!r} must have words, strings that are not empty, got {self.words!r}")
        for number, target in enumerate(self.targets):
            check_inside(target, many, f"record {self.name!r}, target {number}: ")
            if (target.span2 is None) != (self.targets[0].span2 is None):
                raise DataError(
                    f"record {self.name!r}, target {number} has {'no' if target.span2 is None else 'a'} span2, "
                    "target 0 differs: wanted span2 in all targets, or in none"
                )


def check_inside(target: Target, many: int, place: str = "") -> None:
    """Raise `DataError` for a span that ends after the last of `many` words."""
    for which, span in (("span1", target.span1), ("span2", target.span2)):
        if span is not None and span[1] > many:
            raise DataError(
                f"{place}{which} is {list(span)}, wanted an end within the {how_many(many, 'word')} of the text"
            )


def _check_span(name: str, span: Span) -> None:
    if not isinstance(span, tuple) or len(span) != 2 or not all(type(end) is int for end in span):
        raise DataError(f"{name} must be (first word, word after the last), two integers, got {span!r}")
    if not 0 <= span[0] < span[1]:
        raise DataError(f"{name} is {list(span)}, which holds no words: wanted a first word from 0 and a later end")


@checked
@dataclass(frozen=True, repr=False)
class EdgeTask(Sequence[Record]):
    """The records of an edge-probing task, and the labels that its probe chooses among.

    `EdgeTask.of` makes a task from records. Raises `DataError` for labels that are not in the list, and for records
    with different numbers of spans.
    """

    name: str
    records: tuple[Record, ...]
    labels: tuple[str, ...]
    """All labels, in the order in which a probe scores them."""
    sides: int
    """The number of spans per target: 1 or 2."""
    counted: tuple[str, ...]
    """The labels that count for the score, in the order of `labels`."""
    skipped: tuple[Skip, ...] = ()
    """Records and targets that were left out, and why."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "counted", counted_labels(self.labels, self.counted))
        if self.sides not in (1, 2):
            raise DataError(f"task {self.name!r}: sides must be 1 or 2, got {self.sides!r}")
        known = frozenset(self.labels)
        for record in self.records:
            for number, target in enumerate(record.targets):
                if (target.span2 is None) != (self.sides == 1):
                    raise DataError(
                        f"task {self.name!r}, record {record.name!r}, target {number}: wanted "
                        f"{how_many(self.sides, 'span')}, as the first target has"
                    )
                if not known.issuperset(target.labels):
                    raise DataError(
                        f"task {self.name!r}, record {record.name!r}, target {number}: the label "
                        f"{next(x for x in target.labels if x not in known)!r} is none of {listed(self.labels)}"
                    )

    @classmethod
    @checked
    def of(
        cls, name: str, records: Iterable[Record], *, labels: Sequence[str] | None = None, counted: Counted = None,
        skipped: Iterable[Skip] = (),
    ) -> EdgeTask:  # fmt: skip
        """Make a task from records. Records without targets are left out and listed, as in the paper's program.

        Args:
            name: the name of the task in messages.
            records: texts with targets.
            labels: all labels, in their order; by default those that occur, sorted.
            counted: which of them count, as in `counted_labels`; by default all.
            skipped: records and targets that were left out before.

        Raises `DataError` when no record has a target.

            >>> record = Record(("Birds", "sing"), (Target((0, 1), ("NOUN",)), Target((1, 2), ("VERB",))))
            >>> EdgeTask.of("pos", [record])
            pos: 1 record, 2 targets of 1 span, 2 labels
        """
        every = list(records)
        kept = tuple(record for record in every if record.targets)
        left_out = [*skipped, *(Skip(record.name, "no targets") for record in every if not record.targets)]
        if not kept:
            reasons = few_of(sorted({skip.reason for skip in left_out}))
            raise DataError(f"task {name!r} has no targets{': ' if reasons else ''}{reasons}")
        found = {label for record in kept for target in record.targets for label in target.labels}
        names = tuple(sorted(found) if labels is None else labels)
        sides = 1 if kept[0].targets[0].span2 is None else 2
        return cls(name, kept, names, sides, counted_labels(names, counted), tuple(left_out))

    @property
    def targets(self) -> int:
        """The number of targets."""
        return sum(len(record.targets) for record in self.records)

    @property
    def repeated(self) -> int:
        """The number of targets with the same spans as an earlier target of their record: see `merged`."""
        return self.targets - sum(len({(t.span1, t.span2) for t in record.targets}) for record in self.records)

    def merged(self) -> EdgeTask:
        """Merge targets with the same spans into one, with the labels of all and the `info` of the first.

        The files of Tenney et al. (2019) have one target per label. The two phrases of `(S (VP go))` have the same
        words. So they are two targets with the same span and different labels, and no probe can be right on both.
        """
        return replace(self, records=tuple(replace(r, targets=_merged(r.targets)) for r in self.records))

    @checked
    def first(self, many: int) -> EdgeTask:
        """The first records."""
        if many < 1:
            raise DataError(f"the first of {how_many(len(self), 'record')}: wanted 1 or more, got {many}")
        return self[:many]

    @checked
    def split(self, *sizes: float, seed: int | None = None) -> tuple[EdgeTask, ...]:
        """Split the task into parts, one for each size and one for the rest. The parts keep labels and order.

        Neighbouring records with the same words stay in one part. So if a sentence has several records, one for each
        predicate, it is not in two parts. A part may get a few records more than its size.

        Args:
            sizes: of each part but the last: a share of the records below 1, such as 0.8, or their number.
            seed: of the random choice of records; by default parts follow one another in the file.

        Raises `DataError` for sizes that leave a part empty.

            >>> from bertology.edge_probing import EdgeTask, Record, Target
            >>> words = ("one", "two", "three", "four", "five")
            >>> task = EdgeTask.of("numbers", [Record((word,), (Target((0, 1), ("CD",)),)) for word in words])
            >>> [len(part) for part in task.split(0.6)]
            [3, 2]
        """
        parts = parts_of([record.words for record in self.records], sizes, seed)
        return tuple(replace(self, records=tuple(self.records[place] for place in part)) for part in parts)

    @checked
    def with_labels(
        self, labels: EdgeTask | Sequence[str], *, counted: Counted = None, skip_unknown: bool = False
    ) -> EdgeTask:
        """The task with the labels of another, such as a dev set with those that its probe was trained with.

        Args:
            labels: all labels in their order, or the task that has them; this brings what counts, too.
            counted: which of them count, as in `counted_labels`; by default as before.
            skip_unknown: leave out targets with other labels, and list them in `skipped`, instead of raising. Scores
                are then optimistic, because a probe cannot be right there. The paper's program uses the labels of all
                splits.

        Raises `DataError`, which names them, for labels that occur and are not in the list.
        """
        names = labels.labels if isinstance(labels, EdgeTask) else tuple(labels)
        counts = self._counting(labels, names) if counted is None else counted_labels(names, counted)
        known, unknown, skipped = frozenset(names), Counter[str](), list(self.skipped)
        records = []
        for record in self.records:
            kept = []
            for number, target in enumerate(record.targets):
                others = [label for label in target.labels if label not in known]
                unknown.update(others)
                if others:
                    skipped.append(Skip(f"{record.name}, target {number}", "a label is unknown"))
                else:
                    kept.append(target)
            records.append(record if len(kept) == len(record.targets) else replace(record, targets=tuple(kept)))
        if unknown and not skip_unknown:
            raise DataError(
                f"task {self.name!r} has labels that are none of {listed(names)}: "
                + ", ".join(f"{label!r} ({times})" for label, times in unknown.most_common(9))
                + ": train with all labels, or leave such targets out with skip_unknown=True"
            )
        return EdgeTask.of(self.name, records, labels=names, counted=counts, skipped=skipped)

    def _counting(self, labels: EdgeTask | Sequence[str], names: tuple[str, ...]) -> tuple[str, ...]:
        """Which of the new labels count by default: as in the task they come from, or as before."""
        if isinstance(labels, EdgeTask):
            return labels.counted
        if self.counted == self.labels:
            return names
        if set(names) - set(self.labels):
            raise DataError(
                f"task {self.name!r} counts some of its labels only, and {listed(names)} has others: pass counted= "
                "with those that count"
            )
        return tuple(name for name in names if name in self.counted)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> EdgeTask: ...
    def __getitem__(self, index: int | slice) -> Record | EdgeTask:
        return replace(self, records=self.records[index]) if isinstance(index, slice) else self.records[index]

    def __repr__(self) -> str:
        spans = "1 span" if self.sides == 1 else "2 spans"
        parts = [
            f"{self.name}: {how_many(len(self), 'record')}, {how_many(self.targets, 'target')} of {spans}, "
            f"{how_many(len(self.labels), 'label')}"
        ]
        if self.counted != self.labels:
            parts[0] += f", {len(self.counted)} of which count"
        if self.repeated:
            parts.append(f"{how_many(self.repeated, 'target')} with the spans of another")
        return "; ".join([*parts, *reasons_for(self.skipped)])


def _merged(targets: Sequence[Target]) -> tuple[Target, ...]:
    found: dict[tuple[Span, Span | None], Target] = {}
    for target in targets:
        old = found.setdefault((target.span1, target.span2), target)
        if old is not target:
            labels = tuple(dict.fromkeys(old.labels + target.labels))
            found[target.span1, target.span2] = replace(old, labels=labels)
    return tuple(found.values())
