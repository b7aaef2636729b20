"""The route to attention maps through transformers' attention interface.

The model is switched to a function of ours, which calls the model's own eager attention on blocks of query rows:
soft-capping, sinks and position biases stay the model's own, and no map is ever whole in memory. Where statistics of
plain attention are read, and no map, `statistics_route` gives them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy.forward_source import eager_function
from ..anatomy.names import CAUSAL_NAME, FUSED_NAME, OUTPUT_MAPS_ARGUMENT
from ..anatomy.sites import Anatomy, Site
from ..data.models import arguments_of
from .attention_implementation import added_mask, set_implementation
from .listed import modules_of
from .map_reader import Reading
from .plain_attention import CACHE_BYTES, PROOF_ROWS, attend_plainly, is_plain, repeated, scale_of
from .plain_inputs import Plain, causal_mask
from .private_api import ATTENTION_SETTING, Hook, set_hooks
from .recompute import recomputing
from .restore import first_value
from .statistics_route import attend_without_map, may_go_without_map

# Our function, for models that give causal attention a mask, and for those that need not.
NAME, UNMASKED_NAME = "bertology", "bertology_unmasked"
BLOCK_BYTES = 64 * 2**20

_readings: dict[nn.Module, list[Reading]] = {}
# Whether attention modules that are read were found to be plain.
_plain: dict[nn.Module, bool] = {}


@dataclass
class _Pieces:
    """How far a pass of an attention module is that calls its attention function for one piece of tokens after another.

    An image tower with the patches of all images in one row [token, width] does so for each image, or window.
    """

    tokens: int
    done: int = 0
    readings: list[tuple[Reading, Site]] = field(default_factory=list)


# How many edits want the attention of a module in one piece.
_whole: dict[nn.Module, int] = {}
# The passes of the attention modules that are read, of those that get their tokens in one row.
_pieces: dict[nn.Module, _Pieces] = {}


def _start(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Note how many tokens the attention module gets in one row."""
    x = args[0] if args else None
    if not isinstance(x, Tensor):
        x = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
    if x is not None and x.dim() == 2:
        _pieces[module] = _Pieces(x.shape[0])
    else:
        _pieces.pop(module, None)


def in_one_piece(modules: list[nn.Module], undo: ExitStack) -> None:
    """Compute the attention of these modules in one piece, whoever reads it, while `undo` is open."""
    for module in modules:
        _whole[module] = _whole.get(module, 0) + 1
        undo.callback(_end_piece, module)


def _end_piece(module: nn.Module) -> None:
    _whole[module] -= 1
    if not _whole[module]:
        del _whole[module]


def switch(anatomy: Anatomy, reading: Reading, undo: ExitStack) -> None:
    """Give the maps of these sites to the reader, while `undo` is open."""
    register()
    read: list[nn.Module] = []
    undo.callback(_forget, read, reading)
    for attention in reading.calls.modules:
        _readings.setdefault(attention, []).append(reading)
        read.append(attention)
    set_hooks([Hook(read, _start, before=True, with_kwargs=True)], undo)
    name = UNMASKED_NAME if _is_fused(anatomy) else NAME
    set_implementation(anatomy, reading.calls.modules, name, undo)


def _is_fused(anatomy: Anatomy) -> bool:
    """Whether all parts of a model can use torch's fused attention, which takes a flag in place of a causal mask."""
    parts = modules_of(anatomy.model).with_config  # as all models of transformers, whose classes say it
    said = [getattr(part, FUSED_NAME) for part in parts if hasattr(type(part), FUSED_NAME)]
    return bool(said) and all(said)


def _forget(attentions: list[nn.Module], reading: Reading) -> None:
    for attention in attentions:
        _readings[attention].remove(reading)
        if not _readings[attention]:
            del _readings[attention]
            _plain.pop(attention, None)
            _pieces.pop(attention, None)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    unmasked: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: the model's own eager one, block by block, with readers.

    With `unmasked`, attention without a mask is causal where torch's fused attention would get `is_causal=True`.
    """
    # A module whose heads were all pruned is not read, but shares its config with others.
    found, pieces = _readings.get(module, ()), _pieces.get(module)
    if pieces is None or not pieces.done:
        again = recomputing()
        readings = [(one, one.calls.next(module) if again else one.calls.counted(module)) for one in found]
    else:
        readings = pieces.readings
    if attention_mask is not None and first_value(module.config, ATTENTION_SETTING) != "eager":
        # A mask that the user has made for other functions, which take what may be seen.
        attention_mask = added_mask(attention_mask, query.dtype)
    causal = unmasked and attention_mask is None and query.shape[2] > 1 and _is_causal(module, kwargs)
    output = attend_in_blocks(module, query, key, value, attention_mask, readings, kwargs, pieces, causal=causal)
    if pieces is not None:
        pieces.readings = readings
        pieces.done += query.shape[2]
    return output, None


def _attend_unmasked(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """`_attend` for models that leave the mask out where attention is causal and nothing is padded."""
    return _attend(*args, unmasked=True, **kwargs)


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """As transformers' function for fused attention has it."""
    given = kwargs.get(CAUSAL_NAME)
    return bool(getattr(module, CAUSAL_NAME, True) if given is None else given)


