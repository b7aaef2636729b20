"""The route to attention maps through an attention function of the user's own.

A model whose attention function, or mask function, was registered by the user is that function's model: it keeps both.
The weights that the function returns are read. Where it returns none, the model's own eager function is computed
beside it, in every call, and must give the same output; its weights are then read.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..anatomy.forward_source import attention_interface, has_own_eager, is_of_transformers, is_transformers_4
from ..anatomy.names import CAUSAL_NAME, OUTPUT_MAPS_ARGUMENT, PAGED_PREFIX
from ..anatomy.sites import Site
from ..errors import UnknownAnatomy
from .attention_implementation import added_mask
from .interface_route import attend_in_blocks
from .map_reader import Reading
from .private_api import ATTENTION_SETTING, replace_entry
from .restore import first_value

# The allowed difference from the eager function, in steps of the type's precision: scores are rounded, too.
_STEPS, _STEPS_OF_HALVES = 200, 16
# How far the weights of a query may sum to more than 1, in steps of the type's precision.
_STEPS_OF_SUMS = 16


class Entry(NamedTuple):
    """Where an attention module finds its function: the functions by name, and the name."""

    interface: Any
    name: str

    @property
    def function(self) -> Callable[..., Any]:
        """The function that is there when nothing is read."""
        found: Callable[..., Any] = self.interface[self.name]
        return found.function if isinstance(found, _Read) else found


def own_entry(attention: nn.Module) -> Entry | None:
    """The entry of a module whose attention or mask is made by a function of the user's own; None for any other."""
    name = first_value(getattr(attention, "config", None), ATTENTION_SETTING)
    if name is None or (name == "eager" and is_transformers_4()):
        return None  # the eager function, which is then not looked up by name
    interface = attention_interface(attention)
    entry = Entry(interface, name if name in interface else name.removeprefix(PAGED_PREFIX))
    if entry.name not in interface:
        return None  # "eager" is on the interface only where the user has put a function there
    function = entry.function
    if "/" in name and isinstance(function, partial):
        function = function.func  # a kernel of the hub, which transformers registers itself
    if has_own_eager(attention) or not is_of_transformers(function):
        return entry
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS  # loads slowly

    return None if is_of_transformers(ALL_MASK_ATTENTION_FUNCTIONS.get(name)) else entry


def read_own(entries: dict[nn.Module, Entry], reading: Reading, undo: ExitStack) -> None:
    """Give the maps of these modules to the reader, while `undo` is open."""
    for attention, entry in entries.items():
        with _lock:
            here = entry.interface.get(entry.name)
            if not isinstance(here, _Read):
                here = _Read(entry)
            here.readings.setdefault(attention, []).append(reading)
        undo.callback(here.forget, attention, reading)


# Taps of models in several threads may find the same function, or give it back, at one moment.
_lock = threading.Lock()


class _Read:
    """Stands in the place of an attention function while the maps of some modules are read."""

    def __init__(self, entry: Entry) -> None:
        self.function, self.name = entry.function, entry.name
        self.readings: dict[nn.Module, list[Reading]] = {}
        self._undo = ExitStack()
        replace_entry(entry.interface, entry.name, self, self._undo)

    def forget(self, attention: nn.Module, reading: Reading) -> None:
        """End a reading; with the last one, the function itself takes its place again."""
        with _lock:
            self.readings[attention].remove(reading)
            if not self.readings[attention]:
                del self.readings[attention]
            if not self.readings:
                self._undo.close()

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> Any:
        """Attend as the function does."""
        if module not in self.readings:
            return self.function(module, query, key, value, attention_mask, **kwargs)
        readings = [(reading, reading.calls.next(module)) for reading in self.readings[module]]
        asked = {OUTPUT_MAPS_ARGUMENT: True} if _asks_for_maps(self.function) else {}
        found = self.function(module, query, key, value, attention_mask, **(kwargs | asked))
        output, weights = found
        if isinstance(weights, Tensor) and weights.shape == (*query.shape[:3], key.shape[2]):
            _check_weights(weights, self.name, readings[0][1])
            if output.requires_grad and any(reading.whole for reading, _ in readings):
                _check_graph(output, weights, self.name, readings[0][1])
            _give_rows(weights, value, readings)
            return found
        mask = _mask_for_eager(attention_mask, module, query, key, self.name)
        ours = attend_in_blocks(module, query, key, value, mask, readings, kwargs)
        self._compare(output, ours, mask, module, value, readings[0][1])
        # A reader that wants gradients through the map needs the output that was computed from it.
        return (ours if any(reading.whole for reading, _ in readings) else output), weights

    def _compare(
        self, output: Tensor, ours: Tensor, mask: Tensor | None, module: nn.Module, value: Tensor, site: Site
    ) -> None:
        """Check that the function gives what the eager function gives, for all queries that are not padding."""
        output, ours, value = output.detach(), ours.detach(), value.detach()
        dtype = output.dtype
        steps = _STEPS if dtype in (torch.float32, torch.float64) else _STEPS_OF_HALVES
        # Many eager functions take their softmax in float32.
        eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
        allowed = steps * eps * float(value.abs().nan_to_num().max())
        same = output.shape == ours.shape
        if same:
            apart = (output - ours).abs().amax((2, 3))
            there = _queries(mask, apart.shape, site, value.device)
            same = not bool((apart[there] > allowed).any()) and torch.equal(
                output.isnan().any(-1).any(-1)[there], ours.isnan().any(-1).any(-1)[there]
            )
        if not same:
            training = " In training, dropout makes them differ: call model.eval()." if module.training else ""
            raise UnknownAnatomy(
                f"the model attends by the function {self.name!r}, which returns no attention weights, and in "
                f"{site.label} its output is not that of the model's eager function: its maps are not known. Let the "
                "function return its weights [batch, head, query, key] beside its output, or choose another with "
                f"model.set_attn_implementation(...).{training}"
            )


