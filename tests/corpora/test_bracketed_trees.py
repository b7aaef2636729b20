import pytest

from bertology.corpora.bracketed_trees import Row, parses, trees_in_columns, unescaped
from bertology.corpora.skips import Broken
from bertology.errors import DataError

pytestmark = pytest.mark.any_transformers


@pytest.mark.parametrize(
    ("text", "words", "tags"),
    [
        ("(NP (-LRB- () (NN x) (-RRB- )))", "( x )", "-LRB- NN -RRB-"),
        ("(NP (-LRB- ( ) (NN x) (-RRB- ) ))", "( x )", "-LRB- NN -RRB-"),
        ("(NP (PUNCT () (NN x) (PUNCT )))", "( x )", "PUNCT NN PUNCT"),
        ("(NP (NN () (NN x))", "( x", "NN NN"),
        ("(NP (-LRB- -LCB-) (NN x) (-RRB- -RCB-))", "{ x }", "-LRB- NN -RRB-"),
        (r"(NP (CD 1\/2) (SYM \*) (NN and\/or))", "1/2 * and/or", "CD SYM NN"),
        ("(NP (NN :-RRB-) (. /.))", ":) .", "NN ."),
        ("( (NP (NN x) (-NONE- *T*-1)) )", "x", "NN"),
        ("(NP (NN\n  x)\n (, ,))", "x ,", "NN ,"),
        ("(NP\u00a0X (NN a\u3000b))", "a\u3000b", "NN"),
    ],
)
def test_words_of_trees(text, words, tags):
    (parse,) = parses(text, "some")
    assert parse.words == tuple(words.split(" "))
    assert parse.tags == tuple(tags.split())


def test_function_tags_are_kept_beside_the_label():
    (parse,) = parses("(S (NP-SBJ-1 (NN x)) (PP-LOC-PRD=2 (IN in) (NN y-SBJ)) (-LRB- -LRB-))", "some")
    assert [(p.label, p.functions) for p in parse.tree.children] == [
        ("NP", ("SBJ",)), ("PP", ("LOC", "PRD")), ("-LRB-", ()),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(NP (NN a b))", "some, line 1: the bracket 'NN' has 'b' beside others: wanted one word a bracket"),
        ("(NP\n(NN a)\nb)", "some, line 3: the bracket 'NP' has 'b' beside others"),
        ("(S (NFP :()\n (NN a))", "some, line 1: the tag 'NFP' has one word and no phrases: write a bracket as -LRB-"),
        ("(S (-LRB- (NN a)))", "some, line 1: the tag '-LRB-' has one word and no phrases"),
        ("(S (NN a))\n)", r"some, line 2: '\)' is outside of all trees"),
        ("\n\n(S (NN a)", "some, line 3: the file ends inside a tree: 1 bracket is not closed since here"),
        ("#begin document\n(S (NN a))", "some, line 1: '#begin' is outside of all trees"),
    ],
)
def test_broken_trees_have_a_place(text, message):
    with pytest.raises(DataError, match=message):
        parses(text, "some")


def test_broken_trees_are_left_out_and_reading_goes_on_at_the_next_line_with_a_bracket():
    text = "(NP (NN a))\n(NP (NN b\n  (NN c))\n(NP (NN d)) (NP (NN e))\n)\n(NP (NN f))\n"
    broken = Broken(True, "such trees")
    assert [parse.words for parse in parses(text, "some", broken)] == [("a",), ("d",), ("e",), ("f",)]
    assert [skip.name for skip in broken.skipped] == ["some, line 3", "some, line 5"]


def test_trees_in_columns():
    rows = [Row(4, "(", "-LRB-", "(S(NP-SBJ*"), Row(5, "Ann", "NNP", "*)"), Row(6, "sings", "VBZ", "(VP*))")]
    ((start, parse),) = trees_in_columns(rows, "some")
    assert (start, parse.words) == (0, ("(", "Ann", "sings"))
    assert [(p.label, p.start, p.end, p.functions) for p in parse.tree.children] == [
        ("NP", 0, 2, ("SBJ",)), ("VP", 2, 3, ()),
    ]  # fmt: skip
    assert trees_in_columns([Row(1, "a", "X", "-"), Row(2, "b", "X", "*")], "some") == []


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (("(S*", "*"), "some, line 2: the sentence ends inside a tree: 1 bracket is not closed"),
        (("(S*)", "*"), "some, line 2: 'b' is outside of all trees"),
        (("(S*", "*))"), r"some, line 2: '\)' is outside of all trees"),
        (("(S*", "x"), r"some, line 2: wanted a part of a tree such as \(S\(NP\* or \*\), got 'x'"),
        (("*", "*)"), "some, line 1: 'a' is outside of all trees"),
    ],
)
def test_broken_trees_in_columns_have_a_place(bits, message):
    rows = [Row(line, word, "X", bit) for line, word, bit in zip((1, 2), "ab", bits, strict=True)]
    with pytest.raises(DataError, match=message):
        trees_in_columns(rows, "some")


@pytest.mark.parametrize(("word", "wanted"), [("-LSB-x-RSB-", "[x]"), ("\\*\\*", "**"), ("/?", "?"), ("a/b", "a/b")])
def test_unescaped(word, wanted):
    assert unescaped(word) == wanted


@pytest.mark.shared
def test_gum_is_read_as_before(shared):
    """Words and brackets of the real file, counted in another way."""
    text = (shared / "constituency" / "gum_open-train.ptb").read_text(encoding="utf-8")
    found = parses(text, "gum")
    leaves = [line.count(")") for line in text.split("\n")]
    assert sum(leaves) == text.count("(")
    assert len(found) > 1000
    assert sum(len(parse.words) for parse in found) == 39_486
