"""The sdist holds the checkout, and the built wheel the library, byte for byte; the wheel is what is installed.

The session `wheel` runs this file in the folder of the unpacked sdist.
"""

import os
import runpy
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import bertology

pytestmark = pytest.mark.any_transformers

ROOT = Path(__file__).parents[2]
CHECKOUT = Path(os.environ.get("BERTOLOGY_CHECKOUT", ROOT))
WHEEL = os.environ.get("BERTOLOGY_WHEEL")
built = pytest.mark.skipif(WHEEL is None, reason="BERTOLOGY_WHEEL names no built wheel")


def files_of(folder: Path) -> dict[str, bytes]:
    """{path: content} of the library below a folder, without what Python compiles."""
    found = {p.relative_to(folder).as_posix(): p for p in (folder / "bertology").rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if "__pycache__" not in name}


def files_in(wheel: str | Path) -> dict[str, bytes]:
    """{path: content} of a wheel, without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def differences(wanted: dict[str, bytes], got: dict[str, bytes]) -> list[str]:
    """What is missing, what is too much, and what has another content."""
    return sorted(
        [f"{name} is missing" for name in wanted.keys() - got.keys()]
        + [f"{name} is too much" for name in got.keys() - wanted.keys()]
        + [f"{name} differs" for name in wanted.keys() & got.keys() if wanted[name] != got[name]]
    )


def tracked_files(folder: Path) -> dict[str, bytes]:
    """{path: content} of the files that git has in a checkout."""
    told = subprocess.run(["git", "ls-files", "-z"], cwd=folder, capture_output=True, check=True).stdout
    names = [name for name in told.decode().split("\0") if name and (folder / name).is_file()]
    return {name: (folder / name).read_bytes() for name in names}


def lost(wanted: dict[str, bytes], folder: Path) -> list[str]:
    """Which of these files a folder lacks, or has with another content."""
    return sorted(
        name for name in wanted if not (folder / name).is_file() or (folder / name).read_bytes() != wanted[name]
    )


@built
def test_the_sdist_holds_the_checkout():
    checkout = tracked_files(CHECKOUT)
    assert ROOT != CHECKOUT
    assert {"tests/conftest.py", "docs/index.md", "examples/run_bertology.py"} <= checkout.keys()
    assert lost(checkout, ROOT) == []


def test_what_an_sdist_lacks_is_found(tmp_path):
    (tmp_path / "README.md").write_bytes(b"other")
    (tmp_path / "LICENSE").write_bytes(b"text")
    assert lost({"README.md": b"text", "LICENSE": b"text", "tests/a.py": b""}, tmp_path) == ["README.md", "tests/a.py"]


@built
def test_the_wheel_holds_the_checkout():
    checkout = files_of(CHECKOUT)
    assert {"bertology/__init__.py", "bertology/py.typed"} <= checkout.keys()
    assert differences(checkout, files_in(WHEEL)) == []


@built
def test_what_is_installed_is_the_wheel():
    installed = Path(bertology.__file__).parents[1]
    assert "site-packages" in str(installed)
    assert differences(files_in(WHEEL), files_of(installed)) == []


@built
def test_the_checkout_is_not_on_the_path():
    assert not {ROOT.resolve(), CHECKOUT.resolve()} & {Path(entry).resolve() for entry in sys.path}


@built
def test_the_wheel_describes_itself_by_readme():
    packaging = runpy.run_path(str(CHECKOUT / "setup.py"), run_name="packaging")
    with zipfile.ZipFile(WHEEL) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        told = message_from_bytes(archive.read(name))
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert (
        told.get_payload(decode=True).decode().strip()
        == packaging["description"](readme, packaging["address"]()).strip()
    )
    assert len(told.get_all("Project-URL", [])) == len(packaging["urls"](packaging["address"]()))


def test_a_wheel_that_differs_is_found(tmp_path):
    checkout = files_of(CHECKOUT)
    names = sorted(checkout)
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        for name in names[1:]:
            archive.writestr(name, checkout[name] + b"#" if name == names[1] else checkout[name])
        archive.writestr("bertology/new.py", "")
        archive.writestr("bertology-0.1.0.dist-info/METADATA", "")
    found = differences(checkout, files_in(tmp_path / "x.whl"))
    assert found == sorted([f"{names[0]} is missing", f"{names[1]} differs", "bertology/new.py is too much"])
