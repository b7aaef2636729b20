"""The store of a task's vectors, and the batches that are read from it."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, checked, described, how_many
from .span_batches import EdgeBatch
from .store_folder import Folder, Layout, Numbers, check_of, ranges, row_bytes
from .store_identity import joined_about, relabelled_about
from .tasks import EdgeTask


class Store:
    """The hidden states of all tokens in a task's spans, at every layer, in a folder on disk.

    `encode` makes it, `Store.open` opens it without the model. Vectors are read from the disk batch by batch, so that
    a store may be far larger than memory; the rest takes a few dozen bytes per target. Its records are the
    records of the task that have targets, in the same order, counted from 0.
    """

    def __init__(self, folder: Folder, about: dict[str, Any], layout: Layout) -> None:
        """For `Store.open` and `encode`."""
        self._folder, self._about, self._layout = folder, about, layout
        self._checks = folder.checks()
        self._checked = np.zeros(len(self._checks), dtype=bool)

    @classmethod
    @checked
    def open(cls, path: str | Path) -> Store:
        """Open a folder that `encode` made.

        Raises `DataError` if there is none, if the pass that makes it was interrupted, and if files are damaged.
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
                f"the pass that makes {folder.path} was interrupted, with {done} of "
                f"{how_many(len(layout.place), 'record')} done: call encode() as before, and it resumes"
            )
        return cls(folder, about, layout)

    @classmethod
    @checked
    def join(cls, stores: Sequence[Store | str | Path], path: str | Path) -> Store:
        """Join the stores of the parts of a task, which other processes or machines may have encoded, in a new folder.

        Parts are what `EdgeTask.split` or slices make, in their order. The records of a part follow those of the part
        before it. `encode` with the whole task opens the joined folder and runs nothing.

        Args:
            stores: stores or their folders, two or more, each once. They may be removed afterwards.
            path: the folder; it is made if it does not exist.

        Raises `DataError` for parts of different models, tokenizers, settings, labels or numbers of spans, for the same
        part twice, for damaged vectors, and for stores of earlier versions, which do not say how many records their
        task has.

            >>> Store.join(["first", "second"], "whole")
            Traceback (most recent call last):
            bertology.errors.DataError: first holds no encoded task: wanted a folder that encode() made
        """
        parts = [store if isinstance(store, Store) else cls.open(store) for store in stores]
        about = joined_about([part.path for part in parts], [part._about for part in parts])
        sizes = [sum(one["records"] for one in part._about["parts"]) for part in parts]
        layout = Layout.joined([part._layout for part in parts], sizes)
        folder = Folder(path)
        if folder.is_begun():
            raise DataError(f"{folder.path} holds a store already: name another folder, or remove this one")
        for part in parts:
            part.check()
        folder.join([part._folder for part in parts], about, layout)
        return cls.open(path)

    @checked
    def with_labels(self, task: EdgeTask) -> Store:
        """The same vectors with the labels of another task over the same words and spans; the model is not run.

        Control tasks (`control_tasks`, `shuffled_labels`) and coarser labels need no second pass. The
        folder is not changed: the store that is returned reads from it.

        Raises `DataError` for a task with other words or spans than the one that was encoded, and for stores of earlier
        versions, which have no digest of these.

            >>> from tempfile import TemporaryDirectory
            >>> from transformers import AutoTokenizer, BertConfig, BertModel
            >>> from bertology.demo import minilm_path
            >>> from bertology.edge_probing import EdgeTask, Record, Target, control_tasks, encode
            >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
            >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
            >>> targets = Target((0, 1), ("NOUN",)), Target((1, 2), ("VERB",))
            >>> task = EdgeTask.of("pos", [Record(("Birds", "warble"), targets)])
            >>> (control,) = control_tasks(task)
            >>> with TemporaryDirectory() as folder:
            ...     store = encode(model, tokenizer, task, f"{folder}/pos").with_labels(control)
            >>> (store.name, store.labels, store.targets)
            ('pos control', ('NOUN', 'VERB'), 2)
        """
        about, layout = relabelled_about(self.path, self._about, task), self._layout.with_labels(task)
        # The digest of a store covers its labels by this number.
        about["targets_check"] = zlib.crc32(layout.to_bytes())
        return Store(self._folder, about, layout)

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.path

    @property
    def name(self) -> str:
        """The name of the task."""
        return str(self._about["name"])

    @property
    def model_name(self) -> str:
        """The class of the model, and its name if it was loaded by one."""
        # Stores of earlier versions have the class alone.
        return str(self._about.get("model_name", self._about["made_of"]["model"]))

    @property
    def layers(self) -> int:
        """The number of layers, including the lexical one: L + 1."""
        return int(self._about["layers"])

    @property
    def hidden(self) -> int:
        """The hidden size of the vectors."""
        return int(self._about["hidden"])

    @property
    def sides(self) -> int:
        """The number of spans per target, 1 or 2."""
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
        """The number of records, each with one target or more."""
        return len(self._layout.source)

    @property
    def targets(self) -> int:
        """The number of targets."""
        return len(self._layout.number)

    @property
    def tokens(self) -> int:
        """The number of tokens that have vectors."""
        return self._layout.rows

    @property
    def lost(self) -> dict[str, int]:
        """{reason: targets}: how many of the task's targets are not here, and why."""
        return dict(self._about["lost"])

    @property
    def target_record(self) -> Tensor:
        """[target] int64, ascending: the record of each target."""
        return torch.from_numpy(self._layout.target_record)

    @property
    def source(self) -> tuple[Tensor, Tensor]:
        """[target] int64, twice: the number of the target's record in the task, and of the target in that record."""
        records = self._layout.source[self._layout.target_record]
        return torch.from_numpy(records), torch.from_numpy(self._layout.number.astype(np.int64))

    def digest(self) -> str:
        """A digest of its vectors, by their checksums, and of all targets and labels."""
        about = json.dumps(self._about, sort_keys=True).encode()
        return hashlib.sha256(about + self._checks.tobytes()).hexdigest()

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
            device: the device of the batch; the CPU by default.
            dtype: of its vectors.

        Raises `DataError` for records that do not exist, and for damaged vectors.
        """
        layout, numbers = self._layout, _numbers(records, self.records, "record")
        tokens = layout.tokens[numbers].astype(np.int64)
        vectors = torch.from_numpy(self._read(numbers)).to(device).to(dtype)
        first, after = layout.first_target[numbers], layout.first_target[numbers + 1]
        targets = ranges(first, after)
        # Spans are counted from the first token of their record.
        spans = layout.spans[targets] + np.repeat(np.cumsum(tokens) - tokens, after - first)[:, None, None]
        pairs, owners = [], []
        for side in range(self.sides):
            start, end = spans[:, side, 0], spans[:, side, 1]
            pairs.append(torch.from_numpy(ranges(start, end)).to(device))
            owners.append(torch.from_numpy(np.repeat(np.arange(len(targets)), end - start)).to(device))
        gold = torch.from_numpy(self._gold(targets)).to(device).float()
        return EdgeBatch(vectors, tuple(pairs), tuple(owners), gold)

    def check(self) -> None:
        """Read all vectors, and raise `DataError` if they are damaged."""
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
        first, after = self._layout.first_label[targets], self._layout.first_label[targets + 1]
        gold[np.repeat(np.arange(len(targets)), after - first), self._layout.labels[ranges(first, after)]] = True
        return gold

    def __repr__(self) -> str:
        size = self.tokens * row_bytes(self._about)
        parts = [
            f"{self.name}: {how_many(self.records, 'record')}, {how_many(self.targets, 'target')} of "
            f"{how_many(len(self.labels), 'label')}, {how_many(self.tokens, 'token')} at "
            f"{how_many(self.layers, 'layer')} of {self.hidden} ({size / 1e6:.1f} MB)"
        ]
        return "; ".join([*parts, *(f"{how_many(many, 'target')} lost: {why}" for why, many in self.lost.items())])


def _numbers(given: Tensor | range | Sequence[int], many: int, what: str) -> Numbers:
    """[record] or [target] int64, checked."""
    if isinstance(given, (str, bytes, Mapping)) or not hasattr(given, "__iter__"):
        raise DataError(f"wanted the indices of {what}s, [{what}], got {described(given)}")
    numbers = np.asarray(given.cpu() if isinstance(given, Tensor) else list(given))
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise DataError(f"wanted the indices of {what}s, [{what}], got {list(numbers.shape)} of {numbers.dtype}")
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < many:
        raise DataError(f"{what}s are numbered from 0 to {many - 1}, got {numbers.min()} to {numbers.max()}")
    return numbers.astype(np.int64)
