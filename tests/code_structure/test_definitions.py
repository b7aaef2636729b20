"""Which definition does a name use? Hand-written answers for the scopes of each language."""

import pytest
import torch

from bertology.code_structure.relations import GRAMMARS, related

pytest.importorskip("tree_sitter")
from bertology.code_structure import parse_code
from bertology.code_structure.trees import PACKAGES

pytestmark = pytest.mark.any_transformers


def links(code, language, relation="definition to use"):
    """The related pairs as `use>definition`; a text that is there several times has its number: `x.2`."""
    tree = parse_code(code, language)
    seen, names = {}, []
    for text in tree.texts:
        seen[text] = seen.get(text, 0) + 1
        names.append(text if tree.texts.count(text) == 1 else f"{text}.{seen[text]}")
    return {f"{names[i]}>{names[j]}" for i, j in related(tree, relation).nonzero().tolist()}


CASES = [
    # Python: classes, comprehensions, nonlocal and global, and what is evaluated outside of a function.
    ("python", "class A:\n  n = 1\n  m = n\n  def f(self, a=n):\n    return n", "n.2>n.1 n.3>n.1"),
    ("python", "n = 0\nclass A:\n  n = 1\n  def f(self):\n    return n", "n.3>n.1"),
    ("python", "class A:\n  n = 1\n  class B:\n    m = n", ""),
    ("python", "class A:\n  n = 3\n  k = [n for i in range(n)]\n  g = [j for j in k if n]", "n.3>n.1 j.1>j.2 k.2>k.1"),
    ("python", "class A:\n  def f(self): pass\n  g = f\n  def h(self): f()", "f.2>f.1"),
    ("python", "class A(A):\n  def f(self): A()", "A.3>A.1"),
    ("python", "class A:\n  @staticmethod\n  def d(f): return f\n  @d\n  def e(self): d(e)", "f.2>f.1 d.2>d.1"),
    ("python", "def f():\n  n = 1\n  def g():\n    nonlocal n\n    n = 2\n  g()\n  return n", "n.4>n.3 g.2>g.1"),
    ("python", "def f():\n  n = 1\n  def g():\n    n = 2\n  g()\n  return n", "g.2>g.1 n.3>n.1"),
    ("python", "def f():\n  n = 1\n  def g():\n    nonlocal n\n    n += 1\n    return n", "n.3>n.1 n.4>n.3"),
    ("python", "n = 1\ndef f():\n  n = 2\n  def g():\n    global n\n    n = n\n  return n\nn",
     "n.5>n.1 n.6>n.2 n.7>n.4"),
    ("python", "def f():\n  global k\n  k = 1\ndef g():\n  return k", "k.3>k.2"),
    ("python", "x = 1\ndef f():\n  y = x\n  x = 2", ""),
    ("python", "x = 1\ndef f(a=x):\n  x = 2\n  return a", "x.2>x.1 a.2>a.1"),
    ("python", "x = 1\nf = lambda x, y=x: x + y", "x.3>x.1 x.4>x.2 y.2>y.1"),
    ("python", "try: pass\nexcept E, e: print(e)\nexcept (B, C), d: d", "e.2>e.1 d.2>d.1"),
    ("python", "xs = 1\nys = [y for xs in xs for y in xs]\nxs", "xs.3>xs.1 y.1>y.2 xs.4>xs.2 xs.5>xs.1"),
    ("python", "def f(v):\n  if any((w := x) for x in v): return w, x", "v.2>v.1 x.1>x.2 w.2>w.1"),
    ("python", "import os, a.b as c\nfrom m import d, e as f\nos.c(c, d, e, f)", "os.2>os.1 c.3>c.1 d.2>d.1 f.2>f.1"),
    ("python", "x = 1\nimport x\nx", "x.3>x.2"),
    ("python", "x = 1\nmatch p:\n  case P(x, k=y) | [x, *z]: x, y, z, k\n  case q.r as s: q, s\nx",
     "x.4>x.3 y.2>y.1 z.2>z.1 s.2>s.1 x.5>x.3"),
    ("python", "@d\ndef f(): f\nf", "f.2>f.1 f.3>f.1"),
    ("python", "def f(): return f\ndef f(g=f): return f", "f.2>f.1 f.4>f.1 f.5>f.3"),
    ("python", "x = 1\nclass A:\n  x = x\n  y: x = x", "x.3>x.1 x.4>x.2 x.5>x.2"),
    ("python", "def f(x: x, y: x) -> x: x", "x.5>x.1"),
    ("python", "a = b = c = a", ""),
    ("python", "a = [0]\na[0], b = a, 1\ndel b\nfor a[0] in b: pass", "a.2>a.1 a.3>a.1 a.4>a.1 b.2>b.1 b.3>b.1"),
    # JavaScript: JSX, classes, hoisting, closures, destructuring, imports.
    ("javascript", "function F({label}) { return <label>{label}</label>; }", "label.3>label.1"),
    ("javascript", "const Card = f(), v = 1; <Card.Item v={v}><v.w/><my-card/><svg:v/><Card>{v}</Card></Card.Item>",
     "Card.2>Card.1 v.3>v.1 v.4>v.1 Card.3>Card.1 v.6>v.1 Card.4>Card.1 Card.5>Card.1"),
    ("javascript", "class A { x = 1; m() { return x; } static y = 2; n() { m(); y } }", ""),
    ("javascript", "let x = 1; class A { x = x; x() { return x; } [x]() {} }", "x.3>x.1 x.5>x.1 x.6>x.1"),
    ("javascript", "let x = 1; function f() { g(x); var x = 2; }", ""),
    ("javascript", "let x = 1; function f() { g(x); { var x = 2; } x }", "x.4>x.3"),
    ("javascript", "let x = 1; { g(x); let x = 2; } x", "x.4>x.1"),
    ("javascript", "var x = 1; { var x = 2; } x", "x.3>x.2"),
    ("javascript", "let n = 0; function inc() { n += 1; } inc(); n", "n.2>n.1 inc.2>inc.1 n.3>n.2"),
    ("javascript", "const f = function g(a) { g(a) }; g", "g.2>g.1 a.2>a.1"),
    ("javascript", "const K = class N { m() { N } }; N; K", "N.2>N.1 K.2>K.1"),
    ("javascript", "let a, b; [a, b] = [b, a]; ({a, c: b = a} = b); a; b",
     "b.3>b.1 a.3>a.1 a.5>a.2 b.5>b.2 a.6>a.4 b.6>b.4"),
    ("javascript", "for (var i in o) {} i; for (let j of j) { j } j", "i.2>i.1 j.3>j.1"),
    ("javascript", "let k; for (k of o) { k } k", "k.3>k.2 k.4>k.2"),
    ("javascript", "try {} catch ({message: m}) { m } m", "m.2>m.1"),
    ("javascript", "import d, {a as b, c} from 'x'; import * as ns from 'y'; d; a; b; c; ns; export {b as e}",
     "d.2>d.1 b.2>b.1 c.2>c.1 ns.2>ns.1 b.3>b.1"),
    ("javascript", "function f(a, b = a, c = () => b) { var a; return a }", "a.2>a.1 b.2>b.1 a.4>a.3"),
    ("javascript", "x = 1; function f() { x = 2; y = 3 } x; y", "x.3>x.2 y.2>y.1"),
    ("javascript", "async ({a}, ...b) => { await a(b) }; a", "a.2>a.1 b.2>b.1"),
    ("javascript", "switch (q) { case 1: let s = 1; case 2: s } s", "s.2>s.1"),
    # Java: fields, records, patterns, lambdas.
    ("java", "class A { int x = 1; int f() { return x; } void g(int x) { h(x); } }", "x.2>x.1 x.4>x.3"),
    ("java", "class A { int x = 1; int x() { return 2; } int y() { return x + x(); } }", "x.3>x.1"),
    ("java", "class A { int x; void f() { g(x); int x = 2; g(x); } }", "x.2>x.1 x.4>x.3"),
    ("java", "class A { int x = 1; class B { int x = 2; int f() { return x; } } int g() { return x; } }",
     "x.3>x.2 x.4>x.1"),
    ("java", "enum E { R, G; E f() { return R; } } record P(int a) { int s() { return a; } }", "R.2>R.1 a.2>a.1"),
    ("java", "void f(Object o) { if (o instanceof String s) g(s); switch (o) { case Integer i -> h(i);"
     " default -> h(o); } }",
     "o.2>o.1 s.2>s.1 o.3>o.1 i.2>i.1 o.4>o.1"),
    ("java", "void f() { int n = 0; r(() -> n++); g(n); }", "n.2>n.1 n.3>n.2"),
    ("java", "void f() { try { } catch (E e) { g(e); } g(e); }", "e.2>e.1"),
    ("java", "void f() { x = 1; g(x); } void h() { g(x); }", "x.2>x.1 x.3>x.1"),
    # Go: `:=` declares in its block, `=` does not.
    ("go", "func f() { x := 1; if y := x; y > 0 { x := y; g(x) }; g(x, y) }",
     "x.2>x.1 y.2>y.1 y.3>y.1 x.4>x.3 x.5>x.1"),
    ("go", "func f() { x, err := g(); y, err := h(x, err); k(err, y) }", "x.2>x.1 err.3>err.1 err.4>err.2 y.2>y.1"),
    ("go", "func f() { var i int; for i = range xs { g(i) }; g(i); for i := range xs { g(i) }; g(i) }",
     "i.3>i.2 i.4>i.2 i.6>i.5 i.7>i.2"),
    ("go", "func f() { var err error; func() { err = g() }(); h(err) }", "err.3>err.2"),
    ("go", "func f(g func(a int) b) { a(g) }", "g.2>g.1"),
    ("go", "var x = 1\nfunc f() int { x = 2; return x }\nfunc g() { h(x) }", "x.3>x.2 x.4>x.2"),
    ("go", "func f(a, b int) { a, b = b, a; g(a, b) }", "b.3>b.1 a.3>a.1 a.4>a.2 b.4>b.2"),
    # PHP: functions see no outer variable, except through `global`, `use` and `fn`.
    ("php", "function f($a, &$b = 1, ...$c) { $x = $a + $b; $x .= $c; return $x; }",
     "a.2>a.1 b.2>b.1 x.2>x.1 c.2>c.1 x.3>x.2"),
    ("php", "$x = 1; function f() { return $x; } g($x);", "x.3>x.1"),
    ("php", "$x = 1; function f() { global $x; $x += 1; return $x; } g($x);", "x.3>x.1 x.4>x.3 x.5>x.3"),
    ("php", "public function f(array $m) { foreach ($m as $k => [$v, $w]) { g($k, $v, $w); } return $this->k; }",
     "m.2>m.1 k.2>k.1 v.2>v.1 w.2>w.1"),
    ("php", "$a = 1; $f = function ($z) use ($a, &$b) { return $z + $a; }; $h = fn($w) => $w + $a; $f($a);",
     "a.2>a.1 z.2>z.1 a.3>a.2 w.2>w.1 a.4>a.1 f.2>f.1 a.5>a.1"),
    ("php", "class A { public $x = 1; function f() { [$a, 'k' => $b] = $x; list($c) = $a; return self::$x ."
     " \"$a {$b} $c\"; } }",
     "a.2>a.1 a.3>a.1 b.2>b.1 c.2>c.1"),
    ("php", "try { } catch (E | F $e) { g($e); } static $s = 1; $s++; echo $s; for ($i = 0; $i < 9; $i++) { }",
     "e.2>e.1 s.2>s.1 s.3>s.2 i.2>i.1 i.3>i.1"),
    ("php", "<h1><?php $t = f(); ?></h1><p><?= $t ?></p>", "t.2>t.1"),
    # Ruby: methods see no outer variable, blocks do.
    ("ruby", "def f(a, b = a, *c, d: b, **e, &g)\n  x, (y, *z) = a, b\n  x += y\n  g(x, z, c, d, e)\nend",
     "a.2>a.1 b.2>b.1 a.3>a.1 b.3>b.1 y.2>y.1 x.2>x.1 x.3>x.2 z.2>z.1 c.2>c.1 d.2>d.1 e.2>e.1"),
    ("ruby", "x = 1\ndef f\n  x\nend\nx", "x.3>x.1"),
    ("ruby", "n = 0\nv.each do |i|\n  n += i\n  m = i\nend\np n, m, i", "n.2>n.1 i.2>i.1 i.3>i.1 n.3>n.2"),
    ("ruby", "x = f\no.x = x\no.x(x)\nx(1)\nputs \"#{x}\"", "x.3>x.1 x.5>x.1 x.7>x.1"),
    ("ruby", "begin\nrescue E => e\n  e\nend\nfor q in w do q end\nl = ->(m) { m }\nl.call(q)",
     "e.2>e.1 q.2>q.1 m.2>m.1 l.2>l.1 q.3>q.1"),
    ("ruby", "def g = y\ny = 1\nclass A\n  y\nend\ny if (y = y)", "y.4>y.2 y.6>y.2"),
    # C: declarators, prototypes, macros.
    ("c", "#define N 9\nenum e { A, B = 2 };\nint f(int a, char *b[N], void (*cb)(int a, int y)) { int x"
     " = a, *p = malloc(sizeof(*p)); p->x = x; x += A; cb(*b, y); return x; }",
     "N.2>N.1 a.3>a.1 p.2>p.1 p.3>p.1 x.3>x.1 x.4>x.1 A.2>A.1 cb.2>cb.1 b.2>b.1 x.5>x.4"),
    ("c", "int g(int w); int h(void) { int i = 0; for (int i = 1; i < 3; i++) g(i); return i + w; }",
     "i.3>i.2 i.4>i.2 g.2>g.1 i.5>i.4 i.6>i.1"),
    ("c", "int x; void f(void) { g(x); int x = 2; { x = 3; } g(x); } void k(void) { f(); g(x); }",
     "x.2>x.1 x.5>x.4 f.2>f.1 x.6>x.1"),
    ("c", "typedef struct s { int x; } T; void f(T *t) { T u = { .x = t->x }; goto out; out: u.x = 1;"
     " a[u.x]++; *t = u; }",
     "t.2>t.1 u.2>u.1 u.3>u.1 t.3>t.1 u.4>u.1"),
    # C++: fields, lambdas, templates.
    ("cpp", "struct A { int f() const { return x + y_; } A(int y) : x(y), y_(y) { x = y; } int x = 1; int"
     " g() { return x; } private: int y_; };",
     "y.2>y.1 y.3>y.1 y.4>y.1 x.5>x.4"),
    ("cpp", "int A::h(const std::string& s, int n = 2, T&&... r) { auto [a, b] = p(s); for (const auto& a :"
     " a) { use(a, n); } return f(b, r...) + n::s; }",
     "s.2>s.1 a.3>a.1 a.4>a.2 n.2>n.1 b.2>b.1 r.2>r.1"),
    ("cpp", "void f(int a) { auto l = [&, c = a, a](int q) { return q + c + a; }; if (auto z = l(1); z) {"
     " g(z); } try { } catch (const E& ex) { g(ex); } }",
     "a.2>a.1 a.3>a.1 q.2>q.1 c.2>c.1 a.4>a.1 l.2>l.1 z.2>z.1 z.3>z.1 ex.2>ex.1"),
    ("cpp", "template <typename T, int N> T m(T t) { T u{N}; T w(3); for (int i = 0; i < N; ++i) t += u[i];"
     " return static_cast<T>(t); }",
     "N.2>N.1 i.2>i.1 N.3>N.1 i.3>i.1 t.2>t.1 u.2>u.1 i.4>i.3 t.3>t.2"),
    # Rust: shadowing, patterns, macros.
    ("rust", "const N: usize = 3;\nfn f(mut a: i32, (b, c): (i32, i32), &d: &i32) -> i32 { let x = a; let x"
     " = x + N; a += x; g(a, b, c, d, self.x) }",
     "a.2>a.1 x.3>x.1 N.2>N.1 a.3>a.1 x.4>x.2 a.4>a.3 b.2>b.1 c.2>c.1 d.2>d.1"),
    ("rust", "fn f(o: T) { let P { x: y, z, .. } = o; if let Some(q) = y { g(q) } else { g(q) } while let"
     " Ok(w) = z { g(w) } }",
     "o.2>o.1 y.2>y.1 q.2>q.1 z.2>z.1 w.2>w.1"),
    ("rust", "fn f(e: E) { let n = 1; match e { A => 1, E::B(n) if n > 1 => n, m @ 1..=5 => m, Q(None) => n,"
     " [r, .., ref t] => r + t, _ => n } }",
     "e.2>e.1 n.3>n.2 n.4>n.2 m.2>m.1 n.5>n.1 r.2>r.1 t.2>t.1 n.6>n.1"),
    ("rust", "fn f(v: V) { for (i, x) in v.iter() { println!(\"{}\", v.x, i, a::x(x)); } let h = |g, k: i32|"
     " g + h(k); 'l: loop { break 'l; } let S { a } = s; S { a, b: v } }",
     "v.2>v.1 v.3>v.1 i.2>i.1 g.2>g.1 k.2>k.1 a.3>a.2 v.4>v.1 x.4>x.1"),
    ("rust", "fn r(n: i32) -> i32 { r(n) } impl P { fn len(&self) -> i32 { len(self) } }", "r.2>r.1 n.2>n.1"),
    # TypeScript, and with JSX.
    ("typescript", "class A<T> extends B { x: number = 1; constructor(private y: string, z?: T, w: T = z) {"
     " super(y); } m = (k: T): k is U => k as T; }\nnew A(x)",
     "z.2>z.1 y.2>y.1 k.2>k.1 k.3>k.1 A.2>A.1"),
    ("typescript", "function f(this: W, {a, b: c}: {a: T}, ...r: T[]): void { a; c; r; b }\ntype F = (p: T) =>"
     " void; interface I { g(h: T): void; [key: string]: T }\nlet u: typeof a, e = E.A; enum E { A }; e; p; h",
     "a.3>a.1 c.2>c.1 r.2>r.1 e.2>e.1"),
    ("typescript", "import {a as b} from 'x'; for (const k of b) { let m = k!; b(<T>m) } public: T",
     "b.2>b.1 k.2>k.1 b.3>b.1 m.2>m.1"),
    ("tsx", "const Foo = <T,>(n: T) => n; const el = <Foo<T> x={n}><foo/>{el}</Foo>;",
     "n.2>n.1 Foo.2>Foo.1 Foo.3>Foo.1"),
]  # fmt: skip


