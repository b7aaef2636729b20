"""The errors that this library raises, and the check of arguments against the types of a signature.

    BertologyError
    ├── UnknownAnatomy        no attention heads were found in the model, or they ran elsewhere than expected
    ├── HeadError             the model does not have this head or layer, or it was pruned before
    ├── NeuronError           the model does not have this neuron, or it was pruned before
    ├── ShapeError            a tensor has the wrong shape, or holds NaN
    ├── DataError             a batch, a data set, a label or a file cannot be used
    ├── LossError             no loss is known for the model, or a loss is not one finite value per example
    ├── PruningError          the heads cannot be removed from this model
    └── MissingExtra          an optional package is not installed

    UnmeasuredAttention       a warning: some attention of the model has no rows in results

Every message says what was wanted, what came, and what to do.
"""

from __future__ import annotations

import errno
import functools
import importlib
import inspect
import os
from collections import abc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType, SimpleNamespace, UnionType
from typing import Any, Literal, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset
from typing_extensions import Unpack

F = TypeVar("F", bound=Callable[..., Any])


MOST_IN_MESSAGE, MOST_SHOWN = 1800, 80
"""The longest message, and the longest value in one, in characters."""


class BertologyError(Exception):
    """Any error that this library raises on purpose. A message over 1,800 characters loses its middle."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(_without_middle(one) if isinstance(one, str) else one for one in args))


def shown(value: object) -> str:
    """A value as messages show it: what Python prints for it, up to 80 characters.

    >>> from bertology.errors import shown
    >>> shown("Birds sing. " * 1000)
    "'Birds sing. Birds sing. Birds sing. Birds sing. Birds sing. Birds sing. Birds s..."
    """
    whole = repr(value)
    return whole if len(whole) <= MOST_SHOWN else f"{whole[:MOST_SHOWN]}..."


def _without_middle(message: str) -> str:
    left_out = len(message) - MOST_IN_MESSAGE
    if left_out <= 0:
        return message
    half = MOST_IN_MESSAGE // 2
    return f"{message[:half]} [... {left_out:,} characters ...] {message[-half:]}"


class UnknownAnatomy(BertologyError, TypeError):
    """No attention heads were found in the model, or they ran elsewhere than expected."""


class UnmeasuredAttention(UserWarning):
    """Some modules of a model look like attention but have no rows in results: `dissect(model).unmeasured` says why.

    It comes once for each model. To silence it: `warnings.simplefilter("ignore", UnmeasuredAttention)`.
    """


class HeadError(BertologyError, IndexError):
    """A head or layer is out of range, or was pruned before."""


class NeuronError(BertologyError, IndexError):
    """A neuron or MLP is out of range, or was pruned before."""


class ShapeError(BertologyError, ValueError):
    """A tensor has the wrong shape, or holds NaN."""


class DataError(BertologyError, ValueError):
    """A batch, a data set, a label or a file cannot be used as it is."""


class LossError(BertologyError, ValueError):
    """No loss is known for this model, or a loss is not one finite value per example."""


class PruningError(BertologyError, ValueError):
    """The heads cannot be removed from this model; it was left as it was."""


class MissingExtra(BertologyError, ImportError):
    """An optional package is not installed."""


def need(module: str, *, extra: str) -> ModuleType:
    """Import an optional module. Raises `MissingExtra`, which names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"this needs the package {module.split('.')[0]!r}, which is not installed: pip install 'bertology[{extra}]'"
        ) from error


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Read a file inside. Raises `DataError` for one that cannot be read."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: wanted a file, seen from the folder {Path.cwd()}") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder: wanted a file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8 ({error.reason}): convert it, or name another file") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


@contextmanager
def writable(path: str | Path) -> Iterator[None]:
    """Write a file inside. Raises `DataError` for one that cannot be written."""
    try:
        yield
    except BertologyError:
        raise
    except OSError as error:
        room = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
        then = "make room on the disk, or name a file elsewhere" if room else "name a file in a folder that exists"
        raise DataError(f"{path} cannot be written ({error}): {then}") from error
    except (ValueError, SafetensorError) as error:  # such as for a format that is not known; safetensors hides an errno
        raise DataError(f"{path} cannot be written ({error}): name a file in a folder that exists") from error


