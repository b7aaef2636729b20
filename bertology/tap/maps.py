"""How are attention maps read, whatever attention implementation the model has?

Two routes. A model on transformers' attention interface is switched to a function of ours, which calls the model's
own eager attention on blocks of query rows. An older model hands its maps up when it is asked to
(`output_attentions`); they are taken out of each attention module's output, so that one is alive at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

from ..errors import UnknownAnatomy
from ..site import Anatomy, Site
from .calls import Calls

Reader = Callable[[Site, Tensor, slice], Any]

NAME = "bertology"
BLOCK_BYTES = 64 * 2**20
# In 4.57 some eager functions (GPT-2's) make the causal mask from the numbers of queries and keys: they need all rows.
_CAN_BLOCK = not transformers.__version__.startswith("4.")

_taps: dict[nn.Module, list[_Tap]] = {}


class _Tap:
    """One reader, and the sites that it reads."""

    def __init__(self, anatomy: Anatomy, sites: list[Site], read: Reader, rows: int | None, undo: ExitStack) -> None:
        self.read, self.rows = read, rows
        crossing = [site.attention for site in sites if site.stack == "cross"]
        self.calls = Calls([(site.attention, site) for site in sites], may_rest=crossing)
        self.calls.watch(anatomy, undo)
        for attention in self.calls.modules:
            _taps.setdefault(attention, []).append(self)
            undo.callback(_forget, attention, self)


@contextmanager
def tap_maps(anatomy: Anatomy, read: Reader, rows: int | None) -> Iterator[None]:
    """Give `read(site, x, rows)` the attention maps of a forward pass, in blocks of query rows."""
    there = [site for site in anatomy.sites if site.kept]
    switched = [site for site in there if _eager(site.attention) is not None]
    with ExitStack() as undo:
        if switched:
            _switch(anatomy, _Tap(anatomy, switched, read, rows, undo), undo)
        if len(switched) < len(there):
            handed = [site for site in there if site not in switched]
            _hand_up(anatomy, _Tap(anatomy, handed, read, rows, undo), undo)
        yield


def _eager(attention: nn.Module) -> Callable[..., Any] | None:
    """The eager attention function beside the module's class, or that of the class that it inherits from."""
    for kind in type(attention).__mro__:
        module = sys.modules.get(kind.__module__)
        if hasattr(module, "ALL_ATTENTION_FUNCTIONS") and hasattr(module, "eager_attention_forward"):
            return module.eager_attention_forward  # type: ignore[union-attr]
    return None


def _switch(anatomy: Anatomy, tap: _Tap, undo: ExitStack) -> None:
    attentions = set(tap.calls.modules)
    configs: dict[int, Any] = {
        id(module.config): module.config
        for module in anatomy.model.modules()
        if hasattr(module, "config") and not attentions.isdisjoint(module.modules())
    }
    for config in configs.values():
        before = config._attn_implementation_internal
        undo.callback(setattr, config, "_attn_implementation_internal", before)
        config._attn_implementation_internal = NAME


def _forget(attention: nn.Module, tap: _Tap) -> None:
    _taps[attention].remove(tap)
    if not _taps[attention]:
        del _taps[attention]


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: the model's own eager one, block by block, with readers."""
    eager = _eager(module)
    assert eager is not None
    readers = [(tap, tap.calls.next(module)) for tap in _taps.get(module, [])]
    # An extra tensor like T5's position bias has a query axis of its own, which only the model's function knows.
    whole = not _CAN_BLOCK or any(isinstance(extra, Tensor) and extra.dim() > 2 for extra in kwargs.values())
    queries = query.shape[2]
    size = queries if whole else _block_size(query, key, [tap.rows for tap, _ in readers])
    outputs = []
    for start in range(0, queries, size):
        rows = slice(start, min(start + size, queries))
        masked = attention_mask is not None and attention_mask.shape[-2] == queries
        mask = attention_mask[..., rows, :] if masked else attention_mask  # type: ignore[index]
        output, weights = eager(module, query[:, :, rows], key, value, mask, **kwargs)
        for tap, site in readers:
            tap.read(site, weights, rows)
        outputs.append(output)
    return torch.cat(outputs, dim=1), None


def _block_size(query: Tensor, key: Tensor, asked: list[int | None]) -> int:
    row = query.shape[0] * query.shape[1] * key.shape[2] * query.element_size()
    return max(1, min([BLOCK_BYTES // max(1, row), *(rows for rows in asked if rows)]))


def _hand_up(anatomy: Anatomy, tap: _Tap, undo: ExitStack) -> None:
    def ask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"output_attentions": True}

    def take(module: nn.Module, args: Any, output: Any) -> Any:
        site = tap.calls.next(module)
        found = [i for i, x in enumerate(output) if isinstance(x, Tensor) and x.dim() == 4 and x.is_floating_point()]
        if not isinstance(output, (tuple, list)) or len(found) != 1:
            raise UnknownAnatomy(f"the attention of {site.label} ({type(module).__name__}) handed up no attention map")
        tap.read(site, output[found[0]], slice(0, output[found[0]].shape[2]))
        if _taps[module][-1] is not tap:
            return None  # another tap has yet to see the map
        return type(output)([None if i == found[0] else x for i, x in enumerate(output)])

    undo.callback(anatomy.model.register_forward_pre_hook(ask, with_kwargs=True).remove)
    for attention in tap.calls.modules:
        undo.callback(attention.register_forward_hook(take).remove)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The eager mask, with a lowest value that stays finite when a float64 model takes its softmax in float32 (Llama).

    Else a padded query that sees no key at all would be NaN, and through the next layer so would everything.
    """
    mask = eager_mask(*args, **kwargs)
    if mask is None or mask.dtype != torch.float64:
        return mask
    return mask.clamp_min(torch.finfo(torch.float32).min)


AttentionInterface.register(NAME, _attend)
# Without a mask function of the same name transformers would drop the padding mask.
AttentionMaskInterface.register(NAME, _mask)
