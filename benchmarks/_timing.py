"""What the benchmarks share: their parser of arguments, a clock for interleaved rounds, and the table that they print.

times = rounds({"plain": plain, "captures": captured}, rounds=7)
table("The cost of a call", times.rows("plain"), goals=[at_most("captures", "cpu", 1.15)])
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import transformers

_logging: Any = transformers.utils.logging
_logging.set_verbosity_error()
_logging.disable_progress_bar()

T = TypeVar("T")
Row = dict[str, Any]
VERSIONS = ("bertology", "transformers", "torch")
# If it is set, every table is also written to this folder, for `benchmarks/run.py`.
FOLDER = "BERTOLOGY_BENCHMARKS"
_LOAD_BEFORE = os.getloadavg()[0]


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows the docstring of a benchmark as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def timed(run: Callable[..., T], *args: Any) -> tuple[float, T]:
    """The seconds that a call takes, and its result."""
    start = time.perf_counter()
    result = run(*args)
    return time.perf_counter() - start, result


@dataclass
class Times:
    """Seconds of each way in each round, and the last result of each."""

    cpu: dict[str, list[float]] = field(default_factory=dict)
    """Of all threads of this process."""
    wall: dict[str, list[float]] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)

    def ratio(self, way: str, against: str, clock: str = "cpu") -> float:
        """The median over rounds of the ratio within a round."""
        seconds = getattr(self, clock)
        return statistics.median(a / b for a, b in zip(seconds[way], seconds[against], strict=True))

    def rows(self, against: str, *, shares: Mapping[str, float] | None = None) -> list[Row]:
        """One row a way: milliseconds of wall time, and ratios of CPU and wall time.

        `shares` divides the ratios of some ways: how many calls of `against` they are compared with.
        """
        made: list[Row] = []
        for way in self.cpu:
            share = (shares or {}).get(way, 1)
            ratios = {clock: round(self.ratio(way, against, clock) / share, 3) for clock in ("cpu", "wall")}
            made.append({"way": way, "ms": round(1000 * statistics.median(self.wall[way]), 2), **ratios})
        return made


def rounds(ways: Mapping[str, Callable[[], Any]], *, rounds: int = 5, warm_up: int = 1) -> Times:
    """Run each way once in every round, in an order that turns by one a round; the first `warm_up` are not counted."""
    found = Times({way: [] for way in ways}, {way: [] for way in ways})
    names = list(ways)
    collecting = gc.isenabled()
    for number in range(-warm_up, rounds):
        turn = number % len(names)
        for way in names[turn:] + names[:turn]:
            gc.collect()
            gc.disable()
            synchronize()
            wall, cpu = time.perf_counter(), time.process_time()
            result = ways[way]()
            synchronize()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if collecting:
                gc.enable()
            if number >= 0:
                found.cpu[way].append(cpu)
                found.wall[way].append(wall)
            found.results[way] = result
    return found


def synchronize() -> None:
    """Wait for the GPU, where there is one in use."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Goal(NamedTuple):
    """What a figure of a table should be."""

    row: str
    column: str
    limit: float
    most: bool
    """Whether the limit is the largest value that is wanted, or the smallest."""

    def met(self, value: float) -> bool:
        """Whether the goal is reached."""
        return value <= self.limit if self.most else value >= self.limit

    def __str__(self) -> str:
        return f"{self.column} {'<=' if self.most else '>='} {self.limit:g}"


def at_most(row: str, column: str, limit: float) -> Goal:
    """The goal that a figure is not larger than this."""
    return Goal(row, column, limit, True)


def at_least(row: str, column: str, limit: float) -> Goal:
    """The goal that a figure is not smaller than this."""
    return Goal(row, column, limit, False)


