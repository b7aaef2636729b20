"""Types as signatures write them: whether a value fits one, and what a type is called in a message."""

from __future__ import annotations

import functools
import inspect
import os
from collections import abc
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from types import FunctionType, MethodType, SimpleNamespace, UnionType
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from typing_extensions import Unpack


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as far as can be told without reading it."""
    if hint in _PLAIN:
        return bool(_PLAIN[hint](value))
    if type(hint) is type:  # a class, and no generic or protocol
        return isinstance(value, hint)
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        # What may be of many kinds is left to the function, which says better what it wants.
        return (value is None and type(None) in inner) or len(inner) > MOST_KINDS or any(fits(value, x) for x in inner)
    if origin is Literal:
        return any(type(value) is type(one) for one in inner)
    if origin is abc.Callable:
        return callable(value)
    if origin is abc.Iterable:
        # Mappings and pairs in it are left to the function; an iterator is not read.
        listed = isinstance(value, (list, tuple)) and (_is_class(inner[0]) or get_origin(inner[0]) is abc.Sequence)
        # A data set of torch has items and no `__iter__`.
        several = hasattr(value, "__iter__") and not isinstance(value, (str, bytes))
        return (several or isinstance(value, Dataset)) and (not listed or _misfit(value, origin, inner) is NO_MISFIT)
    if origin in (abc.Mapping, dict):
        pairs = value.items() if isinstance(value, abc.Mapping) else ()
        return isinstance(value, abc.Mapping) and all(
            fits(k, inner[0]) and (inner[1] is Any or fits(x, inner[1])) for k, x in pairs
        )
    if origin in (abc.Sequence, abc.Collection, list, tuple):
        several = hasattr(value, "__len__") and not isinstance(value, (str, bytes, abc.Mapping, type))
        return several and _misfit(value, origin, inner) is NO_MISFIT
    if isinstance(hint, TypeVar):
        return not isinstance(hint.__bound__, type) or isinstance(value, hint.__bound__)
    if Protocol in getattr(hint, "__bases__", ()):  # what has some of it, since a function may need no more
        return any(hasattr(value, name) for name in vars(hint) if not name.startswith("_"))
    return not _is_class(hint) or isinstance(value, hint)


def classes_of(hint: Any) -> tuple[type, ...]:
    """Classes whose instances are of a type, whatever they hold; there may be other values of that type."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(kind for one in get_args(hint) for kind in classes_of(one))
    if get_origin(hint) is abc.Callable:
        return FunctionType, MethodType
    if get_origin(hint) is abc.Iterable and get_args(hint) == (Any,):
        return dict, list, tuple
    return (hint,) if type(hint) is type and (hint in (type(None), bool, str) or hint not in _PLAIN) else ()


def _is_class(hint: Any) -> bool:
    """Whether a type is a class alone; `list[int]` is one in the eyes of Python 3.10, and cannot be asked for."""
    return isinstance(hint, type) and get_origin(hint) is None


def _misfit(value: Any, origin: Any, inner: tuple[Any, ...]) -> Any:
    """The first element of a list or tuple that is of a wrong type, or the whole if it has too few or too many."""
    if not isinstance(value, abc.Sequence) or isinstance(value, range):
        return value if origin in (list, tuple) else NO_MISFIT
    if origin is tuple and inner[-1] is not Ellipsis:
        if len(value) != len(inner):
            return value
        return next((x for x, one in zip(value, inner, strict=True) if not fits(x, one)), NO_MISFIT)
    return next((x for x in value if not fits(x, inner[0])), NO_MISFIT)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, also one of numpy or torch, and no `True` or `False`."""
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_floating_point() and value.dtype != torch.bool
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a real number, also one of numpy or torch, and no `True` or `False`."""
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_complex() and value.dtype != torch.bool
    return isinstance(value, Real) and not isinstance(value, bool)


def takes_whole(hint: Any) -> bool:
    """Whether a type is that of whole numbers or of lists of them, and not of tensors."""
    inner = get_args(hint)
    listed = get_origin(hint) in (Union, UnionType, abc.Sequence, abc.Collection, abc.Iterable, list, tuple)
    return hint is int or (listed and Tensor not in inner and any(map(takes_whole, inner)))


def called_with(hint: Any) -> int | None:
    """With how many arguments a function of this type is called; None where that is not said."""
    inner = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return next((many for one in inner if (many := called_with(one)) is not None), None)
    return len(inner[0]) if get_origin(hint) is abc.Callable and isinstance(inner[0], list) else None


def takes(function: FunctionType, many: int) -> bool:
    """Whether a function can be called with so many arguments without names.

    It is asked itself: what it wraps (`functools.wraps`) it may call with more, or with fewer.
    """
    try:
        inspect.signature(function, follow_wrapped=False).bind(*range(many))
    except TypeError:
        return False
    return True


def of_python(value: Any) -> Any:
    """Whole numbers of numpy or torch, also in lists, as those of Python; any other value is itself."""
    if isinstance(value, int):
        return value
    if is_whole(value):
        return int(value)
    kind = str(getattr(value, "dtype", ""))
    if "int" in kind and hasattr(value, "tolist"):  # a tensor or an array
        return value.tolist()
    if type(value) in (list, tuple):
        plain = type(value)(map(of_python, value))
        return value if all(a is b for a, b in zip(plain, value, strict=True)) else plain
    return value


