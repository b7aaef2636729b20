"""Models that torch.distributed wraps or divides run in each process for themselves while they are measured.

The processes of a measure have different numbers of batches. DistributedDataParallel sends buffers around in each pass,
and `fully_shard` brings the weights of each block together, so that a process would wait for passes that never come.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..anatomy.divided import has_processes
from ..anatomy.modules import each_module
from ..errors import DataError
from .private_api import are_divided, bring_together, divided_groups, replace_forward


def run_alone(model: nn.Module, undo: ExitStack) -> None:
    """Let the passes of a model need no other process, while `undo` is open."""
    if has_processes():
        whole_weights(model, undo)
        for module in each_module(model):
            if isinstance(module, DistributedDataParallel):
                replace_forward(module, _Inner(module.module), undo)


class _Inner:
    """The call of a module inside of another; a module itself would become a child."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._module(*args, **kwargs)


def divided_over(model: nn.Module) -> set[int]:
    """The processes over which `fully_shard` has divided the weights of a model; none if they are whole."""
    groups = divided_groups(each_module(model)) if has_processes() else []
    if not are_divided(groups):
        return set()
    return {
        rank for x in model.parameters() if hasattr(x, "device_mesh") for rank in x.device_mesh.mesh.flatten().tolist()
    }


def whole_weights(model: nn.Module, undo: ExitStack) -> None:
    """Bring the weights that `fully_shard` divides together, while `undo` is open.

    Raises `DataError` where the other processes do not take part.
    """
    groups = divided_groups(each_module(model))
    if not are_divided(groups):
        return
    try:
        bring_together(groups, undo)
    except RuntimeError as lost:
        raise DataError(
            f"the weights of this {type(model).__name__} are divided over several processes, and cannot be brought "
            f"together ({lost}): call the function in all of these processes"
        ) from lost
