"""Attention in which pairs of query and key are masked, in some heads or in all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy.dissect import dissect
from ..anatomy.forward_source import eager_function
from ..anatomy.oddities import oddities_of
from ..anatomy.sites import Anatomy, Site
from ..data.batches import key_mask, shows_padding, token_ids
from ..errors import HeadError, ShapeError, UnknownAnatomy, checked, described
from . import tap
from .attention_implementation import MAP_AXES, attend_eagerly
from .calls import Calls, attention_modules
from .edits import noted
from .function_mode import Pass
from .interface_route import in_one_piece
from .own_function import own_entry
from .softmax_route import SOFTMAX, WatchingSoftmax, four_axes, is_banded
from .torch_attention import open_torch_attention

Cut = Tensor | Callable[[Tensor, Tensor, Any], Tensor]
"""Where a query may not look: bool, [query, key] or [batch, query, key], True for what is cut; or a function of the
positions of queries [query, 1] and of keys [1, key], and of the keys' token ids [batch, key], that returns it."""
ALL = "all"
SMALL = -5000.0
"""Below it a score may be that of a key which the model itself masks by a small number: by -10000 (GPT, CTRL)."""
LEAST = -1e8
"""No score of a key that is seen is below it; some models mask by such numbers, and not by the lowest (XLNet)."""


@contextmanager
@checked
def masked_attention(model: nn.Module, cuts: Mapping[Any, Any]) -> Iterator[None]:
    """Mask the attention of heads from some tokens to others while the `with` lasts.

    The cut keys are masked before the softmax, as padding is: the rest of the query's attention is spread over the keys
    that are left. A query with no key left gets nothing from the head. Attention is computed by the model's eager
    function meanwhile.

    Args:
        model: any model with attention heads whose softmax can be seen.
        cuts: {what: where}. What: a head, "L5H3" or (5, 3); the number of a layer, a row of results, for all its heads;
            or "all". Where: a bool tensor, True for pairs that are cut, [query, key] or [batch, query, key]; or a
            function (query, key, tokens) that returns it, from the positions of queries [query, 1] and keys [1, key],
            and the token ids of the keys, [batch, key]: `lambda query, key, tokens: key == query - 1`. Positions are
            those in the batch, with padding. What is cut for a head, its layer and for all is cut together.

    Raises `HeadError` for heads or layers that are not there, `ShapeError` for masks of another shape or type, and
    `UnknownAnatomy` while the model runs where an attention shows no softmax over its keys (bands, hashes).

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> from bertology import attention_maps
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)).eval()
        >>> inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
        >>> with masked_attention(model, {"L0H1": lambda query, key, tokens: tokens[:, None] == 6}):
        ...     model(**inputs).last_hidden_state.shape
        torch.Size([1, 3, 32])
    """
    anatomy = dissect(model)
    found = checked_cuts(anatomy, cuts)
    # Masks of each example belong to a batch, and differ from pass to pass.
    one_batch = {what for what, where in cuts.items() if isinstance(where, Tensor) and where.dim() == 3}
    told = [(str(what), "of each example" if what in one_batch else where) for what, where in cuts.items()]
    with noted(anatomy, ("cuts", told)), cutting(anatomy, found):
        yield


def checked_cuts(anatomy: Anatomy, cuts: Mapping[Any, Any]) -> dict[Site, list[tuple[list[int], Cut]]]:
    """{site: [(places of heads, where)]}, checked."""
    found: dict[Site, list[tuple[list[int], Cut]]] = {}
    for what, where in cuts.items():
        pairs = isinstance(where, Tensor) and where.dtype == torch.bool and where.dim() in (2, 3)
        if not (pairs or callable(where)):
            raise ShapeError(
                "a cut is a bool tensor [query, key] or [batch, query, key], True for what is cut, or a function of "
                f"(query, key, tokens); got {described(where)}"
            )
        for site, places in _named(anatomy, what):
            found.setdefault(site, []).append((places, where))
    return found


def _named(anatomy: Anatomy, what: Any) -> list[tuple[Site, list[int]]]:
    """The sites, and the places of heads among those that are there, that a key of `cuts` names."""
    if isinstance(what, str) and what == ALL:
        return [(site, list(range(len(site.kept)))) for site in anatomy.sites if site.kept]
    if isinstance(what, int) and not isinstance(what, bool):
        if not 0 <= what < anatomy.layers:
            raise HeadError(
                f"layer {what} is out of range: this model's attention layers are 0 to {anatomy.layers - 1}"
            )
        return [(anatomy.sites[what], list(range(len(anatomy.sites[what].kept))))]
    ((row, head),) = anatomy.resolve([what])
    return [(anatomy.sites[row], [anatomy.sites[row].kept.index(head)])]


