"""The attention implementation of a model: attention modules are switched to another one, and masks with them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.modules import attributes_of, each_module
from ..anatomy.names import CAP_NAME, FUSED_IMPLEMENTATION
from ..anatomy.sites import Anatomy
from .listed import modules_of
from .private_api import ATTENTION_SETTING
from .restore import first_value, turn

MAP_AXES = ("batch", "head", "query", "key")


def set_implementation(anatomy: Anatomy, attentions: list[nn.Module], name: str, undo: ExitStack) -> None:
    """Switch the configs around these attention modules to an attention function, while `undo` is open."""
    for attention in attentions:
        if CAP_NAME in attributes_of(attention):  # to ask for what is not there takes some microseconds
            _without_unused_cap(attention, undo)
    for config in _configs(anatomy, attentions):
        turn(config, ATTENTION_SETTING, name, undo)


def _without_unused_cap(attention: nn.Module, undo: ExitStack) -> None:
    """Leave out a soft cap of scores that the model itself leaves out, while `undo` is open.

    Under torch's fused attention, transformers 4 computes Gemma 2 without it, and says nothing; transformers 5 refuses.
    """
    fused = first_value(getattr(attention, "config", None), ATTENTION_SETTING) == FUSED_IMPLEMENTATION
    if fused and first_value(attention, CAP_NAME) is not None:
        turn(attention, CAP_NAME, None, undo)


def attend_eagerly(anatomy: Anatomy, attentions: list[nn.Module], undo: ExitStack) -> None:
    """Switch these attention modules to the model's own eager functions, while `undo` is open."""
    set_implementation(anatomy, attentions, "eager", undo)
    for attention in attentions:
        undo.callback(attention.register_forward_pre_hook(_with_added_masks, with_kwargs=True).remove)


def _with_added_masks(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments, with masks that the user has made for other functions as eager ones take them."""
    given = (*args, *kwargs.values())
    if first_value(module.config, ATTENTION_SETTING) == "eager" or not any(map(_shows, given)):
        return None
    dtype = next(x.dtype for x in given if isinstance(x, Tensor) and x.is_floating_point())
    new = [added_mask(x, dtype) if _shows(x) else x for x in given]
    return tuple(new[: len(args)]), dict(zip(kwargs, new[len(args) :], strict=True))


def _shows(x: Any) -> bool:
    """Whether this is a mask that is True where a query may look."""
    return isinstance(x, Tensor) and x.dtype == torch.bool and x.dim() == len(MAP_AXES)


def _configs(anatomy: Anatomy, attentions: list[nn.Module]) -> list[Any]:
    """The configs around these attention modules."""
    inside, modules = set(attentions), modules_of(anatomy.model)
    configs: dict[int, Any] = {}
    for module in modules.with_config:
        if id(module.config) in configs:
            continue
        if not inside.isdisjoint(modules if module is anatomy.model else each_module(module)):
            configs[id(module.config)] = module.config
    return list(configs.values())


def added_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as eager functions take it, which add it to the scores: of True and False, 0 and a lowest value."""
    if mask.dtype != torch.bool:
        return mask
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, lowest)
