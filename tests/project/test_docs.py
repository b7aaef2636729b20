"""The snippets of README and the guides run, each page from top to bottom."""

import re
from pathlib import Path

import pytest
import transformers

from sweep.shrink import covered_types

ROOT = Path(__file__).parents[2]
PAGES = sorted(p for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")] if "```python" in p.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_snippets_run(page, minilm):
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


def test_every_export_is_in_the_api_page():
    import bertology
    import bertology.code_structure
    import bertology.edge_probing
    import bertology.syntax

    page = (ROOT / "docs" / "api.md").read_text()
    missing = [name for name in bertology.__all__ if f"::: bertology.{name}\n" not in page]
    assert {name for name in missing if not name.endswith("Accumulator")} == {"BertologyError"}
    for folder in (bertology.syntax, bertology.edge_probing, bertology.code_structure):
        assert [name for name in folder.__all__ if f"::: {folder.__name__}.{name}\n" not in page] == []


def test_changelog_names_the_version():
    import bertology

    assert f"## {bertology.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_coverage_table_has_a_row_for_every_model_type():
    page = (ROOT / "docs" / "models.md").read_text()
    if f"transformers {transformers.__version__}." not in page:
        pytest.skip("the table is of another version of transformers")
    major = transformers.__version__.partition(".")[0]
    table = page.partition(f"<!-- table {major} -->")[2].partition(f"<!-- end {major} -->")[0]
    assert re.findall(r"^\| ([\w-]+) \|", table, re.MULTILINE) == covered_types()
