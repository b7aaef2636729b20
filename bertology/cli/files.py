"""The files of a result in the output folder, and the page that shows them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..errors import DataError, writable
from ..results.complete_file import complete_file, try_to_write, write_text
from ..results.result import Result

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
body { overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
table { border-collapse: collapse; } th, td { padding: .1rem 1rem .1rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; } h2 { margin-top: 2.5rem; } .files { font-size: .9rem; }
"""


NAMES = ("importance", "entropy", "curve", "pruned")
"""What the files of results are called."""
KINDS = ("png", "csv", "json", "safetensors")


@dataclass(frozen=True)
class Section:
    """A result, what its files are called, and what it says in words."""

    name: str
    title: str
    words: str
    result: Result
    rows: Sequence[tuple[str, str]] = ()
    """What else the page says: a name and a value each."""
    parts: tuple[str, ...] = KINDS
    """Its files: a picture, a table, plain values, and what `Result.load` reads."""


def check_folder(path: Path) -> None:
    """Make the folder of results, before any work. Raises `DataError` where there can be none, or none is written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--output must be a folder, {path} cannot be one: {error.strerror}") from error
    try_to_write(path)


def clear(out: Path) -> None:
    """Remove the tables, pictures and pages that an earlier run has left in the folder; a pruned model stays there.

    Only a folder with the `run.json` of a run is touched, and in it only files with the names of results.
    """
    try:
        about = json.loads((out / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(about, dict) and "arguments" in about:
        for name in ("index.html", "run.json", *(f"{name}.{kind}" for name in NAMES for kind in KINDS)):
            (out / name).unlink(missing_ok=True)


def write_section(out: Path, section: Section) -> None:
    """Write the files of a result."""
    result, path = section.result, out / section.name
    if "safetensors" in section.parts:
        result.save(path.with_suffix(".safetensors"))
    if "json" in section.parts:
        write_json(path.with_suffix(".json"), {"result": type(result).__name__, **result.to_dict()})
    if "csv" in section.parts:
        table = path.with_suffix(".csv")
        with writable(table), complete_file(table) as part:
            result.to_frame().to_csv(part, index=False)
    if "png" in section.parts:
        result.plot(path=path.with_suffix(".png"))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values; what is no number, such as the score of a head that is pruned, is null."""
    write_text(path, json.dumps(_plain(values), indent=1) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_page(out: Path, title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> None:
    """Write index.html, which shows the pictures that lie beside it."""
    body = "\n".join([f"<h1>{escape(title)}</h1>", _table(facts), *map(_shown, sections)])
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    page = f'<html lang="en">\n<head>{head}<style>{STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>'
    write_text(out / "index.html", f"<!doctype html>\n{page}\n")


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>" if rows else ""


def _shown(section: Section) -> str:
    files = ", ".join(f'<a href="{section.name}.{kind}">{kind}</a>' for kind in section.parts)
    picture = f'<img src="{section.name}.png" alt="{escape(section.title)}">' if "png" in section.parts else ""
    return "\n".join(
        [
            f"<h2>{escape(section.title)}</h2>",
            f"<p>{escape(section.words)}</p>",
            picture,
            _table(section.rows),
            f'<p class="files">Files: {files}</p>',
        ]
    )
