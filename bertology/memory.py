"""How much memory does a forward pass take beside the weights?"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .data.batches import device_of


def weight_bytes(model: nn.Module) -> int:
    """How many bytes the parameters and buffers take; what is shared counts once."""
    return sum(_own_storages(model).values())


@torch.no_grad()
def activation_bytes(model: nn.Module, batch: Mapping[str, Any]) -> int:
    """The most bytes that one forward pass holds at a time, weights and inputs not counted.

    On CUDA this is the peak of torch's allocator. Elsewhere torch keeps no such number, and the tensors that are alive
    are counted, as each operation makes them: the scratch space inside of an operation is not seen.
    """
    device = device_of(model)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        model(**batch)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    known = set(_own_storages(model)) | {x.untyped_storage()._cdata for x in batch.values() if isinstance(x, Tensor)}
    with _Living(known) as living:
        model(**batch)
    return living.peak


def _own_storages(model: nn.Module) -> dict[int, int]:
    """{storage: bytes}"""
    storages = [x.untyped_storage() for x in (*model.parameters(), *model.buffers())]
    return {storage._cdata: storage.nbytes() for storage in storages}


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that operations make, for as long as these are alive."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = known
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self._count(x.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        # A view has the storage of what it shows.
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in self._alive:
            return

        def gone(_: Any) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)
