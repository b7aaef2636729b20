"""Which tree does a piece of code make, and which of its characters is each leaf?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, need
from .grammars import language_of, name_of

Broken = Literal["error", "keep"]
SHELL = (b"class _ {", b"\n}")
"""What is put around members of a class, which are no programs of their own."""
SHELLED = ("java", "javascript")


class _Node(NamedTuple):
    parent: int
    type: str
    start: int
    end: int
    has_children: bool
    wrong: bool
    """Whether it stands for what does not parse, or for what is missing."""


@dataclass(frozen=True, eq=False, repr=False)
class CodeTree:
    """A piece of code and its concrete syntax tree, without its comments.

    A leaf is a node without children that has text. Nodes are numbered from the root, 0, in the order of the text, each
    before its children, and leaves in the order of the text. All places are in characters of `code`.
    """

    code: str
    name: str
    """What messages call it."""
    language: str
    types: tuple[str, ...]
    """[leaf]: its node's type in the grammar, such as `identifier`, `def` or `(`."""
    spans: tuple[tuple[int, int], ...]
    """[leaf]: the characters that it is, half-open."""
    leaf_nodes: NDArray[np.int32]
    """[leaf]: the number of its node."""
    parents: NDArray[np.int32]
    """[node]: the number of its parent; -1 for the root."""
    node_types: tuple[str, ...]
    """[node]: its type in the grammar."""
    node_spans: NDArray[np.int32]
    """[node, end]: the characters that it is, half-open."""
    errors: tuple[tuple[int, int], ...] = ()
    """Line and column, both from 1, of each place that does not parse."""

    def __len__(self) -> int:
        return len(self.types)

    def __repr__(self) -> str:
        about = f"{len(self)} leaves of {len(self.parents)} nodes"
        errors = f", {len(self.errors)} places that do not parse" if self.errors else ""
        return f"<CodeTree {self.name or 'without a name'}: {self.language or 'code'}, {about}{errors}>"

    @property
    def texts(self) -> tuple[str, ...]:
        """[leaf]: its text."""
        return tuple(self.code[start:end] for start, end in self.spans)

    @property
    def identifiers(self) -> NDArray[np.bool_]:
        """[leaf]: whether its type is exactly `identifier`."""
        return np.array([kind == "identifier" for kind in self.types], dtype=bool)


def parse_code(code: str, language: Any, *, name: str = "", broken: Broken = "error") -> CodeTree:
    """Parse a piece of code with tree-sitter (extra `code`).

    Comments are left out. Java and JavaScript that parse only inside a class, as constructors and methods do, are
    parsed there, and the class is left out.

    Args:
        code: a function, a file, or what else makes a tree in the language.
        language: "go", "java", "javascript", "python", or any other as a `tree_sitter.Language`.
        name: what messages call it.
        broken: "error" raises for code that does not parse; "keep" keeps what tree-sitter makes of it, with the places
            in `CodeTree.errors`.

    Raises `DataError` for code without leaves, that does not parse, or that is no valid text, and for a language that
    is not known; `MissingExtra` without tree-sitter or the grammar's package.

        >>> from bertology.code_structure import parse_code
        >>> tree = parse_code("x = x + 1  # again", "python")
        >>> tree.texts
        ('x', '=', 'x', '+', '1')
        >>> tree.types
        ('identifier', '=', 'identifier', '+', 'integer')
    """
    if broken not in ("error", "keep"):
        raise DataError(f"broken is 'error' or 'keep', got {broken!r}")
    tree = tree_of(code, language, name)
    called = f"code {name!r}" if name else "the code"
    if tree.errors and broken == "error":
        line, column = tree.errors[0]
        raise DataError(f"{called} does not parse at line {line}, column {column} (broken='keep' keeps it)")
    if not len(tree):
        raise DataError(f"{called} has no leaves: {'only comments' if code.strip() else 'it is empty'}")
    return tree


def tree_of(code: str, language: Any, name: str) -> CodeTree:
    """As `parse_code`, but whatever comes out: a tree without leaves, or of code that does not parse."""
    if not isinstance(code, str):
        raise DataError(f"code must be a str, got {type(code).__name__}")
    grammar, called = language_of(language), name_of(language)
    try:
        text = code.encode()
    except UnicodeEncodeError as error:
        where = f"half of a surrogate pair at character {error.start}"
        raise DataError(f"code {name!r} is no valid text: {where}") from error
    root, shift = _root(text, grammar, called)
    return CodeTree(code, name, called, **_numbered(code, _nodes(root, shift, len(text)), _characters(text)))


def _root(text: bytes, grammar: Any, language: str) -> tuple[Any, int]:
    """The node of the whole text, and how many bytes stand before the text."""
    parser = need("tree_sitter", extra="code").Parser(grammar)
    root = parser.parse(text).root_node
    if root.has_error and language in SHELLED:
        before, after = SHELL
        shelled = parser.parse(before + text + after).root_node
        start, end = len(text) - len(text.lstrip()), len(text.rstrip())
        if not shelled.has_error and len(shelled.children) == 1:  # several: the text closes the shell's class
            return shelled.descendant_for_byte_range(len(before) + start, len(before) + end), len(before)
    return root, 0


def _nodes(root: Any, shift: int, length: int) -> list[_Node]:
    """All nodes but comments, each before its children; without recursion, as code may be nested very deep."""
    nodes: list[_Node] = []
    stack = [(root, -1)]
    while stack:
        node, parent = stack.pop()
        start, end = node.start_byte - shift, node.end_byte - shift
        if parent >= 0 and ("comment" in node.type or start < 0 or end > length):  # or of the shell
            continue
        children = node.children
        stack += [(child, len(nodes)) for child in reversed(children)]
        wrong = node.is_error or node.is_missing
        nodes.append(_Node(parent, node.type, max(start, 0), min(end, length), bool(children), wrong))
    return nodes


def _numbered(code: str, nodes: list[_Node], characters: NDArray[np.int64]) -> dict[str, Any]:
    """The fields of a `CodeTree`, in characters."""
    spans = characters[np.array([(node.start, node.end) for node in nodes])].astype(np.int32)
    places = [(start, end) for start, end in spans.tolist()]
    leaves = [n for n, node in enumerate(nodes) if not node.has_children and node.start < node.end]
    return {
        "types": tuple(nodes[leaf].type for leaf in leaves),
        "spans": tuple(places[leaf] for leaf in leaves),
        "leaf_nodes": _fixed(np.array(leaves, dtype=np.int32)),
        "parents": _fixed(np.array([node.parent for node in nodes], dtype=np.int32)),
        "node_types": tuple(node.type for node in nodes),
        "node_spans": _fixed(spans),
        "errors": tuple(_line_and_column(code, places[n][0]) for n, node in enumerate(nodes) if node.wrong),
    }


def _characters(text: bytes) -> NDArray[np.int64]:
    """[byte]: the character that begins there, for each byte where one does, and behind the last."""
    begins = (np.frombuffer(text, dtype=np.uint8) & 0xC0) != 0x80  # bytes 10xxxxxx go on with a character
    return np.concatenate([[0], np.cumsum(begins)])


def _line_and_column(code: str, place: int) -> tuple[int, int]:
    return code.count("\n", 0, place) + 1, place - code.rfind("\n", 0, place)


def _fixed(x: NDArray[np.int32]) -> NDArray[np.int32]:
    x.setflags(write=False)
    return x
