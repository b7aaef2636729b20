"""Where pictures are drawn: in a new figure, or in axes of the caller's; and the style that all pictures share."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from ..errors import DataError, described, how_many, need, writable
from .complete_file import complete_file
from .fields import Fields, measured
from .files import check_path

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AxesT = TypeVar("AxesT", bound="Figure | Axes | Sequence[Axes] | np.ndarray[Any, Any]", default="Figure")
"""What a picture returns: the axes that it was given as `ax`, or else a figure."""

# Okabe and Ito's colours, which colour-blind readers can tell apart; markers also differ, for print without colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKERS = "os^DvPX*"
MISSING = "#c8c8c8"
"""The colour of cells without a value, such as pruned heads: neither colour map has it."""


def empty_figure(**options: Any) -> Figure:
    """An empty figure (extra `plot`) that notebooks show as a picture.

    It is made past pyplot: no list of figures keeps it in memory, and no backend opens a window or shows it twice.
    """
    figure: Figure = need("matplotlib.figure", extra="plot").Figure(**options)
    # IPython asks objects for a method of this name. A subclass could only be made where matplotlib is installed.
    setattr(figure, "_repr_png_", partial(_png, figure))  # noqa: B010
    return figure


def _png(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def new_figure(width: float = 6.4, height: float = 4.0) -> Figure:
    """An empty figure of this size in inches (extra `plot`)."""
    return empty_figure(figsize=(width, height), layout="constrained")


def canvas(
    ax: Any, width: float = 6.4, height: float = 4.0, *, shape: tuple[int, int] = (1, 1), panels: int | None = None,
    **options: Any,
) -> tuple[Figure, list[Axes]]:  # fmt: skip
    """The figure and the axes of each panel: those that were given, or those of a new figure of this size in inches.

    Args:
        ax: the caller's axes, one for each panel; None for a new figure.
        width: of the new figure; the same holds for `height`.
        shape: the rows and columns of the new figure.
        panels: how many of its axes are drawn in, if not all; the others are hidden.
        options: of `Figure.subplots`.

    Raises `DataError` for what is no axes, and for fewer or more axes than panels.
    """
    rows, columns = shape
    panels = rows * columns if panels is None else panels
    if ax is None:
        figure = new_figure(width, height)
        every = list(figure.subplots(rows, columns, squeeze=False, **options).flatten())
        for axes in every[panels:]:
            axes.set_visible(False)
        return figure, every[:panels]
    given = axes_in(ax, panels)
    return given[0].figure, given  # type: ignore[return-value]


def axes_in(ax: Any, panels: int = 1) -> list[Axes]:
    """A list of axes: of one, of a sequence, or of an array as `subplots` returns it.

    Raises `DataError` for what is no axes, and for fewer or more axes than panels.
    """
    kind = need("matplotlib.axes", extra="plot").Axes
    flat = [ax] if isinstance(ax, kind) else list(getattr(ax, "flat", ax if isinstance(ax, Sequence) else [ax]))
    for one in flat:
        if not isinstance(one, kind):
            raise DataError(f"ax takes matplotlib axes, as figure.subplots() returns them, got {described(one)}")
    if len(flat) != panels:
        raise DataError(f"this picture has {how_many(panels, 'panel')}: pass as many axes as ax, got {len(flat)}")
    return flat


def finished(figure: Any, ax: AxesT | None, path: str | Path | None) -> AxesT:
    """What a picture returns: its figure, or the axes that it was given. Written to `path` if one is given."""
    if ax is None:
        return written(figure, path)  # type: ignore[return-value]
    written(figure.canvas.figure, path)  # in a figure of figures, the outermost
    return ax


def written(figure: Figure, path: str | Path | None) -> Figure:
    """The figure, written to `path` if one is given."""
    if path is not None:
        check_path(path)
        default = need("matplotlib", extra="plot").rcParams["savefig.format"]
        target = Path(path) if Path(path).suffix else Path(f"{path}.{default}")
        with writable(path), complete_file(target) as part:
            figure.savefig(part, dpi=150, format=target.suffix[1:])
    return figure


def ink() -> Any:
    """The colour of text in the style that is in use: dark on light paper, light on dark."""
    return need("matplotlib", extra="plot").rcParams["text.color"]


def paper() -> Any:
    """The colour that text and lines are drawn on in the style that is in use."""
    return need("matplotlib", extra="plot").rcParams["axes.facecolor"]


def headline(result: Fields, text: str) -> str:
    """A title: what is drawn, and below it of which model and how many examples, if that is known."""
    of = measured(result)
    return "\n".join([text, *_broken(of, 60)]) if of else text


def _wrapped(title: str, inches: float) -> str:
    """A title in lines of at most this width: of medium size, 11 letters take an inch.

    matplotlib's own `wrap=True` reads dollar signs as formulas.
    """
    most = max(20, int(11 * inches))
    return "\n".join(part for line in title.split("\n") for part in _broken(line, most) or [""])


def _broken(line: str, most: int) -> list[str]:
    """The lines of a line of a title. A short end after a comma, such as "64 examples", stays together."""
    start, comma, end = line.rpartition(", ")
    if comma and len(end) <= 20:
        line = start + comma + end.replace(" ", "\N{NO-BREAK SPACE}")
    return [part.replace("\N{NO-BREAK SPACE}", " ") for part in textwrap.wrap(line, most, break_on_hyphens=False)]


def set_title(axes: Axes, title: str) -> None:
    """Write the title of a picture of one panel; one of several lines in smaller letters."""
    # A title may be somewhat wider than its axes, which are beside a colour bar or a legend.
    share = axes.get_position(original=True).width
    title = _wrapped(title, 1.25 * share * axes.figure.bbox.width / axes.figure.dpi)
    axes.set_title(title, fontsize="medium" if "\n" in title else "large", parse_math=False)


def common_title(figure: Figure, ax: Any, title: str) -> None:
    """Write a title above all panels of a new figure; the caller's figures have titles of their own."""
    if ax is None:
        title = _wrapped(title, figure.get_size_inches()[0])
        figure.suptitle(title, fontsize="medium" if "\n" in title else "large", parse_math=False)


