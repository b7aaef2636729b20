"""Where in the depth of two models are the same tasks?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from bertology.edge_probing import LayerScores, LayerStatistics
from bertology.errors import DataError
from bertology.results.figures import COLOURS, new_figure, written
from bertology.results.views import markdown_table

Models = Mapping[str, Mapping[str, LayerStatistics]]


def read_study(folder: str | Path, tasks: list[str]) -> dict[str, LayerStatistics]:
    """The statistics of the tasks that the study of another model has kept. Raises `DataError` if it has none."""
    files = {name: Path(folder) / f"scores-{name}.safetensors" for name in tasks}
    found = {name: LayerScores.load(path).statistics() for name, path in files.items() if path.exists()}
    if not found:
        raise DataError(f"{folder} has no results of {', '.join(tasks)}: --beside takes the --output_dir of a study")
    return found


def beside_table(models: Models) -> str:
    """Of each task and model: the layers up to the one with the highest F1, the expected layer, the centre of gravity.

    Each is also given as a share of the model's depth, in %.
    """
    first = next(iter(models.values()))
    titles = [x for name in models for x in (f"{name}: highest F1 at", "expected layer", "centre of gravity")]
    rows = []
    for task in first:
        cells = [task]
        for statistics in models.values():
            one = statistics.get(task)
            if one is None:
                cells += ["", "", ""]
            else:
                best = int(one.f1.mean(0).argmax())
                cells += [
                    f"{best}, {100 * best / _depth(one):.0f} %",
                    *(_place(x, one) for x in (one.expected_layer, one.centre_of_gravity)),
                ]
        rows.append(cells)
    return markdown_table(["task", *titles], rows)


def draw_beside(models: Models, path: Path) -> None:
    """The gain in F1 over layer 0, with all layers up to each one; a colour for each task, a line for each model."""
    tasks = list(next(iter(models.values())))
    figure = new_figure(7.6, 4.4)
    axes = figure.subplots()
    for (name, statistics), style in zip(models.items(), ("-", "--"), strict=True):
        for task, one in statistics.items():
            f1 = 100 * one.f1.mean(0)
            depth = 100 * torch.arange(len(f1)) / _depth(one)
            colour = COLOURS[tasks.index(task) % len(COLOURS)]
            axes.plot(depth, f1 - f1[0], style, color=colour, label=f"{task}, {name}")
    axes.set_xlabel("layers up to, % of the depth")
    axes.set_ylabel("F1 less F1 at layer 0, points")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize="small")
    written(figure, path)


def _place(layer: float, one: LayerStatistics) -> str:
    return f"{layer:.2f}, {100 * layer / _depth(one):.0f} %" if layer == layer else "undefined"


def _depth(one: LayerStatistics) -> int:
    """The number of layers above the embeddings."""
    return len(one.labels) - 1
