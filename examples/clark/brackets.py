"""What are the dependencies in a constituency treebank, in the names of Universal Dependencies?

Head rules turn brackets of the Penn Treebank's kind, with their function tags, into trees over words. Only the
relations in `SURE` are told by the brackets well enough to score heads on; every other arc is called `dep`. No gold
annotation stands behind these arcs: they are as good as the brackets and the rules.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bertology.corpora.bracketed_trees import Parse, parses
from bertology.corpora.files import text_of
from bertology.errors import DataError
from bertology.syntax import Sentence, Treebank

SURE = ("nsubj", "obj", "det", "amod", "case", "aux", "nmod:poss")
NOUNS = ("NN", "NNS", "NNP", "NNPS")
VERBS = ("VB", "VBD", "VBG", "VBN", "VBP", "VBZ")
SENTENCES = ("S", "SQ", "SINV", "SBAR", "SBARQ")
BE = ("be", "am", "is", "are", "was", "were", "been", "being", "'s", "'re", "'m")
HELPING = (*BE, "have", "has", "had", "having", "'ve", "'d", "do", "does", "did")
PUNCTUATION = (",", ".", ":", "``", "''", "-LRB-", "-RRB-", "HYPH", "NFP")


@dataclass
class Node:
    """A phrase, or a word with its tag as the label."""

    label: str
    functions: tuple[str, ...] = ()
    children: list[Node] = field(default_factory=list)
    word: str = ""
    place: int = 0
    """Of a word: its number in the sentence, from 1."""


def read_brackets(path: str | Path) -> Treebank:
    """Read a file of bracketed trees as a treebank of dependencies. Raises `DataError` for brackets without a match."""
    found = [
        to_sentence(tree_of(parse), f"{Path(path).name} {number}")
        for number, parse in enumerate(parses(text_of(path), path), 1)
    ]
    if not found:
        raise DataError(f"{path} has no trees")
    return Treebank(tuple(found))


def tree_of(parse: Parse) -> Node:
    """The tree of a sentence, with a node for each phrase and word."""
    top = Node(parse.tree.label, parse.tree.functions)
    rest = [(parse.tree, top)]
    while rest:
        phrase, node = rest.pop()
        if not phrase.children:
            node.word = parse.words[phrase.start]
        node.children = [Node(child.label, child.functions) for child in phrase.children]
        rest += zip(phrase.children, node.children, strict=True)
    return top


def to_sentence(tree: Node, name: str = "") -> Sentence:
    """The dependencies of one tree."""
    words = _words(tree)
    for place, leaf in enumerate(words, 1):
        leaf.place = place
    heads, relations = [0] * len(words), ["root"] * len(words)

    for phrase in _nodes(tree):
        centre = _centre(phrase)
        for child in phrase.children:
            if child is not centre:
                word = _head(child).place - 1
                heads[word], relations[word] = _head(centre).place, _relation(phrase, centre, child)
    return Sentence(tuple(leaf.word for leaf in words), tuple(heads), tuple(relations), name)


def _nodes(tree: Node) -> Iterator[Node]:
    """The tree itself and all nodes in it, in the order of the text, without recursion: trees may be deep."""
    rest = [tree]
    while rest:
        node = rest.pop()
        yield node
        rest += reversed(node.children)


def _words(node: Node) -> list[Node]:
    return [one for one in _nodes(node) if one.word]


def _head(node: Node) -> Node:
    while not node.word:
        node = _centre(node)
    return node


def _centre(phrase: Node) -> Node:
    """The child that the phrase's head is in: content words before function words, as Universal Dependencies has it."""
    children = [child for child in phrase.children if child.label not in PUNCTUATION] or phrase.children
    if not children:
        return phrase
    if phrase.label in ("NP", "NX", "WHNP", "NML", "NAC"):
        return _of_noun_phrase(children)
    if phrase.label == "VP":
        return _of_verb_phrase(children)
    if phrase.label in SENTENCES:
        clauses = [child for child in children if "SBJ" not in child.functions]
        found = _some(clauses, ("VP",)) or _some(clauses, SENTENCES)
        return found or _tagged(clauses, "PRD") or _some(clauses, VERBS) or children[-1]
    if phrase.label in ("PP", "WHPP"):
        return _some(children, ("NP", "WHNP", "NX", *SENTENCES, "VP", "ADJP", "ADVP", "PP")) or children[-1]
    if phrase.label in ("ADJP", "ADVP", "QP"):
        return (
            _some(children[::-1], ("JJ", "JJR", "JJS", "RB", "RBR", "RBS", "VBN", "VBG", "CD", "ADJP")) or children[-1]
        )
    return children[0]


def _of_noun_phrase(children: Sequence[Node]) -> Node:
    if _some(children, ("CC",)) or children[0].label in ("NP", "WHNP", "NX"):
        first = _some(children, ("NP", "WHNP", "NX")) if not _some(children, NOUNS) else None
        if first is not None:
            return first
    before = children[:-1] if children[-1].label == "POS" and len(children) > 1 else children
    nouns = _some(before[::-1], (*NOUNS, "NX", "NML"))
    return nouns or _some(before[::-1], ("PRP", "EX", "WP", "NP", "CD", "QP", "JJ", "DT")) or before[-1]


def _of_verb_phrase(children: Sequence[Node]) -> Node:
    inner, verb = _some(children, ("VP",)), _some(children, VERBS)
    helps = verb is None or verb.word.lower() in HELPING
    if inner is not None and (helps or _some(children, ("MD", "TO"))):
        return inner
    if verb is not None and verb.word.lower() in BE:
        return _tagged(children, "PRD") or verb
    return verb or inner or children[0]


def _relation(phrase: Node, centre: Node, child: Node) -> str:
    """What a child is to the phrase's head, if the brackets tell."""
    label, before = child.label, phrase.children.index(child) < phrase.children.index(centre)
    if phrase.label in SENTENCES and "SBJ" in child.functions and label == "NP":
        return "dep" if _is_passive(phrase) else "nsubj"
    if phrase.label in ("NP", "NX", "WHNP", "NML") and before:
        if label in ("DT", "PDT", "WDT"):
            return "det"
        if label == "PRP$" or (label == "NP" and _words(child)[-1].label == "POS"):
            return "nmod:poss"
        if label in ("JJ", "JJR", "JJS", "ADJP") and _head(centre).label in NOUNS:
            return "amod"
    if (phrase.label == "PP" and label in ("IN", "TO") and before) or label == "POS":
        return "case"
    if phrase.label == "VP" and before and (label == "MD" or label in VERBS) and centre.label == "VP":
        return "dep" if child.word.lower() in BE and _head(centre).label == "VBN" else "aux"
    if phrase.label == "VP" and label == "NP" and not child.functions and centre.label in VERBS and not before:
        followed = any(
            one.label == "NP" and not one.functions for one in phrase.children[phrase.children.index(child) + 1 :]
        )
        return "dep" if followed or centre.word.lower() in BE or centre.label == "VBN" else "obj"
    return "dep"


def _is_passive(clause: Node) -> bool:
    """Whether the clause's verb is a participle under a form of "be"."""
    words = [word for child in clause.children if child.label == "VP" for word in _words(child)]
    verb = _head(clause)
    return verb.label == "VBN" and any(word.word.lower() in BE and word.place < verb.place for word in words)


def _some(children: Sequence[Node], labels: Collection[str]) -> Node | None:
    return next((child for child in children if child.label in labels), None)


def _tagged(children: Sequence[Node], function: str) -> Node | None:
    return next((child for child in children if function in child.functions), None)
