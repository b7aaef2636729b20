"""Relations between the leaves of code: blocks, calls, brackets and definitions of variables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import DataError, ShapeError, checked
from ..results.views import brief
from .definitions import definitions_of, names_of
from .masks import slanted
from .relation_tables import ANGLED, BRACKETS, Grammar
from .script_grammars import JAVASCRIPT, PHP, PYTHON, RUBY, TYPESCRIPT
from .trees import CodeTree
from .typed_grammars import CPP, GO, JAVA, RUST, C

GRAMMARS = {
    "python": PYTHON, "java": JAVA, "javascript": JAVASCRIPT, "go": GO, "typescript": TYPESCRIPT, "tsx": TYPESCRIPT,
    "php": PHP, "ruby": RUBY, "c": C, "cpp": CPP, "rust": RUST,
}  # fmt: skip


Relation = Literal["same block", "same call", "definition to use", "matching brackets", "same name, no definition"]
CONTROL: Relation = "same name, no definition"
"""The control relation of "definition to use"."""
RELATIONS: tuple[Relation, ...] = tuple(one for one in get_args(Relation) if one != CONTROL)
"""The relations that are measured by default."""


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
      latest definition, assignment, parameter, loop variable or import of that variable that comes before the use in
      the text. Two variables of the same name in different scopes are different, by the rules of the language.
    - "same name, no definition": from a name to an earlier leaf with the same name, if the first is not linked to the
      second by "definition to use", nor the second to the first. This is the control relation of "definition to use":
      it shows how much attention a head pays to the same word anyway.

    Definitions are found from the tree alone, without running the code. After an `if` with several branches, the last
    branch counts; a value from the end of a loop body does not count at its start; an assignment in an inner function
    counts after this function. Python's `except E, e` defines `e`, as in Python 2. Type parameters, attributes
    (`self.x`) and elements (`x[0]`) are not followed. A JSX tag is the use of a variable if it starts with a capital,
    and an element otherwise.

    Raises `DataError` for another relation, and for a tree of a language without relations: a grammar that was passed
    as a `tree_sitter.Language` has them if its name is known.

        >>> from bertology.code_structure import parse_code
        >>> tree = parse_code("def f(x):\\n    return x", "python")
        >>> tree.texts
        ('def', 'f', '(', 'x', ')', ':', 'return', 'x')
        >>> related(tree, "definition to use").nonzero()
        tensor([[7, 3]])
    """
    if relation not in get_args(Relation):
        raise DataError(f"relation must be one of {', '.join(map(repr, get_args(Relation)))}, got {relation!r}")
    grammar = GRAMMARS.get(tree.language)
    if grammar is None:
        raise DataError(
            f"relations are known in {', '.join(GRAMMARS)}, not in {tree.language or 'a grammar without a name'}"
        )
    if relation == "same block":
        return _same_group(_blocks(tree, grammar))
    if relation == "same call":
        return _same_group(_calls(tree, grammar))
    if relation in ("definition to use", CONTROL):
        links = _linked(len(tree), definitions_of(tree, grammar))
        return links if relation == "definition to use" else _same_name(tree, grammar) & ~(links | links.T)
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


def _same_name(tree: CodeTree, grammar: Grammar) -> Tensor:
    """[leaf, leaf] bool: from each name to the earlier leaves with the same name."""
    texts, numbers = tree.texts, dict[str, int]()
    of = torch.full((len(tree),), -1)
    for leaf in names_of(tree, grammar):
        of[leaf] = numbers.setdefault(texts[leaf], len(numbers))
    return _same_group(of.tolist()).tril()


def _same_group(groups: Sequence[int]) -> Tensor:
    """[leaf, leaf] bool: the pairs of leaves in the same group. Leaves of group -1 are in no group."""
    of = torch.tensor(groups, dtype=torch.int64)
    return ((of[:, None] == of) & (of >= 0)).fill_diagonal_(False)


def _linked(leaves: int, links: Sequence[tuple[int, int]]) -> Tensor:
    found = torch.zeros(leaves, leaves, dtype=torch.bool)
    for row, column in links:
        found[row, column] = True
    return found
