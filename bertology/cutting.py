"""How are the weights of heads cut out of an attention module?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .errors import PruningError
from .names import (
    BIAS_TABLE_NAMES,
    BIASED,
    COMMON_NAMES,
    COUNT_NAMES,
    EPSILON_NAMES,
    GROUPS_NAME,
    KEY_COUNT_NAMES,
    PRUNED_NAME,
    SHARED_OUT_NAMES,
    TOTAL_NAMES,
    UNCUT,
    UNCUT_4,
    UNPRUNED_NAME,
    WHOLE_NORM_NAMES,
)
from .site import Site
from .tap import narrow_biases, takes_bias
from .whole import OfAllHeads, asks_config, own_config

Tied = dict[tuple[int, tuple[int, ...]], tuple[nn.Parameter, nn.Parameter]]
"""What became of each parameter: layers that share one (Zamba) share the cut one."""


@dataclass(frozen=True)
class Cut:
    """What stays of one attention module: places among the heads that are there, and the keys that they need."""

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
    """Check that these heads of a site can be cut out, and say what stays; or raise `PruningError`."""
    stay = [place for place, head in enumerate(site.kept) if head not in gone]
    blank = not stay
    stay = stay or [0]
    if not gone:
        return Cut(site, gone, stay, stay, False)
    _check_parts(site)
    key_heads = _key_heads(site)
    size = len(site.kept) // key_heads
    left = {group: [place for place in stay if place // size == group] for group in range(key_heads)}
    used = {group: places for group, places in left.items() if places}
    if len({len(places) for places in used.values()}) > 1:
        told = "; ".join(str([site.kept[group * size + i] for i in range(size)]) for group in range(key_heads))
        raise PruningError(
            f"heads of {site.label} share keys in groups ({told}): prune whole groups, or equally many heads of each; "
            f"asked for {sorted(gone)}"
        )
    return Cut(site, gone, stay, sorted(used), blank)


def cut_heads(cut: Cut, tied: Tied) -> None:
    """Cut the heads out, and tell the attention module how many it has now."""
    site = cut.site
    heads, key_heads = len(site.kept), _key_heads(site)
    whole = _whole_norms(site)
    for name, module in whole.items():
        stay = cut.queries if module is site.query else cut.keys
        norm = getattr(site.attention, name)
        norm = norm if isinstance(norm, OfAllHeads) else OfAllHeads(norm, _width(_inner(module)))
        norm.keep(_numbers(stay, norm.left // (heads if module is site.query else key_heads)))
        setattr(site.attention, name, norm)
    for module in dict.fromkeys((site.query, site.key, site.value)):
        if module not in whole.values():
            inner = _inner(module)
            _keep(inner, _outputs(site, module, _width(inner), cut), tied, outputs=True)
            if cut.blank:
                _blank(inner.weight, inner.bias)
    for name, part in _shared_out(site):
        if isinstance(part, nn.Module):
            _keep(_inner(part), _numbers(cut.queries, _width(_inner(part)) // heads), tied, outputs=True)
        else:
            _keep_parameter(site.attention, name, 0, _numbers(cut.queries, part.shape[0] // heads), tied)
    for table in (getattr(site.attention, name, None) for name in BIAS_TABLE_NAMES):
        if table is not None and not takes_bias(site.attention):  # UMT5 has one for each layer
            _keep_parameter(table, "weight", 1, cut.queries, tied)
            table.embedding_dim = len(cut.queries)
    if isinstance(site.place, nn.Module) and site.place is not site.projection:
        _keep_norm(site.place, _numbers(cut.queries, site.dim), tied)
    _keep(_inner(site.projection), _numbers(cut.queries, site.dim), tied, outputs=False)
    if cut.blank:
        _blank(_inner(site.projection).weight)
    narrow_biases(site.attention, heads, cut.queries)
    _bookkeeping(cut, heads * site.dim, key_heads)


def _check_parts(site: Site) -> None:
    refused = f"the heads of {site.label} cannot be cut out: "
    hint = "; silence them with gated()"
    if site.layout != "batch token width":
        raise PruningError(f"{refused}its {site.path} takes them as [{site.layout.replace(' ', ', ')}]{hint}")
    uncut = UNCUT | (UNCUT_4 if transformers.__version__.startswith("4.") else {})
    for kind in type(site.attention).__mro__:
        if kind.__name__ in uncut:
            raise PruningError(f"{refused}{uncut[kind.__name__]}{hint}")
    if site.place is not site.projection and not _is_root_mean_square(site.place):
        raise PruningError(f"{refused}{site.path} is a norm over all of them, which would change{hint}")
    parts = {site.query, site.key, site.value}
    if len(parts) < 3 and not site.fused:
        raise PruningError(f"{refused}it is not known how its fused projection puts out its parts{hint}")
    for module in (*parts, site.projection, *(part for _, part in _shared_out(site) if isinstance(part, nn.Module))):
        inner = _inner(module)
        weight = getattr(inner, "weight", None)
        plain = isinstance(weight, Tensor) and weight.is_floating_point() and weight.dim() == 2
        if not isinstance(inner, (nn.Linear, Conv1D)) or not plain:
            raise PruningError(
                f"{refused}only Linear and Conv1D layers with plain weights can be cut, "
                f"got {type(inner).__name__}; merge adapters and undo quantization first"
            )
    tables = any(hasattr(site.attention, name) for name in BIAS_TABLE_NAMES)
    if tables and transformers.__version__.startswith("4."):
        raise PruningError(f"{refused}in transformers 4 it shares a position bias with other layers{hint}")
    if (tables or takes_bias(site.attention)) and type(site.attention).__name__ not in BIASED:
        raise PruningError(f"{refused}it shares a position bias with other layers{hint}")
    known = (*parts, site.projection)
    for name, part in _children(site.attention):
        if any(part is module or _holds(module, part) for module in known):
            continue
        known_names = (*COMMON_NAMES, *SHARED_OUT_NAMES, *BIAS_TABLE_NAMES, *_whole_norms(site))
        if part is not site.place and name not in known_names and not _of_one_head(site, part):
            raise PruningError(
                f"{refused}it is not known what {name!r} ({type(part).__name__}) has to do with heads{hint}"
            )
    for _, part in _shared_out(site):
        _share(site, part.shape[0] if isinstance(part, Tensor) else _width(_inner(part)), len(site.kept))
    for module in parts - set(_whole_norms(site).values()):
        _outputs(site, module, _width(_inner(module)), Cut(site, frozenset(), [0], [0], False))


def _is_root_mean_square(norm: nn.Module) -> bool:
    return type(norm).__name__.endswith("RMSNorm") and any(hasattr(norm, name) for name in EPSILON_NAMES)


def _children(attention: nn.Module) -> Iterator[tuple[str, Any]]:
    """The parts of an attention module that hold parameters."""
    yield from ((name, parameter) for name, parameter in attention._parameters.items() if parameter is not None)
    yield from ((name, child) for name, child in attention.named_children() if any(True for _ in child.parameters()))


def _holds(module: nn.Module, part: Any) -> bool:
    return isinstance(part, nn.Module) and module in set(part.modules())


def _of_one_head(site: Site, part: Any) -> bool:
    """Whether a norm has one weight for each number of a head, the same for all heads."""
    width = _width(_inner(site.query)) // len(site.kept)
    sizes = {parameter.numel() for parameter in ([part] if isinstance(part, Tensor) else part.parameters())}
    return all(size in (1, site.dim, width, width // 2) and size < len(site.kept) * site.dim for size in sizes)


def _shared_out(site: Site) -> list[tuple[str, Any]]:
    return [(name, part) for name, part in _children(site.attention) if name in SHARED_OUT_NAMES]


def _key_heads(site: Site) -> int:
    """How many heads the keys have: what the module says, else one for each query head."""
    heads = len(site.kept) or 1
    for name in KEY_COUNT_NAMES:
        if isinstance(getattr(site.attention, name, None), int):
            return int(getattr(site.attention, name))
    return heads // int(getattr(site.attention, GROUPS_NAME, 1))


def _outputs(site: Site, module: nn.Module, width: int, cut: Cut) -> list[int]:
    """Which outputs of the query, key or value projection, or of a fused one, stay."""
    heads, key_heads = len(site.kept), _key_heads(site)
    roles = [role for role, of in zip("qkv", (site.query, site.key, site.value), strict=True) if of is module]
    units = {"q": (heads, cut.queries), "k": (key_heads, cut.keys), "v": (key_heads, cut.keys)}
    if len(roles) == 1 or (site.fused == "heads" and key_heads == heads):
        count, stay = units[roles[0]]
        return _numbers(stay, _share(site, width, count))
    if site.fused == "heads" and key_heads > 1 and roles == ["q", "k", "v"]:
        # Falcon: in each group its queries, then their key and value.
        one, size = _share(site, width, heads + 2 * key_heads), heads // key_heads
        rows = [
            group * (size + 2) + i
            for group in cut.keys
            for i in [*(place % size for place in cut.queries if place // size == group), size, size + 1]
        ]
        return _numbers(rows, one)
    if site.fused == "heads" and roles == ["k", "v"]:
        return _numbers(cut.keys, _share(site, width, key_heads))
    one, start, stays = _share(site, width, sum(units[role][0] for role in roles)), 0, []
    for role in roles:
        count, stay = units[role]
        stays += [start + place for place in stay]
        start += count
    return _numbers(stays, one)


def _share(site: Site, width: int, count: int) -> int:
    share, left_over = divmod(width, count)
    if left_over:
        raise PruningError(
            f"the heads of {site.label} cannot be cut out: a projection puts out {width} numbers, which cannot be "
            f"shared out among {count} heads"
        )
    return share


def _inner(module: nn.Module) -> Any:
    """The layer that holds the weight, out of a wrapper around nothing else (Moshi)."""
    children = list(module.children())
    return children[0] if not hasattr(module, "weight") and len(children) == 1 else module


def _width(module: Any) -> int:
    weight: Tensor = module.weight
    return weight.shape[1 if isinstance(module, Conv1D) else 0]


def _numbers(places: list[int], share: int) -> list[int]:
    return [place * share + i for place in places for i in range(share)]


def _keep(module: Any, numbers: list[int], tied: Tied, *, outputs: bool) -> None:
    """Keep only some outputs, or some inputs, of a Linear or Conv1D."""
    axis = (1 if outputs else 0) if isinstance(module, Conv1D) else (0 if outputs else 1)
    for name in ("weight", "bias") if outputs else ("weight",):
        if getattr(module, name) is not None:
            _keep_parameter(module, name, axis if name == "weight" else 0, numbers, tied)
    for name in ("out_features", "nf") if outputs else ("in_features", "nx"):
        if hasattr(module, name):
            setattr(module, name, len(numbers))


def _keep_parameter(module: Any, name: str, axis: int, numbers: list[int], tied: Tied) -> None:
    old = getattr(module, name)
    key = (id(old), tuple(numbers))
    if key not in tied:
        new = old.detach().index_select(axis, torch.tensor(numbers, dtype=torch.long, device=old.device)).contiguous()
        # The old one is kept with it, so that no other parameter gets its id.
        tied[key] = (old, nn.Parameter(new, requires_grad=old.requires_grad))
    setattr(module, name, tied[key][1])


def _keep_norm(norm: Any, numbers: list[int], tied: Tied) -> None:
    """Cut a root mean square norm down to inputs that are not 0: the mean over fewer of them is larger."""
    before = norm.weight.numel()
    _keep_parameter(norm, "weight", 0, numbers, tied)
    with torch.no_grad():
        norm.weight *= (before / len(numbers)) ** 0.5
    name = next(name for name in EPSILON_NAMES if hasattr(norm, name))
    setattr(norm, name, getattr(norm, name) * before / len(numbers))


def _whole_norms(site: Site) -> dict[str, nn.Module]:
    """{name: projection}: the norms over all queries, or all keys, of a site."""
    found = {}
    for name, of in WHOLE_NORM_NAMES.items():
        norm, module = getattr(site.attention, name, None), getattr(site, of)
        sizes = {p.numel() for p in norm.parameters()} if isinstance(norm, nn.Module) else set()
        one_head = not isinstance(norm, OfAllHeads) and site.dim in sizes
        if sizes and not one_head and isinstance(_inner(module), nn.Linear) and sizes == {_width(_inner(module))}:
            found[name] = module
    return found


@torch.no_grad()
def _blank(*parameters: Any) -> None:
    for parameter in parameters:
        if parameter is not None:
            parameter.zero_()


def _bookkeeping(cut: Cut, total: int, key_heads: int) -> None:
    """Tell the attention module how many heads it has now, and write down which ones went."""
    site, heads, attention = cut.site, len(cut.queries), cut.site.attention
    for name in COUNT_NAMES:
        if hasattr(attention, name):
            setattr(attention, name, heads)
    for name in TOTAL_NAMES:
        if getattr(attention, name, None) == total:
            setattr(attention, name, heads * site.dim)
    for name in KEY_COUNT_NAMES:
        if hasattr(attention, name):
            setattr(attention, name, len(cut.keys))
    if hasattr(attention, GROUPS_NAME):
        setattr(attention, GROUPS_NAME, cut.groups)
    if asks_config(attention):
        own = dict.fromkeys(COUNT_NAMES, heads) | {name: len(cut.keys) for name in KEY_COUNT_NAMES}
        attention.config = own_config(attention.config, own)
    setattr(site.record, UNPRUNED_NAME, site.width)
    setattr(site.record, PRUNED_NAME, set(range(site.width)) - (set(site.kept) - cut.gone))
