"""Run the benchmarks, and write their tables to a page of the site.

    python benchmarks/run.py                       # all of them: docs/benchmarks.md is written
    python benchmarks/run.py importance ablation   # some: their tables replace those that the page has of them
    python benchmarks/run.py --page                # write the page again, from the tables of the last run

The page is written after each script, so that what is done stays where a run is stopped. A script that fails, or takes
longer than its share of time, is named, and its tables of the last run stay, with their date. The exit code is then 1.
A ratio that falls behind its goal is named too, and does not change the exit code: a goal is what we want, and machines
differ.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _timing import FOLDER, are_figures, parser_of

from bertology.results.complete_file import write_text

HERE = Path(__file__).parent
TABLES = HERE / "tables.json"
PAGE = HERE.parent / "docs" / "benchmarks.md"
SECONDS = 300  # for one script
MINUTES = 20  # for all of them
# Scripts, and arguments with which all of them take less than 20 minutes on two cores.
SCRIPTS: dict[str, list[str]] = {
    "cost_of_a_call": [],
    "importance": ["--examples", "100", "--rounds", "2"],
    # The real decoder takes longer than one script may.
    "ablation": ["--models", "bert-2", "minilm", "minilm, 2 batches", "bert-12", "--rounds", "2"],
    "loops": ["--examples", "4", "--rounds", "2"],
    "parts": ["--rounds", "2"],
    "entropy_by_length": ["--tokens", "128", "512", "4096", "--rounds", "3"],
    "gpu_attention": [],
    "memory": ["--tokens", "2048", "4096", "--rounds", "1"],
    # The loops that it is compared with are slow on long texts.
    "distances": ["--whole", "200", "--sentences", "20", "--texts", "1", "--rounds", "2"],
    "probing": ["--steps", "40", "--sentences", "300", "--dev_sentences", "100"],
    "store": ["--targets", "50000"],
    "code": ["--functions", "60", "--every", "20", "--whole", "60"],
    "processes": [],
    "import_time": [],
}
INTRODUCTION = """# Benchmarks

What does a measure cost, compared with a plain forward pass, with a loop written by hand, and with other packages?
Each table is printed by a script in `benchmarks/`, which first checks that what it compares gives equal results.
Ratios are medians over rounds in which all ways run one after the other, in one process; CPU time is that of all
threads. A row with a goal says whether it is reached. Ratios depend on the machine and on what else runs there: the
line below a table says where and when it was made.

`nox -s bench` runs all scripts, and writes this page. No figure of it is typed in by hand. [Speed](speed.md) tells
which of the figures matter.
"""


def page(tables: list[dict[str, Any]]) -> str:
    """The page of the site, of these tables."""
    parts = [INTRODUCTION]
    for made in tables:
        parts.append(f"## {made['title']}\n")
        if made["note"]:
            parts.append(f"{made['note']}\n")
        columns = [_escaped(name) for name in made["columns"]]
        parts.append(f"| {' | '.join(columns)} |")
        parts.append(f"|{'|'.join('---:' if right else '---' for right in are_figures(made['cells']))}|")
        parts += [f"| {' | '.join(map(_escaped, cells))} |" for cells in made["cells"]]
        parts.append("")
        if made["skipped"]:
            parts.append(f"Not compared: {'; '.join(f'{way}: {why}' for way, why in made['skipped'].items())}.\n")
        parts.append(
            f"*`benchmarks/{made['script']}`, {made['date']}. {made['versions']}. {made['machine']}. "
            f"Load {made['load']}.*\n"
        )
    shown = {Path(table["script"]).stem for table in tables}
    missing = [f"`{name}.py`" for name in SCRIPTS if name not in shown and (HERE / f"{name}.py").is_file()]
    if missing:
        parts.append(f"## What is missing\n\nThese scripts have no table here yet: {', '.join(missing)}.\n")
    return "\n".join(parts)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def run(name: str, arguments: list[str], seconds: float = SECONDS) -> tuple[list[dict[str, Any]], str]:
    """The tables of a script, and why it failed, if it did."""
    if seconds <= 0:
        return [], f"{name}.py did not run: there was no time left"
    with TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
        # The library of this checkout is measured, also where another one is installed.
        paths = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH", "")]))
        started = subprocess.Popen(
            command, env={**os.environ, FOLDER: folder, "PYTHONPATH": paths}, start_new_session=True
        )
        try:
            code = started.wait(seconds)
            failed = f"{name}.py failed with exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            failed = f"{name}.py took more than {seconds:.0f} s"
        finally:
            _end(started)
        file = Path(folder) / "tables.jsonl"
        lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []  # each ends in a break
    return [json.loads(line) for line in lines], failed


def _end(started: subprocess.Popen[bytes]) -> None:
    """End a script, and the processes that it started."""
    if started.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(started.pid, signal.SIGKILL)
        else:
            started.kill()
        started.wait()


def write(tables: dict[str, list[dict[str, Any]]]) -> None:
    """Write all tables, and the page of the site."""
    ordered = [made for name in SCRIPTS for made in tables.get(name, [])]
    for path, text in ((TABLES, json.dumps(ordered, indent=1) + "\n"), (PAGE, page(ordered))):
        write_text(path, text)  # a run that is stopped leaves no half of a file


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("scripts", nargs="*", help=f"by default all: {', '.join(SCRIPTS)}")
    parser.add_argument("--page", action="store_true", help="run nothing")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all scripts together")
    args = parser.parse_args()
    unknown = [name for name in args.scripts if name not in SCRIPTS]
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    names = [] if args.page else [name for name in args.scripts or SCRIPTS if (HERE / f"{name}.py").is_file()]
    last = json.loads(TABLES.read_text(encoding="utf-8")) if TABLES.is_file() else []
    tables: dict[str, list[dict[str, Any]]] = {}
    for made in last:
        tables.setdefault(Path(made["script"]).stem, []).append(made)
    failures, start = [], time.perf_counter()
    write(tables)
    for name in names:
        left = 60 * args.minutes - (time.perf_counter() - start)
        made, failed = run(name, SCRIPTS[name], min(SECONDS, left))
        tables[name] = made or tables.get(name, [])
        failures += [failed] if failed else []
        write(tables)
    print(f"\n{len(names)} scripts in {(time.perf_counter() - start) / 60:.1f} minutes; {PAGE.name} is written")
    for line in [line for name in names for made in tables[name] for line in made["behind"]]:
        print(f"behind its goal: {line}")
    for failed in failures:
        print(f"FAILED: {failed}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
