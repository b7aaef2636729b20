import pickle
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertology.code_structure import parse_code, read_code
from bertology.code_structure import trees as grammars
from bertology.errors import DataError, MissingExtra
from helpers.code_snippets import BAD, GOOD
from oracles import code as oracles

pytestmark = pytest.mark.any_transformers

LANGUAGES = ["go", "java", "javascript", "python"]


@pytest.fixture
def no_memory_of_grammars():
    grammars._known.cache_clear()
    yield
    grammars._known.cache_clear()


@pytest.mark.shared
@pytest.mark.parametrize("language", LANGUAGES)
def test_leaves_of_real_functions(shared, language):
    """Types belong to their leaves (METHODS D4.2), and every place is in characters (D4.4)."""
    snippets = read_code(shared / "code" / f"{language}.jsonl")
    assert str(snippets) == f"300 in {language}"
    for tree in snippets[::15]:
        raw = oracles.raw_leaves_and_graph(tree.code, language)[0]
        assert tree.types == tuple(leaf.type for leaf in raw)
        assert tree.texts == tuple(leaf.text.decode() for leaf in raw)
        assert list(tree.identifiers) == [leaf.type == "identifier" for leaf in raw]
        check_tree(tree)


def check_tree(tree):
    """What holds of every tree: parents come first, children are inside them, and leaves follow one another."""
    assert len(tree) == len(tree.types) == len(tree.spans) == len(tree.leaf_nodes)
    assert len(tree.parents) == len(tree.node_types) == len(tree.node_spans)
    assert tree.parents[0] == -1
    children = np.arange(1, len(tree.parents))
    assert ((tree.parents[1:] >= 0) & (tree.parents[1:] < children)).all()
    assert not set(tree.leaf_nodes.tolist()) & set(tree.parents.tolist())
    inside, around = tree.node_spans[1:], tree.node_spans[tree.parents[1:]]
    assert ((around[:, 0] <= inside[:, 0]) & (inside[:, 1] <= around[:, 1])).all()
    assert [tuple(span) for span in tree.node_spans[tree.leaf_nodes].tolist()] == list(tree.spans)
    assert tuple(tree.node_types[node] for node in tree.leaf_nodes) == tree.types
    flat = [place for span in tree.spans for place in span]
    assert flat == sorted(flat)
    assert flat[0] >= 0
    assert flat[-1] <= len(tree.code)
    assert all(start < end for start, end in tree.spans)


@given(st.lists(st.text("aé数😀\u0301 ", min_size=1, max_size=4), min_size=1, max_size=5))
def test_places_are_characters_whatever_the_text(parts):
    code = "\n".join(f'é{n} = "{part}"  # {part}' for n, part in enumerate(parts))
    tree = parse_code(code, "python")
    assert tree.texts == tuple(text for n, part in enumerate(parts) for text in (f"é{n}", "=", '"', part, '"'))
    assert "comment" not in tree.node_types
    check_tree(tree)


@pytest.mark.parametrize(
    ("language", "code", "texts"),
    [
        ("python", "# a\nx = 1  # b\n# c", ["x", "=", "1"]),
        ("java", "int f() { /* a */ return 1; } // b", ["int", "f", "(", ")", "{", "return", "1", ";", "}"]),
        ("javascript", "/** a */ f(1) // b", ["f", "(", "1", ")"]),
        ("go", "// a\nfunc f() {\n\tg() /* b */\n\th()\n}\n", ["func", "f", *"(){", "g", *"()", "h", *"()}"]),
    ],
)
def test_comments_are_left_out(language, code, texts):
    tree = parse_code(code, language)
    assert list(tree.texts) == texts
    assert not any("comment" in kind for kind in tree.node_types)
    check_tree(tree)


def test_what_quotes_hold_is_a_leaf_even_if_blank():
    assert parse_code('f(" ")', "javascript").texts == ("f", "(", '"', " ", '"', ")")


def test_python_strings_with_escapes():
    """The grammar has a node for the escape alone, so that the letters around it are in no leaf."""
    assert parse_code(r'"a\nb"', "python").texts == ('"', r"\n", '"')


