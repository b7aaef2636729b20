"""Sets of heads or neurons of which every layer loses the same number, and ordinary checkpoints of such models."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ..anatomy.configs import nested_configs, sites_of_configs
from ..anatomy.dissect import dissect
from ..anatomy.forward_source import is_transformers_4
from ..anatomy.mlp_names import NEURON_COUNT_NAMES
from ..anatomy.mlps import MlpAnatomy, dissect_mlps
from ..anatomy.names import (
    COUNT_NAMES,
    DECODER_PREFIX,
    ENCODER_PREFIX,
    HEAD_WIDTH_NAME,
    KEY_COUNT_NAMES,
    PRUNED_NAME,
    RECORDS,
)
from ..anatomy.sites import Anatomy, Site
from ..data.batches import Batch, BatchesOrTexts, device_of, model_arguments, on_device
from ..data.make_batches import as_batch
from ..data.token_classes import check_is_tokenizer
from ..errors import BertologyError, DataError, PruningError, ShapeError, UnknownAnatomy, checked, how_many
from ..results.model_files import write_model
from ..tap import uncached, undisturbed
from .parts_of_heads import check_in_memory, count_key_heads


def uniform_places(anatomy: Anatomy, places: list[tuple[int, int]], scores: Tensor | None) -> list[tuple[int, int]]:
    """The same number of units from each layer, at most `len(places)` in all, with the smallest sum of scores.

    Without scores, units that are among the places have 0, and others 1: as many of the named ones as possible go.
    Where query heads share keys, whole groups go, or equally many of each group, the same in all layers.

    Raises `PruningError` where layers have different numbers of units, or fewer places are given than there are layers;
    `ShapeError` for scores of another shape.
    """
    left = {len(site.kept) for site in anatomy.sites}
    unit = anatomy.sites[0].unit
    if len(left) > 1:
        raise PruningError(f"uniform=True is for layers with equal numbers of {unit}s, got {sorted(left)}")
    if scores is None:
        scores = torch.ones(anatomy.layers, anatomy.heads, dtype=torch.float64)
        for row, number in places:
            scores[row, number] = 0
    if list(scores.shape) != [anatomy.layers, anatomy.heads] or scores[anatomy.present].isnan().any():
        wanted = [anatomy.layers, anatomy.heads]
        raise ShapeError(f"scores must be [layer, {unit}] = {wanted} without NaN, got {list(scores.shape)}")
    for each in range(len(places) // anatomy.layers, 0, -1):
        sets = [found for whole in (True, False) if (found := _of_each(anatomy, scores, each, whole=whole))]
        if sets:
            return min(sets, key=lambda some: sum(float(scores[row, number]) for row, number in some))
    raise PruningError(
        f"no {unit} can go from each of {how_many(anatomy.layers, 'layer')}: name at least "
        f"{how_many(anatomy.layers, unit)}, or as many as make up whole groups that share a key"
    )


def _of_each(anatomy: Anatomy, scores: Tensor, each: int, *, whole: bool) -> list[tuple[int, int]]:
    """`each` units of each layer: whole groups of heads that share a key, or equally many of each group."""
    chosen: list[tuple[int, int]] = []
    for site in anatomy.sites:
        groups = count_key_heads(site) if site.unit == "head" else len(site.kept)
        size = len(site.kept) // groups
        mine = scores[site.row, list(site.kept)].double().reshape(groups, size)
        if whole and each % size == 0 and each // size < groups:
            rows = mine.sum(1).argsort(stable=True)[: each // size]
            gone = [int(row) * size + i for row in rows for i in range(size)]
        elif not whole and size > 1 and each % groups == 0 and each // groups < size:
            columns = mine.argsort(dim=1, stable=True)[:, : each // groups]
            gone = [row * size + int(i) for row, some in enumerate(columns) for i in some]
        else:
            return []
        chosen += [(site.row, site.kept[place]) for place in sorted(gone)]
    return chosen


@checked
def save_plain(
    model: nn.Module, path: str | Path, *, inputs: BatchesOrTexts | None = None, tokenizer: Any = None
) -> None:
    """Write a pruned model as an ordinary checkpoint, which `from_pretrained` loads without this library.

    All layers must have equal numbers of heads, and of neurons, as `prune_heads(..., uniform=True)` and
    `prune_neurons(..., uniform=True)` leave them, and the config must have settings for these numbers. For neurons
    nearly all have one (not GPT, BLOOM and MPT, whose MLPs have a fixed multiple of the hidden size). For heads those
    have one whose config knows the width of a head (`head_dim`: Llama, Mistral, Qwen3, Gemma); in BERT and GPT-2 it is
    the hidden size divided by the number of heads. What is written is compared with the model before: its weights, and
    what it computes.

    Args:
        model: a model of transformers.
        path: the folder.
        inputs: model arguments, or texts (see `make_batches`), on which both must compute the same; by default a few
            tokens.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.

    Raises `PruningError` with the reason where no ordinary checkpoint can hold the model (`save_pruned` can), and
    `DataError` for anything but a model of transformers.

        >>> import tempfile
        >>> from transformers import AutoModel, BertConfig, BertModel
        >>> from bertology import prune_neurons
        >>> model = BertModel(BertConfig(num_hidden_layers=2, hidden_size=24, intermediate_size=64))
        >>> _ = prune_neurons(model, {0: range(10), 1: range(20, 30)})
        >>> folder = tempfile.mkdtemp()
        >>> save_plain(model, folder)
        >>> AutoModel.from_pretrained(folder).config.intermediate_size
        54
    """
    if not isinstance(model, transformers.PreTrainedModel):
        raise DataError(f"save_plain writes a model of transformers, got {type(model).__name__}")
    if os.path.isfile(path):
        raise DataError(f"save_plain writes a folder, but {path} is a file: name another path")
    check_in_memory(model, "the model cannot be saved", DataError)
    with undisturbed(model), uncached(model):
        given = arguments(model, inputs, tokenizer)
        before = numbers(ran(model, given, "the checkpoint computes the same"))
    plain = _plain(model, before, given)
    write_model(plain, path)


def _plain(model: Any, before: list[Tensor], given: Batch) -> Any:
    """The model built of a config that says its numbers, where it computes what it did."""
    anatomy, mlps = dissect(model), _mlps(model)
    refused: list[PruningError] = []
    # A head's width is written where the numbers alone do not do: some configs have such a name for another width. Many
    # models read it from a config that does not have it by default.
    for wide in (False, True):
        try:
            config = _told(model, anatomy, mlps, wide=wide)
            plain = built(model, config, model.state_dict(), CANNOT)
            check_same(before, plain, given, CANNOT)
            _check_heads(anatomy, dissect(plain))
            return plain
        except PruningError as error:
            refused.append(error)
            if _are_whole(anatomy.sites):
                break
    raise refused[0]


def _told(model: Any, anatomy: Anatomy, mlps: MlpAnatomy | None, *, wide: bool) -> Any:
    """A copy of a model's config that says how many heads and neurons it has left."""
    config = _unrecorded(model.config)
    configs = nested_configs(config)
    try:
        for where, sites in sites_of_configs(model, mlps.sites if mlps else ()).items():
            _tell_neurons(configs[where], sites)
        for where, sites in sites_of_configs(model, anatomy.sites).items():
            _tell_heads(configs[where], sites, wide=wide)
    except PruningError:
        raise
    except Exception as error:  # those of the checks of configs
        raise _cannot(f"{type(config).__name__} refuses these numbers ({error})") from error
    return config


