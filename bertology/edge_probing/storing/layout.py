"""Which rows of vectors belong to which target, and which labels are true of it?"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import DataError

Numbers = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Layout:
    """The targets of a store, record by record in the task's order; the vectors may lie in another order.

    About 40 bytes a target, whatever the model's size.
    """

    source: Numbers
    """[record]: its number in the task, which may have others without targets that are kept."""
    place: Numbers
    """[record]: its place among the records in the file of vectors."""
    tokens: Numbers
    """[record]: how many rows of vectors it has."""
    first_target: Numbers
    """[record + 1]: where its targets begin, and end."""
    spans: Numbers
    """[target, span, 2]: the first row of each span and the row behind its last one, from the record's first row on."""
    number: Numbers
    """[target]: its number among the targets of its record in the task."""
    first_label: Numbers
    """[target + 1]: where its labels begin, and end."""
    labels: Numbers
    """The labels of all targets, by number, one target's behind the other's."""

    @cached_property
    def first_row(self) -> Numbers:
        """[record]: its first row in the file of vectors."""
        return self.row_at[self.place]

    @cached_property
    def row_at(self) -> Numbers:
        """[record + 1]: at which row the records begin, in the order of the file; the last is where the file ends."""
        counts = np.zeros(len(self.place), dtype=np.int64)
        counts[self.place] = self.tokens
        return np.concatenate([[0], np.cumsum(counts)])

    @property
    def rows(self) -> int:
        """How many rows of vectors there are."""
        return int(self.row_at[-1])

    @property
    def target_record(self) -> Numbers:
        """[target]: which record it is of."""
        return np.repeat(np.arange(len(self.source)), np.diff(self.first_target))

    def to_bytes(self) -> bytes:
        """All of it, as NumPy writes it."""
        file = io.BytesIO()
        np.savez(file, **{f.name: getattr(self, f.name) for f in fields(self)})
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Layout:
        """What `to_bytes` wrote. Raises `DataError` for anything else."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return cls(**{f.name: arrays[f.name] for f in fields(cls)})
        except Exception as error:  # whatever zipfile and NumPy raise
            raise DataError(f"it holds no arrays of targets ({error})") from error


def ranges(starts: Numbers, ends: Numbers) -> Numbers:
    """All numbers from each start to its end, one range behind the other.

    >>> ranges(np.array([5, 1]), np.array([7, 4])).tolist()
    [5, 6, 1, 2, 3]
    """
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum()), dtype=np.int64) + np.repeat(starts - before, lengths)
