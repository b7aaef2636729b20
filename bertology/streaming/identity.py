"""Identities of models, functions and other values: what tells the work of a checkpoint from other work.

An identity is text. Two values of one identity compute the same, as far as their code and their data say so.
"""

from __future__ import annotations

import functools
import hashlib
import types
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from ..anatomy.divided import is_divided, is_fully_sharded
from ..data.models import config_of
from ..errors import DataError
from ..results.files import bytes_of
from ..tap import edits_of
from ..tap.private_api import code_parts, function_parts, globals_read

PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, PurePath, torch.dtype, torch.device, range, slice)
# Settings that do not change the hidden states of a model in eval mode.
_IDLE = ("drop", "cache", "initializer", "token_id", "gradient_checkpointing")
LIBRARIES = ("bertology", "torch", "transformers", "numpy", "builtins")
"""Their functions are told apart by name and code; the functions of all others also by the globals that they read."""


def identity(value: Any) -> str:
    """The identity of a value: a function by its module, name, code, defaults and the values that it reads.

    Raises `DataError` for a value that cannot be identified, such as an open file.

        >>> scale = 2
        >>> identity(lambda x: scale * x) == identity(lambda x: scale * x)
        True
        >>> identity(lambda x: 2 * x) == identity(lambda x: 3 * x)
        False
    """
    return _digest(value, {})


def _digest(value: Any, seen: dict[int, Any]) -> str:
    return hashlib.sha256("\n".join(_lines(value, seen)).encode()).hexdigest()


def _lines(x: Any, seen: dict[int, Any]) -> Iterator[str]:
    """What the identity of a value is made of; `seen` holds the values that were described already."""
    if isinstance(x, PLAIN) or x is ...:
        yield f"{type(x).__qualname__} {x!r}"
    elif isinstance(x, Tensor):
        yield f"tensor {digest_of_tensor(x)}"
    elif isinstance(x, np.ndarray) and not x.dtype.hasobject:
        yield f"array {x.shape} {x.dtype} {hashlib.sha256(x.tobytes()).hexdigest()}"
    elif isinstance(x, np.ndarray):
        yield f"array {x.shape}"
        yield from _each(x.ravel().tolist(), seen)
    elif isinstance(x, types.ModuleType):
        yield f"module {x.__name__}"
    elif id(x) in seen:
        yield f"value {list(seen).index(id(x))}"
    else:
        seen[id(x)] = x
        yield from _parts(x, seen)


def _parts(x: Any, seen: dict[int, Any]) -> Iterator[str]:
    if isinstance(x, (list, tuple)):
        yield f"{type(x).__qualname__} of {len(x)}"
        yield from _each(x, seen)
    elif isinstance(x, (set, frozenset)):
        yield f"set {sorted(_digest(one, dict(seen)) for one in x)}"
    elif isinstance(x, Mapping):
        yield f"mapping of {len(x)}"
        yield from _each((part for item in x.items() for part in item), seen)
    elif isinstance(x, types.CodeType):
        yield from _each(("code", *code_parts(x)), seen)
    elif isinstance(x, types.FunctionType):
        yield from _function(x, seen)
    elif isinstance(x, types.MethodType):
        yield from _each((x.__func__, x.__self__), seen)
    elif isinstance(x, (staticmethod, classmethod)):
        yield from _lines(x.__func__, seen)
    elif isinstance(x, property):
        yield from _each((x.fget, x.fset), seen)
    elif isinstance(x, functools.partial):
        yield from _each(("partial", x.func, x.args, x.keywords), seen)
    elif isinstance(x, type):
        yield from _class(x, seen)
    elif isinstance(x, nn.Module):
        yield from _network(x, seen)
    elif isinstance(x, (types.BuiltinFunctionType, types.MethodDescriptorType, np.ufunc)):
        yield f"builtin {getattr(x, '__module__', None)} {getattr(x, '__qualname__', x.__name__)}"
    else:
        yield from _instance(x, seen)


def _each(parts: Iterable[Any], seen: dict[int, Any]) -> Iterator[str]:
    for part in parts:
        yield from _lines(part, seen)


def _function(function: types.FunctionType, seen: dict[int, Any]) -> Iterator[str]:
    """A function: its name, its code, its defaults, and the values of closures and globals that it reads."""
    yield f"function {function.__module__} {function.__qualname__}"
    yield from _each(function_parts(function), seen)
    package = (function.__module__ or "").partition(".")[0]
    if package in LIBRARIES:
        return
    for name in sorted(globals_read(function)):
        value = function.__globals__[name]
        yield f"global {name} {type(value).__qualname__} {getattr(value, '__qualname__', '')}"
        if isinstance(value, (types.FunctionType, type)) and value.__module__.partition(".")[0] != package:
            continue
        with suppress(DataError):  # such as a logger, on which no result depends
            yield from list(_lines(value, seen))


def _class(kind: type, seen: dict[int, Any]) -> Iterator[str]:
    """A class: its name, its bases, and what its body defines."""
    yield f"class {kind.__module__} {kind.__qualname__}"
    if kind.__module__.partition(".")[0] in LIBRARIES[1:]:
        return
    for base in kind.__bases__:
        yield from _lines(base, seen)
    for name, value in sorted(vars(kind).items()):
        if isinstance(value, types.FunctionType) or not name.startswith(("__", "_abc_")):
            yield name
            yield from _lines(value, seen)


def _network(module: nn.Module, seen: dict[int, Any]) -> Iterator[str]:
    """A module, such as a loss or another model: its classes, its settings and its weights."""
    yield f"network {weights_digest(module)}"
    for name, part in module.named_modules():
        yield name
        yield from _lines(type(part), seen)
        for key, value in sorted(vars(part).items()):
            if not key.startswith("_") and isinstance(value, PLAIN) and key != "training":
                yield f"{key} {value!r}"


