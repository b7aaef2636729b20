"""How are attention maps read, whatever attention implementation the model has?

Three routes. A model on transformers' attention interface is switched to a function of ours (`interface_route`), which
calls the model's own eager attention on blocks of query rows. A model with an attention function of the user's own
keeps it (`own_function`). In any other model the softmax inside its attention modules is watched (`softmax_route`), one
map at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from ..anatomy.forward_source import eager_function
from ..anatomy.names import DIFFERENCE_NAME
from ..anatomy.sites import Anatomy, Site
from ..errors import UnknownAnatomy
from .arriving import Arriving
from .calls import Calls, attention_modules
from .interface_route import switch
from .map_reader import FewWeights, Reader, Reading, Wants
from .own_function import Entry, own_entry, read_own
from .softmax_route import watch_softmax


@contextmanager
def tap_maps(
    anatomy: Anatomy, read: Reader, what: str, rows: int | None, whole: bool, once: bool, wants: Wants,
    arriving: Arriving | None = None, few: FewWeights | None = None,
) -> Iterator[None]:  # fmt: skip
    """Give `read(site, x, rows)` the attention maps of a forward pass, or statistics, in blocks of query rows.

    With `arriving`, the maps are weighed by the norms of what arrives; `few` takes small maps of a reader of entropies.
    """
    sites_of, entries = _routes(anatomy)
    modules = attention_modules(anatomy)
    with ExitStack() as undo:
        for route, sites in sites_of.items():
            if sites:
                crossing = [modules[site] for site in sites if site.crosses]
                calls = Calls([(modules[site], site) for site in sites], may_rest=crossing, once=once)
                calls.watch(anatomy, undo)
                # Only maps of the model's own eager function are sure to stay as they are.
                reading = Reading(calls, read, what, rows, whole, wants, arriving, few if route is switch else None)
                if route is read_own:
                    read_own(entries, reading, undo)
                else:
                    route(anatomy, reading, undo)
        yield


def _routes(anatomy: Anatomy) -> tuple[dict[Any, list[Site]], dict[nn.Module, Entry]]:
    """{route: its sites}, and the entries of the attention modules that have a function of the user's own."""
    sites_of: dict[Any, list[Site]] = {switch: [], read_own: [], watch_softmax: []}
    entries: dict[nn.Module, Entry] = {}
    # Of all attention modules of a class, which share a config, one is asked.
    known: dict[tuple[type, int], tuple[Any, Entry | None]] = {}
    for site in anatomy.sites:
        if site.kept:
            attention = site.attention
            kind = (type(attention), id(getattr(attention, "config", None)))
            if kind not in known:
                known[kind] = _route_of(site)
            route, entry = known[kind]
            sites_of[route].append(site)
            if entry is not None:
                entries[attention] = entry
    return sites_of, entries


def _route_of(site: Site) -> tuple[Any, Entry | None]:
    """The route to the maps of a site, and the entry of an attention function of the user's own."""
    if hasattr(site.attention, DIFFERENCE_NAME):
        raise UnknownAnatomy(f"a head of {site.label} is the difference of two maps: it has none of its own")
    if eager_function(site.attention) is None:
        return watch_softmax, None
    entry = own_entry(site.attention)
    return (switch, None) if entry is None else (read_own, entry)
