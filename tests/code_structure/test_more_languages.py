"""C, C++, PHP, Ruby, Rust and TypeScript: their leaves, comments, strings, edges and relations."""

import importlib
import itertools

import pytest
import tree_sitter
import tree_sitter_ruby

from bertology.code_structure import graph_edges, leaf_distances, parse_code, read_code, related
from bertology.code_structure.trees import PACKAGES, language_of
from bertology.errors import DataError, MissingExtra

pytestmark = pytest.mark.any_transformers

SNIPPETS = {
    "c": (
        '#include <a.h>\nint f(int a) { // c\n  if (g(a, h("é\\n"))) { return b[a]; } /* d */ while (a) { a--; }\n}\n',
        ["// c", "/* d */"],
    ),
    "cpp": (
        '// c\ntemplate <class T> int f(T a) { if (g<T>(a, h(R"(é /* x */)"))) { return b[a]; } '
        "auto l = [a](int q) { return q; }; }",
        ["// c"],
    ),
    "php": (
        "function f($a) { // c\n  if (g($a, h(\"é $a #\"))) { return [$a, '//']; } # d\n  $o->m($a, fn($x) => $x); /* e */ }",
        ["// c", "# d", "/* e */"],
    ),
    "ruby": (
        "def f(a) # c\n  if g(a, h(\"é #{a}\")) then return [a, '#'] end\n  o.m(a) { |x| x; y }\n  t = <<~T\n"
        "    # t #{a} b\n  T\n  a\nend\n=begin\nz\n=end\n",
        ["# c", "=begin\nz\n=end"],
    ),
    "rust": (
        '/// c\nfn f<T>(a: T) -> i32 { if g(a, h("é //")) { return b[a]; } /* d */ println!("{}", a); o.m(|x| { x; y }) }',
        ["/// c", "/* d */"],
    ),
    "tsx": (
        'const f = (a: T) => <B c="//" {...a}>{/* c */} t é {g(a)}<br/></B>;',
        ["/* c */"],
    ),
    "typescript": (
        "function f<T>(a: T): A<T> { // c\n  if (g<T>(a, h(`é${a}`))) { return b[a]; } o.m(x => { x; y }); }",
        ["// c"],
    ),
}


@pytest.mark.parametrize("language", SNIPPETS)
def test_leaves_tile_the_text_without_its_comments(language):
    code, comments = SNIPPETS[language]
    tree = parse_code(code, language)
    assert tree.language == language
    assert not tree.errors
    end, between = 0, []
    for (start, stop), text in zip(tree.spans, tree.texts, strict=True):
        assert end <= start < stop
        assert code[start:stop] == text
        between.append(code[end:start].strip())
        end = stop
    assert [gap for gap in [*between, code[end:].strip()] if gap] == comments
    assert any("é" in text for text in tree.texts)


@pytest.mark.parametrize("language", SNIPPETS)
def test_names_are_joined_to_their_next_occurrence(language):
    tree = parse_code(SNIPPETS[language][0], language)
    assert tree.identifiers.any()
    assert all(
        tree.types[leaf] == ("name" if language == "php" else "identifier") for leaf in tree.identifiers.nonzero()[0]
    )
    joined = {tuple(edge) for edge in graph_edges(tree).tolist()}
    places = [leaf for leaf in tree.identifiers.nonzero()[0].tolist() if tree.texts[leaf] == "a"]
    assert len(places) > 2
    for one, other in itertools.pairwise(places):
        assert (tree.leaf_nodes[one], tree.leaf_nodes[other]) in joined
        assert leaf_distances(tree)[one, other] == 1
    assert (leaf_distances(tree) <= leaf_distances(tree, upgraded=False)).all()


def test_only_variables_of_php_are_joined():
    tree = parse_code("f($f, $f); F::f();", "php")
    assert [tree.texts[leaf] for leaf in tree.identifiers.nonzero()[0]] == ["f", "f"]
    assert tree.spans[tree.identifiers.nonzero()[0][0]] == (3, 4)


