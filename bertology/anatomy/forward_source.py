"""What is read off the classes of other people's code: compiled methods, closures, modules, the version.

All of it rests on how transformers writes its classes, which no release promises to keep. This file and
`tap/private_api.py` are the only ones that rest on the insides of other people's code, and each of their functions has
a test that says what breaks when the inside changes.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, compress, repeat
from operator import is_, is_not, itemgetter, methodcaller
from types import CodeType
from typing import Any

import transformers
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .names import COUNT_NAMES, KEY_COUNT_NAMES, POSITIONS_ARGUMENT, PRUNED_NAME
from .oddities import block_oddities_of

_EAGER_NAME, _INTERFACE_NAME = "eager_attention_forward", "ALL_ATTENTION_FUNCTIONS"
_TIES_NAME = "tie_last_hidden_states"
_CAUSAL_MASKS = "create_(?!bidirectional).*mask"


def is_transformers_4() -> bool:
    """Whether the installed transformers is a release 4.x."""
    # Fragile: rests on the version string. What differs between the releases is in the fields `..._4` of `names`.
    return transformers.__version__.startswith("4.")


def acts_on_record(attention: nn.Module) -> bool:
    """Whether an attention module reads which of its heads were pruned, as T5's does in transformers 4."""
    # Fragile: rests on `forward` reading the attribute itself, by its name.
    return PRUNED_NAME in names_in(type(attention).forward)


def asks_config(attention: nn.Module) -> bool:
    """Whether an attention module may take its numbers of heads from the config that all layers share (Phi-3)."""
    # Fragile: rests on `forward` reading the config itself. Names that it reads elsewhere count too: that is harmless.
    names = names_in(type(attention).forward)
    return hasattr(attention, "config") and not {*COUNT_NAMES, *KEY_COUNT_NAMES}.isdisjoint(names)


def eager_function(attention: nn.Module) -> Callable[..., Any] | None:
    """The eager function that a module on the attention interface falls back to, or None for any other module."""
    # Fragile: rests on the habits of transformers that `_file_on_interface` names.
    file = _file_on_interface(attention)
    found: Callable[..., Any] | None = getattr(file, _EAGER_NAME, None)
    return found


def attention_interface(attention: nn.Module) -> Any:
    """The attention functions by name among which a module on the attention interface looks up its own."""
    # Fragile: rests on the habits of transformers that `_file_on_interface` names.
    return getattr(_file_on_interface(attention), _INTERFACE_NAME)


def has_own_eager(attention: nn.Module) -> bool:
    """Whether a user has put an eager function of their own into the file of a class of transformers."""
    # Fragile: rests on `__module__` and `__qualname__` of functions, as `is_of_transformers` does.
    file, eager = _file_on_interface(attention), eager_function(attention)
    return file.__name__.startswith("transformers.") and not is_of_transformers(eager)


def _file_on_interface(attention: nn.Module) -> Any:
    """The Python module that holds the class of a module on the attention interface; None for any other module."""
    kind = type(attention)
    methods = list(vars(kind).values())
    kept = _files.get(kind)
    if kept is not None and len(kept[0]) == len(methods) and all(map(is_, kept[0], methods)):
        return kept[1]
    file = _find_file(kind)
    if file is not None and file.__name__ == kind.__module__ and file.__name__.startswith("transformers."):
        _files[kind] = methods, file
    return file


# {class of transformers on the attention interface: what it held when it was looked at, its file}
_files: dict[type, tuple[list[Any], Any]] = {}


def _find_file(attention: type) -> Any:
    # Fragile: rests on transformers' habit that the file of an attention class has a function `eager_attention_forward`
    # and that the class looks up `ALL_ATTENTION_FUNCTIONS` in one of its methods.
    for kind in attention.__mro__:
        file = sys.modules.get(kind.__module__)
        if hasattr(file, _EAGER_NAME) and any(_INTERFACE_NAME in names_in(method) for method in vars(kind).values()):
            return file
    return None


def is_of_transformers(function: object) -> bool:
    """Whether a function is the one that its module in transformers defines."""
    # Fragile: rests on `__module__` and `__qualname__`; a wrapper that copies these names is not what the file holds.
    name, qualified = getattr(function, "__module__", None) or "", getattr(function, "__qualname__", "")
    return name.startswith("transformers.") and getattr(sys.modules.get(name), qualified, None) is function


def ties_last(model: nn.Module) -> bool:
    """Whether the last of a model's hidden states is its output after the final norm, not that of its last block."""
    # Fragile: rests on the decorator around `forward` that collects hidden states: it keeps the choice in a closure
    # cell of this name. Where there is no such decorator, releases 4.x differ by model (`unties_last_4`).
    method: Any = type(model).forward
    while method is not None:
        cells = _closure(method)
        if _TIES_NAME in cells:
            return bool(cells[_TIES_NAME].cell_contents)
        method = getattr(method, "__wrapped__", None)
    return not (is_transformers_4() and block_oddities_of(model).unties_last_4)


