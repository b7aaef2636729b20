"""The code of a page runs as the cells of a notebook do; what it prints and draws is stored in the page.

`python tests/helpers/pages.py docs/importance.md ...` (`nox -s outputs`) writes it: what a block printed, and the value of its
last line, as a block of text below it, and its figure as a picture below that. Write the words of a new picture by hand.
"""

from __future__ import annotations

import ast
import io
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?P<stored>(?:\n```text\n(?P<text>.*?)^```\n)?"
    r"(?:\n!\[(?P<words>[^\n]*)\]\((?P<picture>[^)\n]+)\)\n)?)",
    re.DOTALL | re.MULTILINE,
)
GALLERY = ROOT / "docs" / "gallery.md"
ORDER = (
    "importance",
    "pruning",
    "ablation",
    "patching",
    "learned-gates",
    "neurons-and-layers",
    "attention",
    "what-attention-carries",
    "lens",
    "captures",
    "decoder",
    "syntax",
    "probing",
    "code",
    "measures",
    "data",
)
ORDER += ("michel", "clark", "tenney", "cat")
NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")


@dataclass
class Ran:
    """A block that has run, and what the page stores below it."""

    block: re.Match[str]
    names: dict[str, Any]
    text: str
    figure: Any

    @property
    def stored(self) -> str:
        """What is stored as its output; nothing is also an output."""
        return self.block["text"] or ""


def blocks(page: Path) -> list[re.Match[str]]:
    """The blocks of Python of a page."""
    return list(BLOCK.finditer(page.read_text()))


def run(page: Path) -> Iterator[Ran]:
    """Run its blocks from top to bottom, with the same names and the same random numbers each time."""
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        tree = ast.parse(block["code"])
        ast.increment_lineno(tree, page.read_text()[: block.start("code")].count("\n"))
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(tree, str(page), "exec", dont_inherit=True), names)
            value = (
                None
                if last is None
                else eval(compile(ast.Expression(last.value), str(page), "eval", dont_inherit=True), names)
            )
        figure = value if hasattr(value, "savefig") else None
        shown = "" if value is None or figure is not None else f"{value!r}\n"
        text = "\n".join(line.rstrip() for line in (printed.getvalue() + shown).splitlines())
        yield Ran(block, names, text and text + "\n", figure)


def same_text(stored: str, found: str) -> bool:
    """Whether two outputs say the same; the last digits of numbers differ between machines."""
    old, new = NUMBER.findall(stored), NUMBER.findall(found)
    if NUMBER.sub("", stored).split() != NUMBER.sub("", found).split() or len(old) != len(new):
        return False
    last = [1.5 * 10.0 ** -places(number) for number in old]
    return all(abs(float(a) - float(b)) <= 0.02 * abs(float(a)) + c for a, b, c in zip(old, new, last, strict=True))


def places(number: str) -> int:
    """How many digits are behind the point."""
    digits, _, exponent = number.partition("e")
    return len(digits.partition(".")[2]) - int(exponent or 0)


def small(image: Image.Image) -> torch.Tensor:
    """A picture in grey, 128 points wide."""
    grey = image.convert("RGBA").convert("L").resize((128, round(128 * image.height / image.width)))
    return torch.tensor(list(grey.tobytes()), dtype=torch.float32)


def same_picture(stored: Path, figure: Any) -> bool:
    """Whether a figure looks as the one that is stored: fonts and the last digits of values may differ a little."""
    old, new = small(Image.open(stored)), small(drawn(figure))
    return len(old) == len(new) and (old - new).abs().mean() < 2


def drawn(figure: Any) -> Image.Image:
    """The figure in few colours, so that its file is small; none of them is far from what it stands for."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return Image.open(file).convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)


def write(page: Path) -> None:
    """Run a page and store below each block what it printed and drew."""
    text, made = page.read_text(), []
    unused = (name for number in range(1, 100) if (name := f"img/{page.stem}-{number}.png") not in text)
    for ran in run(page):
        below = f"\n```text\n{ran.text}```\n" if ran.text else ""
        if ran.figure is not None:
            path = ran.block["picture"] or next(unused)
            drawn(ran.figure).save(page.parent / path, optimize=True)
            below += f"\n![{ran.block['words'] or ''}]({path})\n"
        elif ran.block["picture"]:
            below += f"\n![{ran.block['words']}]({ran.block['picture']})\n"
        made.append((ran.block, below))
    for block, below in reversed(made):
        text = text[: block.start("stored")] + below + text[block.end("stored") :]
    page.write_text(text)


def translate(page: Path) -> None:
    """Store the same below the same code of the page in Chinese, if there is one, which has its own words of pictures."""
    other = page.parent / "zh" / page.name
    if other.is_file():
        english = {block["code"]: block for block in blocks(page)}
        text = other.read_text()
        for block in reversed(blocks(other)):
            new = english[block["code"]]
            stored = f"\n```text\n{new['text']}```\n" if new["text"] else ""
            if new["picture"]:
                stored += f"\n![{block['words'] or ''}](../{new['picture']})\n"
            text = text[: block.start("stored")] + stored + text[block.end("stored") :]
        other.write_text(text)


def gallery() -> str:
    """The page of all pictures, page by page, each a link to the section of its code."""
    out = [GALLERY.read_text().partition("\n## ")[0].rstrip(), ""]
    for name in ORDER:
        page = ROOT / "docs" / f"{name}.md"
        cells = [f"[![{words}]({path})]({name}.md#{section})" for section, words, path in pictures(page)]
        if cells:
            title = page.read_text().partition("\n")[0].removeprefix("# ")
            out += [f"## {title}", "", *cells, ""]
    return "\n".join(out)


def pictures(page: Path) -> list[tuple[str, str, str]]:
    """The pictures of a page: the address of the section, the words and the file of each."""
    found, section = [], ""
    without_code = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for line in without_code.splitlines():
        if line.startswith("#"):
            section = re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        elif picture := re.match(r"!\[(.*)\]\((img/\S+)\)$", line):
            found.append((section, picture[1], picture[2]))
    return found


if __name__ == "__main__":
    for argument in sys.argv[1:] or sorted(str(path) for path in (ROOT / "docs").glob("*.md")):
        if blocks(Path(argument)):
            write(Path(argument))
            translate(Path(argument))
            print(argument)
    GALLERY.write_text(gallery())
