"""Mentions in brackets, one cell a word: `(3(4)`, `2)|(5`, and `(e1-person` of Universal Dependencies."""

from __future__ import annotations

import re

from ..errors import DataError, shown

_CELL = re.compile(r"(?:\([0-9]{1,9}\)?|[0-9]{1,9}\)|\|)+")
_ENTITY_CELL = re.compile(r"(?:\([^()|]+\)?|[^()|]+\)|\|)+")
_PART = re.compile(r"(\()?([^()|]+)(\))?")
_NAME = re.compile(r"[A-Za-z_]*([0-9]{1,9})")
_PIECE = re.compile(r"\[[0-9]+/[0-9]+\]")


class MentionBrackets:
    """Opens and closes the mentions of a document, word by word.

    With `entities`, a bracket says more than a number: `(e1-person-1-new`, closed by `e1)`, or `(person-1`, closed by
    `person-1)`. The entity is the first field with a number among the first two.
    """

    def __init__(self, entities: bool) -> None:
        self.spans: list[tuple[int, int, int]] = []
        """The first word of each mention, the word after its last one, its cluster."""
        self.in_pieces = 0
        """The number of mentions of several pieces, which are no span of words."""
        self._entities = entities
        self._opened: dict[str, list[int]] = {}
        self._clusters: dict[str, int] = {}

    @property
    def open(self) -> str | None:
        """The cluster of a mention that is not closed yet."""
        return next((name for name, starts in self._opened.items() if starts), None)

    def mark(self, cell: str, begin: int, end: int) -> None:
        """Open mentions at the word `begin`, and close mentions before the word `end`. Raises `DataError`."""
        if cell in ("_", "-", "*", ""):
            return
        found = _PART.findall(cell) if (_ENTITY_CELL if self._entities else _CELL).fullmatch(cell) else [("", "", "")]
        parts = [(bool(opens), self._name(inside), bool(closes)) for opens, inside, closes in found]
        if not all(name for _, name, _ in parts):
            raise DataError(f"wanted mentions such as (3(4), 2)|(5 or _, got {shown(cell)}")
        # Closing brackets come first: `(2|2)` closes an earlier mention and opens another.
        for opens, name, closes in sorted(parts, key=lambda part: part[0]):
            if opens and closes:
                self._add(name, begin, end)
            elif opens:
                self._opened.setdefault(name, []).append(begin)
            elif not self._opened.get(name):
                raise DataError(f"a mention of cluster {name} is closed but was never opened")
            else:
                self._add(name, self._opened[name].pop(), end)

    def _add(self, name: str, start: int, end: int) -> None:
        if _PIECE.search(name):
            self.in_pieces += _PIECE.findall(name)[0].startswith("[1/")
        elif start < end:  # else it is on nodes that are no words
            self.spans.append((start, end, self._cluster(name)))

    def _name(self, inside: str) -> str:
        """The name of an entity, with `[1/2]` for a piece of a mention; empty for anything else."""
        for one in inside.split("-")[:2] if self._entities else [inside]:
            if _NAME.fullmatch(_PIECE.sub("", one)):
                return one
        return ""

    def _cluster(self, name: str) -> int:
        """The number in the name, unless another entity has it."""
        if name not in self._clusters:
            match = _NAME.fullmatch(name)
            number = int(match[1]) if match else 0
            taken = set(self._clusters.values())
            self._clusters[name] = max(taken) + 1 if number in taken else number
        return self._clusters[name]
