"""Syntax trees of code, their leaves, and the distances between leaves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, checked, how_many, need

PACKAGES = {
    "c": "tree_sitter_c",
    "cpp": "tree_sitter_cpp",
    "go": "tree_sitter_go",
    "java": "tree_sitter_java",
    "javascript": "tree_sitter_javascript",
    "php": "tree_sitter_php",
    "python": "tree_sitter_python",
    "ruby": "tree_sitter_ruby",
    "rust": "tree_sitter_rust",
    "tsx": "tree_sitter_typescript",
    "typescript": "tree_sitter_typescript",
}
"""The languages that the extra `code` installs, and the packages of their grammars."""
FUNCTIONS = {"php": "language_php_only", "tsx": "language_tsx", "typescript": "language_typescript"}
"""The function of the package that returns the grammar, where it is not `language`."""


def language_of(language: Any) -> Any:
    """The `tree_sitter.Language` for a name, or for the object that a grammar package's `language()` returns.

    Raises `DataError` for other names, for objects that are not grammars, and for grammars that the installed version
    of tree-sitter cannot read; `MissingExtra` without tree-sitter or without the grammar's package.
    """
    tree_sitter = need("tree_sitter", extra="code")
    if isinstance(language, tree_sitter.Language):
        return language
    if isinstance(language, str):
        return _known(language.lower())
    if type(language).__name__ == "PyCapsule":
        return _made(tree_sitter, language)
    names = ", ".join(PACKAGES)
    raise DataError(f"language must be a name ({names}) or a tree_sitter.Language, got {language!r}")


def name_of(language: Any) -> str:
    """The name of a language: the given name, or the name in its grammar; "" if the grammar has no name."""
    return language.lower() if isinstance(language, str) else getattr(language_of(language), "name", None) or ""


@lru_cache
def _known(name: str) -> Any:
    if name not in PACKAGES:
        raise DataError(
            f"no grammar is known for {name!r}, only for {', '.join(PACKAGES)}: pass another language as a "
            "tree_sitter.Language, such as tree_sitter.Language(tree_sitter_scala.language())"
        )
    package = need(PACKAGES[name], extra="code")
    return _made(need("tree_sitter", extra="code"), getattr(package, FUNCTIONS.get(name, "language"))())


@lru_cache
def _php_page() -> Any:
    """The grammar of PHP between pieces of text, which are leaves of their own."""
    return _made(need("tree_sitter", extra="code"), need(PACKAGES["php"], extra="code").language_php())


def _made(tree_sitter: Any, capsule: Any) -> Any:
    try:
        return tree_sitter.Language(capsule)
    except ValueError as error:
        raise DataError(f"{capsule!r} is not a grammar that the installed tree-sitter can read: {error}") from error


Broken = Literal["error", "keep"]
SHELL = (b"class _ {", b"\n}")
"""The class that is put around members of a class, which do not parse alone."""
SHELLED = ("java", "javascript", "php", "tsx", "typescript")


class _Node(NamedTuple):
    parent: int
    type: str
    start: int
    end: int
    has_children: bool
    wrong: bool
    """Whether the node is an error: code that does not parse, or code that is missing."""


@dataclass(frozen=True, eq=False, repr=False)
class CodeTree:
    """A piece of code and its concrete syntax tree, without its comments.

    A leaf is a node without children that has text. Nodes are numbered in the order of the text, each before its
    children; the root is node 0. Leaves are numbered in the order of the text. All spans are in characters of `code`.
    """

    code: str
    name: str
    """The name of the code in messages."""
    language: str
    types: tuple[str, ...]
    """[leaf]: its node's type in the grammar, such as `identifier`, `def` or `(`."""
    spans: tuple[tuple[int, int], ...]
    """[leaf]: its first character, and the character after its last one."""
    leaf_nodes: NDArray[np.int32]
    """[leaf]: the number of its node."""
    parents: NDArray[np.int32]
    """[node]: the number of its parent; -1 for the root."""
    node_types: tuple[str, ...]
    """[node]: its type in the grammar."""
    node_spans: NDArray[np.int32]
    """[node, end]: its first character, and the character after its last one."""
    errors: tuple[tuple[int, int], ...] = ()
    """The line and column of each place that does not parse, both counted from 1."""

    def __len__(self) -> int:
        return len(self.types)

    def __repr__(self) -> str:
        about = f"{how_many(len(self), 'leaf')} of {how_many(len(self.parents), 'node')}"
        errors = f", {how_many(len(self.errors), 'place')} that do not parse" if self.errors else ""
        return f"<CodeTree {self.name or 'without a name'}: {self.language or 'code'}, {about}{errors}>"

    @property
    def texts(self) -> tuple[str, ...]:
        """[leaf]: its text."""
        return tuple(self.code[start:end] for start, end in self.spans)

    @property
    def identifiers(self) -> NDArray[np.bool_]:
        """[leaf]: whether its type is exactly `identifier`, or in PHP, whether it is the name of a variable."""
        if self.language != "php":
            return np.array([kind == "identifier" for kind in self.types], dtype=bool)
        parents = self.parents[self.leaf_nodes].tolist()
        return np.array([self.node_types[parent] == "variable_name" for parent in parents], dtype=bool) & np.array(
            [kind == "name" for kind in self.types], dtype=bool
        )


