"""Pictures of a syntax tree with the edges of the U-AST, and of the types of leaves that each layer attends to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DataError, check_least, checked, how_many, need
from ..results.canvas import COLOURS, AxesT, canvas, common_legend, finished
from .leaf_types import TOP, LeafTypes
from .trees import CodeTree, graph_edges

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_DRAWN = 120
"""The maximum number of leaves in a picture of a tree. Of more leaves, their names could not be read."""
_BRANCH, _NEXT, _SAME = "#999999", COLOURS[1], COLOURS[0]
_LABEL: dict[str, Any] = {"ha": "center", "parse_math": False}


@checked
def syntax_tree(
    tree: CodeTree,
    *,
    upgraded: bool = True,
    title: str | None = None,
    ax: AxesT | None = None,
    path: str | Path | None = None,
) -> AxesT:
    """Draw a syntax tree, and the edges that make it the U-AST of Chen et al. (2022) (extra `plot`).

    The leaves are at the bottom, in the order of the text, and every node is drawn above its children with its type.
    Grey edges are those of the tree. Orange edges join neighbouring leaves, and blue arcs join each occurrence of an
    identifier to the next one.

    Args:
        tree: a tree from `parse_code`.
        upgraded: whether to draw the edges between leaves, or only those of the tree.
        title: the title of the picture; by default the name of the code.
        ax: axes to draw in, in the place of a new figure.
        path: a file to write the picture to as well.

    Returns the figure, or the axes that were given.

    Raises `DataError` for a tree of more than 120 leaves.

        >>> from bertology.code_structure import parse_code, syntax_tree
        >>> figure = syntax_tree(parse_code("x = x", "python"))
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['module', 'expression_statement', 'assignment', 'x', '=', 'x']
    """
    if len(tree) > MAX_DRAWN:
        raise DataError(
            f"the tree has {how_many(len(tree), 'leaf')}, and a picture has room for {MAX_DRAWN}: draw a shorter piece "
            "of code"
        )
    places = _places(tree)
    height = int(places[:, 1].max())
    figure, (axes,) = canvas(ax, max(4.5, 0.42 * len(tree) + 0.8), max(2.6, 0.42 * (height + 3)))
    axes.set_axis_off()
    kinds = {"syntax tree": _BRANCH}
    _lines(axes, places[graph_edges(tree, upgraded=False)], _BRANCH)
    if upgraded:
        more = graph_edges(tree)[len(tree.parents) - 1 :]
        _lines(axes, places[more[: len(tree) - 1]], _NEXT)
        for one, other in more[len(tree) - 1 :].tolist():
            _arc(axes, places[one], places[other])
        kinds |= {"next leaf": _NEXT, "same identifier": _SAME}
    _names(axes, tree, places)
    axes.set_xlim(-1, len(tree))
    axes.set_ylim(-2.4, height + 0.8)
    axes.set_title(tree.name if title is None else title, parse_math=False)
    line = need("matplotlib.lines", extra="plot").Line2D
    handles = [line([], [], color=colour, label=name) for name, colour in kinds.items()]
    common_legend(figure, [axes], ax, handles, "outside lower left", ncols=3, fontsize="small")
    return finished(figure, ax, path)


@checked
def frequent_types(
    found: LeafTypes,
    *,
    top: int = TOP,
    title: str | None = None,
    ax: AxesT | None = None,
    path: str | Path | None = None,
) -> AxesT:
    """Draw the types of leaves that get the most high attention in each layer (extra `plot`).

    A cell has the share of a type's pairs with high attention. A frame marks the types that are frequent in the layer,
    as `LeafTypes.frequent` has them: those that `cat_scores` keeps there with `types="frequent"`. Types that are
    frequent in no layer are left out. Types that are frequent in many layers are on the left. Layer 0 is at the bottom.

    Args:
        found: a result of `leaf_types`.
        top: the number of frequent types of each layer.
        title: the title of the picture.
        ax: axes to draw in, in the place of a new figure.
        path: a file to write the picture to as well.

    Returns the figure, or the axes that were given.

    Raises `DataError` if no layer read the code, and for a `top` below 1.

        >>> import torch
        >>> from bertology.code_structure import LeafTypes, frequent_types
        >>> counts = torch.tensor([[4, 1, 0]]), torch.tensor([[8, 8, 8]]), torch.ones(1), torch.ones(1)
        >>> figure = frequent_types(LeafTypes(*counts, ("(", "def", "x"), ("0",)), top=1)
        >>> [text.get_text() for text in figure.axes[0].get_xticklabels()]
        ['(']
    """
    check_least("top", top, 1)
    rows = [row for row, many in enumerate(found.snippets.tolist()) if many]
    chosen = [found.frequent(row, top=top) for row in rows]
    share = found.share.nan_to_num(0)
    layers = {kind: sum(kind in some for some in chosen) for some in chosen for kind in some}
    if not layers:
        raise DataError("nothing to draw: no layer has a type of leaves with high attention")
    mean = {kind: float(share[rows, found.types.index(kind)].mean()) for kind in layers}
    types = sorted(layers, key=lambda kind: (-layers[kind], -mean[kind]))
    figure, (axes,) = canvas(ax, max(4.5, 0.36 * len(types) + 2.2), max(2.8, 0.36 * len(rows) + 1.6))
    cells = share[rows][:, [found.types.index(kind) for kind in types]]
    image = axes.imshow(cells.numpy(), origin="lower", aspect="auto", cmap="Blues", vmin=0)
    frame = need("matplotlib.patches", extra="plot").Rectangle
    for y, some in enumerate(chosen):
        for kind in some:
            place = (types.index(kind) - 0.46, y - 0.46)
            axes.add_patch(frame(place, 0.92, 0.92, fill=False, edgecolor=COLOURS[1], linewidth=1.6))
    _axes_of_types(axes, types, [found.labels[row] for row in rows])
    axes.set_title(title or "Frequent types of leaves")
    figure.colorbar(image, ax=axes, label="share of pairs with high attention")
    return finished(figure, ax, path)


def _axes_of_types(axes: Axes, types: Sequence[str], labels: Sequence[str]) -> None:
    axes.set_xticks(range(len(types)), labels=types, rotation=90, parse_math=False)
    axes.set_yticks(range(len(labels)), labels=labels)
    axes.set_xlabel("type of leaf")
    axes.set_ylabel("layer")


def _places(tree: CodeTree) -> NDArray[np.float64]:
    """[node, 2]: x, which is the place of a leaf or the mean of the children, and the height above the leaves."""
    places = np.zeros((len(tree.parents), 2))
    places[tree.leaf_nodes, 0] = np.arange(len(tree))
    inner = np.ones(len(tree.parents), dtype=bool)
    inner[tree.leaf_nodes] = False
    sums, many = places[:, 0].copy(), (~inner).astype(float)
    for node in range(len(tree.parents) - 1, 0, -1):  # each node is numbered before its children
        parent = tree.parents[node]
        if many[node]:
            sums[parent] += sums[node] / many[node]
            many[parent] += 1
        places[parent, 1] = max(places[parent, 1], places[node, 1] + 1)
    places[inner, 0] = sums[inner] / np.maximum(many[inner], 1)
    return places


def _lines(axes: Axes, ends: NDArray[np.float64], colour: str) -> None:
    """Draw edges, [edge, end, 2], as straight lines."""
    lines = need("matplotlib.collections", extra="plot").LineCollection
    axes.add_collection(lines(ends, colors=colour, linewidths=1.6 if colour == _NEXT else 1.0, zorder=1))


def _arc(axes: Axes, one: NDArray[np.float64], other: NDArray[np.float64]) -> None:
    """Draw an edge between two leaves below the text."""
    deep = -0.75 - 1.4 * min(1.0, abs(other[0] - one[0]) / 12)
    x = torch.linspace(0, 1, 24, dtype=torch.float64).numpy()
    across = one[0] + (other[0] - one[0]) * x
    axes.plot(across, -0.45 + 4 * (deep + 0.45) * x * (1 - x), color=_SAME, linewidth=1.4, zorder=1)


def _names(axes: Axes, tree: CodeTree, places: NDArray[np.float64]) -> None:
    """Write the type of each node, and the text of each leaf."""
    leaves = {int(node): text for node, text in zip(tree.leaf_nodes, tree.texts, strict=True)}
    box: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    for node, (x, y) in enumerate(places.tolist()):
        if node in leaves:
            text = " ".join(leaves[node].split())
            short = text if len(text) <= 9 else text[:8] + "…"
            axes.text(x, y, short, family="DejaVu Sans Mono", fontsize=8, va="center", bbox=box, **_LABEL)
        elif node in tree.parents:  # a node without children has no text: code that is missing
            axes.text(x, y, tree.node_types[node], fontsize=6.5, va="center", style="italic", bbox=box, **_LABEL)
