"""The notebooks are small, show what they found, and hold nothing of the machine that ran them.

They are run by `nox -s notebooks`.
"""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

pytestmark = pytest.mark.any_transformers
FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
sys.path.insert(0, str(FOLDER))
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 300_000
MACHINE = re.compile(r"(?<!\w)/(?:tmp|home|root|Users|work)/|site-packages|0x[0-9a-f]{6}")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


def test_there_are_eight():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(1, 9)]


@each
def test_it_is_small_and_holds_no_paths(path):
    text = path.read_text()
    assert len(text.encode()) < LARGEST
    pictures = re.compile(r'"image/png": "[^"]*"')
    assert MACHINE.findall(pictures.sub("", text)) == []


@each
def test_every_cell_was_run_in_order_and_without_complaints(path):
    code = cells(path, "code")
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    assert any("image/png" in output.get("data", {}) for output in outputs)


@each
def test_code_is_short_and_text_stands_between(path):
    notebook = nbformat.read(path, 4)
    assert notebook.cells[0].source.startswith("# ")
    assert len(cells(path, "markdown")) >= 6
    # Data may be long: strings do not count.
    lengths = [
        len(re.sub(r'"""(?s:.*?)"""|\'\'\'(?s:.*?)\'\'\'', "", cell.source).splitlines())
        for cell in cells(path, "code")
    ]
    assert max(lengths) <= 42
    lines = [line for cell in cells(path, "code") for line in cell.source.splitlines()]
    assert [line for line in lines if len(line) > 120] == []


@each
def test_what_it_imports_is_there(path):
    for cell in cells(path, "code"):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("bertology"):
                module = importlib.import_module(node.module)
                assert [one.name for one in node.names if not hasattr(module, one.name)] == []


@each
def test_links_lead_somewhere(path):
    for cell in cells(path, "markdown"):
        for target in re.findall(r"\]\(([^)]+)\)", cell.source):
            assert target.startswith("https://") or (path.parent / target).exists(), target


@each
def test_the_badge_is_that_of_the_setting(path):
    import run

    notebook = nbformat.read(path, 4)
    assert run.with_badge(nbformat.read(path, 4), path.name, run.repository()) == notebook
    badged = run.with_badge(nbformat.read(path, 4), path.name, "https://github.com/someone/bertology")
    address = f"{run.COLAB}/someone/bertology/blob/main/examples/notebooks/{path.name}"
    assert badged.cells[0].source.splitlines()[2] == f"{run.BADGE}({address})"
    assert run.with_badge(badged, path.name, run.repository()) == notebook
    assert run.BADGE not in run.with_badge(badged, path.name, "").cells[0].source


def test_the_script_cleans_what_depends_on_the_machine():
    import run

    output = nbformat.v4.new_output("execute_result", {"text/plain": "1"}, execution_count=1)
    cell = nbformat.v4.new_code_cell("1", outputs=[output], metadata={"execution": {"iopub.status.busy": "2026"}})
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": {"name": "mine", "display_name": "mine"}})
    found = run.cleaned(notebook)
    assert found.metadata.kernelspec.name == "python3"
    assert found.cells[0].metadata == {}
    assert found.cells[0].outputs == [output]
