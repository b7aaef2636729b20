"""Silencing one head by its attention probabilities.

`check_anatomy` needs a way to silence a head that is independent of the place where its output is expected.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ..anatomy.forward_source import eager_function
from ..anatomy.sites import Anatomy, Site
from .attention_implementation import attend_eagerly
from .calls import Calls, attention_modules
from .function_mode import Pass
from .softmax_route import WatchingSoftmax, four_axes
from .torch_attention import open_torch_attention


@contextmanager
def silenced(anatomy: Anatomy, head: int | None) -> Iterator[set[Site]]:
    """Set the attention probabilities of one head to 0, in every layer that has it, while the `with` lasts.

    Without a head nothing is silenced, but attention is computed in the same way. Yields the sites where that was
    done, in a set that fills while the model runs.
    """
    sites = [site for site in anatomy.sites if head is None or head < len(site.kept)]
    modules = attention_modules(anatomy)
    calls = Calls([(modules[site], site) for site in sites], may_rest=[modules[site] for site in sites])
    mode = _Silencing(calls, head)
    with ExitStack() as undo:
        # Fused kernels show no probabilities.
        on_interface = [module for module in calls.modules if eager_function(module) is not None]
        if on_interface:
            attend_eagerly(anatomy, on_interface, undo)
        calls.watch(anatomy, undo)
        open_torch_attention(calls.modules, undo)
        mode.watch(calls.modules, undo)
        yield mode.done


class _Silencing(WatchingSoftmax):
    """Zeroes one head of every softmax over keys in an attention module that is running."""

    def __init__(self, calls: Calls[Site], head: int | None) -> None:
        super().__init__(calls.next)
        self.head = head
        self.done: set[Site] = set()

    def weigh(self, now: Pass, weights: Tensor, axis: Any) -> Tensor:
        heads = len(now.site.kept)
        laid = four_axes(weights, axis, heads)
        if laid is None and weights.dim() == 4 and weights.shape[1] == 2 * heads:
            laid = weights  # DiffLlama: two maps a head
        return weights if laid is None else self._without(now.site, laid).reshape(weights.shape)

    def _without(self, site: Site, x: Tensor) -> Tensor:
        """`x [batch, head, ...]` with zeros for the head, in each half where a head has two maps."""
        gate = torch.ones(len(site.kept), dtype=x.dtype, device=x.device)
        if self.head is not None:
            gate[self.head] = 0
        self.done.add(site)
        return x * gate.repeat(x.shape[1] // len(site.kept))[:, None, None]
