"""Which variable does a name in code mean, and where did it get its value?"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from .relation_tables import At, Binder, Grammar
from .trees import CodeTree


def definitions_of(tree: CodeTree, grammar: Grammar) -> list[tuple[int, int]]:
    """Each leaf that uses a variable, and the leaf of the latest definition of this variable before it in the text."""
    found = _Definitions(tree, grammar)
    return [(leaf, known) for leaf in found.uses if (known := found.known_at(leaf)) is not None]


def names_of(tree: CodeTree, grammar: Grammar) -> list[int]:
    """The leaves that may name a variable, by their type."""
    return [leaf for leaf, node in enumerate(tree.leaf_nodes.tolist()) if is_name(tree, node, grammar)]


def is_name(tree: CodeTree, node: int, grammar: Grammar) -> bool:
    """Whether the type of a leaf's node is that of names of variables."""
    parent = grammar.names.get(tree.node_types[node])
    return parent is not None and parent in ("", tree.node_types[tree.parents[node]])


class _Nodes:
    """A tree, the children of its nodes, and the scopes around them."""

    def __init__(self, tree: CodeTree, grammar: Grammar) -> None:
        self.grammar = grammar
        self.types, self.spans, self.parents = tree.node_types, tree.node_spans.tolist(), tree.parents.tolist()
        self.children: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                self.children[parent].append(node)

    def types_in(self, node: int) -> list[str]:
        return [self.types[child] for child in self.children[node]]

    def binder_of(self, node: int) -> tuple[int, Binder] | None:
        """The node that defines the name at this leaf, and how; None if the leaf does not define its name."""
        child, parent = self.out_of_patterns(node)
        binder = self.grammar.binders.get(self.types[parent]) if parent >= 0 else None
        return (parent, binder) if binder is not None and self.matches(child, parent, binder.at) else None

    def names_no_variable(self, node: int, text: str) -> bool:
        child, parent = self.out_of_patterns(node)
        for inner, outer in ((child, parent), (node, self.parents[node])):
            kind = self.types[outer] if outer >= 0 else ""
            if kind in self.grammar.elements and (text[0].islower() or "-" in text):
                return True  # React and others: `<label>` is an element, `<Label>` a variable
            at = self.grammar.no_variables.get(kind)
            if at is not None and self.matches(inner, outer, at):
                return True
        return False

    def scope(self, node: int, *, kinds: Set[str] | None = None, inside: bool = False) -> int:
        """The innermost scope around a node; the root if there is none.

        Args:
            node: any node.
            kinds: the types of scopes that count; by default all.
            inside: whether code that is evaluated outside of a scope counts as inside.
        """
        kinds, skip = kinds or self.grammar.scopes, False
        child, parent = node, self.parents[node]
        while parent > 0:
            skip = skip or (not inside and self._evaluated_outside(child, parent))
            if self.types[parent] in self.grammar.scopes:
                if not skip and self.types[parent] in kinds:
                    return parent
                skip = False
            child, parent = parent, self.parents[parent]
        return 0

    def matches(self, child: int, parent: int, at: At) -> bool:
        """Whether a child of `parent` is one of those that `at` means."""
        children = self.children[parent]
        if at.side in ("all", "of type"):
            return at.side == "all" or self.types[child] in at.marks
        place = children.index(child)
        if at.side in ("first", "last", "only"):
            return (at.side == "last" or place == 0) and (at.side == "first" or place == len(children) - 1)
        if at.side == "directly after":
            return place > 0 and self.types[children[place - 1]] in at.marks
        mark = next((i for i, other in enumerate(children) if self.types[other] in at.marks), None)
        if mark is None:
            return at.side.startswith("unless")
        if at.side == "next to":
            return place == mark - 1
        return place < mark if at.side in ("before", "unless after") else place > mark

    def start_of(self, node: int, binder: Binder, behind: int) -> int:
        """The first character at which a definition is valid. `behind` is the end of the name."""
        if binder.start == "leaf":
            return behind
        if binder.start in ("here", "end"):
            return self.spans[node][binder.start == "end"]
        if binder.start == "parent":
            return self.spans[max(self.parents[node], 0)][0]
        if binder.start == "body":
            return self.spans[self.children[node][-1]][0]
        mark = next(i for i, kind in enumerate(self.types_in(node)) if kind in binder.at.marks)
        return self.spans[self.children[node][mark + 1]][1]

    def _evaluated_outside(self, child: int, parent: int) -> bool:
        kind = self.types[parent]
        at, first = self.grammar.outside.get(kind), self.grammar.first_outside.get(kind)
        if at is not None and self.matches(child, parent, at):
            return True
        if first is None or not self.matches(child, parent, first):
            return False
        siblings = self.children[self.parents[parent]]
        return kind not in [self.types[other] for other in siblings[: siblings.index(parent)]]

    def out_of_patterns(self, node: int) -> tuple[int, int]:
        """The outermost pattern that contains the name, or the name itself if there is none, and its parent."""
        child, parent = node, self.parents[node]
        while parent >= 0 and (at := self.grammar.patterns.get(self.types[parent])) and self.matches(child, parent, at):
            child, parent = parent, self.parents[parent]
        return child, parent


@dataclass
class _Variable:
    """A variable of a scope, and where it gets values."""

    values: list[tuple[int, int]] = field(default_factory=list)
    """The first character at which the name has each value, and the leaf that gives it."""

    @property
    def start(self) -> int:
        """Where the variable is visible from, in languages that do not hoist."""
        return min(start for start, _ in self.values)


