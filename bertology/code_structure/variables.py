"""Where does a variable that is used in a piece of code get its value?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from .relation_tables import NAMES, At, Binder, Grammar
from .trees import CodeTree


class _Definition(NamedTuple):
    start: int
    """The character from which on it is known."""
    leaf: int
    end: int
    """The character from which on it is not."""


def definition_of(tree: CodeTree, grammar: Grammar) -> list[tuple[int, int]]:
    """Each leaf that uses a variable, and the leaf that gave it its value: the latest before it, as the text runs."""
    nodes = _Nodes(tree)
    known: defaultdict[str, list[_Definition]] = defaultdict(list)
    uses = []
    texts = tree.texts
    for leaf, node in enumerate(tree.leaf_nodes.tolist()):
        if tree.node_types[node] not in NAMES or texts[leaf] == "_":
            continue
        found = nodes.binder_of(node, grammar)
        if found is not None:
            known[texts[leaf]].append(nodes.definition(leaf, *found, grammar, known[texts[leaf]]))
        reads = found is None or (found[1].compound and "=" not in nodes.types_in(found[0]))
        if reads and not nodes.names_no_variable(node, grammar):
            uses.append(leaf)
    links = []
    for leaf in uses:
        place = tree.spans[leaf][0]
        latest = _latest(known[texts[leaf]], place)
        if latest is not None:
            links.append((leaf, latest.leaf))
    return links


def _latest(known: Sequence[_Definition], place: int) -> _Definition | None:
    """The latest of those that are known at a place."""
    return max((one for one in known if one.start <= place < one.end), default=None)


class _Nodes:
    """A tree, and the children of its nodes."""

    def __init__(self, tree: CodeTree) -> None:
        self.types, self.spans, self.parents = tree.node_types, tree.node_spans.tolist(), tree.parents.tolist()
        self.children: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                self.children[parent].append(node)

    def types_in(self, node: int) -> list[str]:
        return [self.types[child] for child in self.children[node]]

    def binder_of(self, node: int, grammar: Grammar) -> tuple[int, Binder] | None:
        """The node that gives a name its value here, if one does."""
        child, parent = self._out_of_patterns(node, grammar)
        binder = grammar.binders.get(self.types[parent]) if parent >= 0 else None
        return (parent, binder) if binder is not None and self._is(child, parent, binder.at) else None

    def names_no_variable(self, node: int, grammar: Grammar) -> bool:
        child, parent = self._out_of_patterns(node, grammar)
        at = grammar.no_variables.get(self.types[parent]) if parent >= 0 else None
        return at is not None and self._is(child, parent, at)

    def definition(
        self, leaf: int, node: int, binder: Binder, grammar: Grammar, earlier: Sequence[_Definition]
    ) -> _Definition:
        """From where to where the name is known that a node defines, given its earlier definitions."""
        parent = self.parents[node]
        if binder.start == "here":
            start = self.spans[node][0]
        elif binder.start == "parent":
            start = self.spans[parent][0]
        elif binder.start == "end":
            start = self.spans[node][1]
        else:
            mark = next(i for i, kind in enumerate(self.types_in(node)) if kind in binder.at.marks)
            start = self.spans[self.children[node][mark + 1]][1]
        # A `var` of JavaScript is the function's, wherever it stands.
        whole = binder.scope == "function" or (parent >= 0 and self.types[parent] == "variable_declaration")
        around = parent if binder.scope == "outer" else node
        end = self._end(around, grammar.functions if whole else grammar.scopes)
        if binder.scope == "function" and (old := _latest(earlier, start)):
            end = min(end, old.end)  # a new value lasts no longer than the variable
        return _Definition(start, leaf, end)

    def _out_of_patterns(self, node: int, grammar: Grammar) -> tuple[int, int]:
        """The outermost pattern that a name is part of, or the name, and what that is in."""
        child, parent = node, self.parents[node]
        while parent >= 0 and (at := grammar.patterns.get(self.types[parent])) and self._is(child, parent, at):
            child, parent = parent, self.parents[parent]
        return child, parent

    def _end(self, node: int, kinds: frozenset[str]) -> int:
        while node > 0 and self.types[node] not in kinds:
            node = self.parents[node]
        return self.spans[max(node, 0)][1]

    def _is(self, child: int, parent: int, at: At) -> bool:
        """Whether a child is one of those meant."""
        children = self.children[parent]
        place = children.index(child)
        if at.side in ("all", "first"):
            return at.side == "all" or place == 0
        marks = [i for i, other in enumerate(children) if self.types[other] in at.marks]
        if not marks:
            return at.side == "unless after"
        if at.side == "after":
            return place > marks[0]
        return place == marks[0] - 1 if at.side == "next to" else place < marks[0]
