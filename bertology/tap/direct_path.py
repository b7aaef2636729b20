"""The direct path of the heads: through the residual stream alone, with everything else unchanged.

A first pass notes what every matrix in the blocks returned, and by how much every norm scaled its input. In later
passes the matrices, other than the output projections of the attention, return what was noted, whatever they are given;
and the norms scale as before. What then changes in the outputs when a head is silent is what the head added to the
residual stream, without the responses of later heads and MLPs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.dissect import is_norm
from ..anatomy.modules import each_module
from ..anatomy.names import ADAPTED_NAME
from ..anatomy.sites import Anatomy
from ..errors import UnknownAnatomy
from .mixing import alternating, fitted, tried
from .private_api import replace_forward
from .restore import uncompiled


@dataclass(frozen=True)
class Scale:
    """A norm in one call, as the linear function that it was: what it adds, and what it multiplies its input with."""

    centred: bool
    added: Tensor
    factor: Tensor

    def of(self, x: Tensor) -> Tensor:
        """[..., hidden]: the input, less its mean if the norm takes that away, times the factors of the noted call."""
        return (self.added + _centred(x.to(self.factor.dtype), self.centred) * self.factor).to(self.added.dtype)


@dataclass
class DirectPath:
    """What was noted of a pass on a batch of `rows` rows."""

    rows: int
    outputs: dict[nn.Module, list[Any]] = field(default_factory=dict)
    scales: dict[nn.Module, list[Scale]] = field(default_factory=dict)

    @property
    def can_copy(self) -> bool:
        """Whether all that was noted has an axis of the batch: experts that get some tokens each have none."""
        kept = [x for outputs in self.outputs.values() for x in outputs if isinstance(x, Tensor) and x.dim() > 1]
        return all(len(x) % self.rows == 0 for x in kept)

    @contextmanager
    def held(self, copies: int) -> Iterator[None]:
        """Hold all but the residual stream as it was, on `copies` of the batch, concatenated."""
        with ExitStack() as undo:
            undo.enter_context(uncompiled())
            for module, outputs in self.outputs.items():
                each = iter([self._copied(output, copies) for output in outputs])
                replace_forward(module, partial(_next, each), undo)
            for norm, scales in self.scales.items():
                again = [Scale(s.centred, s.added, self._copied(s.factor, copies)) for s in scales]
                replace_forward(norm, partial(_scaled, iter(again)), undo)
            yield

    def _copied(self, x: Any, copies: int) -> Any:
        if type(x) in (tuple, list):
            return type(x)(self._copied(part, copies) for part in x)
        # Experts get all tokens in one row; what has no axis of the batch (position biases) is the same for all.
        batched = isinstance(x, Tensor) and x.dim() > 1 and len(x) % self.rows == 0 and len(x) > 0
        return torch.cat([x] * copies) if batched and copies > 1 else x


def _next(outputs: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
    return next(outputs)


def _scaled(scales: Iterator[Scale], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return next(scales).of(x)


def _centred(x: Tensor, centred: bool) -> Tensor:
    return x - x.mean(-1, keepdim=True) if centred else x


def _scale(norm: nn.Module, args: tuple[Any, ...], y: Tensor) -> Scale:
    """The linear function that a norm was in one call; whether it takes the mean away is tried."""
    x: Tensor = args[0]
    try:
        centred, added, weight = tried(norm, alternating(x).expand_as(x))
    except UnknownAnatomy:
        if not isinstance(y, Tensor) or y.shape != x.shape:
            raise
        # Its other input is a gate of each number, which is held (Qwen3-Next).
        wide = torch.promote_types(y.dtype, torch.float32)
        return Scale(False, y.new_zeros(1), _quotient(x.to(wide), y.to(wide)))
    below, above = _centred(x.to(weight), centred), y.to(weight) - added
    # In half precision a single quotient may be all rounding: the weight, and one number for each token, are not.
    factor = weight * fitted(below * weight, above)
    # Many norms compute in float32, also where all weights are float64.
    allowed = max(4 * torch.finfo(y.dtype).eps, 64 * torch.finfo(torch.float32).eps) * above.abs().max()
    if not bool(((below * factor - above).abs() <= allowed).all()) and len(args) > 1:
        factor = _quotient(below, above)  # a gate of each number (Mamba's norm)
    if not bool(((below * factor - above).abs() <= allowed).all()):
        raise UnknownAnatomy(f"a {type(norm).__name__} does not scale its input: its direct path is not known")
    return Scale(centred, added[:1].to(y), factor)


def _quotient(below: Tensor, above: Tensor) -> Tensor:
    return torch.where(below == 0, 0.0, above / below)


def _is_norm(module: nn.Module) -> bool:
    return is_norm(module) and not any(True for _ in module.children())


def _has_matrix(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding):
        return False
    if isinstance(adapted := getattr(module, ADAPTED_NAME, None), nn.Module) and _has_matrix(adapted):
        return True  # adapters compute with weights of modules that they do not call
    whole = isinstance(module, torch.jit.ScriptModule)  # what is in it runs without its hooks
    held: list[Tensor] = list(module.parameters(recurse=whole))
    if next(module.children(), None) is None:
        held += module.buffers(recurse=False)  # as quantized layers keep them
    return any(x.dim() > 1 for x in held) or callable(getattr(module, "weight", None))  # of torch's int8


@contextmanager
def direct_path_noted(anatomy: Anatomy, rows: int) -> Iterator[DirectPath]:
    """Note the pass of the model in this `with`, on a batch of `rows` rows."""
    anatomy.check_readable()
    if bare := next((site for site in anatomy.sites if site.weight), None):
        raise UnknownAnatomy(f"the heads of {bare.label} are multiplied with a bare parameter: their path is not known")
    noted = DirectPath(rows)
    projections = {part for site in anatomy.sites for part in each_module(site.projection)}
    blocks = {module for stack in anatomy.stacks for block in stack.blocks for module in each_module(block)}
    inside = blocks.union(*(each_module(part) for stack in anatomy.stacks for part in (stack.module, stack.last)))

    def note(module: nn.Module, args: Any, output: Any) -> None:
        noted.outputs.setdefault(module, []).append(output)

    def note_scale(norm: nn.Module, args: Any, output: Tensor) -> None:
        noted.scales.setdefault(norm, []).append(_scale(norm, args, output))

    with ExitStack() as undo:
        undo.enter_context(uncompiled())
        for module in blocks - projections:
            if _has_matrix(module):
                undo.callback(module.register_forward_hook(note).remove)
        for norm in filter(_is_norm, inside - projections):
            undo.callback(norm.register_forward_hook(note_scale).remove)
        yield noted
