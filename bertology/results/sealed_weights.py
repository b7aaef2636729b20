"""A checksum in safetensors files of weights that transformers has written: a changed bit is seen when they are read.

It is among the file's own metadata, so that transformers, which writes its own, leaves none of other weights.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO

_KEY, _METADATA, _BLOCK = "bertology_checksum", "__metadata__", 2**24


def seal(path: Path) -> None:
    """Write the checksum of a safetensors file into it."""
    part = path.with_name(f"{path.name}.sealed")
    with open(path, "rb") as file, open(part, "wb") as new:
        header = _header(file)
        metadata = header.setdefault(_METADATA, {})
        metadata.pop(_KEY, None)  # the checksum is not of itself
        metadata[_KEY] = _checksum(header, file)
        told = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        told += b" " * (-len(told) % 8)  # tensors begin at multiples of 8 bytes
        new.write(len(told).to_bytes(8, "little") + told)
        _header(file)
        while block := file.read(_BLOCK):
            new.write(block)
    os.replace(part, path)


def is_intact(path: Path) -> bool:
    """Whether a safetensors file that can be read is as it was sealed; a file without a checksum is taken as it is."""
    with open(path, "rb") as file:
        header = _header(file)
        told = header.get(_METADATA, {}).pop(_KEY, None)
        return told is None or told == _checksum(header, file)


def _header(file: BinaryIO) -> dict[str, Any]:
    """What a file says of its tensors; their bytes follow."""
    file.seek(0)
    header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header


def _checksum(header: dict[str, Any], rest: BinaryIO) -> str:
    found = zlib.crc32(json.dumps(header, sort_keys=True).encode())
    while block := rest.read(_BLOCK):
        found = zlib.crc32(block, found)
    return f"{found:08x}"
