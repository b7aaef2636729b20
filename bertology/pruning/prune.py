"""Removing heads for good, and saving the smaller model."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import torch
import transformers
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..anatomy.dissect import dissect
from ..anatomy.names import KEYS_FOR_ALL_HEADS, PRUNED_BY_LABEL_NAME, PRUNED_NAME, SWITCHED_NAME
from ..anatomy.sites import Anatomy, Head, Heads, head_at
from ..data.models import config_of
from ..errors import DataError, PruningError, checked, how_many
from ..results.axes import axes
from ..results.fields import model_name
from ..results.model_files import write_model
from ..results.result import Result
from ..tap import one_thread
from .cut_weights import Cut, Tied, cut_heads, plan_cut
from .parts_of_heads import check_in_memory
from .uniform import uniform_places


@dataclass(frozen=True, eq=False, repr=False)
class Pruned(Result):
    """What `prune_heads` removed."""

    instead_of_plot: ClassVar[str] = "print it, or draw a PruningCurve of the model before"

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
        return fewer(f"{how_many(len(self.heads), 'head')} pruned", self.parameters_before, self.parameters_after)


@checked
def prune_heads(model: nn.Module, heads: Heads, *, uniform: bool = False, scores: Tensor | None = None) -> Pruned:
    """Remove heads from the model, in place: their query, key and value rows, their output projection columns.

    The model then computes what it computed with these heads gated to 0. The heads that stay keep their numbers.
    A layer that loses all its heads keeps one head of zeros, so that caches and kernels go on working.

    Args:
        model: BERT, RoBERTa, ELECTRA, ALBERT, DistilBERT, GPT, GPT-2, Llama and models built like them.
        heads: `{layer: [heads]}`, names as results print them, `["L1H0", "L5H3"]`, `(layer, head)` pairs, by the rows
            of results, or `Head`s, such as `result.bottom(5)` returns. In ALBERT, whose layers share their heads, a
            head must be named in every layer that runs it. With grouped keys (Llama), whole groups go, or equally many
            heads of every group. The same holds where heads are divided evenly among groups of another kind (CodeGen).

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
    places = uniform_places(anatomy, places, scores) if uniform else places
    check_in_memory(model, "heads cannot be cut out", PruningError, loading=True)
    _check_wrappers(model)
    cuts = _plan(anatomy, places)
    written = by_model(anatomy, places, dissect)
    before = count_parameters(model)
    tied: Tied = {}
    with one_thread(model), torch.inference_mode(False):  # weights of inference mode cannot be trained
        for cut in cuts:
            cut_heads(cut, tied)
        for part, labels, some in written:
            _write_down(part, labels, some)
    names = tuple(head_at(anatomy.labels, row, head) for row, head in places)
    return Pruned(names, before, count_parameters(model), anatomy.labels, model_name=model_name(model))


