"""The tables of the page for those who know another program: every call of ours is run, every flag is taken."""

import ast
import contextlib
import copy
import importlib
import io
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "migration.md").read_text()
sys.path.insert(0, str(ROOT / "examples"))


def tables(text):
    """Yield (heading, [{column: cell}]) of each table."""
    heading, rows, columns = "", [], None
    for line in [*text.splitlines(), ""]:
        if line.startswith("## "):
            heading = line[3:]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            if rows:
                yield heading, rows
            rows, columns = [], None
        elif columns is None:
            columns = cells
        elif not set(line) <= set("|- "):
            assert len(cells) == len(columns), line
            rows.append(dict(zip(columns, cells, strict=True)))


TABLES = list(tables(PAGE))
ROWS = [(f"{heading}: {row['there']}", row) for heading, rows in TABLES for row in rows]


def calls(row):
    """The Python in the cells of ours."""
    spans = [span for name, cell in row.items() if name.startswith("here") for span in re.findall("`([^`]+)`", cell)]
    return [span for span in spans if not span.startswith("--") and not span.endswith(".py")]


@pytest.fixture(scope="module")
def names(minilm):
    """What the block of code at the top of the page defines."""
    start, end = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    found = {}
    exec(compile(start, "migration.md", "exec"), found)
    yield found
    exec(compile(end, "migration.md", "exec"), found)


def last_value(code, names):
    """What the last statement is, if it is an expression."""
    *statements, last = ast.parse(code).body
    exec(compile(ast.Module(statements, []), code, "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), code, "eval"), names)
    exec(compile(ast.Module([last], []), code, "exec"), names)
    return None


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in ROWS if calls(row)])
def test_the_call_runs(row, names):
    for call in calls(row):
        # A call may change the model.
        own = {**names, **{name: copy.deepcopy(names[name]) for name in ("model", "gpt", "bart")}}
        torch.manual_seed(0)
        with contextlib.redirect_stdout(io.StringIO()):
            value = last_value(call, own)
        assert not callable(value) or isinstance(value, torch.nn.Module), f"{call} does not call what it ends in"


def test_every_row_has_a_call_or_a_reason():
    assert [name for name, row in ROWS if not ("`" in row["here"] or row["remarks"])] == []


def flags_of(script):
    return [
        span
        for heading, rows in TABLES
        if heading == script
        for row in rows
        for span in re.findall("`(--[^`]+)`", row["here"])
    ]


@pytest.mark.parametrize("script", ["run_bertology", "run_prune_gpt"])
def test_the_script_takes_every_flag(script, monkeypatch, capsys):
    flags = [part for flag in flags_of(f"{script}.py") for part in flag.split()]
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *flags])
    taken = vars(importlib.import_module(script).parse())
    rows = [row for heading, rows in TABLES if heading == f"{script}.py" for row in rows]
    assert sorted(taken) == sorted(name for row in rows for name in re.findall(r"`--(\w+)`", row["there"]))