class _Definition(NamedTuple):
    """A leaf that defines its name."""

    leaf: int
    text: str
    node: int
    """The node that defines it."""
    binder: Binder
    scope: int
    """The scope of the variable; -1 if the definition gives a new value to a variable that is declared elsewhere."""


class _Definitions:
    """The variables of a tree, and the leaves that use them."""

    def __init__(self, tree: CodeTree, grammar: Grammar) -> None:
        self._tree, self._grammar, self._nodes = tree, grammar, _Nodes(tree, grammar)
        self._texts, self._leaves = tree.texts, tree.leaf_nodes.tolist()
        self._variables: dict[tuple[int, str], _Variable] = {}
        self._redirected: dict[tuple[int, str], int] = {}
        self.uses: list[int] = []
        found = list(self._found())
        self._redirect({(one.scope, one.text) for one in found})
        for one in found:
            if one.scope >= 0:
                self._add(self._redirected.get((one.scope, one.text), one.scope), one)
        for one in found:
            if one.scope < 0:
                self._add(self._assigned(one), one)

    def known_at(self, leaf: int) -> int | None:
        """The leaf of the latest definition of the variable that a leaf names; None if there is none."""
        scope = self._visible(leaf)
        if scope is None:
            return None
        values = self._variables[scope, self._texts[leaf]].values
        return max((one for one in values if one[0] <= self._tree.spans[leaf][0]), default=(0, None))[1]

    def _found(self) -> Iterator[_Definition]:
        """Find the leaves that define names, in the order of the text, and those that use names."""
        only, constants = self._grammar.only_defined, self._grammar.constants_in
        for leaf, node in enumerate(self._leaves):
            text, defines = self._texts[leaf], self._tree.node_types[node] in only
            if text == "_" or not (defines or is_name(self._tree, node, self._grammar)):
                continue
            binder = self._nodes.binder_of(node)
            if binder is not None and self._nodes.types[binder[0]] in constants and text[0].isupper():
                binder = None
            reads = binder is None or (binder[1].compound and "=" not in self._nodes.types_in(binder[0]))
            if reads and not defines and not self._nodes.names_no_variable(node, text):
                self.uses.append(leaf)
            if binder is not None:
                yield _Definition(leaf, text, *binder, self._scope(node, *binder))

    def _scope(self, leaf: int, node: int, binder: Binder) -> int:
        """The scope of the variable that a node defines; -1 for a variable that is declared elsewhere."""
        nodes, words = self._nodes, self._grammar.function_words
        around = {*nodes.types_in(node), *(nodes.types_in(nodes.parents[node]) if nodes.parents[node] >= 0 else ())}
        declared = not binder.declared_by or any(kind in binder.declared_by for kind in nodes.types_in(node))
        if binder.scope == "variable" or not declared:
            return -1
        if binder.scope == "function" or words & around:
            return nodes.scope(leaf, kinds=self._grammar.functions)
        return nodes.scope(node if binder.scope == "outer" else leaf, inside=binder.scope == "inside")

    def _redirect(self, bound: Set[tuple[int, str]]) -> None:
        """Read statements such as `global x`, given the names that are bound in each scope."""
        kinds = self._grammar.redirected
        for leaf, node in enumerate(self._leaves):
            statement = self._nodes.parents[self._nodes.out_of_patterns(node)[0]]
            where = kinds.get(self._nodes.types[statement]) if statement >= 0 else None
            if where is None or not is_name(self._tree, node, self._grammar):
                continue
            key = scope, text = self._nodes.scope(node), self._texts[leaf]
            owner = 0 if where == "module" else self._nodes.scope(scope)
            while owner > 0 and (self._nodes.types[owner] in self._grammar.closed or (owner, text) not in bound):
                owner = self._nodes.scope(owner)
            self._redirected[key] = self._redirected.get((owner, text), owner)

    def _assigned(self, one: _Definition) -> int:
        """The scope of the variable that gets a new value; where it is not declared, the module or the block."""
        scope = self._visible(one.leaf)
        if scope is not None:
            return scope
        return 0 if self._grammar.implicit == "module" else self._nodes.scope(self._leaves[one.leaf])

    def _add(self, scope: int, one: _Definition) -> None:
        """Add a definition to the values of a variable."""
        start = self._nodes.start_of(one.node, one.binder, self._tree.spans[one.leaf][1])
        self._variables.setdefault((scope, one.text), _Variable()).values.append((start, one.leaf))

    def _visible(self, leaf: int) -> int | None:
        """The scope of the variable that is visible under the name of a leaf; None if there is none."""
        text, place, grammar = self._texts[leaf], self._tree.spans[leaf][0], self._grammar
        scope, inside = self._nodes.scope(self._leaves[leaf]), False
        while True:
            kind, owner = self._nodes.types[scope], self._redirected.get((scope, text), scope)
            variable = self._variables.get((owner, text))
            # The body of a class is run line by line: before it gives a name a value, the name is one from outside.
            whole = (grammar.hoists or kind in grammar.whole) and kind not in grammar.closed
            if variable and (whole or variable.start <= place) and not (inside and kind in grammar.closed):
                return owner
            if scope == 0 or owner != scope or kind in grammar.barriers:
                return None
            scope, inside = self._nodes.scope(scope), True
