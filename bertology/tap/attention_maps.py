"""How are attention maps read, whatever attention implementation the model has?

Three routes. A model on transformers' attention interface is switched to a function of ours (`interface_route`), which
calls the model's own eager attention on blocks of query rows. A model with an attention function of the user's own
keeps it (`own_function`). In any other model the softmax inside its attention modules is watched (`softmax_route`), one
map at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn

from ..anatomy.forward_source import eager_function
from ..anatomy.names import DIFFERENCE_NAME
from ..anatomy.sites import Anatomy
from ..errors import UnknownAnatomy
from .arriving import Arriving
from .calls import Calls, attention_modules
from .interface_route import switch
from .map_reader import Reader, Reading, Wants
from .own_function import Entry, own_entry, read_own
from .softmax_route import watch_softmax


@contextmanager
def tap_maps(
    anatomy: Anatomy, read: Reader, what: str, rows: int | None, whole: bool, once: bool, wants: Wants,
    arriving: Arriving | None,
) -> Iterator[None]:  # fmt: skip
    """Give `read(site, x, rows)` the attention maps of a forward pass, or statistics, in blocks of query rows.

    With `arriving`, the maps are weighed by the norms of what arrives.
    """
    there = [site for site in anatomy.sites if site.kept]
    # Of all attention modules of a class, which share a config, one is asked.
    kinds = {site: (type(site.attention), id(getattr(site.attention, "config", None))) for site in there}
    some = {kind: site for site, kind in reversed(kinds.items())}
    for site in some.values():
        if hasattr(site.attention, DIFFERENCE_NAME):
            raise UnknownAnatomy(f"a head of {site.label} is the difference of two maps: it has none of its own")
    on_it = {kind: site.attention for kind, site in some.items() if eager_function(site.attention) is not None}
    known = {kind: own_entry(attention) for kind, attention in on_it.items()}
    on_interface = [site for site in there if kinds[site] in known]
    entries = {site.attention: entry for site in on_interface if (entry := known[kinds[site]]) is not None}
    own = [site for site in on_interface if site.attention in entries]
    native = [site for site in on_interface if site.attention not in entries]
    others = [site for site in there if kinds[site] not in known]
    modules = attention_modules(anatomy)
    with ExitStack() as undo:
        for sites, route in ((native, switch), (own, partial(_read_own, entries)), (others, watch_softmax)):
            if sites:
                crossing = [modules[site] for site in sites if site.crosses]
                calls = Calls([(modules[site], site) for site in sites], may_rest=crossing, once=once)
                calls.watch(anatomy, undo)
                route(anatomy, Reading(calls, read, what, rows, whole, wants, arriving), undo)
        yield


def _read_own(entries: dict[nn.Module, Entry], anatomy: Anatomy, reading: Reading, undo: ExitStack) -> None:
    read_own(entries, reading, undo)