def _unrecorded(config: Any) -> Any:
    """A copy of a config without the record of what was pruned."""
    config = copy.deepcopy(config)
    for name in RECORDS:
        if hasattr(config, name):
            # transformers 4 has the first of them in each config.
            setattr(config, name, {}) if is_transformers_4() and name == PRUNED_NAME else delattr(config, name)
    return config


def _check_heads(before: Anatomy, after: Anatomy) -> None:
    """Raise `PruningError` unless the heads are those that were left, also in stacks that no input has reached."""
    for site, other in zip(before.sites, after.sites, strict=True):
        there, here = (len(site.kept), site.dim), (len(other.kept), other.dim)
        if there != here:
            raise _cannot(
                f"layer {site.label} has {how_many(there[0], 'head')} of {there[1]}, by its config {here[0]} of "
                f"{here[1]}"
            )


def _mlps(model: nn.Module) -> MlpAnatomy | None:
    try:
        return dissect_mlps(model)
    except UnknownAnatomy:
        return None  # no neurons can have been pruned


CANNOT = "no ordinary checkpoint can hold this model, save_pruned and load_pruned can"


def _cannot(why: str) -> PruningError:
    return PruningError(f"{CANNOT}: {why}")


def _one_number(numbers: dict[str, int], unit: str) -> int:
    """The number that all layers have, given by label; or the error that names two which differ."""
    first, count = next(iter(numbers.items()))
    for label, other in numbers.items():
        if other != count:
            raise _cannot(
                f"layer {first} has {how_many(count, unit)} and layer {label} has {other}, but its config has one "
                "number for all; prune equally many of each, with uniform=True"
            )
    if not count:
        raise _cannot(f"its layers have lost all {unit}s")
    return count


