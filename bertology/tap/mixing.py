"""What an attention block adds up at each token, with the residual stream and the norm (Kobayashi et al. 2021).

A block's output at token i is the sum, scaled by a norm where there is one, of what the heads bring from the other
tokens, of what they bring from token i itself, of the residual stream, and of biases. Which norm follows, and what the
residual stream is, no name tells: the sum of what the heads add and of the hidden state that the attention reads, or of
what its norm read, is looked for among the inputs of the layers that run next. What the heads add may be multiplied by
a number first (Granite), and an MLP beside the attention may add to the same sum (GPT-NeoX). Where the sum is found the
parts are added up and compared with it, at all tokens; where it is not found, the model is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..anatomy.dissect import input_width
from ..anatomy.sites import Site
from ..errors import UnknownAnatomy
from .arriving import Arriving, output_weights
from .plain_attention import repeated

# Allowed differences, in steps of the type's precision: of a sum that the model formed of the same two tensors, and of
# one that is added up again from its parts.
_SAME, _STEPS, _STEPS_OF_HALVES = 4, 500, 32


@dataclass(frozen=True, eq=False)
class Scaled:
    """A norm in one call: v (less its mean, if `centred`), times `weight` [hidden] and `factor` [batch, token, 1]."""

    centred: bool
    added: Tensor
    weight: Tensor
    factor: Tensor

    def of(self, x: Tensor) -> Tensor:
        """[..., hidden]: the linear part, without what the norm adds."""
        return self.without_factor(x) * self.factor

    def without_factor(self, x: Tensor) -> Tensor:
        """[..., hidden]: the part that is the same at all tokens."""
        return (x - x.mean(-1, keepdim=True) if self.centred else x) * self.weight


@dataclass(frozen=True, eq=False)
class Mixed:
    """What is added up at the queries of one attention block: tensors [batch, query, hidden].

    `context` is what the heads bring from other tokens, `own` from the query's own (0 in cross attention), `residual`
    the residual stream, `bias` the bias of the output projection, [hidden]. `inner` is a norm of what the heads add
    alone, `norm` one of the whole sum. `factor` is the number that the model multiplies with what the heads add.
    """

    context: Tensor
    own: Tensor
    residual: Tensor
    bias: Tensor
    inner: Scaled | None
    norm: Scaled | None
    maps: Tensor | None = None
    """[batch, head, query, key]: the attention weights, if they were asked for."""
    written: Tensor | None = None
    """[batch, head, key, hidden]: f(x) of each head and key, with them."""
    factor: float = 1.0
    beside: Tensor | None = None
    """[batch, query, hidden]: what an MLP beside the attention adds to the same sum, which is no part of the others."""

    def added(self, x: Tensor) -> Tensor:
        """[..., hidden]: a part of what the heads add, as it is in the sum with the residual stream."""
        return (x if self.inner is None else self.inner.of(x)) * self.factor

    def of_heads(self, x: Tensor) -> Tensor:
        """[..., hidden]: a part of what the heads add, as it is in the block's output."""
        return self.of_stream(self.added(x))

    def of_stream(self, x: Tensor) -> Tensor:
        """[..., hidden]: a part of the residual stream, as it is in the block's output."""
        return x if self.norm is None else self.norm.of(x)

    def whole(self) -> Tensor:
        """[batch, query, hidden]: the sum of all parts: the block's output, less what an MLP adds beside it."""
        stream = self.residual + (0 if self.inner is None else self.inner.added * self.factor)
        found = self.of_heads(self.context + self.own + self.bias) + self.of_stream(stream)
        return found if self.norm is None else found + self.norm.added

    def norms(self) -> Tensor:
        """[batch, query, key], float64: the norms of what the block's output has from each token, all heads together.

        From the scalar products of the heads' f(x) at each key: no vector for each query and key is formed.
        """
        assert self.maps is not None
        assert self.written is not None
        written, maps = self.written.double(), self.maps.double()
        factor = torch.full_like(maps[:, 0, :, :1], abs(self.factor))
        for norm in (self.inner, self.norm):
            if norm is not None:
                written, factor = norm.without_factor(written), factor * norm.factor.abs()
        products = torch.einsum("bhkd,bgkd->bkhg", written, written)
        squares = torch.einsum("bhqk,bkhg,bgqk->bqk", maps, products, maps)
        found = squares.clamp_min(0).sqrt() * factor
        own = torch.linalg.vector_norm(self.of_heads(self.own) + self.of_stream(self.residual), dim=-1)
        return found.diagonal_scatter(own.double(), dim1=1, dim2=2)