def checked(function: F) -> F:
    """Decorate a public function, method or class: its arguments are checked against its signature before it runs.

    A word among several (`Literal`), the elements of an iterator, further positional arguments, and what is annotated
    `Any` or may be of more than four types are left to the function itself. Raises `UnknownAnatomy` for what is no
    model, `DataError` for any other argument of a wrong type.
    """
    if isinstance(function, type):
        setattr(function, "__init__", checked(function.__init__))  # type: ignore[misc]  # noqa: B010
        return function
    parameters = inspect.signature(function).parameters.values()
    names = [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        hints = _hints(function)
        for name, value in chain(zip(names, args), kwargs.items()):  # noqa: B905
            if name in hints and not _fits(value, hints[name]):
                raise _wrong(function, name, value, hints[name])
            if name in hints:
                _check_value(function, name, value)
        return function(*args, **kwargs)

    setattr(call, "__kwdefaults__", function.__kwdefaults__)  # noqa: B010 (tools read it, as they read the signature)
    return call  # type: ignore[return-value]


def described(value: object) -> str:
    """What came, in the words of a message."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return shown(value) if value is None else f"{shown(value)} ({type(value).__name__})"
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def check_share(name: str, value: float) -> None:
    """Raise `DataError` for a number that is no share: from 0 to 1."""
    if not 0 <= value <= 1:
        raise DataError(f"{name} is a share, a number from 0 to 1, got {value!r}")


def check_least(name: str, value: float, least: int) -> None:
    """Raise `DataError` for a number that is too small."""
    if not value >= least:
        raise DataError(f"{name} must be {least} or more, got {value!r}")


def check_strings(name: str, value: Any) -> None:
    """Raise `DataError` for what is no list or tuple of strings, such as one string."""
    if isinstance(value, str) or not _fits(value, Sequence[str]):
        raise DataError(f"{name} must be a list of strings, got {described(value)}")


def check_shapes(**tensors: Tensor) -> None:
    """Raise `ShapeError` for tensors that must be of one shape and are not."""
    if len({x.shape for x in tensors.values()}) > 1:
        shapes = " and ".join(str(list(x.shape)) for x in tensors.values())
        raise ShapeError(f"{' and '.join(tensors)} must have the same shape, got {shapes}")


def _check_value(function: Callable[..., Any], name: str, value: object) -> None:
    """Raise `DataError` for what no function takes: NaN as a number, seeds out of range, devices that do not exist."""
    what = function.__qualname__.removesuffix(".__init__")
    if is_number(value) and value != value:
        raise DataError(f"{what}: {name} must be a number, got nan")
    if name == "seed" and is_whole(value):
        seed = int(value)  # type: ignore[call-overload]
        if not 0 <= seed < 2**63:
            raise DataError(f"{what}: a seed must be {'0 or more' if seed < 0 else 'below 2**63'}, got {seed}")
    if name == "device" and isinstance(value, str):
        try:
            torch.device(value)
        except RuntimeError as error:
            raise DataError(f"{what}: device must be one of torch, such as 'cpu' or 'cuda', got {value!r}") from error


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """{parameter: type}, read at the first call, when every name of the module is there.

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
    return hints


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as far as can be told without reading it."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return bool(_PLAIN[hint](value))
    if origin in (Union, UnionType):
        # What may be of many kinds is left to the function, which says better what it wants.
        return len(inner) > MOST_KINDS or any(_fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) for one in inner)
    if origin is abc.Callable:
        return callable(value)
    if origin is abc.Iterable:
        # Mappings and pairs in it are left to the function; an iterator is not read.
        listed = isinstance(value, (list, tuple)) and (_is_class(inner[0]) or get_origin(inner[0]) is abc.Sequence)
        # A data set of torch has items and no `__iter__`.
        several = hasattr(value, "__iter__") and not isinstance(value, (str, bytes))
        return (several or isinstance(value, Dataset)) and (not listed or _misfit(value, origin, inner) is _NONE)
    if origin in (abc.Mapping, dict):
        pairs = value.items() if isinstance(value, abc.Mapping) else ()
        return isinstance(value, abc.Mapping) and all(_fits(k, inner[0]) and _fits(x, inner[1]) for k, x in pairs)
    if origin in (abc.Sequence, abc.Collection, list, tuple):
        several = hasattr(value, "__len__") and not isinstance(value, (str, bytes, abc.Mapping, type))
        return several and _misfit(value, origin, inner) is _NONE
    if isinstance(hint, TypeVar):
        return not isinstance(hint.__bound__, type) or isinstance(value, hint.__bound__)
    if Protocol in getattr(hint, "__bases__", ()):  # what has some of it, since a function may need no more
        return any(hasattr(value, name) for name in vars(hint) if not name.startswith("_"))
    return not _is_class(hint) or isinstance(value, hint)


