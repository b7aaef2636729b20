"""What each part of an attention module holds of its heads, and whether heads can be cut out of it.

A norm over all queries or keys needs all of them, and a config that all layers share holds a single number of heads.
Both are wrapped in a layer that has fewer heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..anatomy.divided import is_divided
from ..anatomy.forward_source import acts_on_record, is_transformers_4
from ..anatomy.names import (
    BIAS_TABLE_NAMES,
    BIASED_MASK_NAMES,
    COMMON_NAMES,
    DIFFERENCE_NAME,
    EPSILON_NAMES,
    GROUPS_NAME,
    KEY_COUNT_NAMES,
    PLAIN_UNLESS,
    PRUNED_NAME,
    SHARED_OUT_NAMES,
    WHOLE_NORM_NAMES,
)
from ..anatomy.oddities import ODDITIES, Oddities, Shares, oddities_of
from ..anatomy.sites import Site
from ..errors import BertologyError, PruningError, be, how_many
from ..tap import takes_bias


class OfAllHeads(nn.Module):
    """A norm over all heads of an unpruned layer, which returns the elements of the remaining heads only."""

    def __init__(self, norm: nn.Module, width: int) -> None:
        super().__init__()
        self.norm = norm
        # A list, not a buffer: transformers leaves buffers that are not in a model's files without values.
        self._kept = list(range(width))

    @property
    def left(self) -> int:
        """How many elements are returned for each token."""
        return len(self._kept)

    def keep(self, places: list[int]) -> None:
        """Return only the elements at these places among those that were returned so far."""
        self._kept = [self._kept[place] for place in places]

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [..., all elements] and return [..., the elements of the remaining heads]."""
        out: Tensor = self.norm(x)
        return out.index_select(-1, torch.tensor(self._kept, device=out.device))


def own_config(config: Any, own: dict[str, int]) -> Any:
    """The config with a layer's own settings in the place of its own; settings that it does not have are left out."""
    whole = config.whole if isinstance(config, OfOneLayer) else config
    return OfOneLayer(whole, {name: number for name, number in own.items() if hasattr(whole, name)})


class OfOneLayer:
    """A model's config, with the numbers of heads of one layer."""

    def __init__(self, whole: Any, own: dict[str, int]) -> None:
        vars(self).update(own, whole=whole)

    def __getattr__(self, name: str) -> Any:
        if name == "whole" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.whole, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.whole, name, value)


def check_parts(site: Site) -> None:
    """Check, by all that is known of its parts, that heads of a site can be cut out; or raise `PruningError`."""
    _check_kind(site)
    _check_projections(site)
    _check_position_bias(site)
    _check_listed(site)
    _check_every_parameter(site)
    for _, part in shared_out(site):
        share_of(site, part.shape[0] if isinstance(part, Tensor) else output_size(inner_layer(part)), len(site.kept))
    for module in _inputs_of(site) - set(whole_norms(site).values()):
        kept_outputs(site, module, [0], [0])


def check_in_memory(model: nn.Module, cannot: str, error: type[BertologyError], *, loading: bool = False) -> None:
    """Raise an error for weights that are elsewhere: on the meta device or a disk, or divided among processes.

    A model that is built to be loaded is on the meta device too, but without hooks; its weights come later.
    """
    weights = dict(model.named_parameters())
    meta = [name for name, x in weights.items() if x.is_meta]
    hooked = any(hasattr(module, "_hf_hook") for module in model.modules())
    divided = [name for name, x in weights.items() if is_divided(x)]
    sharded = [name for name in weights if name.rpartition(".")[2].startswith("_flat_param")]
    if meta and (hooked or not loading):
        raise error(
            f"{cannot}: {how_many(len(meta), 'weight')} {be(len(meta))} not in memory ({meta[0]} is on the meta "
            "device, as after offloading). Load the whole model into memory, without device_map, cpu_offload or "
            "disk_offload"
        )
    if divided or sharded:
        raise error(
            f"{cannot}: its weights are divided among processes ({(divided + sharded)[0]}). Do it before the model is "
            "sharded, or on a whole copy of it"
        )


