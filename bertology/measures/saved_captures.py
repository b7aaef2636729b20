"""The folder of saved captures: its files, and how a model's tensors are written to them as it runs.

meta.json      what was captured, and of which model and settings
index.jsonl    a line for each batch that is complete: where its tensors are, its texts, a digest of it, a checksum
KIND.STACK.bin the layers of all batches, one after the other, such as maps.decoder.bin
masks.bin      which positions are real tokens
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import writable
from ..streaming.folder import META, Record, TensorFiles, ValueFolder, check_of_values, is_whole, joined, mapped
from ..streaming.one_batch import pile

INDEX, MASKS = "index.jsonl", "masks"


class CaptureFolder(ValueFolder):
    """The files of saved captures."""

    format = 1
    holds = "captures"
    maker = "capture(..., save=folder)"
    again = "capture again"

    def is_own(self, name: str) -> bool:
        """Whether this is the name of a file of saved captures."""
        return name in (META, INDEX) or name.endswith(".part")

    def begin(self, about: dict[str, Any]) -> None:
        """Write meta.json, and an index of no batch."""
        with writable(self.path):
            self.path.mkdir(exist_ok=True)
            (self.path / INDEX).write_bytes(b"")
            self.write_about(about)

    def lines(self) -> list[dict[str, Any]]:
        """What the index says of each batch that is complete; the last line may be that of the end, `{"end": many}`.

        Raises `DataError` for a line that was changed.
        """
        lines: list[dict[str, Any]] = []
        for number, text in enumerate(self.read(INDEX).split(b"\n")[:-1]):  # the last one is empty, or was not finished
            try:
                found = json.loads(text)
                line, check = found["line"], found["check"]
            except (ValueError, KeyError, TypeError) as error:
                raise self.damaged(f"line {number} of {INDEX} cannot be read ({error})") from error
            if check != check_of_values(line):
                raise self.damaged(f"line {number} of {INDEX} was changed")
            lines.append(line)
        return lines

    def file(self, name: str) -> Path:
        """The path of a file of tensors."""
        return self.path / f"{name}.bin"

    def tensor(self, name: str, record: Record) -> Tensor:
        """A tensor in a file, mapped into memory. Raises `DataError` where the file is too short."""
        if self.size(f"{name}.bin") < record.end:
            raise self.damaged(f"{name}.bin has {self.size(f'{name}.bin')} bytes, wanted {record.end} or more")
        try:
            return mapped(self.file(name), record)
        except (OSError, RuntimeError) as error:
            raise self.damaged(f"{name}.bin cannot be read ({error})") from error


class OnDisk:
    """Writes captured tensors to a folder as the model runs, batch by batch: a `Place` of readers."""

    def __init__(self, folder: CaptureFolder, lines: list[dict[str, Any]]) -> None:
        self._folder, self._files = folder, TensorFiles(folder.path)
        # What an interrupted pass wrote of an incomplete batch is written again.
        self._ends: dict[str, int] = {}
        for line in lines:
            for name, record in each_record(line):
                self._ends[name] = max(record.end, self._ends.get(name, 0))
        self._files.open(INDEX, folder.read(INDEX).rfind(b"\n") + 1)
        self._kept: dict[int, tuple[Tensor, Record]] = {}
        self._tensors: dict[str, dict[str, tuple[str, Record]]] = {}

    def __enter__(self) -> OnDisk:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.__exit__(*error)

    def _append(self, name: str, x: Tensor) -> Record:
        self._files.open(f"{name}.bin", self._ends.get(name, 0))
        return self._files.append(f"{name}.bin", x)

    def keep(self, kind: str, stack: str, x: Tensor) -> Tensor:
        """Write the tensor of a layer, and return it as it is in the file."""
        name = _file_name(kind, stack)
        record = self._append(name, x)
        there = mapped(self._folder.file(name), record)
        self._kept[id(there)] = there, record
        return there

    def pile(self, kind: str, stack: str, layers: list[Tensor]) -> Tensor:
        """[layer, ...]: the layers of a stack, as they are in the file."""
        name = _file_name(kind, stack)
        there = [self._kept[id(x)][1] if id(x) in self._kept else self._append(name, x) for x in layers]
        record = joined(there)
        if record is None:
            # A layer was replaced, or has another shape: the layers are written once more, side by side.
            record = joined([self._append(name, x) for x in pile(layers)])
        assert record is not None
        self._tensors.setdefault(kind, {})[stack] = name, record
        return self._folder.tensor(name, record)

    def end_batch(self, about: Mapping[str, Any], masks: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write what is known of a batch, whose tensors are complete, to the index."""
        for kind, each in masks.items():
            for stack, mask in each.items():
                record = MASKS, self._append(MASKS, mask)
                self._tensors.setdefault(f"{MASKS} of {kind}", {})[stack] = record
        self._add_line({**about, "tensors": self._tensors})
        self._tensors = {}
        self._kept.clear()

    def end(self, many: int) -> None:
        """Say that there are no more batches."""
        self._add_line({"end": many})

    def _add_line(self, line: dict[str, Any]) -> None:
        line = json.loads(json.dumps(line))  # as it is read
        content = json.dumps({"line": line, "check": check_of_values(line)}, ensure_ascii=False)
        self._files.write(INDEX, content.encode() + b"\n")


def _file_name(kind: str, stack: str) -> str:
    """All runs of a stack are in one file."""
    return f"{kind}.{stack.partition(' (run ')[0]}"


def each_record(line: Mapping[str, Any]) -> list[tuple[str, Record]]:
    """The file and the place of each tensor of a batch."""
    return [_record(one) for stacks in line.get("tensors", {}).values() for one in stacks.values()]


def _record(one: Any) -> tuple[str, Record]:
    name, (start, shape, dtype, checks) = one
    return name, Record(start, tuple(shape), dtype, tuple(checks))


def tensors_of(folder: CaptureFolder, line: Mapping[str, Any], kind: str) -> dict[str, Tensor]:
    """{stack: tensor} of one kind in a batch, mapped into memory."""
    return {stack: folder.tensor(*_record(one)) for stack, one in line["tensors"].get(kind, {}).items()}


def check_tensors(folder: CaptureFolder, line: Mapping[str, Any]) -> None:
    """Read all tensors of a batch, and raise `DataError` where one is not as it was written."""
    for name, record in each_record(line):
        folder.tensor(name, record)
        if not is_whole(folder.file(name), record):
            raise folder.damaged(f"{name}.bin does not hold what was written")
