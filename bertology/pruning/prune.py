"""Removing heads for good, and saving and loading the smaller model."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
from torch import nn

from ..anatomy.dissect import dissect
from ..anatomy.names import PRUNED_BY_LABEL_NAME, PRUNED_NAME, SWITCHED_NAME
from ..anatomy.sites import Anatomy, Head, Heads, head_at
from ..data.batches import config_of
from ..errors import DataError, PruningError, checked
from ..results.axes import axes
from ..results.result import Result
from .cut_weights import Cut, Tied, cut_heads, plan_cut


@dataclass(frozen=True, eq=False, repr=False)
class Pruned(Result):
    """What `prune_heads` removed."""

    heads: tuple[Head, ...]
    """The removed heads, in the order of layers and heads."""
    parameters_before: int
    """How many parameters the model had."""
    parameters_after: int
    """How many it has left."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..."""

    def __post_init__(self) -> None:
        # A saved result holds its heads as JSON.
        heads = tuple(Head(**head) if isinstance(head, dict) else head for head in self.heads)
        object.__setattr__(self, "heads", heads)

    def __str__(self) -> str:
        share = 1 - self.parameters_after / self.parameters_before
        return (
            f"{len(self.heads)} heads pruned, {self.parameters_before:,} parameters before, "
            f"{self.parameters_after:,} after ({share:.1%} fewer)"
        )


@checked
def prune_heads(model: nn.Module, heads: Heads) -> Pruned:
    """Remove heads from the model, in place: their query, key and value rows, their output projection columns.

    The model then computes what it computed with these heads gated to 0. The heads that stay keep their numbers.
    A layer that loses all its heads keeps one head of zeros, so that caches and kernels go on working.

    Args:
        model: BERT, RoBERTa, ELECTRA, ALBERT, DistilBERT, GPT, GPT-2, Llama and models built like them.
        heads: `{layer: [heads]}` or `(layer, head)` pairs, by the rows of results, or `Head`s. In ALBERT, whose layers
            share their heads, a head must be named in every layer that runs it. With grouped keys (Llama), whole groups
            go, or equally many heads of every group. The same holds where heads are divided evenly among groups of
            another kind (CodeGen).

    Raises `HeadError` for heads that are out of range or were pruned before, `PruningError` where heads cannot be cut
    out; the model is then left as it was.

        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> pruned = prune_heads(model, {0: [1, 2], 1: [3]})
        >>> pruned.parameters_before - pruned.parameters_after
        3144
    """
    anatomy = dissect(model)
    places = anatomy.resolve(heads)
    cuts = _plan(anatomy, places)
    before = _count(model)
    tied: Tied = {}
    for cut in cuts:
        cut_heads(cut, tied)
    if places:
        _write_down(model, anatomy.labels, places)
    names = tuple(head_at(anatomy.labels, row, head) for row, head in places)
    return Pruned(names, before, _count(model), anatomy.labels)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _plan(anatomy: Anatomy, places: list[tuple[int, int]]) -> list[Cut]:
    """Check everything before anything is changed."""
    if config_of(anatomy.model) is None:
        raise PruningError("the model has no config in which to write down what was pruned: pass a transformers model")
    gone: dict[int, set[int]] = {}
    for row, head in places:
        gone.setdefault(row, set()).add(head)
    cuts: dict[nn.Module, Cut] = {}
    for row, site in enumerate(anatomy.sites):
        mine = frozenset(gone.get(row, set()))
        if site.attention in cuts:
            if cuts[site.attention].gone != mine:
                shared = [s.label for s in anatomy.sites if s.attention is site.attention]
                raise PruningError(
                    f"layers {', '.join(shared)} share their heads: prune the same in all of them "
                    f"({shared[0]}: {sorted(cuts[site.attention].gone)}, {site.label}: {sorted(mine)})"
                )
        else:
            cuts[site.attention] = plan_cut(site, mine)
    return [cut for cut in cuts.values() if cut.gone]


def _write_down(model: nn.Module, labels: tuple[str, ...], places: list[tuple[int, int]]) -> None:
    """Record in the config what was pruned: by layer, or by its label where there are several stacks."""
    config = config_of(model)
    name = PRUNED_BY_LABEL_NAME if "." in labels[0] else PRUNED_NAME
    pruned = {_key(name, key): set(heads) for key, heads in (getattr(config, name, None) or {}).items()}
    for row, head in places:
        pruned.setdefault(_key(name, labels[row] if "." in labels[row] else row), set()).add(head)
    setattr(config, name, {key: sorted(heads) for key, heads in sorted(pruned.items())})
    # BigBird's heads were cut out of its attention for short texts, so it must be loaded with that attention.
    kinds = {getattr(module, SWITCHED_NAME) for module in model.modules() if hasattr(module, SWITCHED_NAME)}
    if getattr(config, SWITCHED_NAME, None) == "block_sparse" and kinds == {"original_full"}:
        setattr(config, SWITCHED_NAME, "original_full")


def _key(name: str, key: Any) -> Any:
    return int(key) if name == PRUNED_NAME else str(key)


def written_down(config: Any, labels: tuple[str, ...]) -> dict[int, list[int]]:
    """{row: heads}: what a config says was pruned."""
    rows = {int(row): list(heads) for row, heads in (getattr(config, PRUNED_NAME, None) or {}).items()}
    for label, heads in (getattr(config, PRUNED_BY_LABEL_NAME, None) or {}).items():
        rows[labels.index(label)] = list(heads)
    return rows


@checked
def save_pruned(model: nn.Module, path: str | Path) -> None:
    """Write a pruned model: safetensors, and a config whose `pruned_heads` says what is gone.

    `load_pruned` reads it back; for BERT, GPT-2 and DistilBERT so does transformers 4.57 itself.
    Raises `DataError` when the path is a file.
    """
    if Path(path).is_file():
        raise DataError(f"save_pruned writes a folder, but {path} is a file: name another path")
    model.save_pretrained(str(path))  # type: ignore[operator]


@checked
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

    # transformers looks up by the class's name and module how the weights of some models are renamed in files.
    Loading.__name__, Loading.__module__ = original.__name__, original.__module__
    options = {"dtype": dtype, "attn_implementation": attn_implementation}
    options = {name: option for name, option in options.items() if option is not None}
    model, told = Loading.from_pretrained(str(path), config=config, output_loading_info=True, **options)
    model.__class__ = original
    # Another class than the saved one may have a task head of its own, whose weights are new.
    if told["missing_keys"] and original.__name__ in (config.architectures or []):
        raise DataError(f"the files in {path} lack weights of {original.__name__}: {sorted(told['missing_keys'])[:3]}")
    return model


def _config(path: str | Path, model_class: Any) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(str(path))
    except ValueError:
        # Only its own class knows the config of a part of a model (Emu3's text model).
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