def _are_whole(sites: Sequence[Site]) -> bool:
    return all(len(site.kept) == site.width for site in sites)


def _tell_heads(config: Any, sites: list[Site], *, wide: bool) -> None:
    """Write into a config how many heads and keys each layer has, and with `wide` how wide a head is."""
    if _are_whole(sites):
        return
    heads = _one_number({site.label: len(site.kept) for site in sites}, "head")
    keys = _one_number({site.label: count_key_heads(site) for site in sites}, "key head")
    widths = {site.dim for site in sites}
    if wide and len(widths) == 1:
        _set(config, HEAD_WIDTH_NAME, widths.pop())
    for names, number in ((COUNT_NAMES, heads), (KEY_COUNT_NAMES, keys)):
        for name in names:
            if hasattr(config, name):
                _set(config, name, number)


def _set(config: Any, name: str, value: Any) -> None:
    """Write a setting; one that a config computes from others stays."""
    if not isinstance(getattr(type(config), name, None), property):
        setattr(config, name, value)


def _tell_neurons(config: Any, sites: list[Site]) -> None:
    """Write into a config how many neurons each MLP has: of an encoder and a decoder separately where it has both."""
    if _are_whole(sites):
        return
    names = [name for name in NEURON_COUNT_NAMES if hasattr(config, name)]
    if not names:
        raise _cannot(f"{type(config).__name__} has no setting for the number of neurons")
    for times in (1, 2):  # some configs count the neurons and their gates
        told = [_tell_neurons_by(config, name, sites, times) for name in names]
        if any(told):
            break


def _tell_neurons_by(config: Any, name: str, sites: list[Site], times: int) -> bool:
    """Write a setting that counts each neuron so many times; False where it counts something else."""
    prefix = next((p for p in (ENCODER_PREFIX, DECODER_PREFIX) if name.startswith(p)), "")
    mine, said = [site for site in sites if site.label.startswith(prefix.rstrip("_"))], getattr(config, name)
    if isinstance(said, (list, tuple)):
        if list(said) != [times * site.width for site in mine]:
            return False
        setattr(config, name, type(said)(times * len(site.kept) for site in mine))
        return True
    mine = [site for site in mine if said in (None, times * site.width)]
    if mine:
        setattr(config, name, times * _one_number({site.label: len(site.kept) for site in mine}, "neuron"))
    return bool(mine)


