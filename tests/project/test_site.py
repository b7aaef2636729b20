"""How the site reads docstrings, settings and names. `nox -s docs` builds it."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="the extra docs builds the site")

sys.path.append(str(Path(__file__).parents[2] / "docs" / "_extensions"))

from docstrings import marked_up
from name_links import short_names
from settings import settings

pytestmark = pytest.mark.any_transformers


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Of `Head`s, E|g| and p_ℓ.", r"Of ``Head``\ s, E\|g\| and p_ℓ."),
        ("a * b, `a * b` and x_.", r"a \* b, ``a * b`` and x\_."),
        (":param x: E|g| of `x`", r":param x: E\|g\| of ``x``"),
        (r":param \*xs: all", r":param \*xs: all"),
    ],
)
def test_prose_of_docstrings_is_escaped(line, expected):
    assert marked_up([line]) == [expected]


def test_examples_and_code_of_docstrings_stay_as_they_are():
    lines = ["Say `x`.", "", "    a | b", "    └ c", "", "Then:", "", ">>> f(`1`) | 2", "x_ | y", "", "E|g|"]
    assert marked_up(lines) == [
        "Say ``x``.", "", "::", "", "    a | b", "    └ c", "", "Then:", "", ">>> f(`1`) | 2", "x_ | y", "", r"E\|g\|",
    ]  # fmt: skip


def test_settings(tmp_path):
    file = tmp_path / "pyproject.toml"
    file.write_text('[project]\nversion = "1.2"\n[tool.other]\n')
    assert (settings(tmp_path).repository, settings(tmp_path).url) == ("", "")
    addresses = 'repository = "https://one.example/a/"\nsite = "https://two.example/b"\n'
    file.write_text(f'[project]\nversion = "1.2"\n[tool.bertology]\n{addresses}')
    found = settings(tmp_path)
    assert (found.version, found.repository, found.url) == ("1.2", "https://one.example/a", "https://two.example/b/")


def test_names_in_sentences_are_links_where_they_mean_one_thing():
    full = dict.fromkeys(("lib.align_code", "lib.room.show", "lib.One.values", "lib.Two.values", "lib.tap"), "")
    full |= {"lib.One.heads_off": "", "lib.Two": "", "lib.room.Three": ""}
    short = short_names(full)
    assert short["align_code"] == "lib.align_code"
    assert short["heads_off"] == short["One.heads_off"] == "lib.One.heads_off"
    assert (short["tap"], short["Three"], short["room.show"]) == ("lib.tap", "lib.room.Three", "lib.room.show")
    assert not {"show", "values"} & set(short)