@pytest.mark.parametrize(("language", "code", "expected"), CASES)
def test_definitions_in_scope(language, code, expected):
    assert links(code, language) == set(expected.split())


def test_every_language_with_a_grammar_has_definitions():
    assert set(GRAMMARS) == set(PACKAGES) == {language for language, _, _ in CASES}


CONTROLS = [
    ("python", "x = 1\ny = x\nx = x.x", "x.3>x.1 x.4>x.2 x.5>x.1 x.5>x.2 x.5>x.3 x.5>x.4 x.4>x.3 x.3>x.2"),
    ("python", "v = [v for v in w if v]", "v.2>v.1 v.3>v.1 v.4>v.1 v.4>v.2"),
    ("javascript", "let a = 1; f(a); f(a)", "a.3>a.2 f.2>f.1"),
    ("php", "$a = 1; f($a, A::a()); g($a);", "a.4>a.2"),
]


@pytest.mark.parametrize(("language", "code", "expected"), CONTROLS)
def test_same_name_without_a_definition(language, code, expected):
    found = links(code, language, "same name, no definition")
    assert not found & links(code, language)
    assert found == set(expected.split())


def test_both_relations_of_a_name_make_all_its_earlier_occurrences():
    tree = parse_code("def f(n):\n  m = n\n  for n in m:\n    n = m(n)\n  return [n for n in n]", "python")
    uses, others = (related(tree, one) for one in ("definition to use", "same name, no definition"))
    assert not (uses & others).any()
    same = torch.tensor([[a == b and a in ("f", "m", "n") for b in tree.texts] for a in tree.texts]).tril(-1)
    assert torch.equal((uses | uses.T).tril() | others, same)
