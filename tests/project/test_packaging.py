"""What the package declares is what it needs and what the public checks run on."""

import ast
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.any_transformers

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {k: v for k, v in PROJECT["optional-dependencies"].items() if k not in ("test", "dev", "docs")}
OTHER_NAMES = {"sklearn": "scikit-learn", "conllu": "conllu"}
TEST_TOOLS = {"conllu", "IPython", "pytest"}  # what a user passes in, or has where it is used
PYTHONS = [one.rpartition(" ")[2] for one in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", one)]


def declared(requirements: Iterable[str]) -> set[str]:
    """The names of packages."""
    return {re.match(r"[\w.-]+", one)[0].lower().replace("_", "-") for one in requirements}


def imported(source: str) -> set[str]:
    """The packages that a file imports, also through `need`, by the names under which they are installed."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "need":
            found |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    first = {name.partition(".")[0] for name in found} - set(sys.stdlib_module_names) - {"bertology"}
    return {OTHER_NAMES.get(name, name).lower().replace("_", "-") for name in first - TEST_TOOLS}


def test_what_is_imported_is_declared():
    known = declared(PROJECT["dependencies"]) | {name for some in EXTRAS.values() for name in declared(some)}
    needed = {name: imported(path.read_text()) for path in ROOT.glob("bertology/**/*.py") for name in [path.name]}
    assert {name: some - known for name, some in needed.items() if some - known} == {}


def test_imports_that_are_not_declared_are_found():
    source = 'import os, numpy as np\nfrom tqdm.auto import tqdm\nfrom . import x\nneed("sklearn.manifold", extra="a")'
    assert imported(source) == {"numpy", "tqdm", "scikit-learn"}
    assert declared(["torch>=2.6", "tree-sitter-c>=0.24", "typing_extensions>=4"]) == {
        "torch", "tree-sitter-c", "typing-extensions",
    }  # fmt: skip


def test_what_users_install_has_a_lower_bound():
    every = [*PROJECT["dependencies"], *(one for some in EXTRAS.values() for one in some)]
    assert [one for one in every if not re.fullmatch(r"[\w.-]+>=\d[\d.]*(,<\d[\d.]*)?", one)] == []


def test_readme_tells_what_each_extra_is_for():
    readme = (ROOT / "README.md").read_text()
    assert [
        name for name in EXTRAS if not re.search(rf"^\|.*`bertology\[{name}\]`.*\|.+\|$", readme, re.MULTILINE)
    ] == []


def test_pythons():
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    tests = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["tests"]["strategy"]["matrix"]
    assert {PYTHONS[0], PYTHONS[-1]} <= set(tests["python"]) <= set(PYTHONS)
    assert len(tests["python"]) == 3
    assert len(tests["transformers"]) == 2


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_workflows_run_sessions_that_exist(path):
    there = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.MULTILINE))
    for job in yaml.safe_load(path.read_text())["jobs"].values():
        assert job["runs-on"] == "ubuntu-latest"
        for step in job["steps"]:
            assert ("uses" in step) + ("run" in step) == 1
            if step.get("run", "").startswith("nox -s "):
                assert set(step["run"].split()[2:]) <= there


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_forms_of_issues(path):
    form = yaml.safe_load(path.read_text())
    assert form["name"]
    assert form["description"]
    assert len({field["id"] for field in form["body"]}) == len(form["body"])
    assert all(field["attributes"]["label"] for field in form["body"])
