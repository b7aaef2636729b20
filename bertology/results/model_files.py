"""Folders of models of transformers, written all or nothing, and a checksum of their weights.

The checksum is among the metadata of each safetensors file, so that transformers, which writes its own, leaves none of
other weights.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import writable
from .complete_file import complete_folder, locked
from .files import checksum, read_tensors, write_tensors

# The weights of a model: in one file, or in several with their index. A variant has a name of its own.
_WEIGHTS = re.compile(r"model\.safetensors(\.index\.json)?|model-\d{5}-of-\d{5}\.safetensors")
_CHECKSUM = "bertology_checksum"


def write_model(model: Any, path: str | Path) -> None:
    """Write a model of transformers to a folder, and move its files into place once all of them are written.

    An error while they are written, such as a full disk, leaves the model that was in the folder before; its weights
    may be those of this model, mapped into memory. A process that is killed during the move leaves a folder without
    config.json, which does not load. Raises `DataError` if the files cannot be written.
    """
    with writable(path), locked(path), complete_folder(Path(path), "config.json", _WEIGHTS) as part:
        model.save_pretrained(str(part))
        for file in part.glob("*.safetensors"):
            write_checksum(file)


def write_checksum(path: Path) -> None:
    """Write the checksum of a safetensors file into it."""
    about, tensors = read_tensors(path)
    write_tensors(path, tensors, about, _CHECKSUM, "")


def has_right_checksum(path: Path) -> bool:
    """Whether the weights of a file that can be read have the checksum that it tells; True where it tells none."""
    about, tensors = read_tensors(path)
    return _CHECKSUM not in about or about[_CHECKSUM] == checksum(tensors, "")
