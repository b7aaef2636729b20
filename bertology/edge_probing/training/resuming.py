"""How does a training that was cut off go on?"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...errors import DataError
from ..spans import BatchSource
from .optimizing import Training
from .probes import Probes

EVERY_SECONDS = 60.0
TASTED = 32
"""How many records of a data set are looked at to tell it from others."""


class Resumable(Protocol):
    """A training that can be kept and go on."""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that it needs to go on."""

    def numbers(self) -> dict[str, Any]:
        """The rest, fit for JSON."""

    def resume(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Go on from there."""


class TrainingFile:
    """A file that holds a training, and a digest of its settings, its data and the weights that it began with."""

    def __init__(self, path: str | Path, digest: str) -> None:
        self._path, self._digest = Path(path), digest
        if self._path.is_dir() or not self._path.parent.is_dir():
            raise DataError(f"checkpoint must be a file in a folder that exists, got {self._path}")
        self._last = time.monotonic()

    def load(self, run: Resumable) -> None:
        """Go on from the file, if there is one. Raises `DataError` if it is of another training, or damaged."""
        if not self._path.exists():
            return
        try:
            with safe_open(str(self._path), framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors raises errors of its own
            raise DataError(
                f"the checkpoint {self._path} cannot be read ({error}): remove it or name another"
            ) from error
        if about.get("digest") != self._digest:
            raise DataError(
                f"the checkpoint {self._path} is of a training with other settings, other probes or other data: "
                "remove it or name another"
            )
        run.resume(tensors, json.loads(about["numbers"]))

    def keep(self, run: Resumable) -> None:
        """Write the training to the file, unless that was done a moment ago."""
        if time.monotonic() - self._last >= EVERY_SECONDS:
            self.write(run)

    def write(self, run: Resumable) -> None:
        """Write the training to the file, all or nothing."""
        tensors = {name: x.detach().cpu().contiguous().clone() for name, x in run.tensors().items()}
        part = self._path.with_name(self._path.name + ".part")
        save_file(tensors, str(part), metadata={"digest": self._digest, "numbers": json.dumps(run.numbers())})
        os.replace(part, self._path)
        self._last = time.monotonic()

    def remove(self) -> None:
        """The training is complete: the file has done its work."""
        self._path.unlink(missing_ok=True)


def digest_of(train: BatchSource, dev: BatchSource, probes: Probes, settings: Training) -> str:
    """Tell one training from another: by its settings, its probes as they begin, the shape and start of its data."""
    digest = hashlib.sha256(f"{settings} {probes.seeds} {probes.step}".encode())
    for x in (probes.layers, probes.weights):
        _add(digest, x)
    for source in (train, dev):
        told = (source.records, source.layers, source.hidden, source.sides, source.labels, source.counted)
        digest.update(repr(told).encode())
        _add(digest, source.target_record)
        batch = source.batch(range(min(TASTED, source.records)))
        for x in (batch.vectors, *batch.tokens, *batch.targets, batch.gold):
            _add(digest, x)
    return digest.hexdigest()


def _add(digest: Any, x: Tensor) -> None:
    digest.update(f"{list(x.shape)} {x.dtype}".encode())
    digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
