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

import difflib
import errno
import functools
import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, TypeVar, get_args

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from .type_hints import NO_MISFIT, fits, misfit_inside, of_python, takes, types_of, words
from .type_hints import is_number as is_number  # most modules take both from here, with the errors
from .type_hints import is_whole as is_whole

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


def beginning_of(error: Exception) -> str:
    """The name of an error of another package and how its text begins, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def be(many: int) -> str:
    """The verb after a number of things: "is" or "are"."""
    return "is" if many == 1 else "are"


def how_many(many: int, noun: str, style: str = "") -> str:
    """A number and what is counted, in the plural where it is not one; `style` is that of `format`.

    >>> how_many(1, "head"), how_many(2, "head"), how_many(0, "more query"), how_many(1200, "class", ",")
    ('1 head', '2 heads', '0 more queries', '1,200 classes')
    """
    if many == 1:
        return f"1 {noun}"
    if noun.endswith("leaf"):
        return f"{many:{style}} {noun[:-1]}ves"
    if noun.endswith("y") and noun[-2] not in "aeou":
        return f"{many:{style}} {noun[:-1]}ies"
    return f"{many:{style}} {noun}{'es' if noun.endswith(('s', 'x', 'ch')) else 's'}"


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
    if "\0" in str(path):  # the error of Python is that of any wrong value
        raise DataError(f"{str(path)!r} is not a valid file name: it contains a null byte")
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
        raise _unwritable(path, error, error.errno) from error
    except (ValueError, SafetensorError) as error:  # such as for a format that is not known
        number = re.search(r"\(os error (\d+)\)", str(error))  # safetensors tells the number in words
        raise _unwritable(path, error, int(number[1]) if number else None) from error


def _unwritable(path: str | Path, error: Exception, number: int | None) -> DataError:
    if number in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)):
        then = "make room on the disk, or name a file elsewhere"
    elif number in (errno.EROFS, errno.EACCES, errno.EPERM):
        then = "name a file in a folder that you can write to"
    else:
        then = "name a file in a folder that exists"
    return DataError(f"{path} cannot be written ({error}): {then}")


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
    by_name = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    takes_more = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    takes_any_name = any(one.kind is one.VAR_KEYWORD for one in parameters)
    if "." not in function.__qualname__ and function.__module__.startswith("bertology."):
        for name in by_name:
            _TAKERS.setdefault(name, []).append(function.__name__)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) > len(names) and by_name and not takes_more:
            raise _too_many(function, names, by_name, args)
        hints, classes, whole, called = types_of(function)
        plain: dict[str, Any] = {}
        for name, given in chain(zip(names, args), kwargs.items()):  # noqa: B905
            if name not in hints:
                if name not in names and name not in by_name and not takes_any_name:
                    raise _unknown(function, names + by_name, name)
                continue
            value = given
            if name in whole and (own := of_python(given)) is not given:
                plain[name] = value = own
            if not isinstance(value, classes[name]) and not fits(value, hints[name]):
                raise _wrong(function, name, given, hints[name])
            _check_value(function, name, value)
            if name in called and type(value) is FunctionType:
                _check_called(function, name, value, called[name])
        if plain:
            args = (*(plain.pop(name, value) for name, value in zip(names, args)), *args[len(names) :])  # noqa: B905
            kwargs |= plain
        return function(*args, **kwargs)

    setattr(call, "__kwdefaults__", function.__kwdefaults__)  # noqa: B010 (tools read it, as they read the signature)
    return call  # type: ignore[return-value]


_TAKERS: dict[str, list[str]] = {}
"""{argument that has to be named: functions that take it}, for the error of a function that does not."""
_MOST_TAKERS = 4


def _unknown(function: Callable[..., Any], names: list[str], name: str) -> DataError:
    """The error for an argument of a name that a function does not know."""
    what, takes = function.__qualname__.removesuffix(".__init__"), [one for one in names if one != "self"]
    near = difflib.get_close_matches(name, takes, n=1)
    others = _TAKERS.get(name, [])
    then = f". Did you mean {near[0]!r}?" if near else ""
    if not near and 0 < len(others) <= _MOST_TAKERS:
        then = f"; {name!r} is an argument of {', '.join(sorted(others))}"
    return DataError(f"{what} got an unexpected argument {name!r}: it takes {', '.join(takes) or 'none'}{then}")


def _too_many(function: Callable[..., Any], names: list[str], by_name: list[str], args: Sequence[Any]) -> DataError:
    """The error for more arguments by position than a function takes."""
    own = 1 if names[:1] == ["self"] else 0
    what, there, came = function.__qualname__.removesuffix(".__init__"), names[own:], args[own:]
    takes = (
        f"{how_many(len(there), 'argument')} without a name ({', '.join(there)})"
        if there
        else "no argument without a name"
    )
    pair = there == ["head"] and all(map(is_whole, came))
    then = (
        f"a layer and a head are a pair, ({', '.join(map(shown, came))})"
        if pair
        else (f"name {'it' if len(came) == 1 else 'the others'}: {', '.join(f'{name}=' for name in by_name)}")
    )
    return DataError(f"{what} takes {takes}, got {len(came)}: {then}")


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
    if isinstance(value, str) or not fits(value, Sequence[str]):
        raise DataError(f"{name} must be a list of strings, got {described(value)}")


def all_finite(values: Tensor) -> bool:
    """Whether all elements of a tensor are finite. Their sum tells it in one step, unless it overflows.

    >>> import torch
    >>> all_finite(torch.tensor([3e38, 3e38])), all_finite(torch.tensor([1, torch.nan]))
    (True, False)
    """
    added = not values.is_complex() and math.isfinite(values.detach().sum())
    return added or bool(values.isfinite().all())


def check_shapes(**tensors: Tensor) -> None:
    """Raise `ShapeError` for tensors that must be of one shape and are not."""
    if len({x.shape for x in tensors.values()}) > 1:
        shapes = " and ".join(str(list(x.shape)) for x in tensors.values())
        raise ShapeError(f"{' and '.join(tensors)} must have the same shape, got {shapes}")


def _check_value(function: Callable[..., Any], name: str, value: object) -> None:
    """Raise `DataError` for what no function takes: NaN as a number, seeds out of range, devices that do not exist."""
    if value is None or isinstance(value, (nn.Module, dict)):
        return
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


def _check_called(function: Callable[..., Any], name: str, value: FunctionType, many: int) -> None:
    """Raise `DataError` for a function that cannot be called with as many arguments as it will be.

    Those of this library are not asked: to read a signature takes longer than all other checks of a call.
    """
    if not str(value.__module__).startswith("bertology.") and not takes(value, many):
        what = function.__qualname__.removesuffix(".__init__")
        called = f"{value.__name__}{inspect.signature(value, follow_wrapped=False)}"
        raise DataError(
            f"{what}: {name} is called with {how_many(many, 'argument')}, which {called} does not take: "
            f"help({what}) says what they are"
        )


_MODEL_ARGUMENTS = (
    ": a tokenizer returns such a mapping of model arguments with return_tensors='pt'; texts need tokenizer= as well"
)
_MAKERS = {
    "bertology.syntax": "bertology.syntax.align, of a treebank or of documents",
    "bertology.code_structure": "bertology.code_structure.align_code, of code",
}
_ADVICE = {"batches": _MODEL_ARGUMENTS, "inputs": _MODEL_ARGUMENTS}


def _wrong(function: Callable[..., Any], name: str, value: object, hint: Any) -> BertologyError:
    what = function.__qualname__.removesuffix(".__init__")
    if nn.Module in (hint, getattr(hint, "__bound__", None)):
        came = f"{type(value).__name__} {value!r}" if isinstance(value, str) else described(value)
        return UnknownAnatomy(f"{what}({name}): wanted {words(nn.Module)}, got {came}")
    error = UnknownAnatomy if nn.Module in get_args(hint) else DataError
    inside = [bad for one in (hint, *get_args(hint)) if (bad := misfit_inside(value, one)) is not NO_MISFIT]
    # The parts of a string are strings, which says nothing.
    within = inside and not isinstance(value, (str, bytes))
    came = f"{described(value)} with {described(inside[0])} in it" if within else described(value)
    texts = name in _ADVICE and str in get_args(hint)
    wanted = "a mapping of model arguments, an iterable of them, or texts" if texts else words(hint)
    return error(f"{what}: {name} must be {wanted}, got {came}{_advice(function, name)}")


def _advice(function: Callable[..., Any], name: str) -> str:
    """What to do about wrong batches; the suites take those with annotations, which texts do not have."""
    package = function.__module__.rpartition(".")[0]
    return f": make them with {_MAKERS[package]}" if name == "batches" and package in _MAKERS else _ADVICE.get(name, "")