def table(
    title: str,
    rows: Sequence[Row],
    goals: Iterable[Goal] = (),
    *,
    note: str = "",
    skipped: Mapping[str, str] | None = None,
    packages: Sequence[str] = (),
) -> list[str]:
    """Print a table with its goals, the versions, the machine and its load; return the goals that were missed.

    Args:
        title: the question that is answered.
        rows: of each row its columns, by name; the first column names the row.
        goals: what some figures should be.
        note: what the columns mean, in a sentence.
        skipped: ways that did not run, and why.
        packages: distributions whose versions matter here, besides torch and transformers.

    Raises `ValueError` for a goal of a figure that is not there.
    """
    goals = list(goals)
    for goal in goals:
        if not any(next(iter(row.values())) == goal.row and goal.column in row for row in rows):
            raise ValueError(f"no row {goal.row!r} with a column {goal.column!r}, for which there is a goal")
    verdicts = [_judged(row, goals) for row in rows]
    behind = [
        f"{title}: {next(iter(row.values()))}: {said}"
        for row, said in zip(rows, verdicts, strict=True) if "behind" in said
    ]  # fmt: skip
    columns = list(dict.fromkeys(name for row in rows for name in row))
    shown = [dict(row) for row in rows]
    if goals:
        columns.append("goal")
        for row, said in zip(shown, verdicts, strict=True):
            row["goal"] = said
    about = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "versions": versions(packages),
        "machine": machine(),
        "load": f"{_LOAD_BEFORE:.1f} before, {os.getloadavg()[0]:.1f} after",
    }
    cells = [[_cell(row.get(name)) for name in columns] for row in shown]
    print(f"\n{title}")
    if note:
        print(note)
    for line in _lines(columns, cells):
        print(f"  {line}")
    for way, why in (skipped or {}).items():
        print(f"  skipped: {way}: {why}")
    print(f"  {about['versions']}; {about['machine']}; load {about['load']}")
    for line in behind:
        print(f"  BEHIND ITS GOAL: {line}")
    sys.stdout.flush()
    _written({"title": title, "note": note, "columns": columns, "cells": cells, "skipped": dict(skipped or {}),
              "behind": behind, **about})  # fmt: skip
    return behind


def installed(*names: str) -> dict[str, str]:
    """Which of these packages are missing, and the sentence that says so: to be given to `table` as `skipped`."""
    found = {}
    for name in names:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = f"it is not installed (pip install {name})"
    return found


def versions(packages: Sequence[str] = ()) -> str:
    """The versions of Python, of this library, and of what it is compared with."""
    found = [f"Python {platform.python_version()}"]
    for name in (*VERSIONS, *packages):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def machine() -> str:
    """The processor, its cores, the threads of torch, and the GPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [
        model or platform.processor() or platform.machine(),
        f"{cores} cores",
        f"{torch.get_num_threads()} threads",
    ]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def _judged(row: Row, goals: Sequence[Goal]) -> str:
    """The goals for a row, each with whether it is reached."""
    name = next(iter(row.values()))
    parts = []
    for goal in goals:
        if goal.row == name and goal.column in row:
            value = row[goal.column]
            parts.append(f"{goal}: {'reached' if goal.met(value) else 'behind'}")
    return "; ".join(parts)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def are_figures(cells: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns hold figures alone."""
    return [all(not cell or cell[0].isdigit() or cell[0] == "-" for cell in column)
            for column in zip(*cells, strict=True)]  # fmt: skip


def _lines(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """The columns under one another: words to the left, figures to the right."""
    wide = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    figures = are_figures(cells) or [False] * len(columns)
    return [
        "  ".join(cell.rjust(n) if right else cell.ljust(n) for cell, n, right in zip(line, wide, figures, strict=True))
        for line in ([*columns], *cells)
    ]


def _written(made: dict[str, Any]) -> None:
    """Write a table for the page of the site, if a run of all benchmarks asks for it."""
    folder = os.environ.get(FOLDER)
    if folder:
        made["script"] = Path(sys.argv[0]).name
        with (Path(folder) / "tables.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(made) + "\n")
