"""Removing whole blocks for good."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from ..anatomy.blocks import BlockAnatomy, blocks_of
from ..anatomy.configs import nested_configs, sites_of_configs, sites_of_own_configs
from ..anatomy.dissect import dissect
from ..anatomy.names import BLOCK_COUNT_NAMES, BLOCK_NUMBER_NAMES, DECODER_PREFIX, FOR_EACH_BLOCK, RECORDS
from ..anatomy.sites import Site
from ..data.batches import Batch, BatchesOrTexts
from ..errors import HeadError, PruningError, checked, how_many, is_whole
from ..results.axes import axes
from ..results.fields import model_name
from ..results.result import Result
from ..tap import one_thread, uncached, undisturbed
from ..tap.skipped import skipping
from .parts_of_heads import check_in_memory
from .prune import count_parameters, fewer
from .uniform import arguments, built, check_same, numbers, ran


@dataclass(frozen=True, eq=False, repr=False)
class DroppedBlocks(Result):
    """What `drop_blocks` removed."""

    instead_of_plot: ClassVar[str] = "print it"

    blocks: tuple[str, ...]
    """The labels of the removed blocks."""
    parameters_before: int
    """How many parameters the model had."""
    parameters_after: int
    """How many it has left."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: the blocks of the model before."""

    def __str__(self) -> str:
        return fewer(f"{how_many(len(self.blocks), 'block')} dropped", self.parameters_before, self.parameters_after)


@checked
def drop_blocks(
    model: nn.Module, blocks: Iterable[int | str], *, inputs: BatchesOrTexts | None = None, tokenizer: Any = None
) -> DroppedBlocks:
    """Remove whole blocks from the model, in place: it then computes what it computed when they were skipped.

    The blocks that stay get new numbers, also for caches, and settings of the config with an entry for each block lose
    the entries of the others. `save_pretrained` writes an ordinary checkpoint, which `from_pretrained` loads without
    this library: before anything is changed, a model is built of the new config, and must compute what this one
    computes without these blocks.

    Args:
        model: a model of transformers.
        blocks: rows of results of blocks, such as `block_influence`'s, or their labels, `"3"` or `"decoder.3"`.
        inputs: model arguments, or texts (see `make_batches`), on which this is seen; by default a few tokens. For
            blocks of an image tower, pass a batch with images.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.

    Raises `HeadError` for blocks that are not there, and `PruningError` with the reason where blocks cannot be removed:
    those that share weights (ALBERT), the first block of T5, which holds the position bias, the last one of a stack, or
    those that do not run on the inputs; and where heads or neurons were pruned before: drop blocks first.

        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=3, num_attention_heads=4, hidden_size=32))
        >>> dropped = drop_blocks(model, [1])
        >>> dropped.blocks, model.config.num_hidden_layers
        (('1',), 2)
    """
    if not isinstance(model, transformers.PreTrainedModel):
        raise PruningError(
            f"blocks are dropped from a model of transformers, got {type(model).__name__}: pass the model inside it"
        )
    there, given = blocks_of(dissect(model)), arguments(model, inputs, tokenizer)
    rows = _resolved(there, blocks)
    if not rows:
        return DroppedBlocks((), count_parameters(model), count_parameters(model), there.labels)
    check_in_memory(model, "blocks cannot be dropped", PruningError)
    lists = _lists(model, there, rows)
    config = copy.deepcopy(model.config)
    stacks_of = {where: _gone_of(sites, rows) for where, sites in sites_of_configs(model, there.sites).items()}
    try:
        _shorten_nested(config, stacks_of)
    except Exception as error:  # those of the checks of configs
        raise PruningError(f"blocks cannot be dropped: {type(config).__name__} refuses it ({error})") from error
    wanted = _prove(model, there, rows, config, lists, given)
    total = count_parameters(model)
    with one_thread(model), ExitStack() as undo:
        _drop(model, there, rows, lists, stacks_of, undo)
        with undisturbed(model):
            check_same(wanted, model, given, "blocks cannot be dropped")
        undo.pop_all()
    names = tuple(there.labels[row] for row in rows)
    return DroppedBlocks(names, total, count_parameters(model), there.labels, model_name=model_name(model))


def _resolved(there: BlockAnatomy, blocks: Any) -> list[int]:
    rows = set()
    for one in blocks:
        row = there.labels.index(one) if one in there.labels else one
        if not is_whole(row) or not 0 <= int(row) < there.layers:
            raise HeadError(f"there is no block {one!r}: the blocks are {', '.join(there.labels)}")
        rows.add(int(row))
    return sorted(rows)


class _Gone(NamedTuple):
    """What a stack loses."""

    stack: str
    blocks: int
    """How many blocks it has."""
    gone: list[int]
    """The numbers of those that go."""
    alone: bool
    """Whether no other stack has its settings in the same config."""


def _gone_of(sites: list[Site], rows: list[int]) -> list[_Gone]:
    """What the stacks of these blocks, which share a config, lose."""
    stacks: dict[str, list[Site]] = {}
    for site in sites:
        stacks.setdefault(site.stack, []).append(site)
    found = []
    for stack, mine in stacks.items():
        gone = [site.layer for site in mine if site.row in rows]
        if len(gone) == len(mine):
            raise PruningError(f"all {how_many(len(mine), 'block')} of the {stack} cannot be dropped: leave one")
        found.append(_Gone(stack, len(mine), gone, len(stacks) == 1))
    return [one for one in found if one.gone]