@pytest.mark.parametrize(
    ("language", "code", "root"),
    [
        ("java", "\n  public Näme(int x) { this.x = x; }\n", "constructor_declaration"),
        ("java", "// a\nint x;\nNäme() { x = 1; }  // b", "class_body"),
        ("javascript", "async get(ä) { return ä }", "method_definition"),
        ("javascript", "constructor(ä) { super(ä) } // b", "class_body"),
    ],
)
def test_members_of_a_class_are_parsed_inside_one(language, code, root):
    tree = parse_code(code, language)
    assert tree.node_types[0] == root
    assert tree.errors == ()
    assert "_" not in tree.texts
    kept = code.replace("// a", "").replace("// b", "").split()
    assert "".join(tree.texts) == "".join(kept)
    check_tree(tree)


def test_the_shell_does_not_hide_what_is_broken():
    with pytest.raises(DataError, match="does not parse at line 1, column 1 "):
        parse_code("} class B {", "java")
    assert parse_code("int f( { return 1; }", "java", broken="keep").errors


def test_deep_code():
    """METHODS D4.7: no recursion."""
    deep = 10 * sys.getrecursionlimit()
    tree = parse_code("(" * deep + "x" + ")" * deep, "javascript")
    assert len(tree) == 2 * deep + 1
    assert tree.texts[deep] == "x"


def test_trees_are_fixed_short_to_print_and_can_be_sent():
    tree = parse_code(GOOD, "Python", name="f")
    assert repr(tree) == "<CodeTree f: python, 8 leaves of 13 nodes>"
    assert repr(parse_code(BAD, "python", broken="keep")).endswith("1 place that cannot be parsed>")
    with pytest.raises(ValueError, match="read-only"):
        tree.parents[0] = 3
    sent = pickle.loads(pickle.dumps(tree))
    assert sent.spans == tree.spans
    np.testing.assert_array_equal(sent.node_spans, tree.node_spans)


def test_code_that_does_not_parse():
    with pytest.raises(DataError, match=r"code 'mine' does not parse at line 2, column 5 \(broken='keep' keeps it\)"):
        parse_code(BAD, "python", name="mine")
    tree = parse_code(BAD, "python", broken="keep")
    assert tree.errors[0] == (2, 5)
    assert "retürn" in tree.texts
    check_tree(tree)
    missing = parse_code("int f() { return 1 }", "java", broken="keep")  # a node of no width for the semicolon
    assert missing.errors == ((1, 19),)
    assert missing.texts == ("int", "f", *"(){", "return", "1", "}")


@pytest.mark.parametrize(
    ("code", "options", "message"),
    [
        ("", {}, "the code has no leaves: it is empty"),
        (" \n", {}, "the code has no leaves: it is empty"),
        ("# a", {"name": "mine"}, "code 'mine' has no leaves: only comments"),
        ("x = '\ud83d'", {"name": "mine"}, "code 'mine' is not valid text: half of a surrogate pair at character 5"),
        (b"x", {}, "code must be a string, got bytes"),
        ("x", {"broken": "skip"}, "broken must be 'error' or 'keep', got 'skip'"),
    ],
)
def test_code_that_cannot_be_used(code, options, message):
    with pytest.raises(DataError, match=message):
        parse_code(code, "python", **options)


def test_languages():
    import tree_sitter
    import tree_sitter_go

    code, capsule = "func f() { }", tree_sitter_go.language()
    named = parse_code(code, "go")
    for language in (capsule, tree_sitter.Language(capsule), "GO"):
        other = parse_code(code, language)
        assert (other.spans, other.language) == (named.spans, "go")
    with pytest.raises(
        DataError, match="no grammar is known for 'cobol', only for c, cpp, go, java, .*, tsx, typescript: pass"
    ):
        parse_code(code, "cobol")
    with pytest.raises(DataError, match="language must be a name .* or a tree_sitter.Language, got 3"):
        parse_code(code, 3)
    with pytest.raises(DataError, match="is not a grammar that the installed tree-sitter can read"):
        parse_code(code, __import__("datetime").datetime_CAPI)


@pytest.mark.parametrize("package", ["tree_sitter", "tree_sitter_go"])
def test_without_the_extra(package, monkeypatch, no_memory_of_grammars):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"needs the package '{package}', .*pip install 'bertology\[code\]'"):
        parse_code("func f() { }", "go")
