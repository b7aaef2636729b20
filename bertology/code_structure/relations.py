"""Relations between the leaves of code: blocks, calls, brackets and definitions of variables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..errors import DataError, ShapeError, checked
from ..results.views import brief
from .masks import slanted
from .relation_tables import ANGLED, BRACKETS, GRAMMARS, NAMES, At, Binder, Grammar
from .trees import CodeTree


class _Definition(NamedTuple):
    start: int
    """The first character at which the name has this value."""
    leaf: int
    end: int
    """The character after the last one at which it has."""


def definition_of(tree: CodeTree, grammar: Grammar) -> list[tuple[int, int]]:
    """Each leaf that uses a variable, and the leaf of the latest definition before it in the text."""
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
    """The latest definition whose range contains a character."""
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
        """The node that defines the name at this leaf, and how; None if the leaf does not define its name."""
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
        """The range in which a definition of a name is valid, given the earlier definitions of the name."""
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
        # In JavaScript, a `var` in any block of a function belongs to the function.
        in_function = binder.scope == "function" or (parent >= 0 and self.types[parent] == "variable_declaration")
        around = parent if binder.scope == "outer" else node
        end = self._end(around, grammar.functions if in_function else grammar.scopes)
        if binder.scope == "function" and (old := _latest(earlier, start)):
            end = min(end, old.end)  # a new value ends at the latest where the variable ends
        return _Definition(start, leaf, end)

    def _out_of_patterns(self, node: int, grammar: Grammar) -> tuple[int, int]:
        """The outermost pattern that contains the name, or the name itself if there is none, and its parent."""
        child, parent = node, self.parents[node]
        while parent >= 0 and (at := grammar.patterns.get(self.types[parent])) and self._is(child, parent, at):
            child, parent = parent, self.parents[parent]
        return child, parent

    def _end(self, node: int, kinds: frozenset[str]) -> int:
        while node > 0 and self.types[node] not in kinds:
            node = self.parents[node]
        return self.spans[max(node, 0)][1]

    def _is(self, child: int, parent: int, at: At) -> bool:
        """Whether a child of `parent` is one of those that `at` means."""
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


Relation = Literal["same block", "same call", "definition to use", "matching brackets"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)


@dataclass(frozen=True)
class RelationSums:
    """Attention to related leaves and to unrelated leaves at the same offsets in the text, as sums over pairs."""

    related: Tensor
    """[...] float64: the sum of the attention to related leaves."""
    control: Tensor
    """[...] float64: the same sum after the attention of each pair is replaced by the mean attention of the unrelated
    pairs of its snippet at the same offset."""
    pairs: int
    """The number of related pairs that were compared."""
    unmatched: int
    """The number of related pairs that were not compared, because the snippet has no unrelated pair at their offset."""

    __repr__ = brief

    @property
    def mean(self) -> Tensor:
        """[...]: the mean attention to a related leaf; NaN if no pair was compared."""
        return self.related / self.pairs if self.pairs else torch.full_like(self.related, torch.nan)

    @property
    def expected(self) -> Tensor:
        """[...]: the mean attention to unrelated leaves at the same offsets; NaN if no pair was compared."""
        return self.control / self.pairs if self.pairs else torch.full_like(self.control, torch.nan)

    @property
    def gain(self) -> Tensor:
        """[...]: how much more attention related leaves get than position explains: `mean` minus `expected`."""
        return self.mean - self.expected

    @checked
    def merge(self, other: RelationSums) -> RelationSums:
        """The sums over the snippets of both. Raises `ShapeError` for another number of maps."""
        if self.related.shape != other.related.shape:
            raise ShapeError(f"wanted sums of {list(self.related.shape)} maps, got {list(other.related.shape)}")
        return RelationSums(
            self.related + other.related,
            self.control + other.control,
            self.pairs + other.pairs,
            self.unmatched + other.unmatched,
        )


@checked
def related(tree: CodeTree, relation: Relation) -> Tensor:
    """[leaf, leaf] bool: which leaves (columns) a leaf (row) is related to. No leaf is related to itself.

    - "same block": the innermost block around both leaves is the same. The braces belong to the block.
    - "same call": both leaves are in the arguments of the same call, and it is the innermost call around them. The
      brackets and commas of the call itself do not count, nor does code in a block inside the arguments.
    - "matching brackets": an opening bracket and its closing bracket, in both directions.
    - "definition to use": from the use of a variable to its definition, in this direction only. The definition is the
      latest definition, assignment, parameter or loop variable of that name that comes before the use in the text and
      is in scope there.

    Definitions are found from the tree alone, without running the code. After an `if` with several branches, the last
    branch counts; a value from the end of a loop body does not count at its start. Imports, type parameters, patterns
    of `match` and `instanceof`, attributes (`self.x`) and elements (`x[0]`) are not followed.

    Raises `DataError` for another relation, and for a tree of a language other than Python, Java, JavaScript and Go.

        >>> from bertology.code_structure import parse_code
        >>> tree = parse_code("def f(x):\\n    return x", "python")
        >>> tree.texts
        ('def', 'f', '(', 'x', ')', ':', 'return', 'x')
        >>> related(tree, "definition to use").nonzero()
        tensor([[7, 3]])
    """
    if relation not in RELATIONS:
        raise DataError(f"relation must be one of {', '.join(map(repr, RELATIONS))}, got {relation!r}")
    grammar = GRAMMARS.get(tree.language)
    if grammar is None:
        raise DataError(
            f"relations are known in {', '.join(GRAMMARS)}, not in {tree.language or 'a grammar without a name'}"
        )
    if relation == "same block":
        return _same_group(_blocks(tree, grammar))
    if relation == "same call":
        return _same_group(_calls(tree, grammar))
    if relation == "definition to use":
        return _linked(len(tree), definition_of(tree, grammar))
    pairs = _brackets(tree)
    return _linked(len(tree), pairs + [(j, i) for i, j in pairs])


@checked
def relation_scores(attention: Tensor, related: Tensor, *, valid: Tensor | None = None) -> RelationSums:
    """Sum the attention to related leaves, and the attention to unrelated leaves at the same signed offset.

    Each related pair (i, j) is compared with the mean of the unrelated pairs of its snippet at offset j - i. So a head
    gains nothing by attending to near leaves, which are related more often than distant leaves.

    Args:
        attention: [..., leaf, leaf]: maps of one snippet.
        related: [leaf, leaf] bool: the related pairs; rows attend to columns: `related(tree, relation)`.
        valid: [leaf, leaf] bool: the pairs that count: `visible` for a decoder. By default all.

    Raises `ShapeError` for other shapes, and `DataError` for attention that is not finite where it counts.

        >>> import torch
        >>> sums = relation_scores(torch.eye(3).roll(1, 1), torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0]]).bool())
        >>> sums.mean.item(), sums.expected.item()
        (1.0, 1.0)
    """
    shape = attention.shape[-2:]
    for name, one in (("related", related), ("valid", related if valid is None else valid)):
        if attention.dim() < 2 or one.shape != shape or one.dtype != torch.bool:
            raise ShapeError(
                f"{name} must be [leaf, leaf] bool over the leaves of attention, {list(attention.shape)}, got "
                f"{list(one.shape)} {one.dtype}"
            )
    counts = torch.ones_like(related) if valid is None else valid.to(related.device)
    values = attention.detach() if valid is None else attention.detach().masked_fill(~valid.to(attention.device), 0)
    weights, wanted = slanted(values), slanted(related & counts)
    sums, many = (weights * wanted.to(weights.device)).sum(-2).cpu(), wanted.sum(-2).cpu()
    others, others_many = weights.sum(-2).cpu() - sums, slanted(counts).sum(-2).cpu() - many
    if not (sums.isfinite().all() and others.isfinite().all()):
        raise DataError("attention weights are not finite: look for NaN or overflow in the model's weights")
    compared = others_many > 0
    control = (many * others / others_many.clamp_min(1))[..., compared].sum(-1)
    pairs = int(many[compared].sum())
    return RelationSums(sums[..., compared].sum(-1), control, pairs, int(many.sum()) - pairs)


def _nearest(tree: CodeTree, wanted: Sequence[bool]) -> list[int]:
    """[node]: the innermost wanted node that contains it, which may be the node itself; -1 for none."""
    nearest: list[int] = []
    for node, parent in enumerate(tree.parents.tolist()):
        nearest.append(node if wanted[node] else nearest[parent] if parent >= 0 else -1)
    return nearest


def _blocks(tree: CodeTree, grammar: Grammar) -> list[int]:
    """[leaf]: the node of the innermost block around it; -1 for none."""
    nearest = _nearest(tree, [kind in grammar.blocks for kind in tree.node_types])
    return [nearest[node] for node in tree.leaf_nodes.tolist()]


def _calls(tree: CodeTree, grammar: Grammar) -> list[int]:
    """[leaf]: the node of the innermost list of arguments around it; -1 for none."""
    kinds, parents = tree.node_types, tree.parents.tolist()
    lists = [
        kind == grammar.arguments and kinds[parent] in grammar.calls
        for kind, parent in zip(kinds, parents, strict=True)
    ]
    nearest = _nearest(tree, [lists[node] or kind in grammar.blocks for node, kind in enumerate(kinds)])
    found = []
    for node in tree.leaf_nodes.tolist():
        around = nearest[node]
        own = around == parents[node] and kinds[node] in ("(", ",", ")")
        found.append(around if around >= 0 and lists[around] and not own else -1)
    return found


def _brackets(tree: CodeTree) -> list[tuple[int, int]]:
    """Each opening bracket and its closing bracket. Both are children of the same node."""
    pairs: list[tuple[int, int]] = []
    opened: dict[int, list[int]] = {}
    parents = tree.parents[tree.leaf_nodes].tolist()
    for leaf, (kind, parent) in enumerate(zip(tree.types, parents, strict=True)):
        if kind in ("<", ">") and tree.node_types[parent] not in ANGLED:
            continue
        waiting = opened.setdefault(parent, [])
        if kind in BRACKETS:
            waiting.append(leaf)
        elif waiting and kind == BRACKETS[tree.types[waiting[-1]]]:
            pairs.append((waiting.pop(), leaf))
    return pairs


def _same_group(groups: Sequence[int]) -> Tensor:
    """[leaf, leaf] bool: the pairs of leaves in the same group. Leaves of group -1 are in no group."""
    of = torch.tensor(groups, dtype=torch.int64)
    return ((of[:, None] == of) & (of >= 0)).fill_diagonal_(False)


def _linked(leaves: int, links: Sequence[tuple[int, int]]) -> Tensor:
    found = torch.zeros(leaves, leaves, dtype=torch.bool)
    for row, column in links:
        found[row, column] = True
    return found
