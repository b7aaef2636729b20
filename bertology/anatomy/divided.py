"""Models of which each process holds a part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import DataError, UnknownAnatomy
from .modules import each_module
from .names import FSDP_1_NAME, FSDP_2_NAME, TENSOR_PARALLEL_NAME


def has_processes() -> bool:
    """Whether this is one of the processes of `torch.distributed`."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_divided(x: Tensor) -> bool:
    """Whether a weight is a part of one that several processes share."""
    return type(x.data) is not Tensor and hasattr(x.data, "to_local")


def is_fully_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` was called with a module."""
    # By name: to import the class takes up to four seconds, also where nobody divided anything.
    return any(kind.__name__ == FSDP_2_NAME for kind in type(module).__mro__)


def check_whole_layers(model: nn.Module) -> None:
    """Raise `UnknownAnatomy` for a model of which each process runs a part of each layer, or that FSDP 1 divides."""
    if not has_processes():
        return
    modules = each_module(model)
    if any(type(module).__name__ == FSDP_1_NAME for module in modules):
        raise UnknownAnatomy(
            f"the weights of {type(model).__name__} are divided by {FSDP_1_NAME}, which hides them: divide the model "
            "with torch.distributed.fsdp.fully_shard (fsdp_version 2 in accelerate), or measure it before"
        )
    planned = modules.with_attribute(TENSOR_PARALLEL_NAME)
    shared = any((getattr(module, TENSOR_PARALLEL_NAME) or 1) > 1 for module in planned)
    # Those of fully_shard are brought together for each pass.
    if not shared and not any(is_fully_sharded(module) for module in modules):
        shared = any(map(is_divided, model.parameters()))
    if shared:
        raise UnknownAnatomy(
            f"each process runs some of the heads of this {type(model).__name__} (tensor parallelism), so that none "
            "sees them all: load it without tp_plan, in each process whole or divided by fully_shard, and give each "
            "process its share of the batches"
        )


def check_not_divided(model: nn.Module, cannot: str) -> None:
    """Raise `DataError` for a model whose weights `fully_shard` divides, which has no weights to copy or to look up."""
    if any(map(is_fully_sharded, each_module(model))):
        raise DataError(
            f"{cannot}: the weights of this {type(model).__name__} are divided among processes by fully_shard. Do it "
            "before the model is divided, or with a whole copy of it"
        )