def attend_in_blocks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    readings: list[tuple[Reading, Site]],
    kwargs: dict[str, Any],
    pieces: _Pieces | None = None,
    *,
    causal: bool = False,
) -> Tensor:
    """[batch, query, head, dim]: the output of a module's own eager function, block by block, whose maps are read.

    With `causal`, there is no mask, and a query sees no later key.
    """
    eager, asks = _eager_of(module, readings)
    if asks:  # CLIP of transformers 4 keeps its map otherwise
        kwargs = kwargs | {OUTPUT_MAPS_ARGUMENT: True}
    size, in_pieces = _rows(module, query, key, readings, kwargs), pieces is not None
    # Most maps of short texts: to look at the ways for others takes longer than their block itself needs around it.
    if size == query.shape[2] and not may_go_without_map(query, key):
        rows = slice(0, size)
        mask = _masked(attention_mask, query, key, rows, causal, readings)
        output, weights = eager(module, query, key, value, mask, **kwargs)
        _give(readings, weights, rows, value, pieces)
        return output
    needs_map = in_pieces
    for reading, _ in readings:  # to create a generator in each layer would take longer
        needs_map = needs_map or reading.needs_map
    bare = not needs_map and may_go_without_map(query, key) and not _has_own_rows(module, kwargs)
    # One head at a time is faster on a CPU, where a head's block stays in the cache and calls of kernels cost little.
    single = query.dtype in (torch.float32, torch.float64)  # entropies of half precision are taken in float32
    plain = bare or (size < query.shape[2] and query.device.type == "cpu" and single)
    plain = plain and not torch.is_grad_enabled()
    plain = plain and _is_proved_plain(eager, module, query, key, value, attention_mask, kwargs, causal)
    if plain and bare:
        given = Plain(query, key, value, attention_mask, causal, scale_of(query, kwargs))
        found = attend_without_map(given, readings, partial(_weigh, eager, module, kwargs))
        if found is not None:
            return found
        plain = query.device.type == "cpu"
    if plain:
        size = min(size, _fitting(query[:1, :1], key, CACHE_BYTES))
        key, value = (repeated(x, query.shape[1]) for x in (key, value))
    outputs = []
    for start in range(0, query.shape[2], size):
        rows = slice(start, min(start + size, query.shape[2]))
        part = query if size == query.shape[2] else query[:, :, rows]  # a slice takes some microseconds
        mask = _masked(attention_mask, query, key, rows, causal, readings)
        if plain:
            output, weights, entropies = attend_plainly(part, key, value, mask, kwargs)
        else:
            (output, weights), entropies = eager(module, part, key, value, mask, **kwargs), None
        _give(readings, weights, rows, value, pieces, entropies)
        outputs.append(output)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _give(
    readings: list[tuple[Reading, Site]], weights: Tensor, rows: slice, value: Tensor, pieces: _Pieces | None,
    entropies: Tensor | None = None,
) -> None:  # fmt: skip
    """Give the weights of a block of queries to their readers."""
    for reading, site in readings:
        found = weights if reading.arriving is None else reading.weighed(site, weights, rows, None if pieces else value)
        reading.give(site, *((found, rows) if pieces is None else _placed(pieces, found, rows)), entropies)


def _eager_of(module: nn.Module, readings: list[tuple[Reading, Site]]) -> tuple[Callable[..., Any], bool]:
    """A module's own eager function, and whether it is asked for its map, which a reading looks up once for a class."""
    known = readings[0][0].eager if readings else {}
    kind = type(module)
    if kind not in known:
        found = eager_function(module)
        assert found is not None
        known[kind] = found, OUTPUT_MAPS_ARGUMENT in arguments_of(found)
    return known[kind]


