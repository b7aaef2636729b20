"""Pictures of attention maps and rollouts, of attention patterns, of gradients, and of the distances between heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional as F

from ..anatomy.sites import head_at
from ..data.tokens import label_of
from ..errors import DataError, is_whole, need
from ..results.axes import axes_of
from ..results.canvas import (
    MISSING,
    AxesT,
    canvas,
    colour_of,
    common_title,
    finished,
    headline,
    marker_of,
    paper,
    set_title,
    side_legend,
    width_of,
)
from ..results.figures import head_panels, layer_points
from ..results.head_map import head_map
from ..results.result import draws
from .captures import AttentionMaps
from .contextuality import Contextuality
from .example_maps import ExampleMaps, example_maps, title_of_example
from .gradients import AttentionGradients
from .head_attribution import HeadAttribution
from .head_distances import HeadDistances
from .layer_similarity import LayerSimilarity
from .lens import LogitLens
from .patterns import AttentionPatterns
from .rollout import AttentionRollout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOUR_MAP = "Blues"
UNIT = "attention weight"
LEAST_SIZE, MOST_SIZE = 5.5, 9.0
"""The sizes of the letters of labels. Where there is less room, only every second, third ... token has one."""
MOST_ANSWERS = 48
"""The most positions at which the answers of a lens are written out; of more, only the colours are drawn."""
MOST_IN_TILE = 48
"""The most rows and columns of one head in the picture of all heads; larger maps show the largest weight of several."""


@draws(HeadDistances)
def draw_distances(result: HeadDistances, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw a map on which heads with similar attention are close to each other (extra `syntax`)."""
    title = headline(result, "Heads whose attention is alike")
    return head_map(result.embed(2), result.heads, title=title, ax=ax, path=path)