@checked
def parse_code(code: str, language: Any, *, name: str = "", broken: Broken = "error") -> CodeTree:
    """Parse a piece of code with tree-sitter (extra `code`).

    Comments are left out. Java, JavaScript, TypeScript and PHP code that parses only inside a class, such as
    constructors and methods, is parsed inside a class, and the class is left out of the tree. PHP needs no `<?php`.

    Args:
        code: a function, a file, or any other code that the grammar can parse.
        language: "c", "cpp", "go", "java", "javascript", "php", "python", "ruby", "rust", "typescript" or "tsx"
            (TypeScript with JSX), or any other as a `tree_sitter.Language`.
        name: the name of the code in messages.
        broken: "error" raises for code that does not parse; "keep" returns the tree that tree-sitter recovers, with the
            places that do not parse in `CodeTree.errors`.

    Raises `DataError` for code without leaves, code that does not parse, and code that is not valid text, and for an
    unknown language; `MissingExtra` without tree-sitter or the grammar's package.

        >>> from bertology.code_structure import parse_code
        >>> tree = parse_code("x = x + 1  # again", "python")
        >>> tree.texts
        ('x', '=', 'x', '+', '1')
        >>> tree.types
        ('identifier', '=', 'identifier', '+', 'integer')
    """
    if broken not in ("error", "keep"):
        raise DataError(f"broken must be 'error' or 'keep', got {broken!r}")
    tree = tree_of(code, language, name)
    called = f"code {name!r}" if name else "the code"
    if tree.errors and broken == "error":
        line, column = tree.errors[0]
        raise DataError(f"{called} does not parse at line {line}, column {column} (broken='keep' keeps it)")
    if not len(tree):
        raise DataError(f"{called} has no leaves: {'only comments' if code.strip() else 'it is empty'}")
    return tree


def tree_of(code: str, language: Any, name: str) -> CodeTree:
    """`parse_code` without its checks: the tree may have no leaves, and the code may not parse."""
    if not isinstance(code, str):
        raise DataError(f"code must be a str, got {type(code).__name__}")
    grammar, called = language_of(language), name_of(language)
    if isinstance(language, str) and called == "php" and "?>" in code:
        grammar = _php_page()
    try:
        text = code.encode()
    except UnicodeEncodeError as error:
        where = f"half of a surrogate pair at character {error.start}"
        raise DataError(f"code {name!r} is not valid text: {where}") from error
    root, shift = _root(text, grammar, called)
    return CodeTree(code, name, called, **_numbered(code, _nodes(root, shift, len(text)), _characters(text)))


def _root(text: bytes, grammar: Any, language: str) -> tuple[Any, int]:
    """The node of the text, and the number of bytes before the text: 0, or more if a class was put around it."""
    parser = need("tree_sitter", extra="code").Parser(grammar)
    root = parser.parse(text).root_node
    if root.has_error and language in SHELLED:
        before, after = SHELL
        shelled = parser.parse(before + text + after).root_node
        start, end = len(text) - len(text.lstrip()), len(text.rstrip())
        if not shelled.has_error and len(shelled.children) == 1:  # several: the text closes the class
            return shelled.descendant_for_byte_range(len(before) + start, len(before) + end), len(before)
    return root, 0


def _nodes(root: Any, shift: int, length: int) -> list[_Node]:
    """All nodes except comments, each before its children. Without recursion, because code may be nested deeply."""
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
    """The fields of a `CodeTree`, with spans in characters."""
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
    """[byte]: the number of the character that starts at this byte; one entry more for the end of the text."""
    begins = (np.frombuffer(text, dtype=np.uint8) & 0xC0) != 0x80  # bytes 10xxxxxx continue a character
    return np.concatenate([[0], np.cumsum(begins)])


def _line_and_column(code: str, place: int) -> tuple[int, int]:
    return code.count("\n", 0, place) + 1, place - code.rfind("\n", 0, place)


def _fixed(x: NDArray[np.int32]) -> NDArray[np.int32]:
    x.setflags(write=False)
    return x


BLOCK = 512
"""The number of leaves from which distances are measured at once. It bounds the memory."""
LEVELS = 64
"""The maximum distance for `_spread`, whose time grows with the distance. Longer paths are found by `_searched`."""


