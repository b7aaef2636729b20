"""Tests mirror the rooms: every measure has a test and an oracle. What was forgotten is named."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

from helpers.public import PACKAGE, ROOMS, SUITES

pytestmark = pytest.mark.any_transformers
TESTS = Path(__file__).parents[1]
# Tests that belong to no room.
OTHERS = {"helpers", "laws", "oracles", "project", "sweep"}
FILES = [path for room in ("measures", "importance") for path in sorted((PACKAGE / room).glob("[!_]*.py"))]
MEASURES = [path for path in FILES if path.stem != "figures"]  # what it draws is tested with all figures


def exported(path):
    """The functions of a file that are exported."""
    module = importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    functions = {
        name: f for name, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__
    }
    return [name for name, f in functions.items() if any(getattr(suite, name, None) is f for suite in SUITES)]


def files_for(path):
    """The file of tests that is named after a file, or those that are named after each of its functions."""
    folder = TESTS / path.parent.relative_to(PACKAGE)
    named = folder / f"test_{path.stem}.py"
    return [named] if named.is_file() else [folder / f"test_{name}.py" for name in exported(path)]


def has_oracle(text):
    """Whether a file of tests imports an oracle, or says in a comment what its oracle is."""
    return bool(re.search(r"^from oracles[ .]|^# oracle: \w", text, re.MULTILINE))


def test_every_room_has_a_folder_of_tests():
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders == {*ROOMS, *OTHERS}, "each room of bertology/ needs a folder of tests with the same name"


@pytest.mark.parametrize("path", MEASURES, ids=lambda one: f"{one.parent.name}/{one.stem}")
def test_every_measure_has_a_test_and_an_oracle(path):
    where = f"tests/{path.parent.name}/test_{path.stem}.py"
    found = files_for(path)
    assert found, f"add {where}"
    assert all(one.is_file() for one in found), f"add {where}, or {[one.name for one in found]}"
    for one in found:
        wanted = (
            f"{one.name} imports no oracle of tests/oracles; add one, or say what it compares with: `# oracle: ...`"
        )
        assert has_oracle(one.read_text()), wanted


@pytest.mark.parametrize("text", ["from bertology import score\n", "# oracle:\n", "x = 'from oracles import heads'\n"])
def test_what_is_no_oracle(text):
    assert not has_oracle(text)


@pytest.mark.parametrize("text", ["x\nfrom oracles import y\n", "\n# oracle: scipy\n", "from oracles.x import y\n"])
def test_what_is_an_oracle(text):
    assert has_oracle(text)