def _asks_for_maps(function: Callable[..., Any]) -> bool:
    try:
        return OUTPUT_MAPS_ARGUMENT in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a compiled kernel has no signature
        return False


def _check_weights(weights: Tensor, name: str, site: Site) -> None:
    """Check that each query spends at most 1 on its keys: scores before a softmax are no map."""
    wide = weights.detach().double()
    most = 1 + _STEPS_OF_SUMS * max(torch.finfo(weights.dtype).eps, torch.finfo(torch.float32).eps)
    if bool((wide < 0).any()) or bool((wide.sum(-1) > most).any()):
        raise UnknownAnatomy(
            f"the attention function {name!r} returns for {site.label} values that are not attention weights: wanted "
            "values from 0 up that sum to 1 at most over the keys of a query. Let it return the weights that it "
            "multiplies the values with, or None"
        )


def _check_graph(output: Tensor, weights: Tensor, name: str, site: Site) -> None:
    """Check that the output was computed from these weights, for readers that want gradients through them."""
    grads: tuple[Tensor | None, ...] = (None,)
    if weights.requires_grad:
        grads = torch.autograd.grad(output.sum(), [weights], retain_graph=True, allow_unused=True)
    if grads[0] is None:
        raise UnknownAnatomy(
            f"the attention function {name!r} returns for {site.label} a copy of its weights: no gradient of the loss "
            "reaches it. Let it return the weights that it multiplies the values with"
        )


def _give_rows(weights: Tensor, value: Tensor, readings: list[tuple[Reading, Site]]) -> None:
    queries = weights.shape[2]
    for reading, site in readings:
        size = queries if reading.whole or not reading.rows else reading.rows
        for start in range(0, queries, size):
            rows = slice(start, min(start + size, queries))
            block = weights if size >= queries else weights[:, :, rows]
            reading.give(site, reading.weighed(site, block, rows, value), rows)


def _mask_for_eager(mask: Any, module: nn.Module, query: Tensor, key: Tensor, name: str) -> Tensor | None:
    """The mask that the function was given, as the eager function adds it to scores.

    Without a mask a causal module is causal, as in transformers' own functions.
    """
    if mask is None:
        queries, keys = query.shape[2], key.shape[2]
        if queries == 1 or not getattr(module, CAUSAL_NAME, True):
            return None
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=query.device).tril()
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        came = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise UnknownAnatomy(
            f"the model attends by the function {name!r}, which returns no attention weights, under a mask that the "
            f"model's eager function does not take (wanted [batch, head, query, key], got {came}): its maps are not "
            "known. Let the function return its weights [batch, head, query, key] beside its output, or choose another "
            "with model.set_attn_implementation(...)"
        )
    return added_mask(mask, query.dtype)


def _queries(mask: Tensor | None, shape: torch.Size, site: Site, device: torch.device) -> Tensor:
    """[batch, query], bool: the queries that see a key, and in self attention their own: padding does not."""
    there = torch.ones(shape, dtype=torch.bool, device=device)
    if mask is None:
        return there
    seen = (mask > torch.finfo(torch.float16).min).any(1).expand(-1, shape[1], -1)
    some = seen.any(-1)
    extra = seen.shape[-1] - seen.shape[-2]
    if not site.crosses and extra >= 0:
        own = seen.diagonal(extra, dim1=-2, dim2=-1)
        some = some & own if bool(own.any()) else some
    return there & some
