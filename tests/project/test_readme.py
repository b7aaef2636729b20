"""README as people meet it: in the checkout, and on a package index, with a public address and without one."""

import pkgutil
import re
import runpy
from pathlib import Path

import pytest

import bertology

pytestmark = pytest.mark.any_transformers

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "https://code.example/ann/bertology"
CODE = r"^```.*?^```$"
LINK = r'\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"'


@pytest.fixture(scope="module")
def packaging():
    """The functions of setup.py, which is not run."""
    return runpy.run_path(str(ROOT / "setup.py"), run_name="packaging")


def links(text):
    prose = re.sub(CODE, "", text, flags=re.DOTALL | re.MULTILINE)
    return [one or other for one, other in re.findall(LINK, prose)]


def test_every_relative_link_of_readme_is_a_file():
    relative = [link for link in links(README) if not link.startswith("https://")]
    assert len(relative) > 8
    assert [link for link in relative if not (ROOT / link).is_file()] == []


def test_without_an_address_links_stay_relative(packaging):
    assert packaging["description"](README, "") == README
    assert packaging["urls"]("") == {}


def test_with_an_address_no_link_is_relative(packaging):
    made = packaging["description"](README, ADDRESS)
    assert [link for link in links(made) if not link.startswith("https://")] == []
    assert f"]({ADDRESS}/raw/main/docs/img/first-minutes.png)" in made
    assert f"]({ADDRESS}/blob/main/CITATION.cff)" in made
    assert len(links(made)) == len(links(README))
    code = re.compile(CODE, re.DOTALL | re.MULTILINE)
    assert code.findall(made) == code.findall(README)
    found = packaging["urls"](ADDRESS)
    assert found["Repository"] == ADDRESS
    assert all(url.startswith(ADDRESS) for url in found.values())


KINDS = {
    "[a](docs/a.md#part)": f"[a]({ADDRESS}/blob/main/docs/a.md#part)",
    "![a b](img/x.SVG)": f"![a b]({ADDRESS}/raw/main/img/x.SVG)",
    '<img src="x.png" width="9">': f'<img src="{ADDRESS}/raw/main/x.png" width="9">',
    "[![a](x.png)](y.md)": f"[![a]({ADDRESS}/raw/main/x.png)]({ADDRESS}/blob/main/y.md)",
    "[a](#part) [b](mailto:a@b.c) [c](http://d.e/f)": "[a](#part) [b](mailto:a@b.c) [c](http://d.e/f)",
    "```python\nf[0](x)\n```\n[a](b.md)": f"```python\nf[0](x)\n```\n[a]({ADDRESS}/blob/main/b.md)",
}


@pytest.mark.parametrize("text", KINDS)
def test_each_kind_of_link(packaging, text):
    assert packaging["description"](text, ADDRESS) == KINDS[text]


def test_the_address_is_one_setting(packaging):
    """The package is built with it; what is committed names no address."""
    assert packaging["address"]() == ""
    names = re.findall(r'^repository = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert names == [""]


def test_the_commands():
    marked = dict(re.findall(r"^<!-- command: ([\w ]+) -->\n```sh\n(.*?)\n```$", README, re.MULTILINE | re.DOTALL))
    assert marked["main job"].endswith("python3 examples/run_bertology.py")
    assert marked["tests"].endswith("python3 -m pytest -n auto --dist worksteal")
    assert (ROOT / "examples" / "run_bertology.py").is_file()


def test_the_extras_are_those_of_the_package(packaging):
    told = re.findall(r"`bertology\[(\w+)\]`", README.partition("## Install")[2].partition("## First")[0])
    extras = packaging["tomllib"].loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(told) == sorted(extras.keys() - {"test", "dev", "docs"})


def test_the_command_is_a_function_of_the_package(packaging):
    scripts = packaging["tomllib"].loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert callable(pkgutil.resolve_name(scripts["bertology"]))
    assert "bertology report demo" in README


def test_citations_are_of_this_version_and_the_same_everywhere():
    bib, cff = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/citation.bib", "CITATION.cff"))
    (ours,) = re.findall(r"```bibtex\n(.*?)```", README, re.DOTALL)
    assert ours in bib
    assert f"version = {{{bertology.__version__}}}" in ours
    assert f"\nversion: {bertology.__version__}\n" in cff
    plain = {re.sub(r"[{}]", "", title) for title in re.findall(r"^  title +=(?: {)(.*)},$", bib, re.MULTILINE)}
    assert plain == {title.strip('"') for title in re.findall(r"^(?:  +)?title: (.*)$", cff, re.MULTILINE)}
    assert len(plain) == 5
    assert all(doi in README or "295" in doi for doi in re.findall(r"doi: (\S+)", cff))
    assert sorted(re.findall(r"doi +=(?: {)(.*)}", bib)) == sorted(re.findall(r"doi: (\S+)", cff))
