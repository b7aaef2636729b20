"""Which modules look like attention but are not measured, and why?

A module looks like attention by its class (torch's own multi-head attention, or a name such as `SwinSelfAttention`) or
by its parts: projections of queries, keys and values under any name, or one fused projection of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from torch import nn

from .names import ATTENTION_CLASSES, FUSED_PARTS, NO_HEADS, NOT_ATTENTION_CLASSES, RECURRENT_NAMES

_QUERY = re.compile(r"(?:^|(?<=_)|(?<=W))(?:(query|queries)|q)(?=$|_|\d)", re.IGNORECASE)
_NUMBERS = re.compile(r"\.\d+(?=\.|$)|^\d+(?=\.|$)")


def looks_like_attention(module: nn.Module) -> bool:
    """Whether a module is attention by the name of its class or by its parts."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    if holds_projections(parts_of(module)):
        return True
    name = type(module).__name__
    named = ATTENTION_CLASSES.search(name) and not NOT_ATTENTION_CLASSES.search(name)
    return bool(named) and any(True for _ in module.parameters())


def parts_of(module: nn.Module) -> list[str]:
    """The names of the modules and parameters that a module holds itself."""
    children = [name for name, _ in module.named_children()]
    return children + [name for name, _ in module.named_parameters(recurse=False)]


def holds_projections(names: Iterable[str]) -> bool:
    """Whether these names are those of a fused projection, or of projections of queries, keys and values."""
    return _are_projections(frozenset(names))


@lru_cache(maxsize=10_000)  # most modules of a model have names that others have too
def _are_projections(names: frozenset[str]) -> bool:
    return any(FUSED_PARTS.search(name) or _is_query(name, names) for name in names)


def _is_query(name: str, there: frozenset[str]) -> bool:
    """Whether this is the name of a query projection, beside that of keys and that of values in the same spelling."""
    for keys, values in (("k", "v"), ("key", "value"), ("kv", "kv"), ("keys", "values"), ("keys_values",) * 2):
        others = {_QUERY.sub(other, name) for other in (keys, values)}
        if name not in others and others <= there:
            return True
    return False


def find_unmeasured(modules: Mapping[str, nn.Module], measured: Iterable[nn.Module]) -> dict[str, str]:
    """{path: reason} of the innermost modules that look like attention, but are no part of measured ones."""
    attentions = set(measured)
    inside = {part for attention in attentions for part in attention.modules()}
    looking = {path: one for path, one in modules.items() if one not in inside and looks_like_attention(one)}
    around: set[str] = set()
    for path in [*looking, *(path for path, one in modules.items() if one in attentions)]:
        while path:
            path = path.rpartition(".")[0]
            around.add(path)
    return {path: why_unmeasured(one) for path, one in looking.items() if path not in around}


def has_no_heads(module: nn.Module) -> bool:
    """Whether a module is known to have no attention heads, whatever its parts are called."""
    return is_recurrent(module) or any(re.search(pattern, type(module).__name__) for pattern in NO_HEADS)


def why_unmeasured(module: nn.Module) -> str:
    """Why a module that looks like attention has no row, as far as its class and its parts tell."""
    kind = type(module).__name__
    if is_recurrent(module):
        return f"{kind} is recurrent: it weighs no tokens, so that it has no attention heads"
    for pattern, why in NO_HEADS.items():
        if re.search(pattern, kind):
            return f"{kind} {why}"
    if isinstance(module, nn.MultiheadAttention):
        return f"{kind} has a forward pass of its own in the place of torch's"
    parts = ", ".join(parts_of(module)) or "nothing"
    return f"{kind} holds {parts}, and which of these are its projections is not known"


def is_recurrent(module: nn.Module) -> bool:
    """Whether this is a recurrent module that merely names its parts like attention (delta nets)."""
    return any(hasattr(module, name) for name in RECURRENT_NAMES)


def told(unmeasured: Mapping[str, str]) -> str:
    """What is not measured, in one sentence for each kind of place: paths that differ in numbers alone are one."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for path, why in unmeasured.items():
        kinds.setdefault((_NUMBERS.sub(".*", path), why), []).append(path)
    return "; ".join(
        f"{paths[0]}{f' and {len(paths) - 1} more like it' if len(paths) > 1 else ''} ({why})"
        for (_, why), paths in kinds.items()
    )
