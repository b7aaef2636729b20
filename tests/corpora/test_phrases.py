import pytest

from bertology.corpora.bracketed_trees import parses
from bertology.corpora.phrases import head_in_tree, head_in_words, kind_of

pytestmark = pytest.mark.any_transformers


@pytest.mark.parametrize(
    ("tree", "span", "head"),
    [  # Collins (1999), appendix A, by hand
        ("(NP (NP (DT the) (NN queen)) (PP (IN of) (NP (NNS hearts))))", (0, 4), "queen"),
        ("(NP (NP (NNP Ann)) (CC and) (NP (NNP Bill)))", (0, 3), "Ann"),
        ("(NP (NP (NNP Ann) (POS 's)) (NN hat))", (0, 2), "Ann"),
        ("(NP (NP (NNP Ann) (POS 's)) (NN hat))", (0, 3), "hat"),
        ("(NP (DT the) (NN ice) (NN cream) (NN man))", (0, 3), "cream"),  # a part of a flat phrase
        ("(NP (DT the) (CD two))", (0, 2), "two"),
        ("(NP (DT the) (JJ poor))", (0, 2), "poor"),
        ("(NP (PRP she) (PRP herself))", (0, 2), "herself"),
        ("(NP (PRP us) (DT all))", (0, 2), "us"),
        ("(NP (NP (NN cake)) (, ,) (SBAR (WHNP (WDT which)) (S (VP (VBZ is) (NP (NN food))))))", (0, 5), "cake"),
        ("(S (NP (NNP Ann)) (VP (VBZ sings)))", (0, 2), "sings"),
        ("(VP (VB go) (PP (IN to) (NP (NNP Rome))))", (0, 3), "go"),
        ("(VP (VB see) (NP (NN art)) (PP (IN in) (NP (NNP Rome))))", (1, 4), "art"),  # attached elsewhere
        ("(VP (VBD said) (PP (IN in) (NP (DT the) (NN end))) (PP (IN of) (NP (NN May))))", (2, 6), "end"),
        ("(NP (DT the) (`` ``) (NN end) ('' ''))", (0, 4), "end"),
    ],
)
def test_heads_of_phrases(tree, span, head):
    (parse,) = parses(tree, "tree")
    assert parse.words[head_in_tree(parse.tree, *span)] == head


@pytest.mark.parametrize(
    ("phrase", "head"),
    [
        ("the queen of hearts", "queen"), ("Ann , the queen", "Ann"), ("the man who sang", "man"), ("Ann 's", "Ann"),
        ("that book", "book"), ("John Smith Jr .", "Jr"), ("the end ( of May )", "end"), ("she", "she"), ("%", "%"),
        ("of hearts", "hearts"), ("A and B", "B"),
    ],
)  # fmt: skip
def test_heads_of_words(phrase, head):
    words = phrase.split()
    assert words[head_in_words(words, 0, len(words))] == head


@pytest.mark.parametrize(
    ("words", "tags", "span", "kind"),
    [
        ("she sang", None, (0, 1), "pronoun"), ("saw US", None, (1, 2), "proper"), ("saw us", None, (1, 2), "pronoun"),
        ("The old Queen", None, (0, 3), "proper"), ("sang . Queens", None, (2, 3), "nominal"),
        ("this", None, (0, 1), "pronoun"), ("this one", None, (0, 2), "nominal"), ("a cat", None, (0, 2), "nominal"),
        ("she sang", "PRP VBD", (0, 1), "pronoun"), ("Queens sang", "NNS VBD", (0, 1), "nominal"),
        ("Ann sang", "NNP VBD", (0, 1), "proper"), ("that", "DT", (0, 1), "pronoun"), ("I", None, (0, 1), "pronoun"),
    ],
)  # fmt: skip
def test_kinds(words, tags, span, kind):
    words, tags = words.split(), tags and tags.split()
    assert kind_of(words, tags, *span, span[1] - 1) == kind
