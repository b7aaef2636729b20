"""The snippets of README and the guides run, each page from top to bottom."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")] if "```python" in p.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_snippets_run(page, minilm):
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


def test_every_export_is_in_the_api_page():
    import bertology

    page = (ROOT / "docs" / "api.md").read_text()
    missing = [name for name in bertology.__all__ if f"::: bertology.{name}\n" not in page]
    assert missing == ["BertologyError", "EntropyAccumulator", "ImportanceAccumulator", "ScoreAccumulator"]


def test_changelog_names_the_version():
    import bertology

    assert f"## {bertology.__version__}" in (ROOT / "CHANGELOG.md").read_text()
