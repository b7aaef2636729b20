"""Docstrings as Sphinx reads them: backticks are code, other signs are text, and fields are plain tensors."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import SphinxError

import bertology
import bertology.code_structure
import bertology.edge_probing
import bertology.syntax

ROOMS = (bertology, bertology.syntax, bertology.edge_probing, bertology.code_structure)
MOST_BYTES = 200_000
CODE = re.compile(r"(\w?)(?<!`)`([^`\n]+)`(?!`)(\w?)")
DECLARED = re.compile(r"Annotated\[(.*), axes\(.*\)\]$", re.DOTALL)


def escaped(text: str) -> str:
    """Text between pieces of code, with the signs escaped that would begin markup: in E|g| or p_i they do not."""
    return re.sub(r"(?<!\\)([|*])|(?<=\w)(_)(?=\W|$)", r"\\\1\2", text)


def line_of(line: str) -> str:
    """A line of prose: `code` becomes ``code``, also with a letter behind it."""
    if line.lstrip().startswith((":param", ":type", ":raises", ".. ", "===", "---")):
        head, sep, rest = (
            line.partition(": ") if line.lstrip().startswith(":") else (line, "", "")
        )
        return head + sep + line_of(rest) if rest else line
    found, end = [], 0
    for code in CODE.finditer(line):
        found.append(escaped(line[end : code.start()]))
        before, after = (
            (rf"{code[1]}\ " if code[1] else ""),
            (rf"\ {code[3]}" if code[3] else ""),
        )
        found.append(f"{before}``{code[2]}``{after}")
        end = code.end()
    return "".join(found) + escaped(line[end:])


def indent(line: str) -> int:
    """How many spaces a line begins with."""
    return len(line) - len(line.lstrip())


def is_code(line: str, before: str) -> bool:
    """Whether a line after a blank one is code: as in Markdown, where it is four spaces further in than the prose."""
    is_prose = not before.lstrip().startswith((">>>", ":", ".. ", "- "))
    is_plain = not line.lstrip().startswith((">>>", ":", ".. ", "- "))
    return is_prose and is_plain and indent(line) >= indent(before) + 4


def marked_up(lines: list[str]) -> list[str]:
    """Change the lines of prose; examples stay as they are, and code is marked as such."""
    out: list[str] = []
    example, code, before = False, 0, ""
    for number, line in enumerate(lines):
        code = 0 if line.strip() and indent(line) < code else code
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        is_first = bool(line.strip() and before) and not lines[number - 1].strip()
        if is_first and not code and is_code(line, before):
            out += [" " * indent(before) + "::", ""]
            code = indent(line)
        out.append(line if example or code else line_of(line))
        before = line if line.strip() else before
    return out


def read_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Give Sphinx the docstring in its own markup."""
    # Of "[layer, head]: the mean" under a field or a constant, napoleon takes what comes first for a type.
    if (
        what in ("attribute", "property", "data")
        and lines
        and lines[-1].startswith(":type: ")
    ):
        shape = lines.pop().removeprefix(":type: ")
        shape = f"`{shape}`" if shape.startswith("[") else shape
        lines[0] = f"{shape}: {lines[0]}"
    lines[:] = marked_up(lines)


def without_axes(app: Sphinx) -> None:
    """A field is shown as a `Tensor`: what it declares for pictures is nothing that a reader can use."""
    public = [getattr(room, name) for room in ROOMS for name in room.__all__]
    for one in filter(inspect.isclass, public):
        for cls in one.__mro__[:-1]:
            values = [x for x in vars(cls).values() if isinstance(x, property)]
            returned = [x.fget.__annotations__ for x in values]
            for notes in (vars(cls).get("__annotations__", {}), *returned):
                for name, note in notes.items():
                    if isinstance(note, str) and (found := DECLARED.match(note)):
                        notes[name] = found[1]


def without_fields(
    app: Sphinx, what: str, name: str, obj: Any, *rest: Any
) -> tuple[str, str] | None:
    """A result is made by its measure, so its constructor is not shown."""
    is_result = (
        what == "class" and inspect.isclass(obj) and issubclass(obj, bertology.Result)
    )
    return ("", "") if is_result else None


def check_sizes(app: Sphinx, exception: Exception | None) -> None:
    """A page of the reference that is larger loads slowly, and nobody reads it to the end: divide it."""
    large = [
        page.name
        for page in (Path(app.outdir) / "api").rglob("*.html")
        if page.stat().st_size > MOST_BYTES
    ]
    if large and exception is None:
        raise SphinxError(
            f"divide these pages of docs/api, which have more than {MOST_BYTES} bytes: {large}"
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect these functions; napoleon reads the sections of a docstring first."""
    app.connect("builder-inited", without_axes)
    app.connect("autodoc-process-docstring", read_docstring, priority=600)
    app.connect("autodoc-process-signature", without_fields)
    app.connect("build-finished", check_sizes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
