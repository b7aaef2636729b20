"""Pictures of CAT-scores, of related heads, and of one snippet."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..anatomy.sites import Head
from ..errors import DataError, checked, need
from ..results.figures import COLOURS, MARKERS, new_figure, width_of, written
from ..results.result import draws
from .cat_results import CHANCE, Average, CatComparison
from .one_snippet import LeafAttention, leaf_attention
from .relation_heads import RelationHeads
from .trees import CodeTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES = ((0, (1, 1.5)), (0, (5, 2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 3)))


@checked
def cat_over_layers(
    comparisons: Mapping[str, CatComparison],
    *,
    nulls: Sequence[str] | None = None,
    average: Average = "macro",
    level: float = 0.95,
    title: str | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw the CAT-scores of several languages or models over the layers, and those of null models (extra `plot`).

    Bold lines are the attention's scores, with their intervals over snippets; thin ones the null models', in the same
    colour; the grey one is chance, 1/7. Layers that do not read the code are left out.

    Args:
        comparisons: `{name: what cat_scores found}`, of models whose layers have the same labels, as far as they go.
        nulls: the null models that are drawn; by default all.
        average: "macro", every snippet counts alike, or "micro", every pair of leaves.
        level: of the intervals.
        title: above the picture.
        path: where to write the picture, too.

    Raises `DataError` for no comparisons, for a null model that none has, and for models of other layers.

        >>> import torch
        >>> counts = torch.tensor([[[2, 3], [4, 2]], [[1, 1], [1, 1]]]), torch.full((2, 2, 2), 7)
        >>> found = CatComparison(*counts, *(x[:, :, None] for x in counts), ("attention", "shuffled"), (None, None),
        ...     ("f", "g"), 0.25, True, ("0", "1"))
        >>> [text.get_text() for text in cat_over_layers({"python": found}).legends[0].get_texts()]
        ['python', 'shuffled', 'chance, 1/7']
    """
    labels, rows = _layers(comparisons)
    there = list(dict.fromkeys(kind for one in comparisons.values() for kind in one.kinds[1:]))
    kinds = there if nulls is None else list(nulls)
    if strange := [kind for kind in kinds if kind not in there]:
        raise DataError(f"there are no scores of {strange[0]!r}: the null models are {', '.join(there) or 'none'}")
    figure = new_figure(width_of(labels), 4.2)
    axes, line = figure.subplots(), need("matplotlib.lines", extra="plot").Line2D
    handles: list[Any] = []
    for number, (name, one) in enumerate(comparisons.items()):
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        _scores(axes, one, rows, average, level, 0.09 * (number - (len(comparisons) - 1) / 2), style)
        handles.append(line([], [], markersize=4.5, label=name, **style))
        for kind in [kind for kind in kinds if kind in one.kinds]:
            values = getattr(one.of(kind), average)[[row for row in rows if row < len(one.labels)]]
            dashes = _DASHES[kinds.index(kind) % len(_DASHES)]
            axes.plot(values.numpy(), color=style["color"], linewidth=1, linestyle=dashes, alpha=0.8, zorder=1)
    axes.axhline(CHANCE, color="#999999", linewidth=1, zorder=0)
    for place, kind in enumerate(kinds):
        dashes = _DASHES[place % len(_DASHES)]
        handles.append(line([], [], color="#333333", label=kind, linestyle=dashes, linewidth=1))
    handles.append(line([], [], color="#999999", linewidth=1, label="chance, 1/7"))
    axes.set_xticks(range(len(rows)), labels=labels, rotation=90 if max(map(len, labels)) > 3 else 0)
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer")
    axes.set_ylabel(f"CAT-score, {100 * level:g} % interval over snippets")
    axes.set_title(title or "")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    return written(figure, path)


