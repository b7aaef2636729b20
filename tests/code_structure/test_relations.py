"""What belongs together in code, and whether attention follows it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertology.code_structure.leaf_maps import visible
from bertology.code_structure.relations import RELATIONS, RelationSums, related, relation_scores
from bertology.errors import DataError, ShapeError
from oracles import cat as oracles

pytest.importorskip("tree_sitter")
from bertology.code_structure import CodeTree, parse_code, read_code

pytestmark = pytest.mark.any_transformers

few = settings(max_examples=50)


def pairs(code, language, relation):
    """The related pairs as texts, a text that is there several times with its number: `x.2`."""
    tree = parse_code(code, language)
    seen, names = {}, []
    for text in tree.texts:
        seen[text] = seen.get(text, 0) + 1
        names.append(text if tree.texts.count(text) == 1 else f"{text}.{seen[text]}")
    found = related(tree, relation)
    assert found.shape == (len(tree), len(tree))
    assert not found.diagonal().any()
    if relation != "definition to use":
        assert torch.equal(found, found.T)
        found = found.triu()
    return {(names[i], names[j]) for i, j in found.nonzero().tolist()}


def group(names):
    """All pairs of some leaves, in their order."""
    names = names.split()
    return {(a, b) for i, a in enumerate(names) for b in names[i + 1 :]}


def linked(text):
    """`use>definition` of each."""
    return {tuple(one.split(">")) for one in text.split()}


BLOCKS = {
    "python": ("def f(a):\n  b\n  if c:\n    d; e\n  g", [
        "b if c :.2 g", "d ; e",
    ]),
    "java": ("void f() { a(); if (c) { d(); } }", [
        "{.1 a (.2 ).2 ;.1 if (.3 c ).3 }.2", "{.2 d (.4 ).4 ;.2 }.1",
    ]),
    "javascript": ("function f() { a; switch (c) { case 1: d } }", [
        "{.1 a ; switch (.2 c ).2 }.2", "{.2 case 1 : d }.1",
    ]),
    "go": ("func f() { a(); switch c { case 1: d(); default: e() } }", [
        "{.1 a (.2 ).2 ;.1 switch c {.2 }.1 }.2", "case 1 :.1 d (.3 ).3 ;.2", "default :.2 e (.4 ).4",
    ]),
}  # fmt: skip


@pytest.mark.parametrize("language", BLOCKS)
def test_the_same_block(language):
    code, groups = BLOCKS[language]
    assert pairs(code, language, "same block") == set().union(*map(group, groups))


CALLS = {
    "python": ("r = f(a, g(b.c), k=d)[e]", ["a g k =.2 d", "b . c"]),
    "java": ("void m() { f(a, g(b.c)); new T(x, y); }", ["a g", "b . c", "x y"]),
    "javascript": ("f(a, g(b.c), () => { h; i })(x, y)", ["a g (.3 ).2 =>", "b . c", "x y"]),
    "go": ("func m() { f(a, g(b.c), d...) }", ["a g d ...", "b . c"]),
}


@pytest.mark.parametrize("language", CALLS)
def test_the_same_call(language):
    code, groups = CALLS[language]
    assert pairs(code, language, "same call") == set().union(*map(group, groups))


def test_base_classes_are_no_arguments():
    assert pairs("class A(B, C): pass", "python", "same call") == set()


BRACKETS = {
    "python": ('f(a[0], {(b): f"{c}("})', "(.1>).2 [>] {.1>}.2 (.2>).1 {.2>}.1"),
    "java": ("List<T> f(int[] a) { return b < c ? a[0] : d((e)); }", "<.1>> (.1>).1 [.1>].1 {>} [.2>].2 (.2>).3 (.3>).2"),
    "javascript": ("f(`(${a[0]}`, {b: [c < d > e]})", "(.1>) ${>}.1 [.1>].1 {>}.2 [.2>].2"),
    "go": ("func f(a []T) { b[0] = T{c(d)} }", "(.1>).1 [.1>].1 {.1>}.2 [.2>].2 {.2>}.1 (.2>).2"),
}  # fmt: skip


@pytest.mark.parametrize("language", BRACKETS)
def test_matching_brackets(language):
    code, expected = BRACKETS[language]
    # Java's own `<.1>>`: the bracket `<.1` and the bracket `>`.
    wanted = {("<.1", ">") if one == "<.1>>" else tuple(one.split(">")) for one in expected.split()}
    assert pairs(code, language, "matching brackets") == wanted


DEFINITIONS = [
    # Assignments: the latest before counts, from the end of its statement on.
    ("python", "x = 1\nx = x + 1\ny = x", "x.3>x.1 x.4>x.2"),
    ("python", "x = 1\nx += y\nz = x", "x.2>x.1 x.3>x.2"),
    ("python", "(a, *b), c[d], e.f = g\na; b; c; e; f", "a.2>a.1 b.2>b.1"),
    ("python", "k: int = 1\nk; int", "k.2>k.1"),
    ("python", "if (n := 1): n", "n.2>n.1"),
    # Parameters; attributes and keywords of their names are no uses; defaults are worked out outside.
    ("python", "def f(a, b=a, *c, d: a = 1, **e):\n  a; b; c; d; e; x.a; f(a=b)",
     "a.4>a.1 b.2>b.1 c.2>c.1 d.2>d.1 e.2>e.1 f.2>f.1 b.3>b.1"),
    ("python", "x = 1\ndef f():\n  x = 2\nx", "x.3>x.1"),
    ("python", "lambda m, n=1: m + n\nm", "m.2>m.1 n.2>n.1"),
    # Loops and comprehensions: known behind what is run over, or in all of the comprehension and not behind it.
    ("python", "for i, j in i: i; j", "i.3>i.1 j.2>j.1"),
    ("python", "v = [v for v in w if v]\nv", "v.2>v.3 v.4>v.3 v.5>v.1"),
    ("python", "with a as b: b\ntry: pass\nexcept E as e: e", "b.2>b.1 e.2>e.1"),
    ("java", "int f(final int a, T... b) { int x = a, y; x = x + 1; y++; this.x = b; return x + y + o.a(a); }",
     "a.2>a.1 x.3>x.1 y.2>y.1 b.2>b.1 x.5>x.2 y.3>y.2 a.4>a.1"),
    ("java", "void f() { for (int i = 0; i < n; i++) { g(i); } for (T t : t) { t(t); } i(i); }",
     "i.2>i.1 i.3>i.1 i.4>i.3 t.4>t.1"),
    ("java", "void f() { try (R r = r) { r.r(); } catch (E | F e) { throw e; } l = (p, q) -> p; l = p -> p; p(p); }",
     "r.3>r.1 e.2>e.1 p.2>p.1 p.4>p.3"),
    ("java", "void f() { { int x = 1; } g(x); int x = 2; { x = 3; } h(x); }", "x.5>x.4"),
    ("java", "void f() { if (a) { int x = 1; x = 2; g(x); } h(x); }", "x.3>x.2"),  # no value outlives its variable
    ("javascript", "function f(a, {b, c: d = a, ...e}, [g], h = b) { a; b; c; d; e; g; h; f; o.a; ({a}); ({a: b}) }",
     "a.2>a.1 b.2>b.1 a.3>a.1 b.3>b.1 d.2>d.1 e.2>e.1 g.2>g.1 h.2>h.1 f.2>f.1 a.5>a.1 b.4>b.1"),
    ("javascript", "const {p, q: r} = p; for (const k of k) { k } let i = 0; i += 1; i++; i; k",
     "k.3>k.1 i.2>i.1 i.3>i.2 i.4>i.3"),
    ("javascript", "function f() { if (a) { var x = 1; let y = 2; } x; y; try {} catch (e) { e } e }", "x.2>x.1 e.2>e.1"),
    ("javascript", "const s = t => t, u = (v) => { return v + `${s}` }; t; v", "t.2>t.1 v.2>v.1 s.2>s.1"),
    ("go", "func (r *R) f(a, b int, c ...T) (d E) { x, y := a, b; x = y; y += x; y++; d = r.a(c); return y }",
     "a.2>a.1 b.2>b.1 y.2>y.1 y.3>y.1 x.3>x.2 y.4>y.3 r.2>r.1 c.2>c.1 y.5>y.4"),
    ("go", "func f() { for i, v := range v { g(i, v) }; if e := h(); e != nil { e() }; i(e); var z, w = 1, z; z(w) }",
     "i.2>i.1 v.3>v.1 e.2>e.1 e.3>e.1 z.3>z.1 w.2>w.1"),
    ("go", "func f(x T) { switch t := x.(type) { case T: t(x) }; s := S{x: x, t: 1}; _ = s; l := func(m T) T { return m } }",
     "x.2>x.1 t.2>t.1 x.3>x.1 x.5>x.1 s.2>s.1 m.2>m.1"),
    ("go", "func f(c T) { x := 1; { x := 2; x() }; x(); select { case o := <-c: o() } }", "x.3>x.2 x.4>x.1 c.2>c.1 o.2>o.1"),
]  # fmt: skip


@pytest.mark.parametrize(("language", "code", "expected"), DEFINITIONS)
def test_from_uses_to_definitions(language, code, expected):
    assert pairs(code, language, "definition to use") == linked(expected)


def test_non_ascii_names():
    assert pairs("größe = 'ü'\nprint(größe)", "python", "definition to use") == linked("größe.2>größe.1")


def test_errors():
    tree = parse_code("x = 1", "python")
    with pytest.raises(DataError, match="relation must be one of 'same block', 'same call', .* got 'same line'"):
        related(tree, "same line")
    other = CodeTree(
        "x", "", "cobol", ("identifier",), ((0, 1),), tree.leaf_nodes[:1], tree.parents, (), tree.node_spans
    )
    with pytest.raises(
        DataError, match="relations are known in python, java, javascript, go, typescript, .*, not in cobol"
    ):
        related(other, "same block")


# Scores.


def snippet(seed, leaves, heads=2):
    generator = torch.Generator().manual_seed(seed)
    attention = torch.rand(heads, leaves, leaves, generator=generator, dtype=torch.float64)
    return attention, torch.rand(leaves, leaves, generator=generator) < 0.3


def check(attention, marked, valid, given):
    sums = relation_scores(attention, marked, valid=valid)
    for head, one in enumerate(given):
        total, control, many, unmatched = oracles.relation_sums(one, marked, valid)
        assert sums.related[head].item() == pytest.approx(total, abs=1e-9)
        assert sums.control[head].item() == pytest.approx(control, abs=1e-9)
        assert (sums.pairs, sums.unmatched) == (many, unmatched)


@given(st.integers(0, 2**31), st.integers(1, 9), st.booleans())
@few
def test_sums_equal_loops(seed, leaves, causal):
    attention, marked = snippet(seed, leaves)
    check(attention, marked, visible(leaves) if causal else None, attention)


def test_loops_tell_sums_of_other_maps_apart():
    attention, marked = snippet(0, 8)
    for spoiled in (attention.mT, attention.flip(-1), attention + 1e-6):
        with pytest.raises(AssertionError):
            check(attention, marked, None, spoiled)


def test_locality_gains_nothing():
    place = torch.arange(20)
    local = torch.exp(-(place - place[:, None]).abs().double())
    near = (place - place[:, None]).abs() == 1
    near[::3] = False
    sums = relation_scores(local, near)
    assert sums.mean > 3 * local.mean()
    torch.testing.assert_close(sums.gain, torch.zeros((), dtype=torch.float64))
    marked = local + 0.1 * near
    torch.testing.assert_close(relation_scores(marked, near).gain, torch.tensor(0.1, dtype=torch.float64))


def test_pairs_without_others_at_their_offset_are_not_compared():
    marked = torch.zeros(3, 3, dtype=torch.bool)
    marked[0, 2] = marked[0, 1] = True  # no other pair stands two apart
    sums = relation_scores(torch.eye(3), marked)
    assert (sums.pairs, sums.unmatched) == (1, 1)
    none = relation_scores(torch.eye(3), torch.zeros(3, 3, dtype=torch.bool))
    assert none.gain.isnan()


def test_sums_add_up():
    one, other = (relation_scores(*snippet(seed, leaves)) for seed, leaves in ((0, 5), (1, 8)))
    both = one.merge(other)
    assert isinstance(both, RelationSums)
    torch.testing.assert_close(both.mean, (one.related + other.related) / (one.pairs + other.pairs))
    assert both.unmatched == one.unmatched + other.unmatched
    with pytest.raises(ShapeError, match=r"sums of \[2\] maps, got \[3\]"):
        one.merge(relation_scores(*snippet(0, 5, heads=3)))


def test_scores_check_their_input():
    attention, marked = snippet(0, 5)
    with pytest.raises(
        ShapeError, match=r"related must be \[leaf, leaf\] bool .* \[2, 5, 5\], got \[4, 5\] torch.bool"
    ):
        relation_scores(attention, marked[:4])
    with pytest.raises(ShapeError, match="valid must be"):
        relation_scores(attention, marked, valid=torch.ones(5, 5))
    attention[0, 0, 4] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        relation_scores(attention, marked)
    relation_scores(attention, marked, valid=visible(5))


@pytest.mark.shared
@pytest.mark.parametrize("language", ["python", "java", "javascript", "go"])
def test_real_functions(shared, language):
    """Every bracket has its partner, every definition stands for the same name, and few variables have none."""
    found = linked_names = names = 0
    for tree in read_code(shared / "code" / f"{language}.jsonl", broken="skip")[:100]:
        texts = tree.texts
        brackets = related(tree, "matching brackets").sum(1)
        alone = [texts[i] for i in range(len(tree)) if brackets[i] == 0 and tree.types[i] in "()[]{}"]
        assert not alone
        assert brackets.max() <= 1
        links = related(tree, "definition to use")
        assert links.sum(1).max() <= 1  # each use has one definition
        assert all(texts[i] == texts[j] for i, j in links.nonzero().tolist())
        names += sum(tree.identifiers)
        linked_names += int((links.any(0) | links.any(1)).sum())
        for relation in RELATIONS:
            found += int(related(tree, relation).any())
    assert found > 330
    assert linked_names / names > 0.4