@torch.random.fork_rng(devices=[])  # the weights that a model begins with are drawn
def built(model: Any, config: Any, weights: dict[str, Tensor], cannot: str) -> Any:
    """A model of a config with the weights of another. Raises `PruningError` where they do not fit."""
    there = {name: list(x.shape) for name, x in weights.items()}
    try:
        type(config).from_dict(config.to_dict())  # as it will be read from a file
        with torch.device("meta"):
            wanted = {name: list(x.shape) for name, x in type(model)(copy.deepcopy(config)).state_dict().items()}
    except NotImplementedError:  # it computes with its weights when it is built
        wanted = {name: list(x.shape) for name, x in type(model)(copy.deepcopy(config)).state_dict().items()}
    except Exception as error:  # those of the checks of configs
        raise PruningError(f"{cannot}: {type(config).__name__} refuses these numbers ({error})") from error
    for name in [*there, *wanted]:
        if there.get(name) != wanted.get(name):
            raise PruningError(
                f"{cannot}: {name} is {there.get(name, 'not there')}, and by its config it would be "
                f"{wanted.get(name, 'not there')}, since {type(config).__name__} has no setting for what was pruned"
            )
    plain = type(model)(config).to(device=model.device, dtype=model.dtype).eval()
    plain.load_state_dict(weights)
    plain.generation_config = getattr(model, "generation_config", None)
    return plain


@torch.no_grad()
def check_same(before: list[Tensor], plain: Any, given: Batch, cannot: str) -> None:
    """Raise `PruningError` unless a model, with its cache if it has one, computes the same numbers."""
    try:
        after = numbers(plain(**given))
    except Exception as error:  # a hybrid model without its last attention layer has no cache that works
        raise PruningError(f"{cannot}: the model would not run ({type(error).__name__}: {error})") from error
    apart = max(_apart(x.double(), y.double()) for x, y in zip(before, after, strict=True))
    size = max(float(x.double().nan_to_num().abs().max()) for x in before)
    # Many models compute norms and softmaxes in float32, also where all weights are float64.
    eps = max(torch.finfo(plain.dtype).eps, torch.finfo(torch.float32).eps)
    if not apart <= max(1.0, size) * 64 * eps:
        raise PruningError(f"{cannot}: loaded by its config it would compute something else ({apart:.2g} apart)")


def _apart(x: Tensor, y: Tensor) -> float:
    """The largest difference. T5 of transformers 4 gives NaN at tokens that attend to none, in both models."""
    if x.shape != y.shape or x.isnan().all() or not torch.equal(x.isnan(), y.isnan()):
        return float("inf")
    return float((x - y).nan_to_num().abs().max())


def arguments(model: Any, inputs: BatchesOrTexts | None, tokenizer: Any) -> dict[str, Any]:
    """Model arguments on the device of a model, by default a few tokens of transformers' own."""
    if tokenizer is not None:
        check_is_tokenizer(tokenizer)
    given = model.dummy_inputs if inputs is None else as_batch(model, inputs, tokenizer)
    return model_arguments(on_device(given, device_of(model)))


@torch.no_grad()
def ran(model: Any, given: Batch, seen: str) -> Any:
    """The outputs of a model, by which `seen` is checked. Raises `DataError` if the model does not run."""
    try:
        return model(**given)
    except BertologyError:
        raise
    except Exception as error:  # the model's own code may raise anything
        raise DataError(
            f"could not check that {seen}, because the model does not run on these inputs ({type(error).__name__}: "
            f"{error}): pass inputs=, a batch that the model accepts"
        ) from error


def numbers(outputs: Any) -> list[Tensor]:
    """The floating tensors among the outputs of a model, which may be in a tuple (`return_dict=False`)."""
    each = outputs.values() if isinstance(outputs, Mapping) else outputs
    return [x for x in each if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]