def _is_class(hint: Any) -> bool:
    """Whether a type is a class alone; `list[int]` is one in the eyes of Python 3.10, and cannot be asked for."""
    return isinstance(hint, type) and get_origin(hint) is None


def _misfit(value: Any, origin: Any, inner: tuple[Any, ...]) -> Any:
    """The first element of a list or tuple that is of a wrong type, or the whole if it has too few or too many."""
    if not isinstance(value, abc.Sequence) or isinstance(value, range):
        return value if origin in (list, tuple) else _NONE
    if origin is tuple and inner[-1] is not Ellipsis:
        if len(value) != len(inner):
            return value
        return next((x for x, one in zip(value, inner, strict=True) if not _fits(x, one)), _NONE)
    return next((x for x in value if not _fits(x, inner[0])), _NONE)


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


MOST_KINDS = 4
_NONE = object()
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
_CHECKED_BY_FUNCTIONS = {
    "heads": "Heads",
    "rows": "int | None",
    "ignore": "Sequence[str]",
    "progress": "Progress",
    "merge": "Merge",
    "tokens": "Mapping[str, TokenClass]",
}
"""Parameters of a type that have a check of their own wherever they occur, which says better what is wanted."""
_MODEL_ARGUMENTS = (
    ": a tokenizer returns such a mapping of model arguments with return_tensors='pt'; texts need tokenizer= as well"
)
_MAKERS = {
    "bertology.syntax": "bertology.syntax.align, of a treebank or of documents",
    "bertology.code_structure": "bertology.code_structure.align_code, of code",
}
_ADVICE = {"batches": _MODEL_ARGUMENTS, "inputs": _MODEL_ARGUMENTS}


def _words(hint: Any, *, many: bool = False) -> str:
    """A type in the words of a message."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in _CALLED:
        return _CALLED[hint][many]
    if getattr(hint, "__name__", "") in _MADE_BY:
        return _MADE_BY[hint.__name__][many]
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_words(one, many=many) for one in inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is abc.Callable:
        return "functions" if many else "a function"
    if origin in (abc.Mapping, dict):
        return "mappings" if many else f"a mapping from {_words(inner[0], many=True)} to {_words(inner[1], many=True)}"
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"{'tuples' if many else 'a tuple'} ({', '.join(map(_words, inner))})"
    if origin is not None and inner:
        kind = ("iterables", "an iterable") if origin is abc.Iterable else ("lists", "a list")
        return f"{kind[not many]} of {_words(inner[0], many=True)}"
    name = getattr(hint, "__name__", str(hint))
    return f"objects of {name}" if many else f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _wrong(function: Callable[..., Any], name: str, value: object, hint: Any) -> BertologyError:
    what = function.__qualname__.removesuffix(".__init__")
    if nn.Module in (hint, getattr(hint, "__bound__", None)):
        came = f"{type(value).__name__} {value!r}" if isinstance(value, str) else described(value)
        return UnknownAnatomy(f"{what}({name}): wanted {_CALLED[nn.Module][0]}, got {came}")
    error = UnknownAnatomy if nn.Module in get_args(hint) else DataError
    inside = [bad for one in (hint, *get_args(hint)) if (bad := _inside(value, one)) is not _NONE]
    # The parts of a string are strings, which says nothing.
    within = inside and not isinstance(value, (str, bytes))
    came = f"{described(value)} with {described(inside[0])} in it" if within else described(value)
    texts = name in _ADVICE and str in get_args(hint)
    wanted = "a mapping of model arguments, an iterable of them, or texts" if texts else _words(hint)
    return error(f"{what}: {name} must be {wanted}, got {came}{_advice(function, name)}")


def _advice(function: Callable[..., Any], name: str) -> str:
    """What to do about wrong batches; the suites take those with annotations, which texts do not have."""
    package = function.__module__.rpartition(".")[0]
    return f": make them with {_MAKERS[package]}" if name == "batches" and package in _MAKERS else _ADVICE.get(name, "")


def _inside(value: Any, hint: Any) -> Any:
    """What is of a wrong type inside a value that is of the right one itself."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (abc.Mapping, dict) and isinstance(value, abc.Mapping):
        keys = next((key for key in value if not _fits(key, inner[0])), _NONE)
        return next((x for x in value.values() if not _fits(x, inner[1])), _NONE) if keys is _NONE else keys
    if origin in (abc.Sequence, abc.Collection, abc.Iterable, list, tuple) and isinstance(value, abc.Sequence):
        bad = _misfit(value, origin, inner)
        return _NONE if bad is value else bad
    return _NONE
