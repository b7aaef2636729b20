"""Where is what the heads add summed up with the residual stream? The layers that run next are looked at."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..anatomy.dissect import is_norm
from ..anatomy.mlps import dissect_mlps
from ..anatomy.modules import each_module, each_weight
from ..anatomy.sites import Anatomy, Site
from ..errors import UnknownAnatomy
from .calls import Calls
from .function_mode import of_reader
from .mixing import Mixed, Parting, Sum

Reader = Callable[[Site, Mixed], Any]
# {anatomy: the down projections of its MLPs}
_projections: WeakKeyDictionary[Anatomy, set[nn.Module]] = WeakKeyDictionary()
# A norm that follows the sum is confirmed by the next sum: one of the block's MLP, or of its cross attention.
_AT_ONCE = 1


def follow_sums(anatomy: Anatomy, parting: Parting, read: Reader, once: bool, undo: ExitStack) -> None:
    """Give `read(site, mixed)` the parts of each attention block's output, while `undo` is open."""
    anatomy.check_readable()
    sites = [site for site in anatomy.sites if site.kept]
    crossing = [site.projection for site in sites if site.crosses]
    calls = Calls([(site.projection, site) for site in sites], may_rest=crossing, once=once)
    calls.watch(anatomy, undo)
    following = _Following(calls, parting, read, anatomy)
    stacks = [part for stack in anatomy.stacks for part in (stack.module, stack.last)]
    inside = dict.fromkeys(module for stack in stacks for module in each_module(stack))
    queries = {site.query for site in sites}
    for module in inside:
        if module in queries:  # which may have parts of their own (LoRA)
            undo.callback(module.register_forward_pre_hook(of_reader(following.before_query)).remove)
        if any(True for _ in module.children()) and module not in calls.modules:
            continue
        after = following.after_norm if is_norm(module) else following.after
        after = following.after_projection if module in calls.modules else after
        undo.callback(module.register_forward_hook(of_reader(after)).remove)
    runs = {stack.module for stack in anatomy.stacks} | {anatomy.model}
    for module in runs:
        undo.callback(module.register_forward_hook(of_reader(partial(following.end, module is anatomy.model))).remove)


class _Following:
    """The hooks of the layers, and the sums that are looked for."""

    def __init__(self, calls: Calls[Site], parting: Parting, read: Reader, anatomy: Anatomy) -> None:
        self._calls, self._parting, self._read, self._anatomy = calls, parting, read, anatomy
        self._norms: list[tuple[Tensor, Tensor]] = []
        self._queries: dict[nn.Module, Tensor] = {}
        self._sums: list[Sum] = []

    def before_query(self, module: nn.Module, args: Any) -> None:
        """Remember what the attention reads."""
        if args and isinstance(args[0], Tensor):
            self._queries[module] = args[0]

    @torch.no_grad()
    def after_projection(self, module: nn.Module, args: Any, output: Any) -> None:
        """Begin to look for the sum of what the heads add."""
        if not self._calls.count:
            return
        if not isinstance(output, Tensor):
            self._refuse(self._calls.next(module))  # beside the scale of quantized numbers (I-BERT)
        self.after(module, args, output)
        unknown = [one for one in self._sums if one.norm is None]
        if unknown or len(self._sums) > _AT_ONCE:
            self._refuse((unknown or self._sums)[0].site)
        site = self._calls.next(module)
        read = self._queries.pop(site.query, None)
        if read is None or read.shape != output.shape:  # queries of a projection of what the attention reads (DeepSeek)
            read = None
            before = [x for x, _ in self._norms if x.shape == output.shape]
        else:
            before = [x for x, y in self._norms if y is read]
        self._sums.append(Sum(site, output, read, before, partial(self._parting.parts, site, output)))
        self._norms.clear()

    @torch.no_grad()
    def after_norm(self, module: nn.Module, args: Any, output: Any) -> None:
        """Look at what a norm read and returned."""
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            self._norms.append((args[0], output))
            self._look(module, args[0], output)

    @torch.no_grad()
    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Look at what another layer read, and keep what it returned for the next sum."""
        if not self._sums:
            return
        if args and isinstance(args[0], Tensor):
            self._look(module, args[0], None)
        for one in self._sums:
            if one.norm is not None and isinstance(output, Tensor):
                one.later.append(output)
            elif one.before and self._ends_mlp(module, output, one.added):
                one.beside.append(output.clone())  # some models add what the heads add to it in place (Falcon)

    def _ends_mlp(self, module: nn.Module, output: Any, added: Tensor) -> bool:
        """Whether a layer that ran is the down projection of an MLP beside the attention.

        Models without such MLPs, where the sum is found before any MLP runs, are not asked for their MLPs: that takes
        as long as a pass of a small model.
        """
        may = isinstance(output, Tensor) and output.shape == added.shape and bool(each_weight([module]))
        return may and module in self._mlps

    @property
    def _mlps(self) -> set[nn.Module]:
        """The down projections of the MLPs that are known, which all batches have in common."""
        if self._anatomy not in _projections:
            try:
                _projections[self._anatomy] = {mlp.projection for mlp in dissect_mlps(self._anatomy).sites}
            except UnknownAnatomy:
                _projections[self._anatomy] = set()
        return _projections[self._anatomy]

    def _look(self, module: nn.Module, x: Tensor, y: Tensor | None) -> None:
        for one in list(self._sums):
            mixed = one.looks_at(module, x, y)
            if mixed is not None:
                self._sums.remove(one)
                self._read(one.site, mixed)

    def end(self, whole: bool, module: nn.Module, args: Any, output: Any) -> None:
        """Refuse sums that were not found until the end of a stack, or of the model."""
        if whole and self._sums:
            self._refuse(self._sums[0].site)
        self._norms.clear()
        self._queries.clear()

    def _refuse(self, site: Site) -> NoReturn:
        self._sums.clear()
        raise UnknownAnatomy(
            f"what the heads of {site.label} ({type(site.attention).__name__}) add is nowhere summed up with the "
            "residual stream, with nothing else than a number before it or an MLP beside it: "
            "the parts of that sum are not known. The norms of what arrives from each key, weighting='norm', are"
        )
