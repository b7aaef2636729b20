"""What readers of files leave out, and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError, how_many
from .files import name_in

MOST_REASONS, MOST_OF_A_REASON = 4, 200


@dataclass(frozen=True)
class Skip:
    """A sentence, document or other part of a file that was left out, and why."""

    name: str
    reason: str


class BrokenPart(DataError):
    """A part of a file that cannot be used, and the place where it is broken: a line, or a line and more."""

    def __init__(self, path: str | Path, place: int | str | None, problem: str) -> None:
        self.file, self.problem = Path(path).name, problem
        self.place = f"line {place}" if isinstance(place, int) else place or ""
        super().__init__(f"{path}, {self.place}: {problem}" if self.place else f"{path}: {problem}")

    def __reduce__(self) -> tuple[type[DataError], tuple[str]]:
        return DataError, (str(self),)  # in another process it is a message


@contextmanager
def placed(path: str | Path, place: int | str | None = None) -> Iterator[None]:
    """Say of a `DataError` raised inside where in the file the trouble is, unless it says so itself."""
    try:
        yield
    except DataError as error:
        if isinstance(error, BrokenPart) or isinstance(error.__cause__, BrokenPart):
            raise
        raise BrokenPart(path, place, str(error)) from error


@dataclass
class Broken:
    """What a reader does about a part of a file that cannot be used: it raises, or lists the part and reads on."""

    skip: bool
    what: str
    """What is left out, in the words of the message: "such sentences"; nothing where the reader has no choice."""
    skipped: list[Skip] = field(default_factory=list)

    @contextmanager
    def part(self, name: str | None = None) -> Iterator[None]:
        """Read a part of a file inside. It is listed under its name, or else under its file and line."""
        try:
            yield
        except BrokenPart as error:
            if not self.skip:
                advice = f" (skip_broken=True leaves {self.what} out)" if self.what else ""
                raise DataError(f"{error}{advice}") from error
            reason = f"{error.place}: {error.problem}" if name and error.place else error.problem
            self.skipped.append(Skip(name or f"{error.file}, {error.place}".removesuffix(", "), reason))

    @contextmanager
    def file(self, root: str | Path, file: Path, found: Sized, what: str) -> Iterator[None]:
        """Read one file inside. One of a folder that adds nothing, neither to `found` nor here, is listed."""
        before = len(found), len(self.skipped)
        yield
        if os.path.isdir(root) and before == (len(found), len(self.skipped)):
            self.skipped.append(Skip(name_in(root, file), what))


def reasons_for(skipped: Iterable[Skip]) -> list[str]:
    """How many were skipped for which reason, the most frequent first: a few lines, however many there are.

    >>> reasons_for([Skip("a", "no words"), Skip("b", "no words")])
    ['2 skipped: no words']
    """
    counts = Counter(skip.reason for skip in skipped)
    few: dict[str, int] = counts if len(counts) <= MOST_REASONS else dict(counts.most_common(MOST_REASONS - 1))
    told = [f"{many} skipped: {_cut(reason)}" for reason, many in few.items()]
    rest = sum(counts.values()) - sum(few.values())
    return [*told, f"{rest} skipped for {how_many(len(counts) - len(few), 'other reason')}"] if rest else told


def few_of(reasons: Sequence[str]) -> str:
    """Some reasons in the words of a message, parted by commas."""
    told = [_cut(reason) for reason in reasons[:MOST_REASONS]]
    return ", ".join([*told, f"and {len(reasons) - len(told)} more"] if len(reasons) > len(told) else told)


def _cut(reason: str) -> str:
    return reason if len(reason) <= MOST_OF_A_REASON else f"{reason[:MOST_OF_A_REASON]}..."
