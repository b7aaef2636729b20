"""Which labels do the spans of a text have?"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import DataError

Span = tuple[int, int]
"""The first word, counted from 0, and the word behind the last one."""


@dataclass(frozen=True, slots=True)
class Target:
    """A span of words, or a pair of spans, and the labels that are true of it (Tenney et al. 2019, ICLR, §2).

    Raises `DataError` for a span without words, and for labels that are not filled strings, each once.
    """

    span1: Span
    """The first word, counted from 0, and the word behind the last one."""
    labels: tuple[str, ...]
    """All labels that are true of it: one in most tasks; several, or none, in proto-roles."""
    span2: Span | None = None
    """The second span of a task over pairs."""
    info: str = ""
    """What else the file says of it, as JSON; nothing is computed from it."""

    def __post_init__(self) -> None:
        _check_span("span1", self.span1)
        if self.span2 is not None:
            _check_span("span2", self.span2)
        if not isinstance(self.labels, tuple) or not all(isinstance(x, str) and x.strip() for x in self.labels):
            raise DataError(f"labels must be a tuple of strings that are not empty, got {self.labels!r}")
        if len(set(self.labels)) < len(self.labels):
            raise DataError(f"labels must differ, got {self.labels!r}")


@dataclass(frozen=True, slots=True)
class Record:
    """The words of a text and the targets in it. Targets may overlap, and one span may be asked several times.

    Raises `DataError` for a text without words, for spans that end behind it, and where only some targets are pairs.
    """

    words: tuple[str, ...]
    targets: tuple[Target, ...]
    name: str = ""
    """What messages call it."""
    info: str = ""
    """What else the file says of it, as JSON; nothing is computed from it."""

    def __post_init__(self) -> None:
        many = len(self.words)
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
    """Raise `DataError` where a span ends behind the last of so many words."""
    for which, span in (("span1", target.span1), ("span2", target.span2)):
        if span is not None and span[1] > many:
            raise DataError(f"{place}{which} is {list(span)}, wanted an end within the {many} words of the text")


def _check_span(name: str, span: Span) -> None:
    if not isinstance(span, tuple) or len(span) != 2 or not all(type(end) is int for end in span):
        raise DataError(f"{name} must be (first word, word behind the last), two whole numbers, got {span!r}")
    if not 0 <= span[0] < span[1]:
        raise DataError(f"{name} is {list(span)}, which holds no words: wanted a first word from 0 and a later end")
