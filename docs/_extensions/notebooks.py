"""The notebooks of examples/notebooks are pages of the site, with the outputs that they were committed with."""

from __future__ import annotations

import shutil
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]


def link_copies(app: Sphinx, name: str, source: list[str]) -> None:
    """Pages link to the notebooks where the repository has them."""
    source[0] = source[0].replace("](../examples/notebooks/", "](notebooks/")


def setup(app: Sphinx) -> dict[str, bool]:
    """Copy them into the sources, where git ignores them."""
    folder = Path(app.srcdir) / "notebooks"
    folder.mkdir(exist_ok=True)
    wanted = {
        path.name: path for path in (ROOT / "examples" / "notebooks").glob("*.ipynb")
    }
    for name, path in wanted.items():
        copy = folder / name
        if not copy.is_file() or copy.read_bytes() != path.read_bytes():
            shutil.copyfile(path, copy)
    for copy in folder.glob("*.ipynb"):
        if copy.name not in wanted:
            copy.unlink()
    app.connect("source-read", link_copies)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
