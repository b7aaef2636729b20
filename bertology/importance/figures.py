"""Pictures of patching by layer."""

from __future__ import annotations

from pathlib import Path

from ..data.tokens import label_of
from ..results.axes import axes_of
from ..results.canvas import AxesT, canvas, finished, headline, set_title
from ..results.figures import layer_cells, layer_points, width_of
from ..results.result import draws
from .patching_results import LayerPatching


@draws(LayerPatching)
def draw_layer_patching(result: LayerPatching, *, ax: AxesT | None = None, path: str | Path | None = None) -> AxesT:
    """Draw the effect of each layer at each token as a map, or else that of each layer as a line."""
    name = {"attentions": "attention", "blocks": "block", "mlps": "MLP"}.get(result.parts, result.parts)
    title = headline(result, f"Effect of each {name}, put into the {result.into} run")
    words = axes_of(LayerPatching)["token_effect"].label
    if result.token_effect is None:
        figure, (axes,) = canvas(ax, width_of(result.labels))
        series = {name: result.effect[:, None]}
        layer_points(axes, series, result.labels, unit=words, title=title)
        return finished(figure, ax, path)
    rows, columns = result.token_effect.shape
    figure, (axes,) = canvas(ax, min(16, max(6.4, 0.3 * columns + 2.4)), min(24, max(4, 0.27 * rows + 1.2)))
    names = None if result.tokens is None else [label_of(token) for token in result.tokens]
    image = layer_cells(axes, result.token_effect, result.labels, "token", names, scale="signed")
    set_title(axes, title)
    axes.figure.colorbar(image, ax=axes, label=words)
    return finished(figure, ax, path)