@checked
def relation_maps(found: RelationHeads, *, title: str | None = None, path: str | Path | None = None) -> Figure:
    """Draw how much more attention each head pays to related leaves than position explains (extra `plot`).

    A map for each relation, layer 0 at the bottom and pruned heads grey: blue is more than to unrelated leaves as far
    off, red is less, each map on a scale of its own. A frame marks the head with the highest gain.

    Args:
        found: what `relation_heads` found.
        title: above the picture.
        path: where to write the picture, too.

    Raises `DataError` where no pair of any relation was compared.

        >>> import torch
        >>> from bertology.code_structure import RelationHeads
        >>> sums, pairs = torch.tensor([[[[0.6], [0.2]]]]), torch.ones(1, 1, 1, dtype=torch.int64)
        >>> found = RelationHeads(sums, 0 * sums, pairs, 0 * pairs, ("same block",), ("f",), ("0",))
        >>> relation_maps(found).axes[0].get_title()
        'same block: L0H0 +0.600'
    """
    rows = [row for row, many in enumerate(found.pairs.sum((0, 2)).tolist()) if many]
    drawn = [place for place in range(len(found.relations)) if found.pairs[place].any()]
    if not drawn:
        raise DataError(f"nothing to draw: no pair of leaves of {', '.join(found.relations)} was compared")
    gains = found.gain[:, rows]
    columns = min(2, len(drawn))
    deep = -(-len(drawn) // columns)
    size = (columns * max(3.4, 0.24 * gains.shape[2] + 1.5), deep * max(2.5, 0.24 * len(rows) + 1.2) + 0.3)
    figure = new_figure(*size)
    panels = figure.subplots(deep, columns, squeeze=False).flatten()
    for axes, place in zip(panels, drawn, strict=False):
        _gains(axes, gains[place], [found.labels[row] for row in rows])
        best = found.best(found.relations[place])
        axes.set_title(f"{found.relations[place]}: {best.head} {best.gain:+.3f}", fontsize="medium")
    for axes in panels[len(drawn) :]:
        axes.set_visible(False)
    figure.suptitle(title or "Attention to related leaves, beyond position")
    return written(figure, path)


def _layers(comparisons: Mapping[str, CatComparison]) -> tuple[list[str], list[int]]:
    """The labels and the rows of the layers that read the code, in any of the models."""
    if not comparisons:
        raise DataError("nothing to draw: wanted what cat_scores found, got no comparison")
    longest = max((one.labels for one in comparisons.values()), key=len)
    for name, one in comparisons.items():
        if one.labels != longest[: len(one.labels)]:
            raise DataError(
                f"layers of {name!r} are {', '.join(one.labels)}, those of others {', '.join(longest)}: draw models of "
                "different build apart"
            )
    used = {row for one in comparisons.values() for row in one.either[0].any(-1).nonzero()[:, 0].tolist()}
    if not used:
        raise DataError("nothing to draw: no layer has a score")
    return [longest[row] for row in sorted(used)], sorted(used)


def _scores(
    axes: Axes, one: CatComparison, rows: list[int], average: Average, level: float, aside: float, style: dict[str, Any]
) -> None:
    """The attention's scores over the layers, a bar for each interval."""
    scores, some = one.scores, [row for row in rows if row < len(one.labels)]
    values = getattr(scores, average)[some]
    low, high = (end[some] for end in scores.interval(level, average=average))
    ends = torch.stack([values - low, high - values]).clamp_min(0).nan_to_num(0)  # few snippets have no interval
    x = torch.arange(len(some)) + aside
    axes.errorbar(x.numpy(), values.numpy(), ends.numpy(), markersize=4.5, linewidth=1.8, elinewidth=1.1, **style)


def _gains(axes: Axes, gains: torch.Tensor, labels: Sequence[str]) -> None:
    """A cell for each head, the best one framed."""
    edge = gains.nan_to_num(0).abs().max().item() or 1.0
    axes.set_facecolor("#bbbbbb")
    image = axes.imshow(gains.numpy(), origin="lower", aspect="auto", cmap="RdBu", vmin=-edge, vmax=edge)
    row, head = divmod(int(gains.nan_to_num(-torch.inf).argmax()), gains.shape[1])
    frame = need("matplotlib.patches", extra="plot").Rectangle
    axes.add_patch(frame((head - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.4))
    axes.set_xticks(range(0, gains.shape[1], 1 if gains.shape[1] <= 16 else 4))
    axes.set_yticks(range(len(labels)), labels=labels)
    axes.tick_params(labelsize="small")
    axes.set_xlabel("head", fontsize="small")
    axes.set_ylabel("layer", fontsize="small")
    bar = axes.figure.colorbar(image, ax=axes)
    bar.locator = need("matplotlib.ticker", extra="plot").MaxNLocator(4)
    bar.update_ticks()
    bar.ax.tick_params(labelsize="x-small")


draws(RelationHeads)(relation_maps)


@draws(CatComparison)
def _comparison(
    result: CatComparison, *, average: Average = "macro", title: str | None = None, path: str | Path | None = None
) -> Figure:
    return cat_over_layers({result.kinds[0]: result}, average=average, title=title, path=path)


_SIZE = 10.0
"""Of the code's letters, in points."""
_ADVANCE = 0.602 * _SIZE / 72
"""How wide a letter is, in inches: of DejaVu Sans Mono, which comes with matplotlib."""
_LINE, _PLAIN = 0.42, 0.6
"""From line to line, in inches: room for arcs above; and the share of it that is enough without arcs."""
_ABOVE, _BELOW = 0.30, 0.14
"""Where the letters of a line end, in shares of `_LINE` from its base line."""
_TAB = 4
_NEAR, _FAR, _GREY = COLOURS[0], COLOURS[1], "#999999"
FEW = 40
"""Of so many leaves, at most, each has its name on a map."""


@checked
def code_arcs(
    model: nn.Module,
    tokenizer: Any,
    tree: CodeTree,
    where: int | Head | tuple[int, int],
    *,
    pairs: int = 20,
    apart: int = 1,
    title: str | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw the strongest attention between leaves as arcs over the code (extra `plot`).

    An arrow goes from the leaf that attends to the one that is attended to, wider and darker the more attention it is:
    in blue where the two are near in the U-AST, as the CAT-score has it, in orange where they are not. A leaf's
    attention to itself is not drawn. What is in no leaf, such as comments, is grey.

    Args:
        model: any model with self attention over the text; left as it was found.
        tokenizer: the model's, a fast one.
        tree: what `parse_code` makes.
        where: a layer, by its row in results, for the mean over its heads; or a head, as a `Head` or a pair.
        pairs: how many arcs are drawn, at most.
        apart: leaves that stand fewer places apart in the text have none: 2 leaves out neighbours.
        title: above the picture; by default the head or layer and the snippet's name.
        path: where to write the picture, too.

    Raises what `leaf_attention` raises, and `DataError` for fewer than 1 pair or place.

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
    size = (max(4.5, (max(column for _, column in places) + 4) * _ADVANCE), (base[-1] + 1.2) * _LINE + 0.8)
    figure = need("matplotlib.figure", extra="plot").Figure(figsize=size)
    axes = figure.add_axes((0, 0.42 / size[1], 1, 1 - 0.8 / size[1]))
    # Units are letters, and lines with arcs, downwards.
    axes.set_xlim(-2, size[0] / _ADVANCE - 2)
    axes.set_ylim(base[-1] + 0.3, -0.9)
    axes.set_axis_off()
    _code(axes, tree, places, base)
    strongest = max((found.weights[pair].item() for pair in drawn), default=1.0)
    for i, j in reversed(drawn):
        colour, share = _NEAR if found.near[i, j] else _FAR, found.weights[i, j].item() / strongest
        _arc(axes, ends[i], ends[j], base, colour=colour, share=share)
    near = sum(bool(found.near[pair]) for pair in drawn)
    line = need("matplotlib.lines", extra="plot").Line2D
    handles = [
        line([], [], color=_NEAR, linewidth=2, label=f"near in the tree ({near})"),
        line([], [], color=_FAR, linewidth=2, label=f"not near ({len(drawn) - near})"),
    ]
    figure.legend(handles=handles, loc="lower left", ncols=2, frameon=False, fontsize="small")
    figure.text(2 * _ADVANCE / size[0], 1 - 0.24 / size[1], title or _title(found), parse_math=False)
    return written(figure, path)


@checked
def attention_and_distance(
    model: nn.Module,
    tokenizer: Any,
    tree: CodeTree,
    where: int | Head | tuple[int, int],
    *,
    title: str | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw the attention between the leaves of a snippet beside their distances in the U-AST (extra `plot`).

    Rows attend to columns. Dark is much attention on the left, on a scale that ends at the 98th percentile so that few
    high weights do not hide the others, and near on the right. What a decoder does not see is grey. The title tells how
    far the two agree: the snippet's CAT-score, of all its leaves.

    Args:
        model: any model with self attention over the text; left as it was found.
        tokenizer: the model's, a fast one.
        tree: what `parse_code` makes.
        where: a layer, by its row in results, for the mean over its heads; or a head, as a `Head` or a pair.
        title: above the picture; by default the head or layer, the snippet's name and its score.
        path: where to write the picture, too.

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
    side = max(3.4, 0.17 * leaves + 0.9) if leaves <= FEW else 4.6
    figure = new_figure(2 * side + 1.6, side + 0.5)
    left, right = figure.subplots(1, 2)
    seen = torch.ones(leaves, leaves, dtype=torch.bool) if found.valid is None else found.valid
    weights, distances = (x.double().masked_fill(~seen, torch.nan) for x in (found.weights, found.distances))
    top = weights.nanquantile(0.98).item() or None
    names = [_short(tree.texts[leaf]) for leaf in found.kept] if leaves <= FEW else None
    _map(left, weights, names, "Blues", top, "attention")
    _map(right, distances, names, "Blues_r", None, "distance in the U-AST, edges")
    matched, either = (int(x) for x in found.counts)
    score = f", CAT-score {matched / either:.2f}" if either else ""
    figure.suptitle(title or _title(found) + score, parse_math=False)
    return written(figure, path)


def _title(found: LeafAttention) -> str:
    name = found.name[0].upper() + found.name[1:]
    return f"{name} in {found.tree.name}" if found.tree.name else name


def _places(code: str) -> list[tuple[int, int]]:
    """The line and column of each character, and of the end; wide ones take two columns, tabs up to the next stop."""
    places, line, column = [], 0, 0
    for character in code.rstrip():
        places.append((line, column))
        if character == "\n":
            line, column = line + 1, 0
        elif character == "\t":
            column += _TAB - column % _TAB
        elif unicodedata.combining(character) == 0:
            column += 2 if unicodedata.east_asian_width(character) in "WF" else 1
    return [*places, (line, column)]


def _base_lines(lines: int, used: set[int]) -> list[float]:
    """[line]: where its letters stand, from the first on; lines without arcs are closer."""
    base = [0.0]
    for line in range(1, lines):
        base.append(base[-1] + (1.0 if line in used or line - 1 in used else _PLAIN))
    return base


def _code(axes: Axes, tree: CodeTree, places: Sequence[tuple[int, int]], base: Sequence[float]) -> None:
    """Write each word at its own position, so that no rounding of letters' widths adds up; grey in no leaf."""
    halo = need("matplotlib.patheffects", extra="plot").withStroke(linewidth=2, foreground="white")
    for words, colour in ((_words(tree, True), "black"), (_words(tree, False), _GREY)):
        for start, text in words:
            line, column = places[start]
            axes.text(column, base[line], text, family="DejaVu Sans Mono", fontsize=_SIZE, color=colour, zorder=3,
                      parse_math=False, va="baseline", path_effects=[halo])  # fmt: skip


def _words(tree: CodeTree, in_leaves: bool) -> list[tuple[int, str]]:
    """Where words start, and what they are: those of leaves, or those of none."""
    code = tree.code.rstrip()
    kept = [not in_leaves] * len(code)
    for start, end in tree.spans:
        kept[start:end] = [in_leaves] * (min(end, len(code)) - start)
    shown = "".join(character if keep else " " for character, keep in zip(code, kept, strict=True))
    return [(found.start(), found.group()) for found in re.finditer(r"\S+", shown)]


def _middle(places: Sequence[tuple[int, int]], span: tuple[int, int]) -> tuple[int, float]:
    """The line and the middle column of a leaf, of its first line if there are several."""
    line, first = places[span[0]]
    columns = [column for at, column in places[span[0] : span[1]] if at == line]
    return line, (first + columns[-1] + 1) / 2


def _arc(
    axes: Axes, start: tuple[int, float], end: tuple[int, float], base: Sequence[float], *, colour: str, share: float
) -> None:
    """An arrow from leaf to leaf: above a line, or from line to line."""
    (line, x), (other, to) = start, end
    if line == other:
        high = base[line] - _ABOVE - min(0.72, 0.3 + 0.012 * abs(to - x))  # below the letters of the line before
        ys = [base[line] - _ABOVE, high, high, base[line] - _ABOVE]
    else:
        down = other > line
        first, last = base[line] + (_BELOW if down else -_ABOVE), base[other] - (_ABOVE if down else -_BELOW)
        bend = max(0.4, abs(last - first) / 2) * (1 if down else -1)
        ys = [first, first + bend, last - bend, last]
    curve = need("matplotlib.path", extra="plot").Path(list(zip([x, x, to, to], ys, strict=True)), [1, 4, 4, 4])
    arrow = need("matplotlib.patches", extra="plot").FancyArrowPatch
    axes.add_patch(
        arrow(path=curve, arrowstyle="-|>", mutation_scale=5 + 3 * share, color=colour, fill=False, zorder=2,
              linewidth=0.6 + 1.4 * share, alpha=0.25 + 0.65 * share, clip_on=False)
    )  # fmt: skip


def _map(axes: Axes, values: Tensor, names: Sequence[str] | None, colours: str, top: float | None, title: str) -> None:
    extend = "max" if top is not None and values.nan_to_num(0).max() > top else "neither"
    axes.set_facecolor("#cccccc")
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
