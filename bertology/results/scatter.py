"""Each head as a point, by what was measured of it on two data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError, checked, described, how_many
from .axes import axes_of
from .canvas import MARKERS, AxesT, canvas, colour_of, finished, inner_legend, set_title
from .fields import words_of
from .figures import check_field
from .result import Result


@checked
def head_scatter(
    one: Result,
    other: Result,
    *,
    field: str | None = None,
    names: Sequence[str] = ("first data set", "second data set"),
    title: str | None = None,
    ax: AxesT | None = None,
    path: str | Path | None = None,
) -> AxesT:
    """Draw a point for each head, by its value on two data sets, with Pearson's r (extra `plot`).

    Figure 2 of Michel et al. (2019), for two results of `head_ablation`: do the same heads matter on other data? For
    `head_importance` or any other measure of heads it works the same way. Each stack of the model has its own colour,
    and on the dashed line both values are equal.

    Args:
        one: a result with a `[layer, head]` field, drawn along the horizontal axis.
        other: a result of the same kind and the same model, on other data.
        field: the `[layer, head]` field; by default the first, which for `HeadAblation` is `change`.
        names: the names of both data sets.
        title: above the picture.
        ax: axes to draw in, in the place of a new figure.
        path: the file to which the picture is also written.

    Returns the figure, or the axes that were given.

    Raises `DataError` for results of different kinds or models, and where r is not defined.

        >>> import bertology
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> texts = [{"input_ids": torch.tensor([ids])} for ids in ([5, 6], [7, 8, 9])]
        >>> one, other = (bertology.attention_entropy(model, text) for text in texts)
        >>> len(head_scatter(one, other).axes[0].collections[0].get_offsets())
        8
    """
    if type(one) is not type(other) or one.labels != other.labels:
        raise DataError(
            f"head_scatter compares two results of one kind and one model, got {described(one)} of layers "
            f"{', '.join(one.labels)} and {described(other)} of layers {', '.join(other.labels)}"
        )
    if isinstance(names, str) or len(names) != 2:
        raise DataError(f"names must be two, one for each data set, got {names!r}")
    name = check_field(one, field)
    if axes_of(type(one))[name].names != ("layer", "head"):
        raise DataError(f"head_scatter draws a [layer, head] field, got {name!r} {axes_of(type(one))[name]}")
    pairs = torch.stack([getattr(x, name).detach().cpu().double() for x in (one, other)])
    r, there = heads_correlation(pairs[0], pairs[1])
    figure, (axes,) = canvas(ax, 5.4, 4.8)
    ends = [pairs[:, there].min().item(), pairs[:, there].max().item()]
    axes.plot(ends, ends, linestyle="--", color="grey", linewidth=1, zorder=1)
    stacks = [label.rpartition(".")[0] for label in one.labels]
    for number, stack in enumerate(dict.fromkeys(stacks)):
        rows = torch.tensor([other == stack for other in stacks])
        x, y = pairs[:, there & rows[:, None]]
        axes.scatter(
            x.numpy(), y.numpy(), 18, color=colour_of(number), marker=MARKERS[number % len(MARKERS)],
            alpha=0.7, linewidths=0, label=stack, zorder=2,
        )  # fmt: skip
    if len(set(stacks)) > 1:
        inner_legend(axes)
    axes.set_xlabel(f"{name} on {names[0]}")
    axes.set_ylabel(f"{name} on {names[1]}")
    set_title(axes, title or f"{words_of(type(one).__name__)}: r = {r:.2f}, {how_many(int(there.sum()), 'head')}")
    axes.grid(alpha=0.3)
    return finished(figure, ax, path)


def heads_correlation(one: Tensor, other: Tensor) -> tuple[float, Tensor]:
    """Pearson's r between the values of heads, both [layer, head], and [layer, head], bool: which heads have both.

    Raises `DataError` for values of different shapes, and where r is not defined.
    """
    if one.shape != other.shape:
        raise DataError(f"wanted two ablations of one model, got {list(one.shape)}, {list(other.shape)}")
    there = ~(one.isnan() | other.isnan())
    r = float(torch.corrcoef(torch.stack([one[there], other[there]]))[0, 1]) if there.any() else float("nan")
    if r != r:
        raise DataError(
            f"no correlation: all {how_many(int(there.sum()), 'head')} have the same effect on one of the data sets"
        )
    return r, there
