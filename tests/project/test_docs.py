"""The snippets of README and the guides run, each page from top to bottom."""

import pkgutil
import re
from pathlib import Path

import pytest
import transformers

from helpers.public import SUITES
from sweep.shrink import covered_types

ROOT = Path(__file__).parents[2]
PAGES = sorted(p for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")] if "```python" in p.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_snippets_run(page, minilm):
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


API = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)


def test_every_export_is_in_the_api_page():
    """An export is there by its name, or because the page shows all of its module (as of the exceptions)."""
    exports = {f"{one.__name__}.{name}": getattr(one, name).__module__ for one in SUITES for name in one.__all__}
    missing = sorted(name for name, module in exports.items() if name not in API and module not in API)
    assert missing == [], f"add to docs/api.md: {[f'::: {name}' for name in missing]}"


@pytest.mark.parametrize("path", API)
def test_the_api_page_names_what_is_there(path):
    assert API.count(path) == 1, f"{path} is in docs/api.md more than once"
    assert pkgutil.resolve_name(path), f"docs/api.md names {path}, which cannot be imported"


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
