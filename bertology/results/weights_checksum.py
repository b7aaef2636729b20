"""A checksum in safetensors files of weights that transformers has written: a changed bit is seen when they are read.

It is among the file's own metadata, so that transformers, which writes its own, leaves none of other weights.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

_KEY = "bertology_checksum"


def write_checksum(path: Path) -> None:
    """Write the checksum of a safetensors file into it."""
    part = path.with_name(f"{path.name}.part")
    save_file(load_file(path), part, metadata=_metadata(path) | {_KEY: _checksum(path)})
    os.replace(part, path)


def has_right_checksum(path: Path) -> bool:
    """Whether the weights of a file that can be read have the checksum that it tells; True where it tells none."""
    told = _metadata(path).get(_KEY)
    return told is None or told == _checksum(path)


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _checksum(path: Path) -> str:
    """Of the names, types, shapes and bytes of all tensors."""
    found = 0
    with safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            x = file.get_tensor(name)
            found = zlib.crc32(f"{name} {x.dtype} {list(x.shape)}".encode(), found)
            found = zlib.crc32(x.reshape(-1).view(torch.uint8).numpy(), found)
    return f"{found:08x}"