def may_pack(model: nn.Module) -> bool:
    """Whether a model may keep texts in one row apart: it makes a causal mask of positions that start again."""
    # Fragile: rests on transformers' functions `create_causal_mask` and the like, which a method calls that has the
    # positions. Encoders have no such method: theirs makes causal masks without positions, if they are to be decoders.
    kinds = {kind for module in model.modules() for kind in type(module).__mro__ if issubclass(kind, nn.Module)}
    methods = (method for kind in kinds for method in vars(kind).values())
    return any(POSITIONS_ARGUMENT in variables_in(method) and _makes_causal_mask(method) for method in methods)


def _makes_causal_mask(method: Any) -> bool:
    waiting = [_code(method)]
    for code in waiting:  # functions inside the method are among its constants (Llama 4)
        waiting += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    return any(re.match(_CAUSAL_MASKS, name) for code in waiting for name in code.co_names)


def _closure(method: Any) -> dict[str, Any]:
    """{name: cell} of what a function keeps from around it."""
    if not hasattr(method, "__code__"):
        return {}
    return dict(zip(method.__code__.co_freevars, method.__closure__ or (), strict=True))


def names_in(method: Any) -> tuple[str, ...]:
    """The global names and attributes that a method reads, wrappers around it undone; none of what is no method."""
    # Fragile: rests on CPython's `co_names`, and on decorators that set `__wrapped__`.
    code = _code(method)
    return () if code is None else code.co_names


def variables_in(method: Any) -> tuple[str, ...]:
    """The arguments and other variables of a method, wrappers around it undone; none of what is no method."""
    # Fragile: rests on CPython's `co_varnames` and `co_cellvars`, and on decorators that set `__wrapped__`.
    code = _code(method)
    return () if code is None else code.co_varnames + code.co_cellvars


def _code(method: Any) -> Any:
    return getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None


def children_of(module: nn.Module) -> Iterable[nn.Module]:
    """The children of a module, where the public walks take five times as long."""
    # Fragile: rests on the private dictionary of a module's children.
    return [child for child in module._modules.values() if child is not None]


def each_children_of(held: Iterable[Mapping[str, Any]]) -> list[Mapping[str, nn.Module | None]]:
    """[{name: module}] of the children of modules that hold these attributes; None where a child was left out."""
    # Fragile: rests on the private dictionary of a module's children.
    return _dictionaries("_modules", held)


def _dictionaries(name: str, held: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One of the private dictionaries of modules that hold these attributes."""
    try:
        return list(map(itemgetter(name), held))
    except KeyError:  # Fragile: a module that torch.jit traced keeps them in another one
        return [one[name] if name in one else getattr(one["_actual_script_module"], name) for one in held]


def first_weight(module: nn.Module) -> Tensor | None:
    """The first parameter of a module and those in it, the one that `parameters()` begins with; None without any."""
    # Fragile: rests on the private dictionaries of a module's parameters and children.
    for own in module._parameters.values():
        if own is not None:
            return own
    for child in module._modules.values():
        if child is not None and (found := first_weight(child)) is not None:
            return found
    return None


def parameters_of(module: nn.Module) -> Iterable[Tensor | None]:
    """The parameters of a module itself; None where one was left out."""
    # Fragile: rests on the private dictionary of a module's parameters.
    return module._parameters.values()


def weights_of(held: list[Mapping[str, Any]]) -> list[Tensor]:
    """The parameters and buffers among what modules hold, where the public walks take twenty times as long."""
    # Fragile: rests on the private dictionaries of a module's parameters and buffers.
    dictionaries = _dictionaries("_parameters", held) + _dictionaries("_buffers", held)
    found = list(chain.from_iterable(map(methodcaller("values"), dictionaries)))
    return list(compress(found, map(is_not, found, repeat(None))))


def hook_numbers(held: list[Mapping[str, Any]]) -> list[int]:
    """The numbers of all hooks of modules that hold this: no two hooks of a process have the same."""
    # Fragile: rests on the private dictionaries of a module's hooks.
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return list(chain.from_iterable(chain.from_iterable(map(itemgetter(*kinds), held))))


def spare_hook_numbers(held: list[Mapping[str, Any]]) -> None:
    """Let no new hook get the number of one that is set on modules that hold this, and take its place.

    A model that was unpickled has its hooks under the numbers that another process gave them.
    """
    # Fragile: rests on the counter that gives hooks their numbers.
    RemovableHandle.next_id = max([RemovableHandle.next_id, *(number + 1 for number in hook_numbers(held))])