def refusal(site: Site, why: str, then: str = "silence them with gated()") -> PruningError:
    """The error that says why heads, or neurons, cannot be cut out, and what to do then."""
    return PruningError(f"the {site.unit}s of {site.label} cannot be cut out: {why}; {then}")


def _inputs_of(site: Site) -> set[nn.Module]:
    """The query, key and value projections, as far as they are modules."""
    return set() if site.weight else {site.query, site.key, site.value}


def _check_kind(site: Site) -> None:
    """Whether attention of this kind can have fewer heads at all."""
    if site.layout != "batch token width" and oddities_of(site.attention).shares is None:
        raise refusal(site, f"its projection takes them as [{site.layout.replace(' ', ', ')}]")
    for kind in type(site.attention).__mro__:
        odd = ODDITIES.get(kind.__name__, Oddities())
        why = odd.uncut or (odd.uncut_4 if is_transformers_4() else "")
        if why:
            raise refusal(site, why)
    if site.place is not site.projection and not _is_root_mean_square(site.place):
        raise refusal(site, f"{site.path} is a norm over all of them, which would change")
    equal = shares_of(site).equal
    if len({getattr(site.attention, name) for name in equal}) > 1:
        raise refusal(site, f"its {' and '.join(equal)} differ, which mixes heads")


def _check_projections(site: Site) -> None:
    """Whether the projections, and the parts with a share for each head, are plain layers whose weights can be cut."""
    inputs = _inputs_of(site)
    if inputs and len(inputs) < 3 and not site.fused:
        raise refusal(site, "it is not known in which order its fused projection returns queries, keys and values")
    known = () if site.weight else (*inputs, site.projection)
    for module in (*known, *(part for _, part in shared_out(site) if isinstance(part, nn.Module))):
        check_plain(site, module, groups_allowed=module in inputs)


def check_plain(site: Site, module: nn.Module, *, groups_allowed: bool = False) -> None:
    """Raise `PruningError` for a layer of a site whose weights cannot be cut."""
    inner = inner_layer(module)
    weight = getattr(inner, "weight", None)
    if hasattr(inner, "parametrizations") or (isinstance(weight, Tensor) and not isinstance(weight, nn.Parameter)):
        why = f"a weight of {type(inner).__name__} is computed from others (parametrization, weight norm, masks)"
        raise refusal(site, why, "remove the parametrization first")
    plain = isinstance(weight, Tensor) and weight.is_floating_point() and type(weight.data) is Tensor
    if not plain or not _is_linear(inner, groups_allowed=groups_allowed):
        kind = type(inner)
        # Adapters and quantized layers have classes of the same name.
        name = f"{kind.__module__}.{kind.__name__}" if kind.__name__ in ("Linear", "Conv1D") else kind.__name__
        why = f"only Linear and Conv1D layers with plain weights can be cut, got {name}"
        raise refusal(site, why, "merge adapters and undo quantization first")


def _check_position_bias(site: Site) -> None:
    """Whether a position bias for all heads prevents it."""
    attention = site.attention
    if acts_on_record(attention) and getattr(attention, PRUNED_NAME):
        raise refusal(site, "transformers pruned it before, and divides its position bias among the heads itself")
    config = getattr(attention, "config", None)
    if any(getattr(config, name, False) for name in BIASED_MASK_NAMES):
        raise refusal(site, "its mask holds a position bias for all of them")
    tables = any(hasattr(attention, name) for name in BIAS_TABLE_NAMES)
    if (tables or takes_bias(attention)) and not oddities_of(attention).takes_bias:
        raise refusal(site, "it shares a position bias with other layers")


