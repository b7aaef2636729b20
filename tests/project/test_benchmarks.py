"""The page of benchmarks is what the scripts made, and a goal that is missed is named."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
pytestmark = [
    pytest.mark.any_transformers,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="the wheel has no benchmarks"),
]


@pytest.fixture(scope="module")
def modules():
    """The clock and the runner of the benchmarks."""
    sys.path.insert(0, str(FOLDER))
    made = []
    for name in ("_timing", "run"):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        made.append(importlib.util.module_from_spec(spec))
        sys.modules[name] = made[-1]
        spec.loader.exec_module(made[-1])
    yield made
    sys.path.remove(str(FOLDER))
    for name in ("_timing", "run"):
        del sys.modules[name]


def test_the_page_is_made_of_the_tables(modules):
    _, runner = modules
    assert runner.PAGE.read_text() == runner.page(json.loads(runner.TABLES.read_text()))


def test_every_script_is_run(modules):
    _, runner = modules
    scripts = {path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_")} - {"run"}
    assert scripts <= set(runner.SCRIPTS)
    for name in scripts:
        assert "table(" in (FOLDER / f"{name}.py").read_text(), f"{name} prints no table"


def test_what_is_done_stays_where_a_script_takes_too_long(modules, monkeypatch, tmp_path, capsys):
    _, runner = modules
    for name, place in (("TABLES", "tables.json"), ("PAGE", "page.md"), ("HERE", ".")):
        monkeypatch.setattr(runner, name, tmp_path / place)
    line = table_of("quick")
    (tmp_path / "quick.py").write_text(
        "import os, pathlib\n"
        f"pathlib.Path(os.environ[{runner.FOLDER!r}], 'tables.jsonl').write_text({json.dumps(line)!r} + '\\n')\n"
    )
    (tmp_path / "slow.py").write_text("import time; time.sleep(600)")
    (tmp_path / "last.py").write_text("")
    monkeypatch.setattr(runner, "SCRIPTS", {"quick": [], "slow": [], "last": []})
    monkeypatch.setattr(sys, "argv", ["run.py", "--minutes", "0.05"])
    with pytest.raises(SystemExit, match="1"):
        runner.main()
    said = capsys.readouterr().out
    assert "FAILED: slow.py took more than" in said
    assert "FAILED: last.py did not run: there was no time left" in said
    assert json.loads((tmp_path / "tables.json").read_text()) == [line]
    assert "## A question of quick" in (tmp_path / "page.md").read_text()


def table_of(name):
    return {
        "title": f"A question of {name}", "note": "", "columns": ["way"], "cells": [["plain"]], "skipped": {},
        "behind": [], "date": "2026-01-01", "versions": "", "machine": "", "load": "", "script": f"{name}.py",
    }  # fmt: skip


def test_goals(modules, capsys, monkeypatch, tmp_path):
    timing, _ = modules
    monkeypatch.setenv(timing.FOLDER, str(tmp_path))
    rows = [{"way": "plain", "cpu": 1.0}, {"way": "slow", "cpu": 1.3}, {"way": "fast", "cpu": 0.5}]
    goals = [timing.at_most("slow", "cpu", 1.2), timing.at_most("fast", "cpu", 0.5), timing.at_least("plain", "cpu", 1)]
    behind = timing.table("A question", rows, goals, note="A note.", skipped={"other": "it is not installed"})
    assert behind == ["A question: slow: cpu <= 1.2: behind"]
    printed = capsys.readouterr().out
    assert "BEHIND ITS GOAL: A question: slow: cpu <= 1.2: behind" in printed
    assert "skipped: other: it is not installed" in printed
    (line,) = (tmp_path / "tables.jsonl").read_text().splitlines()
    made = json.loads(line)
    assert made["cells"] == [
        ["plain", "1", "cpu >= 1: reached"], ["slow", "1.3", "cpu <= 1.2: behind"], ["fast", "0.5", "cpu <= 0.5: reached"],
    ]  # fmt: skip
    assert made["behind"] == behind


def test_a_goal_for_no_row_is_refused(modules):
    timing, _ = modules
    with pytest.raises(ValueError, match="no row 'quick' with a column 'cpu'"):
        timing.table("A question", [{"way": "plain", "cpu": 1.0}], [timing.at_most("quick", "cpu", 1)])


def test_rounds_are_interleaved(modules):
    timing, _ = modules
    order = []
    times = timing.rounds({name: lambda name=name: order.append(name) for name in "abc"}, rounds=2, warm_up=1)
    assert "".join(order) == "cab" + "abc" + "bca"
    assert [len(seconds) for seconds in times.wall.values()] == [2, 2, 2]


def test_what_is_not_installed_is_named(modules):
    timing, _ = modules
    assert timing.installed("torch", "no-such-package") == {
        "no-such-package": "it is not installed (pip install no-such-package)"
    }


def test_help_is_there_without_work():
    shown = subprocess.run([sys.executable, FOLDER / "run.py", "--help"], capture_output=True, text=True, check=True)
    assert "by default all: cost_of_a_call" in shown.stdout