def common_legend(
    figure: Figure, panels: Sequence[Axes], ax: Any, handles: Sequence[Any], loc: Any, **options: Any
) -> None:
    """A legend outside of the panels of a new figure, or inside the last of the caller's axes."""
    if ax is None:
        _plain(figure.legend(handles=handles, loc=loc, frameon=False, **options))
    else:
        _plain(panels[-1].legend(handles=handles, loc="best", fontsize="x-small"))


def side_legend(axes: Axes, **options: Any) -> None:
    """A legend to the right of the axes; options are those of `Axes.legend`."""
    _plain(axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False, **options))


def inner_legend(axes: Axes) -> None:
    """A legend where it covers least of the axes."""
    _plain(axes.legend())


def _plain(legend: Any) -> None:
    """Names have dollar signs that are no formulas."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def width_of(labels: Sequence[str]) -> float:
    """How wide a picture of these layers is, in inches, its legend included."""
    return max(6.4, 0.42 * len(labels) + 2.8)


def colour_of(number: int) -> Any:
    """The colour of a series; black is that of text, which is light on dark paper."""
    colour = COLOURS[number % len(COLOURS)]
    return ink() if colour == "#000000" else colour


def shades(many: int) -> list[Any]:
    """A colour for each of many layers in their order, none of which is lost on white or on black paper."""
    scale = need("matplotlib", extra="plot").colormaps["viridis"]
    return [scale(0.2 + 0.65 * number / max(1, many - 1)) for number in range(many)]


def marker_of(number: int) -> str:
    """The shape of the points of a series; from the ninth on, colours repeat with other shapes."""
    return MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