class Parting(Arriving):
    """Parts what the heads pass on into what comes from a query's own token, and from the others."""

    def __init__(self, keep_maps: bool) -> None:
        super().__init__()
        self._keep = keep_maps
        self._parts: dict[Site, list[tuple[Tensor, Tensor]]] = {}
        self._maps: dict[Site, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def weighed(self, site: Site, weights: Tensor, value: Tensor | None, rows: slice) -> Tensor:
        """The weights as they came; their products with the values are noted."""
        wide = torch.promote_types(weights.dtype, torch.float32)
        value = repeated(self._values(site, weights, value), weights.shape[1]).to(wide)
        rest, own = weights.to(wide), torch.zeros_like(value[:, :, :1])
        if not site.crosses:
            some = torch.arange(weights.shape[2], device=weights.device)
            at = some + rows.start
            if rows.start + len(some) > weights.shape[3]:
                raise UnknownAnatomy(_other_tokens(site))
            own = rest[:, :, some, at][..., None] * value[:, :, at]
            rest = rest.clone()
            rest[:, :, some, at] = 0
        context = rest @ value
        self._parts.setdefault(site, []).append((context, own.expand_as(context)))
        if self._keep:
            self._maps[site] = weights.detach(), value
        return weights

    def parts(self, site: Site, of: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Context and own, [batch, query, hidden], and, if they are kept, the map and what is written of each key."""
        blocks = self._parts.pop(site, None)
        if blocks is None:
            raise UnknownAnatomy(f"the attention of {site.label} ran without a map: what it adds up is not known")
        rows = output_weights(site).to(blocks[0][0])
        both = [torch.einsum("bhqd,hdm->bqm", torch.cat(some, 2), rows) for some in zip(*blocks, strict=True)]
        weights, value = self._maps.pop(site, (None, None))
        keys = (value if value is not None else blocks[0][0]).shape[2]
        if both[0].shape != of.shape or (value is not None and not site.crosses and keys != of.shape[1]):
            raise UnknownAnatomy(_other_tokens(site))
        written = None if value is None else torch.einsum("bhkd,hdm->bhkm", value, rows)
        return both[0], both[1], weights, written


def _other_tokens(site: Site) -> str:
    return (
        f"the queries of {site.label} attend to other tokens than their own (pooled, in windows, or in a cache): "
        "what comes from a token itself is not known"
    )


@dataclass(eq=False)
class Sum:
    """The sum of what the heads of a site add and of the residual stream, while it is looked for."""

    site: Site
    added: Tensor
    read: Tensor | None
    """What the attention reads: the residual stream itself, or a norm of it. None if it reads a projection of these."""
    before: list[Tensor]
    """What norms read that gave it."""
    parts: Callable[[], tuple[Tensor, Tensor, Tensor | None, Tensor | None]]
    """What the heads add, in parts: known when the attention has ended."""
    inner: tuple[nn.Module, Tensor, Tensor] | None = None
    norm: tuple[nn.Module, Tensor, Tensor] | None = None
    later: list[Tensor] = field(default_factory=list)
    """What layers returned since a norm read the sum."""
    beside: list[Tensor] = field(default_factory=list)
    """What MLPs returned since the attention: they may add to the same sum."""

    def looks_at(self, module: nn.Module, x: Tensor, y: Tensor | None) -> Mixed | None:
        """Look at what a layer reads, and, if it is a norm, returns; the parts once they are known."""
        if x.shape != self.added.shape and x.shape == self.added.flatten(0, -2).shape:
            x, y = x.view_as(self.added), None if y is None else y.view_as(self.added)  # tokens in one row (OPT)
        if x.shape != self.added.shape:
            return None
        if self.norm is not None:
            return self._confirmed(x)
        if y is not None and x is self.added and self.inner is None:
            self.inner = module, x, y
            return None
        added = self.added if self.inner is None else self.inner[2]
        for stream in self.before:
            for beside in (None, *self.beside):
                factor = factor_of(x, stream, added, beside)
                if factor is not None:
                    return self._mixed(stream, x, factor, beside)
        if self.read is not None and is_sum(x, added, self.read):
            if y is None:
                return self._mixed(self.read, x)
            self.norm = module, x, y
        return None

    def _confirmed(self, x: Tensor) -> Mixed | None:
        """Whether the residual stream goes on as what the norm returned (post-norm), or as what it read."""
        assert self.norm is not None
        assert self.read is not None
        _, read, returned = self.norm
        for later in self.later:
            if later.shape != x.shape:
                continue
            if is_sum(x, returned, later):
                return self._mixed(self.read, returned)
            if is_sum(x, read, later):
                self.norm = None
                return self._mixed(self.read, read)
        return None

    def _mixed(self, stream: Tensor, output: Tensor, factor: float = 1.0, beside: Tensor | None = None) -> Mixed:
        context, own, maps, written = self.parts()
        like = torch.promote_types(stream.dtype, torch.float32)
        nothing = self.added.new_zeros(1, 1, input_width(self.site.projection))
        bias = self.site.projection.forward(nothing)[0, 0].to(like)
        inner, norm = (None if one is None else scaled(*one) for one in (self.inner, self.norm))
        found = Mixed(context, own, stream.to(like), bias, inner, norm, maps, written, factor, beside)
        check_whole(self.site, found, output)
        return found


def is_sum(x: Tensor, *terms: Tensor) -> bool:
    """Whether a tensor is the sum of others, element by element, up to the rounding of their type."""
    if any(x.shape != term.shape for term in terms):
        return False
    first = (slice(1),) * (x.dim() - 1)  # most tensors that are no sum are none at the first token
    return _add_up(x[first], *(term[first] for term in terms)) and _add_up(x, *terms)


def _add_up(x: Tensor, *terms: Tensor) -> bool:
    eps = max(torch.finfo(t.dtype).eps for t in (x, *terms))
    wide = torch.promote_types(x.dtype, torch.float32)
    rest, largest = x.to(wide), torch.zeros_like(x, dtype=wide)
    for term in terms:
        rest, largest = rest - term.to(wide), torch.maximum(largest, term.to(wide).abs())
    return bool((rest.abs() <= _SAME * eps * largest).all())


def factor_of(x: Tensor, stream: Tensor, added: Tensor, beside: Tensor | None) -> float | None:
    """The number f for which x is the residual stream, f times what the heads add, and what an MLP adds beside.

    None if there is none. A part that is lost in the rounding of the others is no part of the sum.
    """
    others = (stream,) if beside is None else (stream, beside)
    if is_sum(x, added, *others):
        return 1.0
    if any(x.shape != one.shape for one in others) or is_sum(x, *others):
        return None
    part, rest = added.double(), x.double()
    for one in others:
        rest = rest - one.double()
    squares = float(part.square().sum())
    factor = float((rest * part).sum()) / squares if squares else 0.0
    return factor if is_sum(x, (factor * part).to(added.dtype), *others) else None


def alternating(x: Tensor) -> Tensor:
    """[hidden]: ones and minus ones with a mean of 0, as wide as x: what a norm makes of them shows its weight."""
    unit = torch.tensor([1.0, -1.0], dtype=x.dtype, device=x.device).repeat(x.shape[-1] // 2 + 1)[: x.shape[-1]]
    if x.shape[-1] % 2:
        unit[-3:] = torch.tensor([1.0, 1.0, -2.0])
    return unit


def tried(norm: nn.Module, unit: Tensor) -> tuple[bool, Tensor, Tensor]:
    """Whether a norm takes the mean away, what it adds, and its weight, by what it makes of `alternating` numbers.

    Raises `UnknownAnatomy` for a norm of more than one input.
    """
    wide = torch.promote_types(unit.dtype, torch.float32)
    try:
        added, of_unit, shifted = (norm.forward(u).to(wide) for u in (unit * 0, unit, unit + 3))
    except (TypeError, AttributeError) as error:
        raise UnknownAnatomy(
            f"a {type(norm).__name__} cannot run on its first input alone: what it does to it is not known"
        ) from error
    centred = bool(torch.allclose(shifted, of_unit, rtol=0.05, atol=1e-3))
    return centred, added, (of_unit - added) / unit.to(wide)


def fitted(below: Tensor, above: Tensor) -> Tensor:
    """[..., 1]: the number for each token with which `below` [..., hidden] comes nearest to `above`; 0 for zeros."""
    squares = below.square().sum(-1, keepdim=True)
    return torch.where(squares > 0, (above * below).sum(-1, keepdim=True) / squares, torch.zeros_like(squares))


def scaled(module: nn.Module, x: Tensor, y: Tensor) -> Scaled:
    """The linear function that a norm was in one call. Raises `UnknownAnatomy` if it was none."""
    centred, added, weight = tried(module, alternating(x)[None, None])
    known = Scaled(centred, added[0, 0], weight[0, 0], torch.ones_like(x[..., :1], dtype=weight.dtype))
    factor = fitted(known.without_factor(x.to(weight)), y.to(weight) - known.added)
    return replace(known, factor=factor)


def check_whole(site: Site, mixed: Mixed, output: Tensor) -> None:
    """Compare the sum of the parts with the block's output, or raise `UnknownAnatomy`."""
    steps = _STEPS if output.dtype in (torch.float32, torch.float64) else _STEPS_OF_HALVES
    eps = max(torch.finfo(output.dtype).eps, torch.finfo(torch.float32).eps)  # many norms compute in float32
    found = mixed.whole() if mixed.beside is None else mixed.whole() + mixed.beside
    allowed = steps * eps * max(1.0, float(found.abs().nan_to_num().max()))
    if not bool(((found - output).abs() <= allowed).all()):
        raise UnknownAnatomy(
            f"what is added up after the attention of {site.label} ({type(site.attention).__name__}) is not the sum of "
            "the values that its heads attend to, the residual stream and biases: its parts are not known"
        )
