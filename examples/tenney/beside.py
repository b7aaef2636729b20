"""Where in the depth of two models are the same tasks?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bertology.edge_probing import LayerScores, LayerStatistics
from bertology.errors import DataError
from bertology.results.figures import COLOURS, MARKERS, new_figure, written

Models = Mapping[str, Mapping[str, LayerStatistics]]


def read_study(folder: str | Path, tasks: list[str]) -> dict[str, LayerStatistics]:
    """The statistics of the tasks that the study of another model has kept. Raises `DataError` if it has none."""
    files = {name: Path(folder) / f"scores-{name}.safetensors" for name in tasks}
    found = {name: LayerScores.load(path).statistics() for name, path in files.items() if path.exists()}
    if not found:
        raise DataError(f"{folder} has no results of {', '.join(tasks)}: --beside takes the --output_dir of a study")
    return found


def beside_table(models: Models) -> str:
    """The expected layer and the centre of gravity of each task, as shares of each model's depth, in %."""
    first = next(iter(models.values()))
    lines = [
        "| task | " + " | ".join(f"{name}: expected layer | centre of gravity" for name in models) + " |",
        f"|{'---|' * (1 + 2 * len(models))}",
    ]
    for task in first:
        cells = []
        for statistics in models.values():
            one = statistics.get(task)
            for value in () if one is None else (one.expected_layer, one.centre_of_gravity):
                depth = _depth(one)
                cells.append(f"{value:.2f} of {depth}, {100 * value / depth:.0f} %" if value == value else "undefined")
            cells += [""] * 2 if one is None else []
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_beside(models: Models, path: Path) -> None:
    """A row for each task; the place of its expected layer in each model, from the first layer to the last."""
    tasks = list(next(iter(models.values())))
    figure = new_figure(6.4, 0.45 * len(tasks) + 1.4)
    axes = figure.subplots()
    for number, (name, statistics) in enumerate(models.items()):
        rows = [row for row, task in enumerate(tasks) if task in statistics]
        shares = [statistics[tasks[row]].expected_layer / _depth(statistics[tasks[row]]) for row in rows]
        axes.scatter([100 * x for x in shares], rows, 50, color=COLOURS[number], marker=MARKERS[number], label=name)
    axes.set_yticks(range(len(tasks)), labels=tasks)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("expected layer, % of the depth")
    axes.grid(alpha=0.3)
    axes.legend()
    written(figure, path)


def _depth(one: LayerStatistics) -> int:
    """The number of layers above the embeddings."""
    return len(one.labels) - 1