@checked
def graph_edges(tree: CodeTree, *, upgraded: bool = True) -> NDArray[np.int64]:
    """[edge, end]: the pairs of nodes that are joined, each pair once (Chen et al. 2022).

    Every node is joined to its parent. In the upgraded tree (U-AST), adjacent leaves are joined too, and so are each
    occurrence of an identifier and the next occurrence: leaves of exactly the type `identifier` with equal text.

    Args:
        tree: a tree from `parse_code`.
        upgraded: whether to add the edges between leaves; otherwise the edges are those of the tree alone.

    Nodes have the same numbers as in the tree. Edges have no direction.

        >>> from bertology.code_structure import parse_code
        >>> tree = parse_code("x = x", "python")
        >>> tree.node_types
        ('module', 'expression_statement', 'assignment', 'identifier', '=', 'identifier')
        >>> graph_edges(tree).tolist()
        [[0, 1], [1, 2], [2, 3], [2, 4], [2, 5], [3, 4], [4, 5], [3, 5]]
    """
    nodes = np.arange(1, len(tree.parents))
    edges = [np.stack([tree.parents[1:], nodes], axis=1)]
    if upgraded:
        edges += [np.stack([tree.leaf_nodes[:-1], tree.leaf_nodes[1:]], axis=1), tree.leaf_nodes[_recurring(tree)]]
    return np.concatenate(edges).astype(np.int64)


@checked
def leaf_distances(tree: CodeTree, *, upgraded: bool = True) -> NDArray[np.int16 | np.int32]:
    """[leaf, leaf]: the number of edges on the shortest path between two leaves, as small integers.

    The distances are exact. A tree of thousands of leaves takes tenths of a second, and little memory besides the
    distances themselves.

    Args:
        tree: a tree from `parse_code`.
        upgraded: whether paths may use the edges between leaves of the upgraded tree (U-AST), or only those of the
            tree.

    Raises `MissingExtra` without SciPy, which is needed for deeply nested expressions (extra `code`).

        >>> from bertology.code_structure import parse_code
        >>> leaf_distances(parse_code("x = x + 1", "python"))
        array([[0, 1, 1, 2, 3],
               [1, 0, 1, 2, 3],
               [1, 1, 0, 1, 2],
               [2, 2, 1, 0, 1],
               [3, 3, 2, 1, 0]], dtype=int16)
    """
    many = len(tree)
    found = np.zeros((many, many), dtype=np.int16 if many <= np.iinfo(np.int16).max else np.int32)
    edges = graph_edges(tree, upgraded=upgraded)
    for start in range(0, many if len(edges) else 0, BLOCK):
        sources = slice(start, start + BLOCK)
        if not _spread(edges, tree.leaf_nodes, sources, found[:, sources]):
            found[:, sources] = _searched(edges, tree.leaf_nodes, sources).T
    return found


def _recurring(tree: CodeTree) -> NDArray[np.int64]:
    """[pair, end]: each occurrence of an identifier and the next one. Adjacent leaves are left out."""
    latest: dict[str, int] = {}
    pairs = []
    for leaf in np.flatnonzero(tree.identifiers).tolist():
        start, end = tree.spans[leaf]
        before = latest.get(text := tree.code[start:end], leaf)
        latest[text] = leaf
        if before + 1 < leaf:
            pairs.append((before, leaf))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _spread(
    edges: NDArray[np.int64], leaves: NDArray[np.int32], sources: slice, out: NDArray[np.int16 | np.int32]
) -> bool:
    """Count in `out` [leaf, source] after how many steps each leaf is reached. Return False if this takes too many.

    This is a breadth-first search from all sources at once: a node has one bit per source, and in every step it also
    gets the bits of its neighbours. (On real functions this is six times as fast as SciPy's search from each leaf.)
    """
    both = np.concatenate([edges, edges[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    neighbours, first = both[:, 1], np.flatnonzero(np.diff(both[:, 0], prepend=-1))
    bits = np.zeros((len(first), -(-out.shape[1] // 64) * 64), dtype=bool)
    bits[leaves[sources], np.arange(out.shape[1])] = True
    reached = np.packbits(bits, axis=1).view(np.uint64)
    for _ in range(LEVELS):
        far = np.unpackbits(~reached[leaves].view(np.uint8), axis=1, count=out.shape[1])
        if not far.any():
            return True
        out += far
        reached |= np.bitwise_or.reduceat(reached[neighbours], first, axis=0)
    return False


def _searched(edges: NDArray[np.int64], leaves: NDArray[np.int32], sources: slice) -> NDArray[np.float64]:
    """[source, leaf]: the distances, by a search from each leaf."""
    sparse, csgraph = need("scipy.sparse", extra="code"), need("scipy.sparse.csgraph", extra="code")
    nodes = int(edges.max()) + 1
    graph = sparse.csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(nodes, nodes))
    found = csgraph.dijkstra(graph, directed=False, unweighted=True, indices=leaves[sources])
    return found[:, leaves]
