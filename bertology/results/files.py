"""Files of results: one safetensors file each, tensors as tensors, the rest as JSON in the header; no pickle."""

from __future__ import annotations

import json
import os
import types
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import DataError, writable
from .axes import axes_of
from .complete_file import complete_file


def write_file(path: str | Path, kind: str, values: Mapping[str, Any], stack: str = "") -> None:
    """Write the fields of a result, and the name of the model's only stack, if it is known.

    Raises `DataError` for a path that cannot be a file.
    """
    check_path(path)
    check_suffix(path, (".safetensors",), "a result is saved as a safetensors file", OTHER_FORMATS)
    if os.path.isdir(path) or not os.path.isdir(Path(path).absolute().parent):
        raise DataError(f"a result is saved to a file in a folder that exists, got {path}")
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, dict) and value:
            tensors |= {f"{name}/{key}": x for key, x in value.items()}
        else:
            rest[name] = value
    about = {"result": kind, "fields": json.dumps(rest, default=vars)} | ({"stack": stack} if stack else {})
    write_tensors(path, tensors, about, "checksum", _checked_text(about))


def check_path(path: Any) -> None:
    """Raise `DataError` for something else than a path, of which `str` would make a file name."""
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise DataError(f"path must be the name of a file, got {path!r}")


_TABLE = "call to_frame().to_csv(path), which writes a table"
_PICTURE = "call plot(path=path), which draws a picture"
OTHER_FORMATS = {
    **dict.fromkeys((".csv", ".tsv", ".xlsx", ".parquet", ".feather"), _TABLE),
    **dict.fromkeys((".json", ".jsonl", ".yaml"), "call json.dumps(result.to_dict()), which gives plain values"),
    **dict.fromkeys((".npy", ".npz"), "call numpy.save(path, numpy.asarray(result)), which writes an array"),
    **dict.fromkeys((".png", ".svg", ".pdf", ".jpg", ".jpeg"), _PICTURE),
    **dict.fromkeys((".html", ".md", ".txt"), "call print(result), which shows it as text"),
    **dict.fromkeys((".pt", ".pth", ".bin", ".pkl", ".pickle", ".h5", ".safetensors", ".gz", ".zip"), ""),
}
"""The endings of files of known formats, and how else a result becomes one. Other names may end as they like."""


def check_suffix(path: str | Path, own: Sequence[str], what: str, advice: Mapping[str, str] | None = None) -> None:
    """Raise `DataError` for a name that ends as a file of another format does."""
    ending = Path(path).suffix.lower()
    if ending in OTHER_FORMATS and ending not in own:
        told = f", or {advice[ending]}" if advice and advice[ending] else ""
        raise DataError(f"{what}, got the name {str(path)!r}: let it end in {own[0]}{told}")


def read_file(path: str | Path) -> tuple[dict[str, str], dict[str, Any]]:
    """What a file says that it is, and the fields of a result.

    Raises `DataError` for a file that is missing, damaged or of something else.
    """
    check_path(path)
    if not os.path.isfile(path):
        raise DataError(f"no result at {path}: wanted a file that Result.save wrote")
    try:
        about, tensors = read_tensors(path)
    except Exception as error:  # safetensors raises errors of its own
        raise DataError(f"{path} is no file of a result, or is damaged ({error})") from error
    if "result" not in about:
        return about, {}
    try:
        rest = json.loads(about["fields"])
    except (KeyError, ValueError) as error:
        raise damaged(path, "it does not say what the fields are") from error
    if not isinstance(rest, dict):
        raise damaged(path, "its fields have no names")
    found = checksum(tensors, _checked_text(about))
    if about.get("checksum", found) != found:  # earlier versions wrote none
        raise damaged(path, "it does not hold what was written")
    return about, {**_joined(tensors), **{name: _tuples(value) for name, value in rest.items()}}