def _check_every_parameter(site: Site) -> None:
    """Whether it is known, of every parameter of the attention, what it has to do with heads."""
    known = () if site.weight else (*_inputs_of(site), site.projection)
    accounted = {id(parameter) for module in known for parameter in module.parameters()}
    accounted |= {id(getattr(owner, name)) for owner, name, _ in listed_parameters(site)}
    shares = shares_of(site)
    own_names = (*shares.common, *shares.keys, *whole_norms(site))
    known_names = (*COMMON_NAMES, *SHARED_OUT_NAMES, *BIAS_TABLE_NAMES, *own_names)
    for name, part in children(site.attention):
        parameters = [part] if isinstance(part, Tensor) else part.parameters()
        if all(id(parameter) in accounted for parameter in parameters):
            continue
        if part is not site.place and name not in known_names and not _of_one_head(site, part):
            raise refusal(site, f"it is not known what {name!r} ({type(part).__name__}) has to do with heads")


def _check_listed(site: Site) -> None:
    """Whether the parameters that are listed with an axis can be cut along it."""
    for owner, name, axis in listed_parameters(site):
        share_of(site, getattr(owner, name).shape[axis], len(site.kept))
        depthwise = getattr(owner, "groups", 1) == getattr(owner, "in_channels", 1) == getattr(owner, "out_channels", 1)
        if not depthwise:
            raise PruningError(f"the heads of {site.label} cannot be cut out: {type(owner).__name__} is not depthwise")


def _is_linear(layer: Any, groups_allowed: bool) -> bool:
    """Whether a layer multiplies with its weight and does nothing else."""
    if isinstance(layer, nn.Conv1d):
        return groups_allowed or layer.groups == 1
    unless = PLAIN_UNLESS.get(type(layer).__name__)
    plain = isinstance(layer, (nn.Linear, Conv1D)) or (unless is not None and getattr(layer, unless) is False)
    return plain and layer.weight.dim() == 2


def _is_root_mean_square(norm: nn.Module) -> bool:
    return type(norm).__name__.endswith("RMSNorm") and any(hasattr(norm, name) for name in EPSILON_NAMES)


def children(attention: nn.Module) -> Iterator[tuple[str, Any]]:
    """The parts of an attention module that hold parameters."""
    yield from attention.named_parameters(recurse=False, remove_duplicate=False)
    yield from ((name, child) for name, child in attention.named_children() if any(True for _ in child.parameters()))