def _instance(x: Any, seen: dict[int, Any]) -> Iterator[str]:
    if not hasattr(x, "__dict__"):
        raise DataError(
            f"a {type(x).__qualname__} cannot be told from others of its kind, which a checkpoint needs: pass "
            "functions and values that have code and attributes to compare, or measure without a checkpoint"
        )
    yield from _lines(type(x), seen)
    for name, value in sorted(vars(x).items()):
        yield name
        yield from _lines(value, seen)


def model_identity(model: nn.Module, what: str, *, edits: bool = True) -> list[str]:
    """The class, the weights and the settings of a model, which a file is compared by; `what` is the file, for errors.

    Edits that are open, such as gates, belong to it, unless `edits` is False.

    Raises `DataError` for weights that are not in memory.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise DataError(
            f"a {what} needs to identify the model, some of whose weights are not in memory (they are on the meta "
            f"device): load the model without offloading, or measure without a {what}"
        )
    kind = f"{type(model).__module__} {type(model).__qualname__}"
    own = [kind, weights_digest(model), repr(sorted(config_settings(model).items()))]
    return [*own, *(edits_identity(model) if edits else ())]


def edits_identity(model: nn.Module) -> list[str]:
    """The identity of each edit of the model that is open: gates, ablated heads, cut edges, and edits of your own."""
    return [_of_edit(edit) for edit in edits_of(model)]


def _of_edit(edit: Any) -> str:
    try:
        return identity(edit)
    except DataError:  # such as a function of a class without attributes
        return type(edit).__qualname__


def weights_digest(model: nn.Module) -> str:
    """A digest of all weights: names, shapes, types and every byte, wherever they are. Modes and hooks don't count."""
    # `fully_shard` divides the weights when a state dict is made.
    shared = any(map(is_fully_sharded, model.modules()))
    kept = dict(model.named_buffers()) if shared else model.state_dict()
    digest = hashlib.sha256()
    named = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in kept)]
    for name, x in named:
        digest.update(f"{name} {list(x.shape)} {x.dtype}\n".encode())
        if not x.is_meta:  # weights that are not loaded yet have no bytes
            digest.update(_bytes(x, shared))
    # Quantized modules keep their weights neither as parameters nor as buffers.
    known = {name for name, _ in named}
    for name, value in kept.items():
        if name not in known and not _is_alias(value, named):
            digest.update(f"{name} {_packed(value)}".encode())
    return digest.hexdigest()


def _bytes(x: Tensor, shared: bool) -> Any:
    """The bytes of a weight; of a copy if it is shared: `fully_shard` must be able to free what it brings together."""
    return bytes_of(x.detach().clone() if shared else x)


def weights_checksum(model: nn.Module) -> int:
    """A checksum of the same weights, several times as fast as the digest, for models that are in use at the same time.

    Weights of which each process holds a part count by their names and shapes alone.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    there = [x for _, x in named if not x.is_meta and not is_divided(x)]
    shared = any(map(is_fully_sharded, model.modules()))
    with ThreadPoolExecutor(min(8, torch.get_num_threads())) as pool:
        sums = list(pool.map(lambda x: zlib.crc32(_bytes(x, shared)), there))
    return zlib.crc32(repr([*((name, list(x.shape), x.dtype) for name, x in named), *sums]).encode())


def _is_alias(value: Any, named: list[tuple[str, Tensor]]) -> bool:
    """Whether an entry of a state dict is a weight that has another name too."""
    return isinstance(value, Tensor) and any(value.data_ptr() == x.data_ptr() and value.numel() for _, x in named)


def _packed(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return " ".join(_packed(part) for part in value)
    if isinstance(value, Tensor):
        return digest_of_tensor(value.dequantize() if value.is_quantized else value)
    return repr(value)


def digest_of_tensor(x: Tensor) -> str:
    """A digest of the shape, the type and every byte of a tensor."""
    digest = hashlib.sha256()
    add_tensor(digest, x)
    return digest.hexdigest()


def add_tensor(digest: Any, x: Tensor) -> None:
    """Add the shape, the type and every byte of a tensor to a digest of hashlib."""
    digest.update(f"{list(x.shape)} {x.dtype}".encode())
    digest.update(bytes_of(x))


def add_batch(digest: Any, batch: Mapping[str, Any]) -> None:
    """Add all values of a batch to a digest of hashlib."""
    for name in sorted(batch):
        if isinstance(batch[name], Tensor):
            digest.update(name.encode())
            add_tensor(digest, batch[name])
        else:
            digest.update(f"{name} {identity(batch[name])}".encode())


def config_settings(model: nn.Module) -> dict[str, Any]:
    """The settings of the architecture, such as its activation or its number of heads."""
    config = config_of(model)
    if not isinstance(config, transformers.PretrainedConfig):
        return {}
    return dict(_own(config.to_dict(), set(transformers.PretrainedConfig().to_dict()) | {"model_type"}))


def _own(settings: Mapping[str, Any], common: Collection[str], above: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by name, those inside others by both names: `rope_parameters.rope_theta`."""
    for name, value in settings.items():
        if name in common or any(part in str(name) for part in _IDLE):
            continue
        if isinstance(value, Mapping):
            yield from _own(value, common, f"{above}{name}.")
        elif isinstance(value, (list, tuple)):
            yield f"{above}{name}", [str(one) for one in value]
        elif isinstance(value, (bool, int, float, str)):
            yield f"{above}{name}", value