def read_tensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a safetensors file; errors are those of safetensors."""
    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, str], check: str, text: str
) -> None:
    """Write tensors and metadata to a safetensors file, all or nothing; `check` names the checksum of both there.

    Of the metadata, `text` is what counts. Raises `DataError` where the file cannot be written.
    """
    # `contiguous` keeps odd strides of axes with one element.
    kept = {name: x.detach().cpu().clone(memory_format=torch.contiguous_format) for name, x in tensors.items()}
    with writable(path), complete_file(Path(path)) as part:
        save_file(kept, str(part), metadata={**about, check: checksum(kept, text)})


def damaged(path: str | Path, why: str) -> DataError:
    """An error that names the file, and says what to do."""
    return DataError(f"the result in {path} is damaged: {why}. Measure again, and save it again")


def _checked_text(about: Mapping[str, str]) -> str:
    return f"{about['result']} {about['fields']}"


def checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """A checksum of tensors on the CPU and of a text: bits change on disks, and in what is edited by hand."""
    found = zlib.crc32(text.encode())
    for name in sorted(tensors):
        x = tensors[name]
        found = zlib.crc32(f"{name} {list(x.shape)} {x.dtype}".encode(), found)
        found = zlib.crc32(bytes_of(x).data, found)
    return f"{found:08x}"


def bytes_of(x: Tensor) -> Any:
    """[byte], a NumPy array: the bytes of a tensor, wherever it is."""
    # One element may be contiguous with any stride, and is then no row of bytes.
    return x.detach().cpu().contiguous().reshape(-1).as_strided((x.numel(),), (1,)).view(torch.uint8).numpy()


def _joined(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors of a dictionary have its name and theirs: `masks/encoder`."""
    values: dict[str, Any] = {}
    for name, x in tensors.items():
        field, _, key = name.partition("/")
        if key:
            values.setdefault(field, {})[key] = x
        else:
            values[field] = x
    return values


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def check_fields(kind: type, values: Mapping[str, Any]) -> None:
    """Raise `DataError` for fields that a class of results does not have, or whose types or sizes do not agree."""
    known = {f.name: f for f in fields(kind)}
    if strange := sorted(values.keys() - known.keys()):
        raise DataError(f"{kind.__name__} has no field {strange[0]!r}")
    optional = {name for name, f in known.items() if f.default is not MISSING or f.default_factory is not MISSING}
    if missing := sorted(known.keys() - values.keys() - optional):
        raise DataError(f"the field {missing[0]!r} is missing")
    hints = get_type_hints(kind, include_extras=True)
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise DataError(f"the field {name!r} is {_told(value)}, wanted {_hint(hints[name])}")
    sizes: dict[str, tuple[int, str]] = {}
    for axis, size, name in _sizes(kind, values):
        there = sizes.setdefault(axis, (size, name))
        if there[0] != size:
            raise DataError(f"{there[1]!r} has {there[0]} on the axis {axis}, {name!r} has {size}")


def _sizes(kind: type, values: Mapping[str, Any]) -> Iterator[tuple[str, int, str]]:
    """Each axis, its size and the field; the tensors of a dictionary each have sizes of their own."""
    for name, declared in axes_of(kind).items():
        value = values.get(name)
        if isinstance(value, Tensor):
            if not value.numel():
                continue  # what was not kept, such as the logits of a model that is scored by its loss
            if value.dim() != len(declared.names):
                raise DataError(f"the field {name!r} has the shape {list(value.shape)}, wanted {declared}")
            for axis, size in zip(declared.names, value.shape, strict=True):
                yield axis, size, name
        elif isinstance(value, tuple):
            yield declared.names[0], len(value), name
        elif isinstance(value, dict):
            for key, x in value.items():
                if x.dim() != len(declared.names):
                    raise DataError(f"{name!r} of {key} has the shape {list(x.shape)}, wanted {declared}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that was read is of a field's type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(value, args[0])
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        each = [args[0]] * len(value) if isinstance(value, tuple) and args[1:] == (...,) else args
        return isinstance(value, tuple) and len(value) == len(each) and all(map(_fits, value, each))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(x, args[1]) for x in value.values())
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if isinstance(hint, type) and origin is None:
        return isinstance(value, hint) or (is_dataclass(hint) and isinstance(value, dict))
    return True


def _told(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _hint(hint: Any) -> str:
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return plain.__name__ if isinstance(plain, type) and not get_args(plain) else str(plain)
