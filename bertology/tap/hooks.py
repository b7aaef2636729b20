"""Hooks that read or edit a model while it runs: heads, neurons and MLPs, and where all others are opened."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.mlps import dissect_mlps
from ..anatomy.sites import Anatomy, Site
from ..errors import BertologyError, checked
from .arriving import Arriving
from .attention_maps import tap_maps
from .block_hooks import read_states, tap_blocks, tap_last
from .block_sums import follow_sums
from .calls import Calls
from .edits import noted, same_shape
from .function_mode import of_reader, watch_products
from .head_layout import flattened, join_heads, laid_back, split_heads
from .map_reader import FewWeights, Wants
from .mixing import Parting
from .private_api import Hook, has_pre_hooks, set_hooks
from .recompute import Edit, keep_for_recomputation, reader_of_first_run, recomputing, watch_recomputation
from .restore import run_uncompiled
from .row_statistics import Wanted
from .threads import claim
from .torch_attention import hold_off_fast_path, open_torch_attention

PLACES = ("inputs", "block", "last", "heads", "neurons", "mlp", "attention", "norms", "mixing", "entropy", "statistics")
EDITED = ("block", "heads", "neurons", "mlp")


@contextmanager
@checked
def tap(
    anatomy: Anatomy | nn.Module,
    place: str,
    *,
    read: Callable[..., Any] | None = None,
    edit: Callable[..., Tensor] | None = None,
    rows: int | None = None,
    whole: bool = False,
    once: bool | None = None,
    wants: Wants | None = None,
) -> Iterator[None]:
    """Call `read` or `edit` at one place of the model while the `with` lasts.

    `anatomy` is what `dissect(model)` returned; a model is dissected there and then.

    ============ =================  ========================================================================
    place        called with        x
    ============ =================  ========================================================================
    "inputs"     (kwargs)           no x: the arguments of the model's call, by name
    "block"      (stack, layer, x)  [batch, token, hidden]: what a block returns; layer 0: input of block 1
    "last"       (stack, x)         [batch, token, hidden]: what the stack returns, its final norm included
    "heads"      (site, x)          [batch, token, head, dim]: the heads before the output projection
    "neurons"    (mlp, x)           [batch, token, neuron]: the neurons before the down projection
    "mlp"        (mlp, x)           [batch, token, hidden]: what the down projection returns
    "attention"  (site, x, rows)    [batch, head, query, key]: the weights of the query rows `rows`, a slice
    "norms"      (site, x, rows)    [batch, head, query, key]: |α f(x)|, the norms of what arrives from each key
    "mixing"     (site, x)          `Mixed`: the parts of the attention block's output, and their sum
    "entropy"    (site, x, rows)    [batch, head, query], nats: the entropies of those weights
    "statistics" (site, x, rows)    `RowStatistics` of those weights: what `wants` asks for
    ============ =================  ========================================================================

    What `read` returns is dropped. `edit`, at "block", "heads", "neurons" and "mlp", returns a tensor of the same
    shape that takes the place of x. `rows` is how many query rows an attention reader is given at a time; by default,
    as many as fit into 64 MiB; `whole=True` gives it every map in one piece, in the model's graph, for readers that
    want gradients through it. Attention maps are read under any attention implementation: for as long as the `with`
    lasts, a model on transformers' attention interface computes attention with its own eager function, and in any
    other the softmax of its attention modules is watched. A custom attention function is kept: the weights that
    it returns are read; if it returns none, it must agree with the model's eager function.

    Statistics of a map, and entropies, are computed without it where that is faster: on long texts, if the attention is
    plain. `wants(site, shape)` says which, as `Wanted`, for a map of this shape; by default entropy, largest weight and
    mean distance.

    A model that runs a stack several times in one forward pass (an encoder that two texts share) is edited in every
    run. `once=True` refuses that, as readers do by default; with `once=False` a reader is given every run in turn.

    Parts that run again in the backward pass (gradient checkpointing) run under the same edits again, also when
    `backward` is called after the `with`; they are not read again. A compiled model runs uncompiled meanwhile. All
    hooks are removed at the end, also when the model raises.
    """
    if place not in PLACES:
        raise BertologyError(f"no place is called {place!r}: wanted one of {', '.join(PLACES)}")
    if (read is None) == (edit is None):
        raise BertologyError("a tap either reads or edits: pass one of read= and edit=")
    if edit is not None and place not in EDITED:
        raise BertologyError(f"{place!r} can be read but not edited; edit one of {', '.join(map(repr, EDITED))}")
    check_rows(rows)
    anatomy = dissect(anatomy) if isinstance(anatomy, nn.Module) else anatomy
    once = edit is None if once is None else once
    own = (getattr(edit, "__module__", None) or "").partition(".")[0] == __name__.partition(".")[0]
    note = nullcontext() if edit is None or own else noted(anatomy, ("edit", place, _name_of(edit)))
    read = None if read is None else reader_of_first_run(read)
    edit = None if edit is None else of_reader(edit)
    with note, ExitStack() as undo:
        _begin(anatomy, undo)
        if place == "mixing":
            assert read is not None
            parting = Parting(keep_maps=whole)
            _tap_maps(anatomy, undo, _nothing, "norms", rows, whole, once, _all_statistics, parting)
            follow_sums(anatomy, parting, read, once, undo)
        elif place in ("attention", "norms", "entropy", "statistics"):
            assert read is not None
            arriving = Arriving() if place == "norms" else None
            wants = of_reader(wants or _all_statistics)
            _tap_maps(anatomy, undo, read, place, rows, whole, once, wants, arriving)
            if arriving is not None:
                _tap_heads(anatomy, undo, reader_of_first_run(arriving.check), None, once)
        else:
            _TAPS[place](anatomy, undo, read, edit, once)
        yield


def _begin(anatomy: Anatomy, undo: ExitStack) -> None:
    """Get a model ready for its hooks, while `undo` is open."""
    claim(anatomy.model, undo)
    watch_recomputation(undo)
    run_uncompiled(undo)
    hold_off_fast_path([site.attention for site in anatomy.sites], undo)


@contextmanager
def tap_states(anatomy: Anatomy, read: Callable[..., Any], read_last: Callable[..., Any]) -> Iterator[None]:
    """`tap` at "block", in every run of a stack, and at "last"."""
    with ExitStack() as undo:
        _begin(anatomy, undo)
        read_states(anatomy, undo, reader_of_first_run(read), reader_of_first_run(read_last))
        yield


@contextmanager
def tap_entropies(anatomy: Anatomy, read: Callable[..., Any], *, rows: int | None, whole: bool) -> Iterator[None]:
    """`tap` at "entropy", for one pass; those of small maps are read later, some only at the end of the `with`."""
    read = reader_of_first_run(read)
    few = FewWeights(read)
    with ExitStack() as undo:
        _begin(anatomy, undo)
        _tap_maps(anatomy, undo, read, "entropy", rows, whole, True, _all_statistics, None, few)
        yield
    few.give()


def _name_of(edit: Callable[..., Any]) -> str:
    """The name of an edit: what it computes may depend on values that change while it is open."""
    return f"{getattr(edit, '__module__', None)}.{getattr(edit, '__qualname__', type(edit).__qualname__)}"


def _nothing(site: Site, x: Tensor, rows: slice) -> None:
    """Read nothing of maps: their products with values are noted where they are weighed."""


def _all_statistics(site: Site, shape: tuple[int, int, int, int]) -> Wanted:
    return Wanted(entropy=True, largest=True, distance=True)


def is_tapped(anatomy: Anatomy) -> bool:
    """Whether heads or blocks of the model are read or edited now, by a tap or by other hooks."""
    blocks = [block for stack in anatomy.stacks for block in stack.blocks]
    return any(map(has_pre_hooks, [*(site.place for site in anatomy.sites), *blocks]))


def check_rows(rows: int | None) -> None:
    """Raise `BertologyError` for a number of query rows that cannot be read at a time."""
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise BertologyError(f"rows= is how many query rows come at a time, a whole number from 1 up; got {rows!r}")


def _tap_maps(anatomy: Anatomy, undo: ExitStack, *how: Any) -> None:
    """Read maps while `undo` is open; a part that runs again uses the same attention function, but is not read."""
    undo.enter_context(tap_maps(anatomy, *how))
    again = Edit(anatomy.model, lambda later: later.enter_context(tap_maps(anatomy, *how)), lambda: nullcontext)
    keep_for_recomputation(again, undo)


def _tap_inputs(anatomy: Anatomy, undo: ExitStack, read: Any, edit: Any, once: bool) -> None:
    names = list(inspect.signature(anatomy.model.forward).parameters)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read(dict(zip(names, args, strict=False)) | kwargs)

    set_hooks([Hook([anatomy.model], before, before=True, with_kwargs=True)], undo)


def _tap_heads(anatomy: Anatomy, undo: ExitStack, read: Any, edit: Any, once: bool) -> None:
    crossing = [site.place for site in anatomy.sites if site.crosses]
    places = [(site.place, site) for site in anatomy.sites for _ in range(site.runs)]
    calls = Calls(places, may_rest=crossing, once=once)
    if edit is None:
        anatomy.check_readable()

    def apply(site: Site, whole: Tensor) -> Tensor | None:
        if not site.kept:
            return None
        x, rest = split_heads(site, whole)
        if edit is None:
            read(site, x)
            return None
        return join_heads(site, same_shape(edit(site, x), x, site, f"{site.unit}s of "), rest, whole)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if recomputing() and not calls.count:
            return None
        args, kwargs = (args, kwargs) if args else (tuple(kwargs.values()), {})
        new = apply(calls.counted(module), args[0])
        return None if new is None else ((new, *args[1:]), kwargs)

    def of_product(site: Site, whole: Tensor) -> Tensor | None:
        return apply(site, whole) if calls.count else None

    bare = {site.place for site in anatomy.sites if site.weight}

    def place(undo: ExitStack) -> None:
        called = [module for module in calls.modules if module not in bare] if bare else calls.modules
        set_hooks([*calls.hooks(anatomy), Hook(called, before, before=True, with_kwargs=True)], undo)
        if bare:
            watch_products([module for module in calls.modules if module in bare], calls.next, of_product, undo)
        open_torch_attention([site.attention for site in anatomy.sites], undo)

    place(undo)
    if edit is not None:
        calls.edit_again(place, undo)


def _tap_neurons(anatomy: Anatomy, undo: ExitStack, read: Any, edit: Any, once: bool) -> None:
    """Neurons are units of one element each: the axis of that element is left out."""

    def look(site: Site, x: Tensor) -> None:
        read(site, x.squeeze(-1))

    def change(site: Site, x: Tensor) -> Tensor:
        neurons = x.squeeze(-1)
        return same_shape(edit(site, neurons), neurons, site, "neurons of ").unsqueeze(-1)

    _tap_heads(dissect_mlps(anatomy), undo, look if edit is None else None, change if read is None else None, once)


def _tap_mlps(anatomy: Anatomy, undo: ExitStack, read: Any, edit: Any, once: bool) -> None:
    mlps = dissect_mlps(anatomy)
    calls = Calls([(site.place, site) for site in mlps.sites for _ in range(site.runs)], once=once)
    if edit is None:
        mlps.check_readable()

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        if not calls.count:
            return None
        site = calls.counted(module)
        whole = output if isinstance(output, Tensor) else output[0]  # beside the scale of quantized numbers (I-BERT)
        x = flattened(site, whole)
        if edit is None:
            read(site, x)
            return None
        new = laid_back(site, same_shape(edit(site, x), x, site, "MLP of "), whole)
        return new if whole is output else (new, *output[1:])

    def place(undo: ExitStack) -> None:
        set_hooks([*calls.hooks(mlps), Hook(calls.modules, after)], undo)

    place(undo)
    if edit is not None:
        calls.edit_again(place, undo)


_TAPS = {
    "inputs": _tap_inputs,
    "block": tap_blocks,
    "last": tap_last,
    "heads": _tap_heads,
    "neurons": _tap_neurons,
    "mlp": _tap_mlps,
}