@contextmanager
def cutting(anatomy: Anatomy, cuts: dict[Site, list[tuple[list[int], Cut]]]) -> Iterator[None]:
    """`masked_attention`, for cuts that were checked before."""
    sites = [site for site in anatomy.sites if site.kept]
    modules = attention_modules(anatomy)
    calls = Calls([(modules[site], site) for site in sites], may_rest=[modules[site] for site in sites], once=False)
    for site in cuts:
        if eager_function(site.attention) is not None and own_entry(site.attention) is not None:
            raise UnknownAnatomy(
                f"{site.label} attends by a function of your own, whose scores are not seen: cut its edges there, or "
                "choose another with model.set_attn_implementation(...)"
            )
    batch: dict[str, Any] = {}
    mode = _Cutting(calls, anatomy, cuts, batch)
    with ExitStack() as undo:
        undo.enter_context(tap(anatomy, "inputs", read=batch.update))
        on_interface = [module for module in calls.modules if eager_function(module) is not None]
        if on_interface:  # fused kernels show no scores
            attend_eagerly(anatomy, on_interface, undo)
            in_one_piece(on_interface, undo)
        calls.watch(anatomy, undo)
        open_torch_attention(calls.modules, undo)
        mode.watch(calls.modules, undo)
        yield


class _Cutting(WatchingSoftmax):
    """Masks the scores of every softmax over keys in an attention module that is running."""

    def __init__(
        self, calls: Calls[Site], anatomy: Anatomy, cuts: dict[Site, list[tuple[list[int], Cut]]], batch: dict[str, Any]
    ) -> None:
        super().__init__(calls.next)
        self.anatomy, self.cuts, self.batch = anatomy, cuts, batch

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        now, kwargs = self.now, kwargs or {}
        if now is None:
            return func(*args, **kwargs)
        if func in SOFTMAX:
            scores = args[0] if args else kwargs.pop("input")
            return self._softmax(now, func, scores, args[1:], kwargs)
        if func is F.scaled_dot_product_attention and now.site in self.cuts:
            return self._fused(now, *args, **kwargs)
        return func(*args, **kwargs)

    def _softmax(
        self, now: Pass, func: Callable[..., Any], scores: Tensor, more: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The softmax of scores, those that are cut left out."""
        narrow = kwargs.get("dtype") or next((x for x in more if isinstance(x, torch.dtype)), scores.dtype)
        lowest = max(torch.finfo(kind).min for kind in (scores.dtype, narrow))
        if narrow != scores.dtype:
            # It would make -inf of what the model masks, and NaN of queries that see padding only.
            scores = torch.where(scores.isinf(), scores, scores.clamp_min(lowest))
        laid = None
        if now.site in self.cuts:
            if is_banded(now.site.attention) or scores.dim() > len(MAP_AXES):
                raise self._unseen(now.site)  # keys by windows, or by several streams of queries (ProphetNet)
            laid = four_axes(scores, kwargs.get("dim", more[0] if more else None), len(now.site.kept))
        if laid is None:
            return func(scores, *more, **kwargs)
        now.seen.append(laid)
        cut = self._cut(now.site, laid)
        weights = func(laid.masked_fill(cut, lowest).reshape(scores.shape), *more, **kwargs)
        # A query with no key left looks at nothing, and not at padding either.
        nothing = cut.any(-1, keepdim=True) & (cut | self._hidden(now.site, laid, narrow)).all(-1, keepdim=True)
        return weights.masked_fill((cut | nothing).expand(laid.shape).reshape(scores.shape), 0)

    def _fused(
        self, now: Pass, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        """Scaled dot product attention with these pairs masked, and queries that have no key left set to 0."""
        shape = (*query.shape[:-1], key.shape[-2])
        if query.dim() != 4 or query.shape[1] != len(now.site.kept):
            raise self._unseen(now.site)
        now.seen.append(query)
        cut = self._cut(now.site, query.new_zeros(1).expand(shape))
        seen = torch.ones(shape[-2:], dtype=torch.bool, device=query.device)
        seen = (seen.tril() if is_causal else seen) & ~cut
        if attn_mask is not None:
            hidden = ~attn_mask if attn_mask.dtype == torch.bool else self._hidden(now.site, attn_mask.expand(shape))
            seen = seen & ~hidden
        lowest = torch.finfo(query.dtype).min
        added = torch.zeros(shape, dtype=query.dtype, device=query.device)
        if attn_mask is not None and attn_mask.dtype != torch.bool:
            added = added + attn_mask
        found = F.scaled_dot_product_attention(
            query, key, value, added.masked_fill(~seen, lowest), dropout_p, scale=scale, enable_gqa=enable_gqa
        )
        return found.masked_fill(~seen.any(-1)[..., None], 0)

    def _cut(self, site: Site, scores: Tensor) -> Tensor:
        """[batch or 1, head, query, key], bool: what is cut, among all columns of these scores."""
        batch, heads, queries, keys = scores.shape
        whole = torch.zeros(batch, heads, queries, keys, dtype=torch.bool, device=scores.device)
        tokens = self._tokens(site, scores)
        width = keys if tokens is None else tokens.shape[1]  # a sink is one more column
        for places, where in self.cuts[site]:
            if isinstance(where, Tensor):
                found = where
            else:
                place = partial(torch.arange, device=scores.device)
                found = where(place(queries)[:, None], place(width)[None], tokens)
            whole[:, places, :, :width] |= self._fitting(found, (batch, queries, width)).to(whole.device)[:, None]
        return whole

    def _hidden(self, site: Site, scores: Tensor, *kinds: torch.dtype) -> Tensor:
        """[batch, head, query, key], bool: what the model itself masks, by about the lowest number or by a small one.

        Large weights give true scores as low as small numbers: these mask only keys that are later than a decoder's
        query, or padding.
        """
        own = (x.dtype for x in site.projection.parameters() if x.is_floating_point())
        hidden = scores < max(LEAST, *(torch.finfo(kind).min / 2 for kind in (scores.dtype, *kinds, *own)))
        small = scores < SMALL
        if not bool((small & ~hidden).any()):
            return hidden
        queries, keys = scores.shape[2:]
        stack = "encoder" if site.crosses else site.stack
        if not (self.batch and shows_padding(self.anatomy.model, self.batch, stack)):
            return small  # a mask of another shape may mask any key
        real = key_mask(self.anatomy.model, self.batch, stack).to(scores.device)
        width = real.shape[1]
        if len(real) != len(scores) or keys - width not in (0, 1):
            return small  # keys are no tokens (Funnel pools them)
        maybe = F.pad(~real, (0, keys - width))[:, None, None].expand(small.shape)
        if stack != "encoder":
            maybe = maybe | torch.ones(queries, keys, dtype=torch.bool, device=scores.device).triu(width - queries + 1)
        return hidden | (small & maybe)

    def _tokens(self, site: Site, scores: Tensor) -> Tensor | None:
        """[batch, key]: the token ids of the keys, if the batch has them."""
        stack = "encoder" if site.crosses else site.stack
        ids = token_ids(self.anatomy.model, self.batch, stack) if self.batch else None
        near = isinstance(ids, Tensor) and ids.dim() == 2 and scores.shape[3] - ids.shape[1] in (0, 1)
        return ids.to(scores.device) if near and isinstance(ids, Tensor) and len(ids) == len(scores) else None

    @staticmethod
    def _fitting(found: Any, wanted: tuple[int, int, int]) -> Tensor:
        """[batch, query, key], of a mask that broadcasts to it."""
        if not isinstance(found, Tensor) or found.dtype != torch.bool:
            raise ShapeError(f"a cut must be True or False for pairs of tokens, a bool tensor; got {described(found)}")
        try:
            return found.expand(wanted)
        except RuntimeError as error:
            raise ShapeError(f"a cut must be [batch, query, key] = {list(wanted)}, got {list(found.shape)}") from error

    def end(self, ended: Pass, args: Any, kwargs: Any) -> None:
        # Of several softmaxes, it is not known which edges their columns are (BigBird's blocks, Pegasus-X's windows).
        if ended.site in self.cuts and len(ended.seen) != oddities_of(ended.site.attention).softmaxes:
            raise self._unseen(ended.site)

    @staticmethod
    def _unseen(site: Site) -> UnknownAnatomy:
        kind, odd = type(site.attention).__name__, oddities_of(site.attention)
        wanted = "no softmax" if odd.softmaxes == 1 else f"no {odd.softmaxes} softmaxes"
        why = odd.unmapped or f"shows {wanted} over [{', '.join(MAP_AXES)}] alone"
        return UnknownAnatomy(f"the attention of {site.label} ({kind}) {why}: none of its edges can be cut")