class Types(NamedTuple):
    """The types of the parameters of a function."""

    hints: dict[str, Any]
    """{parameter: type}"""
    classes: dict[str, tuple[type, ...]]
    """{parameter: its `classes_of`}"""
    whole: frozenset[str]
    """The parameters that are whole numbers, or lists of them: functions get those of numpy and torch as Python's."""
    called: dict[str, int]
    """{parameter: the number of arguments} of those that are functions, where the signature says it."""


@functools.cache
def types_of(function: Callable[..., Any]) -> Types:
    """The types in a signature, read at the first call, when every name of the module is there.

    What a function returns is left out: it may be of a package that is not installed.
    """
    written = dict(function.__annotations__)
    for name, hint in (*_CHECKED_BY_FUNCTIONS.items(), ("return", written.get("return"))):
        if written.get(name) in (hint, f"{hint} | None"):
            written.pop(name, None)
    names = getattr(function, "__globals__", {})
    hints = get_type_hints(SimpleNamespace(__annotations__=written), names)
    for options in [get_args(hint)[0] for hint in hints.values() if get_origin(hint) is Unpack]:
        hints |= get_type_hints(options)
    return Types(
        hints,
        {name: classes_of(hint) for name, hint in hints.items()},
        frozenset(name for name, hint in hints.items() if takes_whole(hint)),
        {name: many for name, hint in hints.items() if (many := called_with(hint)) is not None},
    )


_CHECKED_BY_FUNCTIONS = {
    "heads": "Heads",
    "rows": "int | None",
    "ignore": "Sequence[str]",
    "progress": "Progress",
    "merge": "Merge",
    "tokens": "Mapping[str, TokenClass]",
}
"""Parameters that functions check themselves if they have this type, with messages that say more."""
MOST_KINDS = 4
NO_MISFIT = object()
_PLAIN: dict[Any, Callable[[Any], bool]] = {
    Any: lambda value: True,
    type(None): lambda value: value is None,
    bool: lambda value: type(value).__name__ in ("bool", "bool_"),
    int: is_whole,
    float: is_number,
    str: lambda value: isinstance(value, str),
    Path: lambda value: isinstance(value, os.PathLike),
}
_CALLED = {
    nn.Module: ("a model, such as AutoModel.from_pretrained returns", "models"),
    type(None): ("None", "None"),
    bool: ("True or False", "True or False"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    Path: ("a path", "paths"),
    Tensor: ("a tensor", "tensors"),
    Any: ("anything", "anything"),
}
_MADE_BY = {
    "AlignedBatches": ("the batches of bertology.syntax.align for a treebank",) * 2,
    "Sentence": ("a Sentence", "sentences, as read_conllu reads them"),
    "Document": ("a Document", "documents with mentions, as read_conll_coref reads them"),
    "CodeTree": ("a tree from parse_code", "trees from parse_code, or snippets from read_code"),
    "BatchSource": ("a Store, as encode returns it and Store.open reads it from its folder",) * 2,
    "EdgeTask": ("a task, as read_edges and the functions that end in _edges return it", "tasks"),
    "Probes": ("probes, such as cumulative_probes returns",) * 2,
    "Trained": ("trained probes, as train_probes returns them",) * 2,
    "WordVectors": ("vectors of words, as read_vectors and embedding_vectors return them",) * 2,
    "HeadView": ("a view of a head, as show_head returns it", "views of heads"),
    "LabelTrajectories": ("trajectories, as follow_targets and label_trajectories return them",) * 2,
    "LayerStatistics": ("statistics of layers, as layer_statistics returns them",) * 2,
    "HasWords": ("a Sentence of a treebank, a Document, or what has words as they have", "sentences or documents"),
    "LeafTypes": ("types of leaves, as leaf_types returns them",) * 2,
}


def words(hint: Any, *, many: bool = False) -> str:
    """A type in the words of a message."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in _CALLED:
        return _CALLED[hint][many]
    if getattr(hint, "__name__", "") in _MADE_BY:
        return _MADE_BY[hint.__name__][many]
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(words(one, many=many) for one in inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is abc.Callable:
        return "functions" if many else "a function"
    if origin in (abc.Mapping, dict):
        return "mappings" if many else f"a mapping from {words(inner[0], many=True)} to {words(inner[1], many=True)}"
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"{'tuples' if many else 'a tuple'} ({', '.join(map(words, inner))})"
    if origin is not None and inner:
        kind = ("iterables", "an iterable") if origin is abc.Iterable else ("lists", "a list")
        return f"{kind[not many]} of {words(inner[0], many=True)}"
    name = getattr(hint, "__name__", str(hint))
    return f"objects of {name}" if many else f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def misfit_inside(value: Any, hint: Any) -> Any:
    """What is of a wrong type inside a value that is of the right one itself."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (abc.Mapping, dict) and isinstance(value, abc.Mapping):
        keys = next((key for key in value if not fits(key, inner[0])), NO_MISFIT)
        return next((x for x in value.values() if not fits(x, inner[1])), NO_MISFIT) if keys is NO_MISFIT else keys
    if origin in (abc.Sequence, abc.Collection, abc.Iterable, list, tuple) and isinstance(value, abc.Sequence):
        bad = _misfit(value, origin, inner)
        return NO_MISFIT if bad is value else bad
    return NO_MISFIT
