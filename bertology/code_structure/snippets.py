"""Snippets of code: reading them from files, and listing those that cannot be used."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from ..corpora.files import json_of, lines_of
from ..corpora.skips import Broken, Skip, few_of, placed, reasons_for
from ..errors import DataError, checked, shown
from ..streaming.progress import Progress, progress_bar
from .trees import CodeTree, tree_of

FIELDS = ("code", "original_string")
"""Where CodeSearchNet and CodeXGLUE keep the code."""
HALF_PAIR = re.compile("[\ud800-\udfff]")
"""What JSON can say and UTF-8 cannot."""


@dataclass(frozen=True, repr=False)
class Snippets(Sequence[CodeTree]):
    """Pieces of code with their trees, in the order of the file, and those that were left out."""

    trees: tuple[CodeTree, ...]
    skipped: tuple[Skip, ...] = ()

    @property
    def broken(self) -> tuple[CodeTree, ...]:
        """Those that do not parse, and were kept."""
        return tuple(tree for tree in self.trees if tree.errors)

    def __len__(self) -> int:
        return len(self.trees)

    @overload
    def __getitem__(self, index: int) -> CodeTree: ...
    @overload
    def __getitem__(self, index: slice) -> Snippets: ...
    def __getitem__(self, index: int | slice) -> CodeTree | Snippets:
        if isinstance(index, slice):
            return Snippets(self.trees[index], self.skipped)
        return self.trees[index]

    def __str__(self) -> str:
        languages = Counter(tree.language or "code" for tree in self.trees)
        summary = ", ".join(f"{n} in {language}" for language, n in sorted(languages.items())) or "no code"
        broken = f"; {len(self.broken)} of them do not parse" if self.broken else ""
        return "; ".join([summary + broken, *reasons_for(self.skipped)])

    __repr__ = __str__


@checked
def read_code(
    path: str | Path,
    language: Any = None,
    *,
    field: str | None = None,
    broken: Literal["error", "skip", "keep"] = "error",
    progress: Progress = None,
) -> Snippets:
    """Read and parse the functions of CodeSearchNet or CodeXGLUE: JSON Lines, gzipped or not.

    Code that is empty, has only comments or is not valid text is left out and listed in `skipped`.

    Args:
        path: a file in which each line is an object with the code and its `language`.
        language: as in `parse_code`; by default the language in each line.
        field: the name of the field with the code; by default `code`, or `original_string` if there is no such field.
        broken: "error" raises for code that does not parse, "skip" leaves it out and lists it with its place, as it
            does with lines that cannot be read, "keep" keeps the tree that tree-sitter recovers.
        progress: True for a progress bar over lines, or its title; no bar without it.

    Raises `DataError`, which names the file and the line, for a line that is not JSON, or that has no code or language;
    for a damaged file; if no code is left; and as `parse_code` does.

        >>> from tempfile import NamedTemporaryFile
        >>> from bertology.code_structure import read_code
        >>> with NamedTemporaryFile("w", suffix=".jsonl") as file:
        ...     _ = file.write('{"code": "x = 1", "language": "python"}\\n{"code": "", "language": "python"}\\n')
        ...     file.flush()
        ...     read_code(file.name)
        1 in python; 1 skipped: no code
    """
    if broken not in ("error", "skip", "keep"):
        raise DataError(f"broken must be 'error', 'skip' or 'keep', got {broken!r}")
    lost = Broken(broken == "skip", "")
    trees: list[CodeTree] = []
    for number, line in progress_bar(progress, lines_of(path)):
        where = f"{Path(path).name} {number}"
        with lost.part(), placed(path, number):
            code, spoken, name = _fields(line, where, language, field)
            tree = None if HALF_PAIR.search(code) else tree_of(code, spoken, name)
            if tree is None:
                lost.skipped.append(Skip(name, "not valid text (half of a surrogate pair)"))
            elif not len(tree):
                lost.skipped.append(Skip(name, "no code"))
            elif tree.errors and broken != "keep":
                place = "{}, line {}, column {}".format(name, *tree.errors[0])
                if broken == "error":
                    raise DataError(f"{place}: does not parse (broken='skip' leaves such code out, 'keep' keeps it)")
                lost.skipped.append(Skip(place, "does not parse"))
            else:
                trees.append(tree)
    if not trees:
        reasons = few_of(sorted({skip.reason for skip in lost.skipped}))
        raise DataError(f"{path} has no code{f' that can be used: {reasons}' if reasons else ''}")
    return Snippets(tuple(trees), tuple(lost.skipped))


def _fields(line: str, where: str, language: Any, field: str | None) -> tuple[str, Any, str]:
    """The code, its language, and its name in messages."""
    record = json_of(line)
    record = record if isinstance(record, dict) else {}
    place = field or next((name for name in FIELDS if name in record), FIELDS[0])
    if not isinstance(record.get(place), str):
        raise DataError(f"the line has no text in a field {place!r}, only: {shown(', '.join(record) or 'no fields')}")
    spoken = record.get("language") if language is None else language
    if spoken is None:
        raise DataError("the line does not say its language: pass language=")
    function = record.get("func_name")
    return record[place], spoken, f"{where} ({function})" if function else where
