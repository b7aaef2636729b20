"""The position bias of a pruned layer that was made for all heads of all layers.

T5, MPNet, BLOOM and MPT make it once, with a share for each head of an unpruned layer, and pass it from layer to
layer. A layer with fewer heads takes its own shares of it, and passes on the whole.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.forward_source import is_transformers_4
from ..anatomy.names import BIAS_ARGUMENT, BIAS_NAMES, BIASED_MASK_ARGUMENT, MASK_ARGUMENT
from ..anatomy.oddities import oddities_of


def takes_bias(attention: nn.Module) -> bool:
    """Whether the attention module receives a bias that is made for all layers."""
    return bool(_bias_arguments(attention))


def _bias_arguments(attention: nn.Module) -> list[str]:
    return [name for name in BIAS_NAMES if name in inspect.signature(type(attention).forward).parameters]


def narrow_biases(attention: nn.Module, heads: int, stay: list[int]) -> None:
    """Pass only the shares in `stay`, out of `heads`, to the attention module. The hooks become part of the model."""
    if not takes_bias(attention):
        return
    shares: list[int] | None = getattr(attention, "_bias_shares", None)
    if shares is not None:
        # Pruned again: shares are counted as in the unpruned layer.
        shares[:] = [shares[place] for place in stay]
        return
    shares = list(stay)
    attention._bias_shares = shares  # type: ignore[assignment]
    whole: list[Tensor] = []
    attention.register_forward_pre_hook(partial(_narrow, heads, shares, whole), with_kwargs=True)
    if hasattr(attention, "compute_bias"):
        attention.compute_bias = partial(_compute, attention, heads, shares, whole)  # type: ignore[assignment]
        attention.register_forward_hook(partial(_hand_on, whole), with_kwargs=True)


def _narrow(heads: int, shares: list[int], whole: list[Tensor], attention: nn.Module, args: Any, kwargs: Any) -> Any:
    whole.clear()
    names = list(inspect.signature(type(attention).forward).parameters)[1:]
    args, kwargs = list(args), dict(kwargs)
    for name in _bias_arguments(attention):
        place = names.index(name)
        where, key = (args, place) if place < len(args) else (kwargs, name)
        bias = args[place] if place < len(args) else kwargs.get(name)
        if bias is not None:
            whole.append(bias)
            where[key] = _shares(bias, heads, shares)
    mask = kwargs.get(MASK_ARGUMENT)
    if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[1] == heads:
        kwargs[MASK_ARGUMENT] = mask[:, shares]  # Falcon adds the bias to it
    return tuple(args), kwargs


def _compute(attention: Any, heads: int, shares: list[int], whole: list[Tensor], *args: Any, **kwargs: Any) -> Tensor:
    whole[:] = [type(attention).compute_bias(attention, *args, **kwargs)]
    return _shares(whole[0], heads, shares)


def _hand_on(whole: list[Tensor], attention: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    """Return the whole bias, the second output of T5's attention, but not zeros that were made for lack of one."""
    bias = whole.pop() if whole else None
    given = inspect.signature(type(attention).forward).bind(attention, *args, **kwargs).arguments
    if bias is not None and given.get(BIAS_ARGUMENT) is None and given.get(BIASED_MASK_ARGUMENT) is not None:
        bias = _with_mask(attention, bias, given[BIASED_MASK_ARGUMENT])
    return (output[0], bias, *output[2:])


def _with_mask(attention: nn.Module, bias: Tensor, mask: Tensor) -> Tensor:
    """A bias that the attention computed itself, as it returns it."""
    if oddities_of(attention).mask_in_bias:
        return bias + torch.where(mask > 0, 0.0, -1e10).transpose(1, 2)
    return bias + mask[..., : bias.shape[-1]] if is_transformers_4() else bias


def _shares(bias: Tensor, heads: int, shares: list[int]) -> Tensor:
    if bias.dim() == 5:  # [batch, block, head, query, key]: LongT5's local attention
        return bias[:, :, shares]
    if bias.dim() == 4:  # [batch, head, query, key]
        return bias[:, shares]
    # [batch * head, ...]
    return bias.reshape(-1, heads, *bias.shape[1:])[:, shares].flatten(0, 1)