CALLS = {
    "c": ["a.2 h", '".1 é \\n ".2'],
    "cpp": ["a.2 h", 'R" (.5 é /* x */ ).2 "'],
    "php": ["$.2 a.2 h", '".1 é  $.3 a.3  # ".2', "$.6 a.5 fn (.6 $.7 x.1 ).5 => $.8 x.2"],
    "ruby": ["a.2 h", '".1 é  #{.1 a.3 }.1 ".2'],
    "rust": ["a.2 h", '".1 é // ".2', "|.1 x.1 |.2"],
    "tsx": [],
    "typescript": ["a.2 h", "`.1 é ${ a.3 }.1 `.2", "x.1 =>"],
}
BLOCKS = {
    "c": ["{.2 return b [ a.3 ] ;.1 }.1", "{.3 a.5 -- ;.2 }.2"],
    "cpp": ["{.2 return.1 b [.1 a.3 ].1 ;.1 }.1", "{.3 return.2 q.2 ;.2 }.2"],
    "php": ["{.2 return [ $.4 a.4 ,.2 '.1 // '.2 ] ;.1 }.1"],
    "ruby": ["return [ a.4 ,.2 '.1 # '.2 ]", "x.2 ; y"],
    "rust": ["{.2 return b [ a.3 ] ;.1 }.1", "{.3 x.2 ;.3 y }.2"],
    "tsx": [],
    "typescript": ["{.2 return b [ a.4 ] ;.1 }.2", "{.3 x.2 ;.2 y }.3"],
}
BRACKETS = {
    "c": "(.1>).1 {.1>}.3 (.2>).4 (.3>).3 (.4>).2 {.2>}.1 [>] (.5>).5 {.3>}.2",
    "cpp": "<.1>>.1 (.1>).1 {.1>}.3 (.2>).5 <.2>>.2 (.3>).4 (.4>).3 (.5>).2 {.2>}.1 [.1>].1 [.2>].2 (.6>).6 {.3>}.2",
    "php": "(.1>).1 {.1>}.2 (.2>).4 (.3>).3 (.4>).2 {.2>}.1 [>] (.5>).6 (.6>).5",
    "ruby": "(.1>).1 (.2>).3 (.3>).2 #{.1>}.1 [>] (.4>).4 {>}.2 #{.2>}.3",
    "rust": "<>> (.1>).1 {.1>}.3 (.2>).3 (.3>).2 {.2>}.1 [>] (.4>).4 (.5>).5 {.3>}.2",
    "tsx": "(.1>).1 {.1>}.1 {.2>}.2 {.3>}.3 (.2>).2",
    "typescript": "<.1>>.1 (.1>).1 <.2>>.2 {.1>}.4 (.2>).4 <.3>>.3 (.3>).3 (.4>).2 ${>}.1 {.2>}.2 [>] (.5>).5 {.3>}.3",
}


def named(language):
    tree = parse_code(SNIPPETS[language][0], language)
    numbers = [tree.texts[: leaf + 1].count(text) for leaf, text in enumerate(tree.texts)]
    names = [
        text.strip(" ") + ("" if tree.texts.count(text) == 1 else f".{n}")
        for text, n in zip(tree.texts, numbers, strict=True)
    ]
    return tree, names


@pytest.mark.parametrize("language", SNIPPETS)
def test_relations(language):
    tree, names = named(language)
    for relation, expected in (("same call", CALLS), ("same block", BLOCKS)):
        found = related(tree, relation)
        groups = {tuple(sorted([leaf, *row.nonzero()[:, 0].tolist()])) for leaf, row in enumerate(found) if row.any()}
        told = {" ".join(names[leaf] for leaf in group) for group in groups}
        wanted = {" ".join(part for part in one.split(" ") if part) for one in expected[language]}
        assert wanted <= told
        assert relation == "same block" or wanted == told
    brackets = related(tree, "matching brackets").triu().nonzero().tolist()
    told = {f"{names[i]}>{names[j]}" for i, j in brackets}
    assert told == set(BRACKETS[language].split())


def test_members_of_a_class_parse_alone():
    php = parse_code("public function f(array $x): int { return $this->g($x); }", "php")
    assert php.texts[:3] == ("public", "function", "f")
    typed = parse_code("private get f(): T { return this.x; }", "typescript")
    assert typed.texts[:3] == ("private", "get", "f")
    assert not php.errors
    assert not typed.errors


def test_php_with_and_without_its_tag():
    plain, tagged = (parse_code(code, "php") for code in ("$x = 1;", "<?php $x = 1;"))
    assert tagged.texts == ("<?php", *plain.texts)
    page = parse_code("<p>a</p><?php f($x); ?>é", "php")
    assert page.texts == ("<p>a</p>", "<?php", "f", "(", "$", "x", ")", ";", "?>", "é")


def test_files_in_these_languages(tmp_path):
    path = tmp_path / "code.jsonl"
    path.write_text('{"code": "fn f() {}", "language": "rust"}\n{"code": "def f; end", "language": "Ruby"}\n')
    found = read_code(path)
    assert [tree.language for tree in found] == ["rust", "ruby"]
    with pytest.raises(DataError, match=r"no grammar is known for 'c\+\+', only for c, cpp, go,"):
        parse_code("x", "c++")


@pytest.mark.parametrize("language", PACKAGES)
def test_without_the_grammar_the_extra_is_named(language, monkeypatch):
    real = importlib.import_module

    def missing(name, *rest):
        if name == PACKAGES[language]:
            raise ImportError(name)
        return real(name, *rest)

    language_of.__globals__["_known"].cache_clear()
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(
        MissingExtra, match=rf"'{PACKAGES[language]}', which is not installed: pip install 'bertology\[code\]'"
    ):
        parse_code("x", language)


def test_a_grammar_object_is_as_good_as_its_name():
    grammar = tree_sitter.Language(tree_sitter_ruby.language())
    assert parse_code("x = 1", grammar).types == parse_code("x = 1", "ruby").types
