"""How is a pruned model kept, and loaded again?"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from .anatomy.dissect import dissect
from .anatomy.names import PRUNED_BY_LABEL_NAME, PRUNED_NAME
from .errors import DataError
from .pruning import prune_heads, written_down


def save_pruned(model: nn.Module, path: str | Path) -> None:
    """Write a pruned model: safetensors, and a config whose `pruned_heads` says what is gone.

    `load_pruned` reads it back; for BERT, GPT-2 and DistilBERT so does transformers 4.57 itself.
    Raises `DataError` when the path is a file.
    """
    if Path(path).is_file():
        raise DataError(f"save_pruned writes a folder, but {path} is a file: name another path")
    model.save_pretrained(str(path))  # type: ignore[operator]


def load_pruned(
    path: str | Path,
    *,
    model_class: Any = None,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> Any:
    """Load a model that was pruned and saved, by `save_pruned` or by transformers 4's own `prune_heads`.

    Args:
        path: the folder.
        model_class: the transformers class to load; by default the one that was saved.
        dtype: the type of the weights; by default that in the config.
        attn_implementation: "sdpa", "eager" ...; by default transformers' choice.

    Raises `DataError` when the folder holds no transformers model, or one that lacks weights.
    """
    if not (Path(path) / "config.json").is_file():
        raise DataError(f"no model at {path}: wanted a folder with a config.json, as save_pruned writes it")
    config = _config(path, model_class)
    said = copy.deepcopy(config)
    # transformers 4 would prune by itself, but not every family, and not as a whole layer is pruned here.
    for name in (PRUNED_NAME, PRUNED_BY_LABEL_NAME):
        if hasattr(config, name):
            setattr(config, name, {})
    original = model_class or _saved_class(config, path)

    class Loading(original):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            prune_heads(self, written_down(said, dissect(self).labels))

    # By the name and the place of the class transformers finds how the weights of some models are renamed in files.
    Loading.__name__, Loading.__module__ = original.__name__, original.__module__
    options = {"dtype": dtype, "attn_implementation": attn_implementation}
    options = {name: option for name, option in options.items() if option is not None}
    model, told = Loading.from_pretrained(str(path), config=config, output_loading_info=True, **options)
    model.__class__ = original
    # Another class than the saved one may have a head of its own, whose weights are new.
    if told["missing_keys"] and original.__name__ in (config.architectures or []):
        raise DataError(f"the files in {path} lack weights of {original.__name__}: {sorted(told['missing_keys'])[:3]}")
    return model


def _config(path: str | Path, model_class: Any) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(str(path))
    except ValueError:
        # The config of a part of a model (Emu3's text model) is known to its own class alone.
        names = json.loads((Path(path) / "config.json").read_text()).get("architectures") or [""]
        own = getattr(model_class or getattr(transformers, names[0], None), "config_class", None)
        if own is None:
            raise
        return own.from_pretrained(str(path))


def _saved_class(config: Any, path: str | Path) -> Any:
    names = config.architectures or []
    if not names or not hasattr(transformers, names[0]):
        raise DataError(f"the config in {path} names no class of transformers ({names}): pass model_class=")
    return getattr(transformers, names[0])
