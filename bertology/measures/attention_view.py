"""The interactive view of attention maps, for notebooks and for files.

The viewer is attnview: it needs no other package and no network, it has all layers and heads in one page, and it shows
cross attention too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..errors import DataError, check_least, checked, how_many, need
from ..results.complete_file import write_text
from ..results.files import check_suffix
from ..streaming.one_batch import Capture
from .example_maps import ExampleMaps, example_maps

MOST_WEIGHTS = 3_000_000
"""The most attention weights in one view: they make about 20 MB."""


@dataclass(frozen=True, repr=False)
class InteractiveView:
    """A page to look at in a notebook, where it is the value of a cell, or in a browser, once it is saved."""

    html: str
    """The whole page, with all that it needs."""
    height: int = 760
    """How high it is in a notebook, in pixels."""

    def __repr__(self) -> str:
        size = how_many(len(self.html), "character", ",")
        return f"InteractiveView({size}; a notebook shows it, and .save(path) writes the page)"

    def _repr_html_(self) -> str:
        # In a frame of its own, the page leaves the style of the notebook alone.
        style = f"width:100%;height:{self.height}px;border:0"
        return f'<iframe srcdoc="{escape(self.html)}" style="{style}"></iframe>'

    @checked
    def save(self, path: str | Path) -> None:
        """Write the page to a file, which a browser shows without a network.

        Raises `DataError` if it cannot be written, and for a name that ends as no page does, such as `.png`.
        """
        check_suffix(path, (".html", ".htm"), "a view is saved as a page")
        write_text(path, self.html)


def interactive_view(
    result: Capture, head: Any, *, layers: Sequence[int] | None, example: int, stack: str | None, words: bool,
    height: int,
) -> InteractiveView:  # fmt: skip
    """The view of one example: all layers, some of them, or that of one head."""
    check_least("height", height, 100)
    shown = example_maps(result, example, stack, words=words, head=head)
    rows, number = list(range(len(shown.maps))), 0
    if head is not None:
        row, number = shown.place(head)
        rows = [row]
    elif layers is not None:
        rows = [shown.place((layer, 0))[0] for layer in layers]
    weights = shown.maps[rows].numel()
    if weights > MOST_WEIGHTS or not weights:
        raise DataError(
            f"a view shows 1 to {MOST_WEIGHTS:,} attention weights, got {weights:,}: choose a head, show('L2H0'), or "
            "layers, show(layers=[0, 1])"
        )
    viewer = need("attnview", extra="show")
    title = result.model_name or "Attention maps"
    return InteractiveView(viewer.render_html(_study(viewer, shown, rows), head=number, title=title), height)


def _study(viewer: Any, shown: ExampleMaps, rows: list[int]) -> Any:
    """The maps as the viewer takes them; pruned heads, which it does not know, are 0."""
    patterns = [
        viewer.AttentionPattern.from_data(
            [[[round(x, 4) for x in keys] for keys in queries] for queries in shown.maps[row].nan_to_num(0).tolist()],
            query_tokens=shown.queries,
            key_tokens=shown.keys,
        )
        for row in rows
    ]
    return viewer.AttentionStudy(tuple(patterns), tuple(f"Layer {shown.result.labels[row]}" for row in rows))