@draws(AttentionPatterns)
def draw_patterns(result: AttentionPatterns, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw how much attention goes to each place, and to each class of tokens if there are classes."""
    places = {name: getattr(result, name) for name in ("previous", "next", "self", "first")}
    classes = {name: result.attention_to(name) for name in result.classes[:-1]}  # the last is all others
    panels = {"to a place": places}
    if not all(values.isnan().all() for values in classes.values()):
        panels["to a class of tokens"] = classes
    figure, every = canvas(ax, width_of(result.labels), 3.6 * len(panels), shape=(len(panels), 1))
    for number, (axes, (title, series)) in enumerate(zip(every, panels.items(), strict=True)):
        told = f"Attention {title}" if number else headline(result, f"Attention {title}")
        layer_points(axes, series, result.labels, unit="share of the attention", title=told)
    return finished(figure, ax, path)


@draws(AttentionGradients)
def draw_gradients(result: AttentionGradients, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw the gradients to each class of tokens: a heat map per class, on the same scale."""
    panels = {f"to {name}: values": result.gradient_to(name) for name in result.classes}
    unit, title = axes_of(AttentionGradients)["values"].label, headline(result, "Attention gradients")
    return head_panels(panels, result.labels, unit=unit, title=title, ax=ax, path=path)


@draws(AttentionMaps)
def draw_attention_maps(
    result: AttentionMaps,
    *,
    head: Any = None,
    layer: int | None = None,
    example: int = 0,
    stack: str | None = None,
    words: bool = False,
    ax: AxesT | None = None,
    path: str | Path | None = None,
) -> AxesT:
    """Draw one head with its tokens, the heads of one layer, or all heads."""
    wanted = (layer, head) if layer is not None and head is not None else head
    if isinstance(head, int) and layer is None:
        raise DataError(f"head={head} is the number of a head in a layer: say the layer too, layer=..., or 'L2H{head}'")
    shown = example_maps(result, example, stack, words=words, head=wanted)
    if wanted is not None:
        return _draw_head(shown, *shown.place(wanted), ax, path)
    if layer is not None:
        return _draw_layer(shown, shown.place((layer, 0))[0], ax, path)
    return _draw_all(shown, ax, path)


def _draw_head(shown: ExampleMaps, row: int, head: int, ax: AxesT | None, path: str | Path | None) -> AxesT:
    values, name = shown.maps[row, head], head_at(shown.result.labels, row, head)
    queries, keys = values.shape
    cell = max(0.06, min(0.3, 14 / max(queries, keys)))
    figure, (axes,) = canvas(ax, max(4.8, cell * keys + 2.6), max(3.6, cell * queries + 1.9))
    image = axes.imshow(values.numpy(), cmap=COLOUR_MAP, vmin=0, aspect="equal" if ax is None else "auto")
    axes.set_facecolor(MISSING)
    _label(axes, shown, 72 * cell * 0.72 if ax is None else 8)
    axes.set_xlabel("to: key" if shown.named else "to: position of the key")
    axes.set_ylabel("from: query" if shown.named else "from: position of the query")
    set_title(axes, f"Attention of {name}: {shown.title}")
    figure.colorbar(image, ax=axes, label=UNIT, shrink=0.8)
    return finished(figure, ax, path)


@draws(AttentionRollout)
def draw_rollout(
    result: AttentionRollout, *, layer: int | None = None, example: int = 0, stack: str | None = None,
    ax: AxesT | None = None, path: str | Path | None = None,
) -> AxesT:  # fmt: skip
    """Draw how much the positions of one layer, by default the last, take from each token of one text."""
    maps = {name: x[:, :, None] for name, x in result.stacks.items()}
    like = AttentionMaps(
        maps, result.masks, result.labels, tokens=result.tokens, decoder_tokens=result.decoder_tokens,
        model_name=result.model_name,
    )  # fmt: skip
    shown = example_maps(like, example, stack, words=False)
    row = len(shown.maps) - 1 if layer is None else shown.place((layer, 0))[0]
    queries, keys = shown.maps.shape[-2:]
    cell = max(0.06, min(0.3, 14 / max(queries, keys)))
    figure, (axes,) = canvas(ax, max(4.8, cell * keys + 2.6), max(3.6, cell * queries + 1.9))
    image = axes.imshow(shown.maps[row, 0].numpy(), cmap=COLOUR_MAP, vmin=0, aspect="equal" if ax is None else "auto")
    _label(axes, shown, 72 * cell * 0.72 if ax is None else 8)
    axes.set_xlabel("token of the input" if shown.named else "position in the input")
    axes.set_ylabel(f"position after layer {shown.result.labels[row]}")
    set_title(axes, f"Rollout ({result.weighting}): {shown.title}")
    figure.colorbar(image, ax=axes, label="share" if result.weighting != "gradient" else "relevance", shrink=0.8)
    return finished(figure, ax, path)


@draws(HeadAttribution)
def draw_attribution(result: HeadAttribution, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw what each head adds to the number, as a mean over the batch."""
    title = headline(result, "What each head adds")
    panels = {"on the direct path, mean": result.mean}
    return head_panels(panels, result.labels, unit="logit", title=title, scale="signed", ax=ax, path=path)


@draws(LogitLens)
def draw_lens(
    result: LogitLens, *, example: int = 0, ax: AxesT | None = None, path: str | Path | None = None
) -> AxesT:  # fmt: skip
    """Draw what each layer would answer at each position of one text; dark where it is sure of the target."""
    count = result.best.shape[1]
    if not is_whole(example) or not 0 <= example < count:
        raise DataError(f"example must be from 0 to {count - 1}, got {example!r}")
    real = result.mask[example].cpu()
    values = result.probability[:, example].cpu()[:, real].float()
    layers, positions = values.shape
    written = positions <= MOST_ANSWERS
    column = 0.75 if written else min(0.2, 20 / positions)
    figure, (axes,) = canvas(ax, max(4.8, column * positions + 2.4), max(3.2, 0.26 * layers + 1.6))
    image = axes.imshow(values.numpy(), cmap=COLOUR_MAP, vmin=0, vmax=1, aspect="auto", origin="lower")
    if written:
        _write_answers(axes, result, example, values)
    tokens = result.tokens[example] if result.tokens and len(result.tokens[example]) == len(real) else ()
    shown = [_short(label_of(one)) for one, there in zip(tokens, real.tolist(), strict=False) if there]
    places = range(0, positions, -(-positions // 100))
    labels = [shown[place] if shown else str(place) for place in places]
    axes.set_xticks(places, labels=labels, parse_math=False, fontsize="medium" if written else "small")
    axes.set_yticks(range(0, layers, max(1, layers // 16)), labels=result.labels[:: max(1, layers // 16)])
    axes.tick_params(axis="x", rotation=90 if shown or not written else 0, length=0)
    axes.set_xlabel("token" if shown else "position")
    axes.set_ylabel("layer")
    set_title(axes, title_of_example(result, "What each layer would answer", example, count))
    figure.colorbar(image, ax=axes, label="probability of the target")
    return finished(figure, ax, path)


def _write_answers(axes: Axes, result: LogitLens, example: int, values: Tensor) -> None:
    """Write the answer of each layer at each position into its cell."""
    real = result.mask[example].tolist()
    for layer, names in enumerate(result.names):
        for place, name in enumerate(one for one, there in zip(names[example], real, strict=True) if there):
            colour = "white" if values[layer, place] > 0.55 else "black"
            told = _short(label_of(name), 12)
            axes.text(place, layer, told, ha="center", va="center", color=colour, fontsize=6.5, parse_math=False)


@draws(LayerSimilarity)
def draw_similarity(result: LayerSimilarity, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw the similarity of every two layers, layer 0 at the bottom left, beside that of shuffled examples."""
    panels = {"linear CKA": result.cka, "shuffled examples": result.null}
    rows, columns = result.cka.shape
    figure, every = canvas(
        ax, 2 * max(3.0, 0.32 * columns) + 1.8, max(3.2, 0.32 * rows + 1.4), shape=(1, 2), sharey=True
    )
    for axes, (title, values) in zip(every, panels.items(), strict=True):
        image = axes.imshow(values.numpy(), cmap=COLOUR_MAP, vmin=0, vmax=1, origin="lower", aspect="auto")
        axes.set_facecolor(MISSING)
        axes.set_title(title, fontsize="medium")
        axes.set_xticks(_some(columns), labels=[result.other_labels[place] for place in _some(columns)])
        axes.set_yticks(_some(rows), labels=[result.labels[place] for place in _some(rows)])
        axes.set_xlabel("layer")
    every[0].set_ylabel("layer")
    figure.colorbar(image, ax=list(every), label="linear CKA, debiased")
    common_title(figure, ax, headline(result, "How alike layers are"))
    return finished(figure, ax, path)


@draws(Contextuality)
def draw_contextuality(result: Contextuality, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw the mean cosines over the layers."""
    series = {"any two tokens": result.anisotropy, "a token and its text": result.within_text}
    series |= {f"two of “{name}”": result.self_similarity[:, number] for number, name in enumerate(result.classes)}
    figure, (axes,) = canvas(ax, width_of(result.labels), 3.6)
    for number, (name, values) in enumerate(series.items()):
        axes.plot(range(len(values)), values.numpy(), marker=marker_of(number), color=colour_of(number), label=name)
    axes.set_xticks(_some(len(result.labels)), labels=[result.labels[place] for place in _some(len(result.labels))])
    axes.set_xlabel("layer")
    axes.set_ylabel("mean cosine")
    side_legend(axes)
    set_title(axes, headline(result, "Cosines between tokens"))
    return finished(figure, ax, path)


def _label(axes: Axes, shown: ExampleMaps, size: float) -> None:
    """Write the tokens beside the rows and below the columns."""
    step = max(1, math.ceil(LEAST_SIZE / size))
    for axis, names in ((axes.xaxis, shown.keys), (axes.yaxis, shown.queries)):
        places = range(0, len(names), step)
        labels = [_short(names[place]) for place in places]
        axis.set_ticks(list(places), labels=labels, fontsize=max(LEAST_SIZE, min(MOST_SIZE, size)), parse_math=False)
    widest = max(map(len, shown.keys), default=0)
    upright = widest <= 2 and len(shown.keys) <= 30 and 0.7 * widest * min(MOST_SIZE, size) <= size
    axes.tick_params(axis="x", rotation=0 if upright else 90)
    axes.tick_params(length=2)


def _short(name: str, most: int = 16) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _draw_layer(shown: ExampleMaps, row: int, ax: AxesT | None, path: str | Path | None) -> AxesT:
    """A panel for each head of a layer, all on one scale, with the tokens at the outer sides."""
    maps = shown.maps[row]
    columns = min(len(maps), 4 if len(maps) <= 16 else 8)
    rows = math.ceil(len(maps) / columns)
    tokens = max(maps.shape[-2:])
    side = max(1.5, min(3.2, 0.16 * tokens))
    size = (columns * side + 2.2, rows * (side + 0.25) + 1.4)
    figure, every = canvas(ax, *size, shape=(rows, columns), panels=len(maps), sharex=True, sharey=True)
    top = maps.nan_to_num(0).max().item() or 1.0
    for head, axes in enumerate(every):
        image = axes.imshow(maps[head].numpy(), cmap=COLOUR_MAP, vmin=0, vmax=top, aspect="auto")
        axes.set_facecolor(MISSING)
        axes.set_title(str(head_at(shown.result.labels, row, head)), fontsize="medium")
        _label(axes, shown, 72 * side / tokens * 0.8)
        axes.tick_params(labelbottom=head + columns >= len(maps), labelleft=head % columns == 0)
    figure.colorbar(image, ax=list(every), label=UNIT)
    common_title(figure, ax, f"Attention of layer {shown.result.labels[row]}: {shown.title}")
    return finished(figure, ax, path)


def _draw_all(shown: ExampleMaps, ax: AxesT | None, path: str | Path | None) -> AxesT:
    """A small map for each head, layer 0 at the bottom, in one image: a hundred axes would take seconds."""
    tiles = _tiles(shown.maps)
    layers, heads, height, width = tiles.shape
    inches = max(0.36, min(0.75, 12 / max(layers, heads)))
    figure, (axes,) = canvas(ax, max(6.4, heads * inches + 2.2), layers * inches + 1.6)
    whole = tiles.flip(0).permute(0, 2, 1, 3).reshape(layers * height, heads * width)
    norm = need("matplotlib.colors", extra="plot").PowerNorm(0.5, 0, 1)
    image = axes.imshow(
        whole.numpy(), cmap=COLOUR_MAP, norm=norm, aspect="auto", extent=(-0.5, heads - 0.5, -0.5, layers - 0.5),
        interpolation="nearest",
    )  # fmt: skip
    axes.set_facecolor(MISSING)
    for where, line in ((range(1, heads), axes.axvline), (range(1, layers), axes.axhline)):
        for place in where:
            line(place - 0.5, color=paper(), linewidth=2.5)
            line(place - 0.5, color=MISSING, linewidth=0.6)  # maps may be as light as the paper
    axes.set_xticks(_some(heads), labels=[str(head) for head in _some(heads)])
    axes.set_yticks(_some(layers), labels=[shown.result.labels[row] for row in _some(layers)])
    axes.tick_params(length=0)
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    for side in axes.spines.values():
        side.set_visible(False)
    set_title(axes, f"Attention of all heads: {shown.title}")
    label = f"{UNIT}, on a square-root scale\n(in each map: rows attend to columns)"
    figure.colorbar(image, ax=axes, label=label, shrink=min(1.0, 5 / (layers * inches)))
    return finished(figure, ax, path)


def _tiles(maps: Tensor) -> Tensor:
    """[layer, head, row, column]: the maps, made smaller where they have many tokens."""
    sizes = [min(size, MOST_IN_TILE) for size in maps.shape[-2:]]
    if list(maps.shape[-2:]) == sizes:
        return maps
    pruned = maps.isnan().flatten(2).all(-1)
    smaller = F.adaptive_max_pool2d(maps.nan_to_num(0), sizes)
    return smaller.masked_fill(pruned[..., None, None], float("nan"))


def _some(many: int) -> Sequence[int]:
    return range(0, many, 1 if many <= 32 else 2 if many <= 64 else 8)