def _of_one_head(site: Site, part: Any) -> bool:
    """Whether a norm has one weight for each dimension of a head, the same for all heads."""
    if site.weight:
        return False
    width = output_size(inner_layer(site.query)) // len(site.kept)
    sizes = {parameter.numel() for parameter in ([part] if isinstance(part, Tensor) else part.parameters())}
    return all(size in (1, site.dim, width, width // 2) and size < len(site.kept) * site.dim for size in sizes)


def shares_of(site: Site) -> Shares:
    """What is known of the parts of attention of this kind."""
    return oddities_of(site.attention).shares or Shares()


def listed_parameters(site: Site) -> list[tuple[nn.Module, str, int]]:
    """(owner, name, axis): the parameters with a share for each query head that are known by their paths."""
    modules, found = dict(site.attention.named_modules()), []
    for path, axis in shares_of(site).axes.items():
        place, _, name = path.rpartition(".")
        if place in modules and getattr(modules[place], name, None) is not None:
            found.append((modules[place], name, axis))
    return found


def maps_per_head(site: Site) -> int:
    """How many attention maps make up a head: two in DiffLlama, one in the first half and one in the second."""
    return 2 if hasattr(site.attention, DIFFERENCE_NAME) else 1


def even_groups(site: Site) -> set[int]:
    """The numbers of groups of consecutive heads that must keep the same size."""
    convolutions = [inner_layer(m) for m in (site.query, site.key, site.value) if isinstance(inner_layer(m), nn.Conv1d)]
    groups = {convolution.groups for convolution in convolutions}
    groups |= {int(getattr(site.projection, "n_groups", 1)), 4 if site.fused == "quarters" else 1}
    return groups - {1}


def shared_out(site: Site) -> list[tuple[str, Any]]:
    """(name, part): the parts with a share for each query head that are known by their names."""
    return [(name, part) for name, part in children(site.attention) if name in SHARED_OUT_NAMES]


def count_key_heads(site: Site) -> int:
    """How many heads the keys have: what the module says, else one for each query head."""
    heads = len(site.kept) or 1
    for name in KEY_COUNT_NAMES:
        if isinstance(getattr(site.attention, name, None), int):
            return int(getattr(site.attention, name)) // maps_per_head(site)
    return heads // int(getattr(site.attention, GROUPS_NAME, 1))


def whole_norms(site: Site) -> dict[str, nn.Module]:
    """{name: projection}: the norms over all queries, or all keys, of a site."""
    found = {}
    for name, of in WHOLE_NORM_NAMES.items():
        norm, module = getattr(site.attention, name, None), getattr(site, of)
        sizes = {p.numel() for p in norm.parameters()} if isinstance(norm, nn.Module) else set()
        one_head = not isinstance(norm, OfAllHeads) and site.dim in sizes
        inner = inner_layer(module)
        if sizes and not one_head and isinstance(inner, nn.Linear) and sizes == {output_size(inner)}:
            found[name] = module
    return found


def kept_outputs(site: Site, module: nn.Module, queries: list[int], keys: list[int]) -> list[int]:
    """The indices of the outputs of the query, key or value projection, or of a fused one, that are kept."""
    heads, key_heads, width = len(site.kept), count_key_heads(site), output_size(inner_layer(module))
    roles = [role for role, of in zip("qkv", (site.query, site.key, site.value), strict=True) if of is module]
    units = {"q": (heads, queries), "k": (key_heads, keys), "v": (key_heads, keys)}
    if len(roles) == 1 or (site.fused == "heads" and key_heads == heads):
        count, stay = units[roles[0]]
        halves = maps_per_head(site)
        return indices_of(
            [half * count + place for half in range(halves) for place in stay], share_of(site, width, halves * count)
        )
    if site.fused == "quarters":
        size = share_of(site, heads, 4)
        rows = [
            (place // size * 3 + role) * size + place % size
            for quarter in range(4)
            for role in range(3)
            for place in queries
            if place // size == quarter
        ]
        return indices_of(rows, share_of(site, width, 3 * heads))
    if site.fused == "heads" and key_heads > 1 and roles == ["q", "k", "v"]:
        # Falcon: each group holds its queries, then their key and value.
        one, size = share_of(site, width, heads + 2 * key_heads), heads // key_heads
        rows = [
            group * (size + 2) + i
            for group in keys
            for i in [*(place % size for place in queries if place // size == group), size, size + 1]
        ]
        return indices_of(rows, one)
    if site.fused == "heads" and roles == ["k", "v"]:
        return indices_of(keys, share_of(site, width, key_heads))
    one, start, stays = share_of(site, width, sum(units[role][0] for role in roles)), 0, []
    for role in roles:
        count, stay = units[role]
        stays += [start + place for place in stay]
        start += count
    return indices_of(stays, one)


def indices_of(places: list[int], share: int) -> list[int]:
    """The indices of the elements at these places, where each place has `share` consecutive elements."""
    return [place * share + i for place in places for i in range(share)]


def share_of(site: Site, width: int, count: int) -> int:
    """How many of `width` elements belong to each of `count` heads, or a `PruningError`."""
    share, left_over = divmod(width, count)
    if left_over:
        raise PruningError(
            f"the heads of {site.label} cannot be cut out: a projection returns {how_many(width, 'element')}, which "
            f"cannot be divided among {how_many(count, 'head')}"
        )
    return share


def inner_layer(module: nn.Module) -> Any:
    """The layer that holds the weight, out of a wrapper around nothing else (Moshi)."""
    inside = list(module.children())
    return inside[0] if not hasattr(module, "weight") and len(inside) == 1 else module


def output_size(module: Any) -> int:
    """How many elements a layer returns for each token."""
    weight: Tensor = module.weight
    return weight.shape[1 if isinstance(module, Conv1D) else 0]
