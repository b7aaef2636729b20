"""Loading models that were pruned and saved: what the folder says is checked before anything is built."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from ..anatomy.dissect import dissect
from ..anatomy.mlps import dissect_mlps
from ..anatomy.names import PRUNED_BY_LABEL_NAME, PRUNED_NAME, PRUNED_NEURONS_NAME, RECORDS
from ..errors import BertologyError, DataError, beginning_of, checked, shown
from ..results.model_files import has_right_checksum
from .prune import prune_heads
from .prune_neurons import prune_neurons

SAVE_AGAIN = "Save it again with save_pruned"


@checked
def load_pruned(
    path: str | Path,
    *,
    model_class: Any = None,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> Any:
    """Load a model that was pruned and saved, by `save_pruned` or by transformers 4's own `prune_heads`.

    Only classes of transformers are built. Code that a folder brings with it is never run.

    Args:
        path: the folder.
        model_class: the transformers class to load; by default the one that was saved.
        dtype: the type of the weights; by default that in the config.
        attn_implementation: "sdpa", "eager" ...; by default transformers' choice.

    Raises `DataError` when the folder holds no transformers model, or one that is damaged, that lacks weights, or whose
    weights are not those of its config, `HeadError` when the config prunes heads that the model does not have.
    """
    said = _said(path)
    original = _model_class(model_class, said, path)
    config = _config(path, original)
    # transformers 4 would prune by itself, but not every family, and not as a whole layer is pruned here.
    for name in RECORDS:
        if hasattr(config, name):
            setattr(config, name, {})

    class Loading(original):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            prune_heads(self, written_down(said, dissect(self).labels))
            if said.get(PRUNED_NEURONS_NAME):
                prune_neurons(self, neurons_written_down(said, dissect_mlps(self).labels))

    # transformers looks up by the class's name and module how the weights of some models are renamed in files.
    Loading.__name__, Loading.__module__ = original.__name__, original.__module__
    options: dict[str, Any] = {"dtype": "auto" if dtype is None else dtype}  # transformers 4 would take float32
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    try:
        _check_sizes(path, Loading, config)
        with torch.inference_mode(False):  # weights of inference mode cannot be trained
            model, told = Loading.from_pretrained(
                str(path), config=config, output_loading_info=True, trust_remote_code=False, **options
            )
    except (BertologyError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # those of transformers, safetensors and torch
        own = str(getattr(config, "dtype", None)).removeprefix("torch.")
        otherwise = SAVE_AGAIN
        if dtype is None and own not in ("None", "float32"):
            # The code of some models builds them in float32 alone (Nezha of transformers 4).
            otherwise = f"It is in {own}: pass dtype=torch.float32, or save it again with save_pruned"
        why = f"it cannot be loaded as {original.__name__} ({beginning_of(error)})"
        raise _unusable(path, why, otherwise) from error
    model.__class__ = original
    # Another class than the saved one may have a task head of its own, whose weights are new.
    if told["missing_keys"] and original.__name__ in (config.architectures or []):
        raise DataError(f"the files in {path} lack weights of {original.__name__}: {sorted(told['missing_keys'])[:3]}")
    if told["unexpected_keys"] and original.__name__ in (config.architectures or []):
        more = sorted(told["unexpected_keys"])[:3]
        raise _unusable(path, f"its files hold weights that {original.__name__} by its config does not have: {more}")
    return model


def _said(path: str | Path) -> dict[str, Any]:
    """The config as it is in the folder, its pruned heads checked."""
    file = Path(path) / "config.json" if isinstance(path, (str, Path)) else None
    if file is None or not os.path.isfile(file):
        raise DataError(f"no model at {path}: wanted a folder with a config.json, as save_pruned writes it")
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unusable(path, f"its config.json cannot be read ({error})") from error
    except ValueError as error:
        raise _unusable(path, f"its config.json is no JSON ({error})") from error
    if not isinstance(said, dict):
        raise _unusable(path, "its config.json holds no settings")
    for name in RECORDS:
        for layer, heads in _layers(said, name, path).items():
            numbers = isinstance(heads, list) and all(type(head) is int and head >= 0 for head in heads)
            if not numbers or len(set(heads)) < len(heads) or (name == PRUNED_NAME and not str(layer).isdecimal()):
                raise _unusable(path, f"its {name} must be {_form(name)}, got {layer!r}: {shown(heads)}")
    return said


def _layers(said: Mapping[str, Any], name: str, path: str | Path) -> dict[str, Any]:
    layers = said.get(name) or {}
    if not isinstance(layers, dict):
        raise _unusable(path, f"its {name} must be {_form(name)}, got {shown(layers)}")
    return layers


def _form(name: str) -> str:
    return "{layer: [neurons]}" if name == PRUNED_NEURONS_NAME else "{layer: [heads]}"


def written_down(said: Mapping[str, Any], labels: tuple[str, ...]) -> dict[int, list[int]]:
    """{row: heads}: what a config says was pruned."""
    rows = {int(row): list(heads) for row, heads in (said.get(PRUNED_NAME) or {}).items()}
    for label, heads in (said.get(PRUNED_BY_LABEL_NAME) or {}).items():
        if label not in labels:
            raise DataError(f"the config says that heads of {label!r} were pruned: the layers are {', '.join(labels)}")
        rows[labels.index(label)] = list(heads)
    return rows


def neurons_written_down(said: Mapping[str, Any], labels: tuple[str, ...]) -> dict[int, list[int]]:
    """{row: neurons}: what a config says was pruned of the MLPs with these labels."""
    rows: dict[int, list[int]] = {}
    for label, neurons in (said.get(PRUNED_NEURONS_NAME) or {}).items():
        if label not in labels:
            told = ", ".join(labels)
            raise DataError(f"the config says that neurons of layer {label!r} were pruned: those with MLPs are {told}")
        rows[labels.index(label)] = list(neurons)
    return rows


def _model_class(given: Any, said: Mapping[str, Any], path: str | Path) -> Any:
    """The class to load. Raises `DataError` unless it is a model class of transformers, or one built on it."""
    if given is not None:
        if not _is_model(given):
            raise DataError(f"model_class must be a model class of transformers such as BertModel, got {given!r}")
        return given
    names = said.get("architectures") or []
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    found = getattr(transformers, name, None) if name else None
    if not _is_model(found):
        raise DataError(f"the config in {path} names no model class of transformers ({names}): pass model_class=")
    return found


def _is_model(found: Any) -> bool:
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return is_model and getattr(found, "config_class", None) is not None  # not the base of all models


def _config(path: str | Path, original: Any) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    except Exception:  # those of transformers, and of the checks of its configs
        # Only its own class knows the config of a part of a model (Emu3's text model).
        try:
            return original.config_class.from_pretrained(str(path))
        except Exception as error:
            raise _unusable(
                path, f"its config.json is no config of {original.__name__} ({beginning_of(error)})"
            ) from error


def _check_sizes(path: str | Path, kind: Any, config: Any) -> None:
    """Raise `DataError` for weights of other sizes than the config says, before any memory is taken for them."""
    there = _sizes_in(path)
    if getattr(config, "quantization_config", None) is not None:
        return  # packed weights have sizes of their own
    try:
        with torch.device("meta"):
            wanted = {name: list(x.shape) for name, x in kind(copy.deepcopy(config)).state_dict().items()}
    except NotImplementedError:  # some models compute with their weights when they are built: Apertus up to 4.57
        return
    for name in sorted(wanted.keys() & there.keys()):
        if wanted[name] != there[name]:
            raise _unusable(
                path,
                f"{name} is {there[name]} in the file, and {wanted[name]} by the config, whose {PRUNED_NAME} say what "
                "was removed",
            )


def _sizes_in(path: str | Path) -> dict[str, list[int]]:
    """{name: shape} of the weights in the safetensors files of a folder. Raises `DataError` for a damaged one."""
    sizes: dict[str, list[int]] = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="pt") as weights:
                sizes |= {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors raises errors of its own
            raise _unusable(path, f"{file.name} cannot be read ({error})") from error
        if not has_right_checksum(file):
            raise _unusable(path, f"{file.name} is damaged: its weights are not those that were saved")
    return sizes


def _unusable(path: str | Path, why: str, otherwise: str = SAVE_AGAIN) -> DataError:
    return DataError(f"the model in {path} cannot be used: {why}. {otherwise}")
