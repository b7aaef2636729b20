"""The store of a task's vectors, and the batches that are read from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .span_batches import EdgeBatch
from .store_folder import Folder, Layout, Numbers, check_of, ranges, row_bytes


class Store:
    """The hidden states of all tokens in a task's spans, at every layer, in a folder on disk.

    `encode` makes it, `Store.open` opens it without the model. Vectors are read from the disk batch by batch, so that
    a store may be far larger than memory; all else is a few dozen bytes a target. Records are those of the task that
    have targets, in its order, counted from 0.
    """

    def __init__(self, folder: Folder, about: dict[str, Any], layout: Layout) -> None:
        """For `Store.open` and `encode`."""
        self._folder, self._about, self._layout = folder, about, layout
        self._checks = folder.checks()
        self._checked = np.zeros(len(self._checks), dtype=bool)

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a folder that `encode` made.

        Raises `DataError` where there is none, where the pass that makes it was cut off, and where files are damaged.
        A record's vectors are checked when they are first read; `check()` reads them all.

            >>> Store.open("nowhere")
            Traceback (most recent call last):
            bertology.errors.DataError: nowhere holds no encoded task: wanted a folder that encode() made
        """
        folder = Folder(path)
        about = folder.about()
        layout = folder.layout(about)
        done = folder.done(about, layout)
        if done < len(layout.place):
            raise DataError(
                f"the pass that makes {folder.path} was cut off, with {done} of {len(layout.place)} records done: call "
                "encode() as before, and it goes on"
            )
        return cls(folder, about, layout)

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.path

    @property
    def name(self) -> str:
        """What the task is called."""
        return str(self._about["name"])

    @property
    def layers(self) -> int:
        """How many layers there are, the lexical one included: L + 1."""
        return int(self._about["layers"])

    @property
    def hidden(self) -> int:
        """How wide the vectors are."""
        return int(self._about["hidden"])

    @property
    def sides(self) -> int:
        """How many spans a target has, 1 or 2."""
        return int(self._layout.spans.shape[1])

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, in the order of the columns of `gold`."""
        return tuple(self._about["made_of"]["labels"])

    @property
    def counted(self) -> tuple[str, ...]:
        """The labels that count in the score."""
        return tuple(self._about["made_of"]["counted"])

    @property
    def lexical(self) -> str:
        """What layer 0 is: "word" or "embeddings"."""
        return str(self._about["made_of"]["lexical"])

    @property
    def records(self) -> int:
        """How many records there are, each with a target or more."""
        return len(self._layout.source)

    @property
    def targets(self) -> int:
        """How many targets there are."""
        return len(self._layout.number)

    @property
    def tokens(self) -> int:
        """How many tokens have vectors."""
        return self._layout.rows

    @property
    def lost(self) -> dict[str, int]:
        """{reason: targets}: how many of the task's targets are not here, and why."""
        return dict(self._about["lost"])

    @property
    def target_record(self) -> Tensor:
        """[target] int64, ascending: which record each target is of."""
        return torch.from_numpy(self._layout.target_record)

    @property
    def source(self) -> tuple[Tensor, Tensor]:
        """[target] int64, twice: which of the task's records it was, and which of that one's targets."""
        records = self._layout.source[self._layout.target_record]
        return torch.from_numpy(records), torch.from_numpy(self._layout.number.astype(np.int64))

    def gold(self, targets: Tensor | range | Sequence[int]) -> Tensor:
        """[target, label] bool: which labels are true of these targets."""
        return torch.from_numpy(self._gold(_numbers(targets, self.targets, "target")))

    def batch(
        self,
        records: Tensor | range | Sequence[int],
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> EdgeBatch:
        """All targets of these records, record by record in the order given.

        Args:
            records: numbers from 0 to `records - 1`, in any order.
            device: where the batch is to be; the CPU by default.
            dtype: of its vectors.

        Raises `DataError` for records that are not there, and for vectors that are damaged.
        """
        layout, numbers = self._layout, _numbers(records, self.records, "record")
        tokens = layout.tokens[numbers].astype(np.int64)
        vectors = torch.from_numpy(self._read(numbers)).to(device).to(dtype)
        first, behind = layout.first_target[numbers], layout.first_target[numbers + 1]
        targets = ranges(first, behind)
        # Spans are counted from their record's first token on.
        spans = layout.spans[targets] + np.repeat(np.cumsum(tokens) - tokens, behind - first)[:, None, None]
        pairs, owners = [], []
        for side in range(self.sides):
            start, end = spans[:, side, 0], spans[:, side, 1]
            pairs.append(torch.from_numpy(ranges(start, end)).to(device))
            owners.append(torch.from_numpy(np.repeat(np.arange(len(targets)), end - start)).to(device))
        gold = torch.from_numpy(self._gold(targets)).to(device).float()
        return EdgeBatch(vectors, tuple(pairs), tuple(owners), gold)

    def check(self) -> None:
        """Read all vectors, and raise `DataError` where they are not what was written."""
        for record in range(self.records):
            self._read(np.array([record]))

    def _read(self, numbers: Numbers) -> Numbers:
        """[token, layer, hidden]: the vectors of some records, copied out of the file."""
        file = self._folder.vectors(self._about, self._layout.rows)
        first, tokens = self._layout.first_row[numbers], self._layout.tokens[numbers]
        found = np.empty((int(tokens.sum()), *file.shape[1:]), dtype=file.dtype)
        at = 0
        for number, start, many in zip(numbers, first, tokens, strict=True):
            part = found[at : at + many]
            part[:] = file[start : start + many]
            self._check(int(number), part)
            at += many
        return found

    def _check(self, number: int, vectors: Numbers) -> None:
        place = self._layout.place[number]
        if not self._checked[place] and check_of(vectors) != self._checks[place]:
            raise self._folder.damaged(f"the vectors of record {number} are not those that were written")
        self._checked[place] = True

    def _gold(self, targets: Numbers) -> Any:
        gold = np.zeros((len(targets), len(self.labels)), dtype=bool)
        first, behind = self._layout.first_label[targets], self._layout.first_label[targets + 1]
        gold[np.repeat(np.arange(len(targets)), behind - first), self._layout.labels[ranges(first, behind)]] = True
        return gold

    def __repr__(self) -> str:
        size = self.tokens * row_bytes(self._about)
        parts = [
            f"{self.name}: {self.records} records, {self.targets} targets of {len(self.labels)} labels, "
            f"{self.tokens} tokens at {self.layers} layers of {self.hidden} ({size / 1e6:.1f} MB)"
        ]
        return "; ".join([*parts, *(f"{many} targets lost: {why}" for why, many in self.lost.items())])


def _numbers(given: Tensor | range | Sequence[int], many: int, what: str) -> Numbers:
    """[record] or [target] int64, checked."""
    numbers = np.asarray(given.cpu() if isinstance(given, Tensor) else list(given))
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise DataError(f"wanted the numbers of {what}s, [{what}], got {list(numbers.shape)} of {numbers.dtype}")
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < many:
        raise DataError(f"{what}s are numbered from 0 to {many - 1}, got {numbers.min()} to {numbers.max()}")
    return numbers.astype(np.int64)