def _shorten_nested(config: Any, stacks_of: dict[str, list[_Gone]]) -> None:
    """Shorten the configs at these paths in a config."""
    for where, stacks in stacks_of.items():
        _shorten(nested_configs(config)[where], stacks)


def _lists(model: nn.Module, there: BlockAnatomy, rows: list[int]) -> dict[nn.ModuleList, list[int]]:
    """{list of blocks: the places of those that go}."""
    for name in RECORDS:
        if getattr(model.config, name, None):
            raise PruningError("heads or neurons were pruned before, by the numbers of blocks: drop blocks first")
    lists: dict[nn.ModuleList, list[int]] = {}
    modules = dict(model.named_modules())
    for row in rows:
        site = there.sites[row]
        folder, _, number = site.path.rpartition(".")
        if sum(other.place is site.place for other in there.sites) > 1:
            raise PruningError(f"block {there.labels[row]} runs in several layers, which share its weights")
        if not isinstance(modules.get(folder), nn.ModuleList):
            raise PruningError(f"block {there.labels[row]} ({site.path}) is in no list of blocks")
        lists.setdefault(modules[folder], []).append(int(number))
    return lists


def _shorten(config: Any, stacks: list[_Gone]) -> None:
    """Write into a config how many blocks its stacks have left, and remove the entries of those that go."""
    decoder = DECODER_PREFIX.rstrip("_")
    # All are found before any is changed: two names may stand for one setting, two stacks may have equal numbers.
    changes: dict[str, Any] = {}
    for stack, before, gone, alone in stacks:
        for name in {*BLOCK_COUNT_NAMES, *filter(FOR_EACH_BLOCK.search, vars(config))}:
            if not alone and (decoder in name) != (decoder in stack):
                continue
            if isinstance(getattr(type(config), name, None), property):
                continue  # computed from others
            value = getattr(config, name, None)
            if name in BLOCK_COUNT_NAMES and value == before:
                changes[name] = before - len(gone)
            elif isinstance(value, (list, tuple)) and len(value) == before:
                changes[name] = type(value)(one for place, one in enumerate(value) if place not in gone)
    for name, value in changes.items():
        setattr(config, name, value)


def _prove(
    model: Any, there: BlockAnatomy, rows: list[int], config: Any, lists: dict[nn.ModuleList, list[int]], given: Batch
) -> list[Tensor]:
    """What the model computes without these blocks. Raises `PruningError` unless a model of the new config does too."""
    folders = {module: path for path, module in model.named_modules() if module in lists}
    weights: dict[str, Tensor] = {}
    for name, x in model.state_dict().items():
        for module, folder in folders.items():
            found = re.match(rf"{re.escape(folder)}\.(\d+)\.", name)
            if found:
                number = int(found[1])
                new = None if number in lists[module] else number - sum(gone < number for gone in lists[module])
                name = "" if new is None else f"{folder}.{new}.{name[found.end() :]}"
        if name:
            weights[name] = x
    smaller = built(model, config, weights, "blocks cannot be dropped")
    with undisturbed(model), uncached(model), torch.no_grad(), skipping(there, rows) as seen:
        wanted = numbers(ran(model, given, "the model without these blocks computes the same"))
    # What reads the states of a tower by number (LLaVA) reads others without one of its blocks.
    if unseen := [there.labels[row] for row in rows if row not in seen]:
        raise PruningError(
            f"block {unseen[0]} does not run on these inputs, so its removal cannot be checked: pass inputs= with a "
            "batch on which it runs, such as one with images"
        )
    check_same(wanted, smaller, given, "blocks cannot be dropped")
    return wanted


def _drop(
    model: Any, there: BlockAnatomy, rows: list[int], lists: dict[nn.ModuleList, list[int]],
    stacks_of: dict[str, list[_Gone]], undo: ExitStack,
) -> None:  # fmt: skip
    """Remove blocks from the model, and from its configs."""
    own = sites_of_own_configs(model, there.sites)
    for module, gone in lists.items():
        _cut(module, gone, undo)
    nested = list(nested_configs(model.config).values())
    for one in (*nested, *(one for one, _ in own)):
        undo.callback(vars(one).update, dict(vars(one)))
    _shorten_nested(model.config, stacks_of)
    for one, sites in own:
        # Once for each config: of two stacks, one may now have as many blocks as the other had.
        if all(one is not other for other in nested):
            _shorten(one, _gone_of(sites, rows))  # caches are made by it


def _cut(blocks: nn.ModuleList, gone: list[int], undo: ExitStack) -> None:
    """Remove blocks from a list, and write the new numbers of the others into their modules."""
    before = list(blocks)
    undo.callback(blocks.extend, before)
    undo.callback(blocks.__delitem__, slice(None))
    for place in sorted(gone, reverse=True):
        del blocks[place]
    left = [number for number in range(len(before)) if number not in gone]
    for new, old in enumerate(left):
        for module in before[old].modules():
            for name in BLOCK_NUMBER_NAMES:
                if getattr(module, name, None) == old:
                    undo.callback(setattr, module, name, old)
                    setattr(module, name, new)