def _is_proved_plain(
    eager: Callable[..., Any], module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    kwargs: dict[str, Any], causal: bool,
) -> bool:  # fmt: skip
    """Whether a module's own function is plain attention: it is proved once, on the last queries."""
    if module not in _plain:
        rows = slice(max(0, query.shape[2] - PROOF_ROWS), query.shape[2])
        last = _masked(mask, query, key, rows, causal)
        _plain[module] = is_plain(eager, module, query, key, value, last, kwargs)
    return _plain[module]


def _weigh(eager: Callable[..., Any], module: nn.Module, kwargs: dict[str, Any], plain: Plain) -> Tensor:
    """[batch, head, query, key]: the weights of the model's own function."""
    weights: Tensor = eager(module, plain.query, plain.key, plain.value, plain.mask, **kwargs)[1]
    return weights


def _placed(pieces: _Pieces, weights: Tensor, rows: slice) -> tuple[Tensor, slice]:
    """The weights of a piece of the tokens among those of all, which its queries do not look at."""
    if weights.shape[-1] == pieces.tokens:
        return weights, rows
    start = pieces.done
    whole = F.pad(weights, (start, pieces.tokens - start - weights.shape[-1]))
    return whole, slice(rows.start + start, rows.stop + start)


def _masked(
    mask: Tensor | None, query: Tensor, key: Tensor, rows: slice, causal: bool,
    readings: list[tuple[Reading, Site]] | None = None,
) -> Tensor | None:  # fmt: skip
    """The mask of these query rows; of all queries at once it is kept for the next layers."""
    if causal:
        kept = readings[0][0].masks if readings and rows.stop - rows.start == query.shape[2] else {}
        which = (rows.stop, key.shape[2], query.dtype, query.device, torch.is_inference_mode_enabled())
        if which not in kept:
            kept[which] = causal_mask(rows, slice(0, key.shape[2]), query)[None, None]
        return kept[which]
    if mask is None or mask.shape[-2] != query.shape[2] or rows == slice(0, query.shape[2]):
        return mask
    return mask[..., rows, :]


def _rows(
    module: nn.Module, query: Tensor, key: Tensor, readings: list[tuple[Reading, Site]], kwargs: dict[str, Any]
) -> int:
    """The number of query rows in a block: as asked for, and at most as many as fit into the memory for blocks."""
    # An extra tensor like T5's position bias has a query axis of its own, which only the model's function knows; and
    # GPT-2 of transformers 4 cuts its causal mask, a buffer, by the numbers of queries and keys.
    queries = query.shape[2]
    most = min(queries, _fitting(query, key, BLOCK_BYTES))
    for reading, _ in readings:
        most = min(most, reading.rows or most)
    if most == queries or _has_own_rows(module, kwargs) or any(reading.whole for reading, _ in readings):
        return queries
    return most


def _has_own_rows(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether only the model's function knows what belongs to a query row, or an edit wants its softmax whole."""
    if module in _whole:
        return True
    own_rows = any(isinstance(extra, Tensor) and extra.dim() > 2 for extra in kwargs.values())
    return own_rows or isinstance(getattr(module, "bias", None), Tensor)


def _fitting(query: Tensor, key: Tensor, memory: int) -> int:
    """How many query rows of a map fit into `memory` bytes, at least one."""
    row = query.shape[0] * query.shape[1] * key.shape[2] * query.element_size()
    return max(1, memory // max(1, row))


def _unmasked(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask for eager functions, left out where fused attention would need none."""
    from transformers.masking_utils import sdpa_mask

    dtype = kwargs.get("dtype", torch.float32)
    made: Tensor | None = sdpa_mask(*args, **{name: x for name, x in kwargs.items() if name != "dtype"})
    return None if made is None else added_mask(made, dtype)


def _finite(eager_mask: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """The eager mask, with a lowest value that stays finite when a float64 model takes its softmax in float32 (Llama).

    Else a padded query that sees no key at all would be NaN, and through the next layer so would everything.
    """

    def mask(*args: Any, **kwargs: Any) -> Tensor | None:
        made = eager_mask(*args, **kwargs)
        if made is None or made.dtype != torch.float64:
            return made
        return made.clamp_min(torch.finfo(torch.float32).min)

    return mask


@cache
def register() -> None:
    """Register our functions with transformers, once: where they are first needed, since its modules load slowly."""
    from transformers.masking_utils import AttentionMaskInterface, eager_mask
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    # Without a mask function of the same name transformers would drop the padding mask.
    AttentionMaskInterface.register(NAME, _finite(eager_mask))
    AttentionInterface.register(UNMASKED_NAME, _attend_unmasked)
    AttentionMaskInterface.register(UNMASKED_NAME, _unmasked)