def count_parameters(model: nn.Module) -> int:
    """How many parameters a model has; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def fewer(what: str, before: int, after: int) -> str:
    """The sentence of a result that removed parts of a model."""
    return f"{what}, {how_many(before, 'parameter', ',')} before, {after:,} after ({1 - after / before:.1%} fewer)"


def _plan(anatomy: Anatomy, places: list[tuple[int, int]]) -> list[Cut]:
    """Check everything before anything is changed."""
    check_config(anatomy.model)
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


def _check_wrappers(model: nn.Module) -> None:
    """Raise `PruningError` for a wrapper that would not run with fewer heads."""
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            raise PruningError(
                "heads cannot be cut out: DistributedDataParallel would not send the gradients of the new, smaller "
                "weights around. Prune the model inside, model.module, in every process, and wrap it again"
            )
        if type(module).__name__ in KEYS_FOR_ALL_HEADS:
            raise PruningError(
                f"heads cannot be cut out: the {type(module).__name__} around the model has keys and values for all of "
                "its heads (prefix tuning). Prune the model before the prefix is learned, or silence heads with gated()"
            )


def check_config(model: nn.Module) -> None:
    """Raise `PruningError` for a model without a config."""
    if config_of(model) is None:
        raise PruningError("the model has no config in which to write down what was pruned: pass a transformers model")


Written = tuple[nn.Module, tuple[str, ...], list[tuple[int, int]]]
"""A model with a config, the labels of its layers, and the heads or neurons that it loses."""


def by_model(anatomy: Anatomy, places: list[tuple[int, int]], find: Callable[[nn.Module], Anatomy]) -> list[Written]:
    """The models of transformers that lose heads, or neurons, as `find` finds them.

    Each is saved and loaded by itself, also from inside a wrapper.
    """
    parts = models_inside(anatomy.model) or [anatomy.model]
    if len(parts) == 1 and parts[0] is anatomy.model:
        return [(anatomy.model, anatomy.labels, places)] if places else []
    written, left = [], set(places)
    losing = {anatomy.sites[row].attention for row, _ in places}
    for part in parts:
        if losing.isdisjoint(part.modules()):
            continue
        own = find(part)
        rows = {(site.attention, site.call): site.row for site in own.sites}
        mine = [(row, head) for row, head in places if _site_key(anatomy, row) in rows]
        if mine:
            left -= set(mine)
            written.append((part, own.labels, [(rows[_site_key(anatomy, row)], head) for row, head in mine]))
    if left:
        row, head = min(left)
        raise PruningError(
            f"{anatomy.sites[row].unit} {head} of layer {anatomy.labels[row]} is in no model of transformers, so it "
            "cannot be written down what was pruned: silence it with gated()"
        )
    configs = [id(config_of(part)) for part, _, _ in written]
    if len(set(configs)) < len(configs) or (len(written) == 1 and _shares_config(parts, written[0][0])):
        raise PruningError(
            "several models share one config, in which only one set of what was pruned can be written down: give each "
            "its own, model.config = copy.deepcopy(model.config)"
        )
    return written


def _site_key(anatomy: Anatomy, row: int) -> tuple[nn.Module, int]:
    return anatomy.sites[row].attention, anatomy.sites[row].call


def _shares_config(parts: list[nn.Module], pruned: nn.Module) -> bool:
    return any(part is not pruned and config_of(part) is config_of(pruned) for part in parts)


def models_inside(model: nn.Module) -> list[nn.Module]:
    """The models of transformers in a model, without those that are parts of others; the model itself if it is one."""
    if isinstance(model, transformers.PreTrainedModel):
        return [model]
    found = [part for child in model.children() for part in models_inside(child)]
    return list(dict.fromkeys(found))


def _write_down(model: nn.Module, labels: tuple[str, ...], places: list[tuple[int, int]]) -> None:
    """Record in the config what was pruned: by layer, or by its label where there are several stacks."""
    config = config_of(model)
    name = PRUNED_BY_LABEL_NAME if "." in labels[0] else PRUNED_NAME
    keys = [_key(name, label if "." in label else row) for row, label in enumerate(labels)]
    record(config, name, [(keys[row], head) for row, head in places], partial(_key, name))
    # BigBird's heads were cut out of its attention for short texts, so it must be loaded with that attention.
    kinds = {getattr(module, SWITCHED_NAME) for module in model.modules() if hasattr(module, SWITCHED_NAME)}
    if getattr(config, SWITCHED_NAME, None) == "block_sparse" and kinds == {"original_full"}:
        setattr(config, SWITCHED_NAME, "original_full")


def record(config: Any, name: str, pruned: list[tuple[Any, int]], key_of: Callable[[Any], Any]) -> None:
    """Add (layer, unit) pairs to what a config says was pruned: `{layer: [units]}`."""
    known = {key_of(key): set(units) for key, units in (getattr(config, name, None) or {}).items()}
    for key, unit in pruned:
        known.setdefault(key, set()).add(unit)
    setattr(config, name, {key: sorted(units) for key, units in sorted(known.items())})


def _key(name: str, key: Any) -> Any:
    return int(key) if name == PRUNED_NAME else str(key)


@checked
def save_pruned(model: nn.Module, path: str | Path) -> None:
    """Write a pruned model: safetensors, and a config whose `pruned_heads` says what is gone.

    `load_pruned` reads it back; for BERT, GPT-2 and DistilBERT so does transformers 4.57 itself, if each layer kept a
    head. Of a model that is only wrapped to run on several devices, or compiled, the model inside is written.
    Raises `DataError` when the path is a file, for what is no model of transformers, with the names of those in it, and
    for weights that are not in memory.
    """
    if not isinstance(path, (str, Path)):
        raise DataError(f"save_pruned writes a folder: wanted its path, got {path!r}")
    if os.path.isfile(path):
        raise DataError(f"save_pruned writes a folder, but {path} is a file: name another path")
    inner = _unwrapped(model)
    if not isinstance(inner, transformers.PreTrainedModel):
        raise DataError(_not_saved(model))
    check_in_memory(inner, "the model cannot be saved", DataError)
    write_model(inner, path)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside wrappers that only change how it runs."""
    while isinstance(model, (nn.DataParallel, DistributedDataParallel)) or hasattr(model, "_orig_mod"):
        model = cast(nn.Module, getattr(model, "_orig_mod", None) or model.module)
    return model


def _not_saved(model: nn.Module) -> str:
    names = {module: name for name, module in model.named_modules()}
    inside = [f"{names[part]} ({type(part).__name__})" for part in models_inside(model)]
    told = f"save_pruned writes a model of transformers, got {type(model).__name__}"
    if not inside:
        return f"{told}, in which there is none: save its state_dict(), and prune it again when it is loaded"
    return (
        f"{told}: save each model in it by itself, {', '.join(inside)}, load it with load_pruned, and put it in its "
        "place in the wrapper"
    )
