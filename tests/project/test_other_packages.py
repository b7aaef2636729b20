"""The table of questions and other packages: each call is run on each kind of model, and refused where it says so."""

import copy
import re
from pathlib import Path

import pytest

from bertology.errors import BertologyError
from project.test_migration import last_value, tables

PAGE = (Path(__file__).parents[2] / "docs" / "other-packages.md").read_text()
KINDS = ("encoders", "decoders", "encoder-decoders")
ROWS = [row for _, rows in tables(PAGE) for row in rows]


@pytest.fixture(scope="module")
def names(minilm):
    """What the block of code of the page defines."""
    found = {}
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    exec(compile(block, "other-packages.md", "exec"), found)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", [pytest.param(row, id=row["question"]) for row in ROWS])
def test_the_call_runs_on_these_kinds_of_models(row, kind, names):
    (call,) = re.findall("^`([^`]+)`$", row["here"])
    on = row["on"].split(", ")
    assert set(on) <= set(KINDS)
    own = {**names, "model": copy.deepcopy(names["models"][kind]), "batch": names["batches"][kind]}
    if kind in on:
        assert last_value(call, own) is not None
    else:
        with pytest.raises(BertologyError):
            last_value(call, own)


def test_every_row_names_a_paper_and_others():
    assert len(ROWS) > 20
    assert all(row["paper"] and row["who else has it"] for row in ROWS)
