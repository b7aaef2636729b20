"""Pictures of the attention in one snippet: as arcs over its code, and beside the distances of its leaves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..anatomy.sites import OneHead
from ..errors import checked, need
from ..results.canvas import COLOURS, MISSING, AxesT, axes_in, canvas, common_title, empty_figure, finished, ink, paper
from ..results.columns import columns_of
from .one_snippet import LeafAttention, leaf_attention
from .trees import CodeTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FONT_SIZE = 10.0
"""The font size of the code, in points."""
_LETTER_WIDTH = 0.602 * _FONT_SIZE / 72
"""The width of a letter, in inches. The font is DejaVu Sans Mono, which comes with matplotlib."""
_LINE_HEIGHT = 0.42
"""The height of a line of code with room for arcs above it, in inches. It is the unit of the vertical axis."""
_PLAIN_LINE = 0.6
"""The height of a line without arcs, relative to `_LINE_HEIGHT`."""
_ABOVE, _BELOW = 0.30, 0.14
"""How far the letters reach above and below the base line, relative to `_LINE_HEIGHT`."""
_TAB = 4
_NEAR, _FAR, _GREY = COLOURS[0], COLOURS[1], "#999999"
MAX_NAMED_LEAVES = 40
"""A map of more leaves than this shows no names beside its rows and columns."""


@checked
def code_arcs(
    model: nn.Module,
    tokenizer: Any,
    tree: CodeTree,
    where: int | OneHead,
    *,
    pairs: int = 20,
    apart: int = 1,
    title: str | None = None,
    ax: AxesT | None = None,
    path: str | Path | None = None,
) -> AxesT:
    """Draw the strongest attention between leaves as arcs over the code (extra `plot`).

    An arrow goes from the leaf that attends to the leaf that is attended to: between the lines of the code, and beside
    it where the leaves are two lines apart or more. The higher the attention, the wider and
    darker the arrow. It is blue if the two leaves are near in the U-AST by the criterion of the CAT-score, and orange
    if they are not. A leaf's attention to itself is not drawn. Text outside all leaves, such as a comment, is grey.

    Args:
        model: any model with self attention over the text; left as it was found.
        tokenizer: the model's, a fast one.
        tree: a tree from `parse_code`.
        where: a layer, by its row in results, for the mean over its heads; or a head, as a `Head`, by its name such as
            "L5H3", or as a pair of its layer and number.
        pairs: the maximum number of arcs.
        apart: the minimum distance of two leaves in the text, in leaves, for an arc between them: 2 leaves out
            neighbours.
        title: the title of the picture; by default the head or layer and the snippet's name.
        ax: axes to draw in, in the place of a new figure; two for two maps.
        path: a file to write the picture to as well.

    Returns the figure, or the axes that were given.

    Raises what `leaf_attention` raises, and `DataError` if `pairs` or `apart` is below 1.

        >>> from transformers import AutoTokenizer, BertConfig, BertModel
        >>> from bertology.code_structure import code_arcs, parse_code
        >>> from bertology.demo import minilm_path
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> figure = code_arcs(model, tokenizer, parse_code("x = x + 1", "python"), (1, 3), pairs=3)
        >>> len(figure.axes[0].patches)
        3
    """
    found = leaf_attention(model, tokenizer, tree, where)
    drawn = found.strongest(pairs, apart=apart)
    places = _places(tree.code)
    ends = {leaf: _middle(places, tree.spans[found.kept[leaf]]) for pair in drawn for leaf in pair}
    base = _base_lines(places[-1][0] + 1, {line for line, _ in ends.values()})
    far = sum(_apart(ends[i], ends[j]) > 1 for i, j in drawn)  # each has a lane of its own beside the code
    width = max(4.5, (max(column for _, column in places) + 5 + far) * _LETTER_WIDTH)
    size = (width, (base[-1] + 1.2) * _LINE_HEIGHT + 0.8)
    if ax is None:
        figure = empty_figure(figsize=size)
        axes = figure.add_axes((0, 0.42 / size[1], 1, 1 - 0.8 / size[1]))
    else:
        (axes,) = axes_in(ax)
    # The horizontal unit is a letter, the vertical unit is a line with arcs; the vertical axis points down.
    axes.set_xlim(-2, size[0] / _LETTER_WIDTH - 2)
    axes.set_ylim(base[-1] + 0.3, -0.9)
    axes.set_axis_off()
    _code(axes, tree, places, base)
    strongest = max((found.weights[pair].item() for pair in drawn), default=1.0)
    lanes = _lanes(drawn, ends, max(column for _, column in places))
    for i, j in reversed(drawn):
        colour, share = _NEAR if found.near[i, j] else _FAR, found.weights[i, j].item() / strongest
        _arc(axes, ends[i], ends[j], base, lanes.get((i, j)), colour=colour, share=share)
    near = sum(bool(found.near[pair]) for pair in drawn)
    line = need("matplotlib.lines", extra="plot").Line2D
    handles = [
        line([], [], color=_NEAR, linewidth=2, label=f"near in the tree ({near})"),
        line([], [], color=_FAR, linewidth=2, label=f"not near ({len(drawn) - near})"),
    ]
    if ax is not None:
        axes.legend(handles=handles, loc="lower right", fontsize="x-small")
        axes.set_title(title or _title(found), parse_math=False)
    else:
        figure.legend(handles=handles, loc="lower left", ncols=2, frameon=False, fontsize="small")
        figure.text(2 * _LETTER_WIDTH / size[0], 1 - 0.24 / size[1], title or _title(found), parse_math=False)
    return finished(axes.figure, ax, path)


@checked
def attention_and_distance(
    model: nn.Module,
    tokenizer: Any,
    tree: CodeTree,
    where: int | OneHead,
    *,
    title: str | None = None,
    ax: AxesT | None = None,
    path: str | Path | None = None,
) -> AxesT:
    """Draw the attention between the leaves of a snippet beside their distances in the U-AST (extra `plot`).

    Rows attend to columns. In the map on the left, dark means high attention; its scale ends at the 98th percentile, so
    that a few high weights do not hide the others. In the map on the right, dark means near. The pairs that a decoder
    cannot see are grey. The title gives the snippet's CAT-score over all its leaves: how well the two maps agree.

    Args:
        model: as in `code_arcs`; the same holds for `tokenizer`, `tree` and `where`.
        title: the title of the picture; by default the head or layer, the snippet's name and its score.
        ax: axes to draw in, in the place of a new figure; two for two maps.
        path: a file to write the picture to as well.

    Returns the figure, or the axes that were given.

    Raises what `leaf_attention` raises.

        >>> from transformers import AutoTokenizer, BertConfig, BertModel
        >>> from bertology.code_structure import attention_and_distance, parse_code
        >>> from bertology.demo import minilm_path
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> figure = attention_and_distance(model, tokenizer, parse_code("x = x + 1", "python"), 0)
        >>> figure.axes[1].images[0].get_array()[0].tolist()
        [0.0, 1.0, 1.0, 2.0, 3.0]
    """
    found = leaf_attention(model, tokenizer, tree, where)
    leaves = len(found.kept)
    side = max(3.4, 0.17 * leaves + 0.9) if leaves <= MAX_NAMED_LEAVES else 4.6
    figure, (left, right) = canvas(ax, 2 * side + 1.6, side + 0.5, shape=(1, 2))
    seen = torch.ones(leaves, leaves, dtype=torch.bool) if found.valid is None else found.valid
    weights, distances = (x.double().masked_fill(~seen, torch.nan) for x in (found.weights, found.distances))
    top = weights.nanquantile(0.98).item() or None
    names = [_short(tree.texts[leaf]) for leaf in found.kept] if leaves <= MAX_NAMED_LEAVES else None
    _map(left, weights, names, "Blues", top, "attention")
    _map(right, distances, names, "Blues_r", None, "distance in the U-AST, edges")
    matched, either = (int(x) for x in found.counts)
    score = f", CAT-score {matched / either:.2f}" if either else ""
    common_title(figure, ax, title or _title(found) + score)
    return finished(figure, ax, path)


def _title(found: LeafAttention) -> str:
    name = found.name[0].upper() + found.name[1:]
    return f"{name} in {found.tree.name}" if found.tree.name else name


def _places(code: str) -> list[tuple[int, int]]:
    """The line and column of each character and of the end. Wide characters take two columns, tabs up to four."""
    places, line, column = [], 0, 0
    for character in code.rstrip():
        places.append((line, column))
        if character == "\n":
            line, column = line + 1, 0
        elif character == "\t":
            column += _TAB - column % _TAB
        else:
            column += columns_of(character)
    return [*places, (line, column)]


def _base_lines(lines: int, used: set[int]) -> list[float]:
    """[line]: the base line of its letters, counted from the first line. Lines without arcs are closer together."""
    base = [0.0]
    for line in range(1, lines):
        base.append(base[-1] + (1.0 if line in used or line - 1 in used else _PLAIN_LINE))
    return base


def _code(axes: Axes, tree: CodeTree, places: Sequence[tuple[int, int]], base: Sequence[float]) -> None:
    """Write each word at its own position, so that rounding errors of letter widths do not add up.

    Words of leaves are black, other words are grey.
    """
    halo = need("matplotlib.patheffects", extra="plot").withStroke(linewidth=2, foreground=paper())
    for words, colour in ((_words(tree, True), ink()), (_words(tree, False), _GREY)):
        for start, text in words:
            line, column = places[start]
            axes.text(column, base[line], text, family="DejaVu Sans Mono", fontsize=_FONT_SIZE, color=colour, zorder=3,
                      parse_math=False, va="baseline", path_effects=[halo])  # fmt: skip


def _words(tree: CodeTree, in_leaves: bool) -> list[tuple[int, str]]:
    """The start and the text of each word: either of the words in leaves, or of all others."""
    code = tree.code.rstrip()
    kept = [not in_leaves] * len(code)
    for start, end in tree.spans:
        kept[start:end] = [in_leaves] * (min(end, len(code)) - start)
    shown = "".join(character if keep else " " for character, keep in zip(code, kept, strict=True))
    return [(found.start(), found.group()) for found in re.finditer(r"\S+", shown)]


def _middle(places: Sequence[tuple[int, int]], span: tuple[int, int]) -> tuple[int, float]:
    """The line and the middle column of a leaf; of a leaf of several lines, those of its first line."""
    line, first = places[span[0]]
    columns = [column for at, column in places[span[0] : span[1]] if at == line]
    return line, (first + columns[-1] + 1) / 2


def _apart(start: tuple[int, float], end: tuple[int, float]) -> int:
    """How many lines two leaves are apart."""
    return abs(start[0] - end[0])


def _lanes(
    pairs: Sequence[tuple[int, int]], ends: Mapping[int, tuple[int, float]], widest: int
) -> dict[tuple[int, int], float]:
    """{pair: where its arrow passes beside the code}, for leaves two lines apart or more; short ones are inside."""
    far = sorted((pair for pair in pairs if _apart(ends[pair[0]], ends[pair[1]]) > 1),
                 key=lambda pair: _apart(ends[pair[0]], ends[pair[1]]))  # fmt: skip
    return {pair: widest + 1.5 + place for place, pair in enumerate(far)}


def _around(
    start: tuple[int, float], end: tuple[int, float], base: Sequence[float], lane: float
) -> tuple[list[tuple[float, float]], list[int]]:
    """The way from leaf to leaf between the lines and beside the code, with round corners."""
    (line, x), (other, to), down = start, end, end[0] > start[0]
    first, last = base[line] + (_BELOW if down else -_ABOVE), base[other] - (_ABOVE if down else -_BELOW)
    # Arrows that leave or reach one line run at different heights in the gap beside it.
    shift = 0.1 + 0.04 * (round(lane) % 5)
    out, back = first + (shift if down else -shift), last - (shift if down else -shift)
    turn = 0.12 if back > out else -0.12
    points = [(x, first), (x, out), (lane - 0.8, out), (lane, out), (lane, out + turn), (lane, back - turn),
              (lane, back), (lane - 0.8, back), (to, back), (to, last)]  # fmt: skip
    return points, [1, 2, 2, 3, 3, 2, 3, 3, 2, 2]


def _arc(
    axes: Axes, start: tuple[int, float], end: tuple[int, float], base: Sequence[float], lane: float | None, *,
    colour: str, share: float,
) -> None:  # fmt: skip
    """Draw an arrow from leaf to leaf: above the line, to the next line, or between the lines and beside the code."""
    (line, x), (other, to) = start, end
    codes = [1, 4, 4, 4]
    points: list[tuple[float, float]] = []
    if lane is not None:
        points, codes = _around(start, end, base, lane)
    elif line == other:
        high = base[line] - _ABOVE - min(0.72, 0.3 + 0.012 * abs(to - x))  # below the letters of the line before
        ys = [base[line] - _ABOVE, high, high, base[line] - _ABOVE]
    else:
        down = other > line
        first, last = base[line] + (_BELOW if down else -_ABOVE), base[other] - (_ABOVE if down else -_BELOW)
        bend = max(0.4, abs(last - first) / 2) * (1 if down else -1)
        ys = [first, first + bend, last - bend, last]
    points = points or list(zip([x, x, to, to], ys, strict=True))
    curve = need("matplotlib.path", extra="plot").Path(points, codes)
    arrow = need("matplotlib.patches", extra="plot").FancyArrowPatch
    axes.add_patch(
        arrow(path=curve, arrowstyle="-|>", mutation_scale=5 + 3 * share, color=colour, fill=False, zorder=2,
              linewidth=0.6 + 1.4 * share, alpha=0.25 + 0.65 * share, clip_on=False)
    )  # fmt: skip


def _map(axes: Axes, values: Tensor, names: Sequence[str] | None, colours: str, top: float | None, title: str) -> None:
    extend = "max" if top is not None and values.nan_to_num(0).max() > top else "neither"
    axes.set_facecolor(MISSING)
    image = axes.imshow(values.numpy(), cmap=colours, vmin=0, vmax=top)
    axes.set_title(title, fontsize="medium")
    if names is not None:
        style: dict[str, Any] = {"family": "DejaVu Sans Mono", "fontsize": 7, "parse_math": False}
        axes.set_xticks(range(len(names)), labels=names, rotation=90, **style)
        axes.set_yticks(range(len(names)), labels=names, **style)
        axes.tick_params(length=0)
    else:
        axes.set_xlabel("leaf")
        axes.set_ylabel("leaf")
    ticks = need("matplotlib.ticker", extra="plot").MaxNLocator(6, integer=top is None)
    axes.figure.colorbar(image, ax=axes, shrink=0.8, extend=extend, ticks=ticks)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 14 else text[:13] + "…"
