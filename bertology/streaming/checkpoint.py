"""Checkpoints of a pass over the data, from which an interrupted pass resumes."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..data.batches import ANNOTATIONS, Batch
from ..errors import DataError

EVERY_SECONDS = 60.0


class Sums(Protocol):
    """What a checkpoint needs of an accumulator."""

    def settings(self) -> str:
        """What tells it from others of its kind."""

    def state(self) -> dict[str, Tensor]:
        """The sums, by name."""

    def merge(self, other: dict[str, Tensor]) -> Any:
        """Add other sums."""


class Checkpoint:
    """A file with the sums of several accumulators, and a digest of the model and of the batches that are in them."""

    def __init__(self, path: str | Path, model: nn.Module, accumulators: Sequence[Sums]) -> None:
        self._path = Path(path)
        if self._path.is_dir() or not self._path.parent.is_dir():
            raise DataError(f"checkpoint must be a file in a folder that exists, got {self._path}")
        self._accumulators = accumulators
        self._digest = hashlib.sha256(_describe(model, accumulators).encode())
        self._start, self._done, self._seen = self._digest.hexdigest(), 0, 0
        self._last = time.monotonic()
        self._wanted = ""
        if self._path.exists():
            self._load()

    def has(self, batch: Batch) -> bool:
        """Whether this batch, the next in turn, is in the sums already."""
        for name in sorted(batch):
            if isinstance(batch[name], Tensor):
                self._digest.update(f"{name}{list(batch[name].shape)}".encode())
                self._digest.update(batch[name].detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        self._digest.update(repr(batch.get(ANNOTATIONS)).encode())
        self._seen += 1
        if self._seen == self._done and self._digest.hexdigest() != self._wanted:
            raise DataError(
                f"the checkpoint {self._path} is of other data: remove it, or pass the data that it was made on"
            )
        return self._seen <= self._done

    def keep(self) -> None:
        """Write the sums to the file, unless that was done a moment ago."""
        if time.monotonic() - self._last >= EVERY_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the sums to the file, all or nothing."""
        tensors = {
            f"{i}.{name}": x.cpu().clone() for i, a in enumerate(self._accumulators) for name, x in a.state().items()
        }
        about = {"start": self._start, "batches": str(self._seen), "digest": self._digest.hexdigest()}
        part = self._path.with_name(self._path.name + ".part")
        save_file(tensors, str(part), metadata=about)
        os.replace(part, self._path)
        self._last = time.monotonic()

    def remove(self) -> None:
        """The pass is complete: the file has done its work."""
        if self._seen < self._done:
            raise DataError(f"the checkpoint {self._path} holds {self._done} batches, the data has only {self._seen}")
        self._path.unlink(missing_ok=True)

    def _load(self) -> None:
        with safe_open(str(self._path), framework="pt") as file:
            about = file.metadata() or {}
            if about.get("start") != self._start:
                raise DataError(
                    f"the checkpoint {self._path} is of another model or other measures: remove it or name another"
                )
            self._done, self._wanted = int(about["batches"]), about["digest"]
            for i, accumulator in enumerate(self._accumulators):
                accumulator.merge({name: file.get_tensor(f"{i}.{name}") for name in accumulator.state()})


def _describe(model: nn.Module, accumulators: Sequence[Sums]) -> str:
    """Tell one model from another: its class, and of each parameter the name, the shape and the sum of a few values."""
    lines = [type(model).__name__, *(f"{type(a).__name__} {a.settings()}" for a in accumulators)]
    for name, parameter in model.named_parameters():
        some = parameter.detach().flatten()[:64].double().sum().item()
        lines.append(f"{name} {list(parameter.shape)} {some!r}")
    return "\n".join(lines)
