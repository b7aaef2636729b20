"""How are heads cut out for good?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .anatomy import COUNT_NAMES, GROUPS_NAME, PRUNED_NAME, TOTAL_NAMES, UNPRUNED_NAME, dissect
from .batches import config_of
from .errors import PruningError
from .head import Head, Heads, head_at
from .result import Result
from .site import Anatomy, Site


@dataclass(frozen=True, eq=False, repr=False)
class Pruned(Result):
    """What `prune_heads` removed."""

    heads: tuple[Head, ...]
    """The heads that went, in the order of layers and heads."""
    parameters_before: int
    """How many parameters the model had."""
    parameters_after: int
    """How many it has left."""
    labels: tuple[str, ...]
    """[layer]: `0`, `1` ..."""

    def __post_init__(self) -> None:
        # A saved result holds its heads as JSON.
        heads = tuple(Head(**head) if isinstance(head, dict) else head for head in self.heads)
        object.__setattr__(self, "heads", heads)

    def __str__(self) -> str:
        share = 1 - self.parameters_after / self.parameters_before
        return (
            f"{len(self.heads)} heads pruned, {self.parameters_before:,} parameters before, "
            f"{self.parameters_after:,} after ({share:.1%} fewer)"
        )


@dataclass(frozen=True)
class _Cut:
    """What stays of one attention module: positions among the heads that are there, and the keys that they need."""

    site: Site
    gone: frozenset[int]
    queries: list[int]
    keys: list[int]
    groups: int
    blank: bool


def prune_heads(model: nn.Module, heads: Heads) -> Pruned:
    """Remove heads from the model, in place: their query, key and value rows, their output projection columns.

    The model then computes what it computed with these heads gated to 0. The heads that stay keep their numbers.
    A layer that loses all its heads keeps one head of zeros, so that caches and kernels go on working.

    Args:
        model: BERT, RoBERTa, ELECTRA, ALBERT, DistilBERT, GPT, GPT-2, Llama and models built like them.
        heads: `{layer: [heads]}`, `(layer, head)` pairs or `Head`s. In ALBERT, whose layers share their heads, a head
            must be named in every layer that runs it. With grouped keys (Llama), whole groups go, or equally many
            heads of every group.

    Raises `HeadError` for heads that are out of range or were pruned before, `PruningError` where heads cannot be cut
    out; the model is then left as it was.

        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> pruned = prune_heads(model, {0: [1, 2], 1: [3]})
        >>> pruned.parameters_before - pruned.parameters_after
        3144
    """
    anatomy = dissect(model)
    places = anatomy.resolve(heads)
    cuts = _plan(anatomy, places)
    before = _count(model)
    for cut in cuts:
        _apply(cut)
    if places:
        _write_down(model, places)
    names = tuple(head_at(anatomy.labels, row, head) for row, head in places)
    return Pruned(names, before, _count(model), anatomy.labels)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _plan(anatomy: Anatomy, places: list[tuple[int, int]]) -> list[_Cut]:
    """Check everything before anything is changed."""
    if config_of(anatomy.model) is None:
        raise PruningError("the model has no config in which to write down what was pruned: pass a transformers model")
    if len(anatomy.stacks) > 1 or any(site.stack == "cross" for site in anatomy.sites):
        raise PruningError("heads of models with several stacks cannot be cut out yet: silence them with gated()")
    gone: dict[int, set[int]] = {}
    for row, head in places:
        gone.setdefault(row, set()).add(head)
    cuts: dict[nn.Module, _Cut] = {}
    for row, site in enumerate(anatomy.sites):
        mine = frozenset(gone.get(row, set()))
        if site.attention in cuts:
            if cuts[site.attention].gone != mine:
                shared = [s.layer for s in anatomy.sites if s.attention is site.attention]
                raise PruningError(
                    f"layers {shared} share their heads: prune the same heads in all of them "
                    f"(layer {shared[0]}: {sorted(cuts[site.attention].gone)}, layer {site.layer}: {sorted(mine)})"
                )
        else:
            cuts[site.attention] = _plan_site(site, mine)
    return [cut for cut in cuts.values() if cut.gone]


def _plan_site(site: Site, gone: frozenset[int]) -> _Cut:
    stay = [place for place, head in enumerate(site.kept) if head not in gone]
    blank = not stay
    stay = stay or [0]
    if not gone:
        return _Cut(site, gone, stay, stay, 1, False)
    _check_parts(site)
    key_heads = _width(site.key) // _parts(site, site.key) // site.dim
    size = len(site.kept) // key_heads
    left = {group: [place for place in stay if place // size == group] for group in range(key_heads)}
    used = {group: places for group, places in left.items() if places}
    counts = {len(places) for places in used.values()}
    if len(counts) > 1:
        told = "; ".join(str([site.kept[group * size + i] for i in range(size)]) for group in range(key_heads))
        raise PruningError(
            f"heads of {site.label} share keys in groups ({told}): prune whole groups, or equally many heads of each; "
            f"asked for {sorted(gone)}"
        )
    return _Cut(site, gone, stay, sorted(used), counts.pop(), blank)


def _parts(site: Site, module: nn.Module) -> int:
    """How many of query, key and value this projection holds, one behind the other."""
    return [site.query, site.key, site.value].count(module)


def _check_parts(site: Site) -> None:
    if not site.prunable:
        raise PruningError(
            f"heads of {site.label} cannot be cut out: they share a position bias; silence them with gated()"
        )
    projections = (site.query, site.key, site.value, site.projection)
    for module in projections:
        weight = getattr(module, "weight", None)
        plain = isinstance(weight, Tensor) and weight.is_floating_point()
        if not isinstance(module, (nn.Linear, Conv1D)) or not plain:
            raise PruningError(
                f"{site.path}: only Linear and Conv1D layers with plain weights can be cut, "
                f"got {type(module).__name__}; merge adapters and undo quantization first"
            )
    known = {id(parameter) for module in projections for parameter in module.parameters()}
    for name, parameter in site.attention.named_parameters():
        if id(parameter) not in known and parameter.numel() != site.dim and not name.startswith("LayerNorm"):
            raise PruningError(f"the attention of {site.label} has parameters {name!r} that pruning does not know")


def _width(module: nn.Module) -> int:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.shape[1 if isinstance(module, Conv1D) else 0]


def _apply(cut: _Cut) -> None:
    site = cut.site
    # A fused projection stands for several of the three, and is cut once.
    stays = {site.query: cut.queries, site.key: cut.keys, site.value: cut.keys}
    for module, stay in stays.items():
        parts, numbers = _parts(site, module), _numbers(stay, site.dim)
        one = _width(module) // parts
        _keep(module, [part * one + number for part in range(parts) for number in numbers], outputs=True)
        if cut.blank:
            _blank(module.weight, module.bias)
    _keep(site.projection, _numbers(cut.queries, site.dim), outputs=False)
    if cut.blank:
        _blank(site.projection.weight)
    _bookkeeping(cut)


def _numbers(heads: list[int], dim: int) -> list[int]:
    return [head * dim + i for head in heads for i in range(dim)]


def _keep(module: nn.Module, numbers: list[int], *, outputs: bool) -> None:
    """Keep only some outputs, or some inputs, of a Linear or Conv1D."""
    axis = (1 if outputs else 0) if isinstance(module, Conv1D) else (0 if outputs else 1)
    names = ("weight", "bias") if outputs else ("weight",)
    for name in names:
        old = getattr(module, name)
        if old is not None:
            index = torch.tensor(numbers, dtype=torch.long, device=old.device)
            new = old.detach().index_select(axis if name == "weight" else 0, index).contiguous()
            setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
    for name in ("out_features", "nf") if outputs else ("in_features", "nx"):
        if hasattr(module, name):
            setattr(module, name, len(numbers))


@torch.no_grad()
def _blank(*parameters: Any) -> None:
    for parameter in parameters:
        if parameter is not None:
            parameter.zero_()


def _bookkeeping(cut: _Cut) -> None:
    """Tell the attention module how many heads it has now, and write down which ones went."""
    site, heads = cut.site, len(cut.queries)
    attention, total = site.attention, len(site.kept) * site.dim
    for name in COUNT_NAMES:
        if hasattr(attention, name):
            setattr(attention, name, heads)
    for name in TOTAL_NAMES:
        if getattr(attention, name, None) == total:
            setattr(attention, name, heads * site.dim)
    if hasattr(attention, GROUPS_NAME):
        setattr(attention, GROUPS_NAME, cut.groups)
    setattr(site.record, UNPRUNED_NAME, site.width)
    setattr(site.record, PRUNED_NAME, set(range(site.width)) - (set(site.kept) - cut.gone))


def _write_down(model: nn.Module, places: list[tuple[int, int]]) -> None:
    config = config_of(model)
    pruned = {int(layer): set(heads) for layer, heads in (getattr(config, PRUNED_NAME, None) or {}).items()}
    for row, head in places:
        pruned.setdefault(row, set()).add(head)
    setattr(config, PRUNED_NAME, {layer: sorted(heads) for layer, heads in sorted(pruned.items())})
