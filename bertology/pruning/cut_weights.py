"""Cutting the weights of heads out of an attention module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..anatomy.forward_source import asks_config
from ..anatomy.names import (
    BIAS_TABLE_NAMES,
    COUNT_NAMES,
    EPSILON_NAMES,
    GROUPS_NAME,
    KEY_COUNT_NAMES,
    PLAIN_UNLESS,
    PRUNED_NAME,
    TOTAL_NAMES,
    UNPRUNED_NAME,
)
from ..anatomy.sites import Site
from ..errors import PruningError, how_many
from ..tap import narrow_biases, takes_bias
from .parts_of_heads import (
    OfAllHeads,
    check_parts,
    count_key_heads,
    even_groups,
    indices_of,
    inner_layer,
    kept_outputs,
    listed_parameters,
    maps_per_head,
    output_size,
    own_config,
    shared_out,
    shares_of,
    whole_norms,
)

Tied = dict[tuple[int, tuple[int, ...]], tuple[nn.Parameter, nn.Parameter]]
"""The new parameter for each old one: layers that share a parameter (Zamba) share the cut one."""


@dataclass(frozen=True)
class Cut:
    """What remains of one attention module: places among the heads that are there, and the keys that they need."""

    site: Site
    gone: frozenset[int]
    queries: list[int]
    keys: list[int]
    blank: bool

    @property
    def groups(self) -> int:
        """How many query heads share a key afterwards."""
        return len(self.queries) // len(self.keys)


def plan_cut(site: Site, gone: frozenset[int]) -> Cut:
    """Check that these heads of a site can be cut out, and return what remains, or raise `PruningError`."""
    stay = [place for place, head in enumerate(site.kept) if head not in gone]
    blank = not stay
    stay = stay or [0]
    if not gone:
        return Cut(site, gone, stay, stay, False)
    check_parts(site)
    key_heads = count_key_heads(site)
    size = len(site.kept) // key_heads
    left = {group: [place for place in stay if place // size == group] for group in range(key_heads)}
    used = {group: places for group, places in left.items() if places}
    if len({len(places) for places in used.values()}) > 1:
        told = "; ".join(str([site.kept[group * size + i] for i in range(size)]) for group in range(key_heads))
        raise PruningError(
            f"heads of {site.label} share keys in groups ({told}): prune whole groups, or equally many heads of each; "
            f"asked for {sorted(gone)}"
        )
    _check_evenness(site, stay, gone)
    shares = shares_of(site)
    if (shares.keys or shares.all_keys) and len(used) < key_heads:
        raise PruningError(
            f"heads of {site.label} share keys that must all stay in {type(site.attention).__name__}: leave a head of "
            f"each group of {size}; asked for {sorted(gone)}"
        )
    return Cut(site, gone, stay, sorted(used), blank)


def _check_evenness(site: Site, stay: list[int], gone: frozenset[int]) -> None:
    """Where heads are divided evenly among groups of some kind, the same number of each group must remain."""
    for groups in even_groups(site):
        size, left_over = divmod(len(site.kept), groups)
        if left_over or len({sum(place // size == group for place in stay) for group in range(groups)}) > 1:
            raise PruningError(
                f"the {how_many(len(site.kept), 'head')} of {site.label} are divided evenly among {groups} groups of "
                f"consecutive heads: prune equally many of each, or silence them with gated(); asked for {sorted(gone)}"
            )


def cut_heads(cut: Cut, tied: Tied) -> None:
    """Cut the heads out, and tell the attention module how many it has now."""
    site = cut.site
    heads, key_heads = len(site.kept), count_key_heads(site)
    whole = whole_norms(site)
    for name, module in whole.items():
        stay = cut.queries if module is site.query else cut.keys
        norm = getattr(site.attention, name)
        norm = norm if isinstance(norm, OfAllHeads) else OfAllHeads(norm, output_size(inner_layer(module)))
        norm.keep(indices_of(stay, norm.left // (heads if module is site.query else key_heads)))
        setattr(site.attention, name, norm)
    _cut_listed(cut, tied)
    if not site.weight:
        _cut_projections(cut, whole, tied)
    for name, part in shared_out(site):
        if isinstance(part, nn.Module):
            inner = inner_layer(part)
            keep_units(inner, indices_of(cut.queries, output_size(inner) // heads), tied, outputs=True)
        else:
            _keep_parameter(site.attention, name, 0, indices_of(cut.queries, part.shape[0] // heads), tied)
    for table in (getattr(site.attention, name, None) for name in BIAS_TABLE_NAMES):
        if table is not None and not takes_bias(site.attention):  # UMT5 has one for each layer
            _keep_parameter(table, "weight", 1, cut.queries, tied)
            table.embedding_dim = len(cut.queries)
    if isinstance(site.place, nn.Module) and site.place is not site.projection:
        _keep_norm(site.place, indices_of(cut.queries, site.dim), tied)
    narrow_biases(site.attention, heads, cut.queries)
    _bookkeeping(cut, heads * site.dim)


def _cut_projections(cut: Cut, whole: dict[str, nn.Module], tied: Tied) -> None:
    site = cut.site
    for module in dict.fromkeys((site.query, site.key, site.value)):
        if module not in whole.values():
            inner = inner_layer(module)
            keep_units(inner, kept_outputs(site, module, cut.queries, cut.keys), tied, outputs=True)
            if cut.blank:
                blank(inner.weight, inner.bias)
    projection = inner_layer(site.projection)
    if "group" in site.layout.split():
        _keep_in_groups(cut, projection, tied)
    else:
        keep_units(projection, indices_of(cut.queries, site.dim), tied, outputs=False)
    if cut.blank:
        blank(projection.weight)


def _cut_listed(cut: Cut, tied: Tied) -> None:
    """Cut the parameters that have a share for each query head along some axis."""
    heads = len(cut.site.kept)
    for owner, name, axis in listed_parameters(cut.site):
        size = getattr(owner, name).shape[axis]
        stay = indices_of(cut.queries, size // heads)
        _keep_parameter(owner, name, axis, stay, tied)
        if cut.blank and cut.site.weight:
            blank(getattr(owner, name))
        if owner is cut.site.attention:
            continue
        # A depthwise convolution has a group for each of its channels.
        for count in ("out_features", "in_channels", "out_channels", "groups"):
            if hasattr(owner, count):
                setattr(owner, count, len(stay))
        if hasattr(owner, GROUPS_NAME):
            setattr(owner, GROUPS_NAME, cut.groups)


def _keep_in_groups(cut: Cut, projection: Any, tied: Tied) -> None:
    """Keep only some inputs of a projection that takes each group of heads by itself (DeepSeek V4)."""
    groups, old = projection.n_groups, projection.weight
    size = len(cut.site.kept) // groups
    key = (id(old), tuple(cut.queries))
    if key not in tied:
        parts = [
            part[:, indices_of([place % size for place in cut.queries if place // size == group], cut.site.dim)]
            for group, part in enumerate(old.detach().chunk(groups))
        ]
        tied[key] = (old, nn.Parameter(torch.cat(parts), requires_grad=old.requires_grad))
    projection.weight = tied[key][1]
    projection.in_features = projection.weight.shape[1]


def keep_units(module: Any, indices: list[int], tied: Tied, *, outputs: bool) -> None:
    """Keep only some outputs, or some inputs, of a Linear or Conv1D."""
    axis = (1 if outputs else 0) if isinstance(module, Conv1D) else (0 if outputs else 1)
    for name in ("weight", "bias") if outputs else ("weight",):
        if getattr(module, name) is not None:
            _keep_parameter(module, name, axis if name == "weight" else 0, indices, tied)
    if type(module).__name__ in PLAIN_UNLESS:
        _keep_buffers(module, axis, indices)
    for name in ("out_features", "out_channels", "nf") if outputs else ("in_features", "in_channels", "nx"):
        if hasattr(module, name):
            setattr(module, name, len(indices))


def _keep_buffers(module: nn.Module, axis: int, indices: list[int]) -> None:
    """Cut the buffers that a layer has beside its weight and bias for quantization."""
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.dim() > axis:
            setattr(module, name, buffer[indices] if axis == 0 else buffer[:, indices])


def _keep_parameter(module: Any, name: str, axis: int, indices: list[int], tied: Tied) -> None:
    old = getattr(module, name)
    key = (id(old), tuple(indices))
    if key not in tied:
        new = old.detach().index_select(axis, torch.tensor(indices, dtype=torch.long, device=old.device)).contiguous()
        # The old one is kept with it, so that no other parameter gets its id.
        tied[key] = (old, nn.Parameter(new, requires_grad=old.requires_grad))
    setattr(module, name, tied[key][1])


def _keep_norm(norm: Any, indices: list[int], tied: Tied) -> None:
    """Cut a root mean square norm down to the inputs that are not 0, and rescale it: their mean is larger."""
    before = norm.weight.numel()
    _keep_parameter(norm, "weight", 0, indices, tied)
    with torch.no_grad():
        norm.weight *= (before / len(indices)) ** 0.5
    name = next(name for name in EPSILON_NAMES if hasattr(norm, name))
    setattr(norm, name, getattr(norm, name) * before / len(indices))


@torch.no_grad()
def blank(*parameters: Any) -> None:
    """Set parameters to 0, those that are there."""
    for parameter in parameters:
        if parameter is not None:
            parameter.zero_()


def _bookkeeping(cut: Cut, total: int) -> None:
    """Tell the attention module how many heads it has now, and record which ones were removed."""
    site, attention, halves = cut.site, cut.site.attention, maps_per_head(cut.site)
    heads, keys = len(cut.queries) * halves, len(cut.keys) * halves
    inside = dict(attention.named_modules())
    for owner in (attention, *(inside[path] for path in shares_of(site).counts if path in inside)):
        for name in COUNT_NAMES:
            if hasattr(owner, name):
                setattr(owner, name, heads)
    for name in TOTAL_NAMES:
        if getattr(attention, name, None) == total:
            setattr(attention, name, len(cut.queries) * site.dim)
    for name in KEY_COUNT_NAMES:
        if hasattr(attention, name):
            setattr(attention, name, keys)
    if hasattr(attention, GROUPS_NAME):
        setattr(attention, GROUPS_NAME, cut.groups)
    if asks_config(attention):
        own = dict.fromkeys(COUNT_NAMES, heads) | dict.fromkeys(KEY_COUNT_NAMES, keys)
        attention.config = own_config(attention.config, own)
    setattr(site.record, UNPRUNED_NAME, site.width)
    setattr(site.record, PRUNED_NAME, set(range(site.width)) - (set(site.kept) - cut.gone))
