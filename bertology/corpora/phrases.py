"""Heads and kinds of phrases: pronouns, names and other noun phrases."""

from __future__ import annotations

from collections.abc import Sequence

from .bracketed_trees import Phrase
from .documents import Kind

Traits = tuple[str | None, str | None, int | None]
"""Number, gender and person; None if not known."""

TRAITS: dict[str, Traits] = {
    word: traits
    for words, traits in (
        ("i me my mine myself", ("singular", None, 1)),
        ("we us our ours ourselves", ("plural", None, 1)),
        ("you your yours", (None, None, 2)),
        ("yourself", ("singular", None, 2)),
        ("yourselves", ("plural", None, 2)),
        ("he him his himself", ("singular", "masculine", 3)),
        ("she her hers herself", ("singular", "feminine", 3)),
        ("it its itself", ("singular", "neuter", 3)),
        ("they them their theirs themselves these those", ("plural", None, 3)),
        ("this that one oneself themself", ("singular", None, 3)),
        ("who whom whose which what", (None, None, 3)),
    )
    for word in words.split()
}
ALONE = frozenset(("this", "that", "these", "those", "who", "whom", "whose", "which", "what"))
"""Words that are pronouns only without a noun after them."""


def gender_of(word: str) -> str | None:
    """The gender of a pronoun, "feminine", "masculine" or "neuter"; None for other words.

    >>> gender_of("Her")
    'feminine'
    """
    return TRAITS.get(word.lower(), (None, None, None))[1]


PRONOUN_TAGS = ("PRP", "PRP$", "WP", "WP$")
NAME_TAGS = ("NNP", "NNPS")
_PENN_TAGS = """
CC CD DT EX FW IN JJ JJR JJS LS MD NN NNS NNP NNPS PDT POS PRP PRP$ RB RBR RBS RP SYM TO UH VB VBD VBG VBN VBP VBZ WDT
WP WP$ WRB AFX ADD GW HYPH NFP XX # $ '' `` ( ) , . : -LRB- -RRB- -LSB- -RSB- -LCB- -RCB-
"""
PENN_TAGS = frozenset(_PENN_TAGS.split())
"""The parts of speech of the Penn Treebank and of OntoNotes."""
POSSESSIVES = ("'s", "’s", "'", "’")
_AFTER_HEADS = """
, ; : ( [ about above across after against along among around as at before behind below between beyond by despite during
for from in into like near of off on onto over since than through to toward towards under until up upon with within
without who whom whose which that where when
"""
AFTER_HEADS = frozenset(_AFTER_HEADS.split())
"""Words that follow the head of a phrase: commas, brackets, prepositions, relative pronouns."""

# Collins (1999, Head-Driven Statistical Models for Natural Language Parsing, appendix A): where to look for the head
# of a noun phrase, in this order, from its end or from its start. Possessive endings are ignored: the head of
# "the queen's" is "queen".
_Rules = Sequence[tuple[tuple[str, ...], str]]
_NOUN_PHRASE: _Rules = (
    (("NN", "NNP", "NNPS", "NNS", "NX", "NML", "JJR"), "end"),
    (("NP",), "start"),
    (("$", "ADJP", "PRP", "PRN"), "end"),
    (("CD",), "end"),
    (("JJ", "JJS", "RB", "QP"), "end"),
)
_CLAUSE: _Rules = (
    (("S", "SBAR", "SQ", "SINV", "VP"), "start"),
    (("VBD", "VBN", "MD", "VBZ", "VB", "VBG", "VBP"), "start"),
)
_CLAUSES = ("S", "SBAR", "SBARQ", "SQ", "SINV", "VP")


def head_in_tree(tree: Phrase, start: int, end: int) -> int:
    """The head of the words from `start` to `end`: that of the smallest constituent around them, within these words.

    A constituent that is not a clause is treated as a noun phrase, because mentions are noun phrases.

        >>> from bertology.corpora.bracketed_trees import parses
        >>> tree = parses("(NP (NP (DT the) (NN queen)) (PP (IN of) (NP (NNS hearts))))", "example")[0].tree
        >>> head_in_tree(tree, 0, 4)
        1
    """
    while True:
        inside = [child for child in tree.children if child.start < end and child.end > start]
        if not inside:
            return max(tree.start, start)
        whole = (tree.start, tree.end) == (start, end)
        rules = _CLAUSE if whole and tree.label in _CLAUSES else _NOUN_PHRASE
        tree = inside[0] if len(inside) == 1 else _first_of(inside, rules, last=whole)
        if len(inside) > 1:
            start, end = max(start, tree.start), min(end, tree.end)


def _first_of(children: Sequence[Phrase], rules: _Rules, last: bool) -> Phrase:
    """The child found by the first rule that finds one; else the last child, or the first one if `last` is false."""
    for labels, side in rules:
        for child in children if side == "start" else reversed(children):
            if child.label in labels:
                return child
    wordy = [child for child in children if child.children or (child.label[:1].isalpha() and child.label != "POS")]
    return (wordy or list(children))[-1 if last else 0]


def head_in_words(words: Sequence[str], start: int, end: int) -> int:
    """The head of the words from `start` to `end`, without a tree: the last word before a comma, preposition or "who".

    A possessive 's and marks at the end are ignored. In "A and B" this rule finds B; the rule for trees finds A.

        >>> head_in_words(("the", "queen", "of", "hearts"), 0, 4)
        1
    """
    after = (place for place in range(start + 1, end) if words[place].lower() in AFTER_HEADS)
    last = next(after, end)
    for place in reversed(range(start, last)):
        if words[place] not in POSSESSIVES and any(letter.isalnum() for letter in words[place]):
            return place
    return last - 1


def kind_of(words: Sequence[str], tags: Sequence[str] | None, start: int, end: int, head: int) -> Kind:
    """Whether a mention is a pronoun, a proper name or another noun phrase, by its head word.

    The head's tag decides, or, without tags, a list of pronouns and a capital letter inside a sentence.

        >>> kind_of(("Then", "Alice", "slept"), None, 1, 2, 1)
        'proper'
    """
    word = words[head]
    small = word.lower()
    if (end - start == 1 and small in ALONE) or (tags and tags[head] in PRONOUN_TAGS):
        return "pronoun"
    if tags:
        return "proper" if tags[head] in NAME_TAGS else "nominal"
    shouted = word.isupper() and len(word) > 1  # "US" is not a pronoun
    if small in TRAITS and small not in ALONE and not shouted and (end - start == 1 or small != "one"):
        return "pronoun"
    begins = head == 0 or words[head - 1] in (".", "!", "?")
    return "proper" if word[:1].isupper() and not begins else "nominal"
