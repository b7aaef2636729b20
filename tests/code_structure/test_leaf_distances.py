import json
import tracemalloc
from unittest import mock

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertology.code_structure import graph_edges, leaf_distances, parse_code
from bertology.code_structure import trees as distances
from bertology.errors import MissingExtra
from oracles import code as oracles

pytestmark = pytest.mark.any_transformers

LANGUAGES = ["go", "java", "javascript", "python"]
NAMES = st.sampled_from(["x", "y", "naïve", "数", "f(x)", "[y, x]", "{1: x}", '"a b"'])


@st.composite
def programs(draw):
    """Lines of Python in which few names recur often, and parts are nested."""
    part = st.recursive(NAMES, lambda inner: st.builds("({} + {})".format, inner, inner), max_leaves=6)
    lines = draw(st.lists(st.builds("{} = {}".format, st.sampled_from(["x", "y", "数"]), part), min_size=1, max_size=5))
    return ("\n" + draw(st.sampled_from(["", "# why\n"]))).join(lines)


@pytest.mark.shared
@pytest.mark.parametrize("upgraded", [True, False])
@pytest.mark.parametrize("language", LANGUAGES)
def test_equal_to_networkx_on_real_functions(shared, language, upgraded):
    lines = (shared / "code" / f"{language}.jsonl").read_text().splitlines()[7::15]
    assert len(lines) == 20
    for line in lines:
        code = json.loads(line)["code"]
        tree = parse_code(code, language)
        found = leaf_distances(tree, upgraded=upgraded)
        expected = oracles.distances(code, language, upgraded)
        np.testing.assert_array_equal(found, expected)
        expected[0][-1] += 1
        assert not np.array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("language", LANGUAGES)
def test_equal_to_networkx_on_200_functions(shared, language):
    for line in (shared / "code" / f"{language}.jsonl").read_text().splitlines()[:200]:
        code = json.loads(line)["code"]
        expected = oracles.distances(code, language)
        np.testing.assert_array_equal(leaf_distances(parse_code(code, language)), expected)


@given(programs())
@settings(max_examples=30)
def test_laws(code):
    tree = parse_code(code, "python")
    found, plain = leaf_distances(tree).astype(int), leaf_distances(tree, upgraded=False).astype(int)
    leaves = np.arange(len(tree))
    np.testing.assert_array_equal(found, oracles.distances(code, "python"))
    np.testing.assert_array_equal(plain, oracles.distances(code, "python", upgraded=False))
    for one in (found, plain):
        np.testing.assert_array_equal(one, one.T)
        assert (np.diag(one) == 0).all()
        assert ((one > 0) == ~np.eye(len(tree), dtype=bool)).all()
        assert (one[:, None] <= one[:, :, None] + one[None]).all()  # no way round is shorter
    assert (np.diag(found, 1) == 1).all()
    assert (found <= abs(leaves[:, None] - leaves)).all()
    assert (found <= plain).all()


@given(programs(), st.integers(1, 9), st.integers(1, 4))
@settings(max_examples=30)
def test_blocks_and_both_searches_agree(code, block, levels):
    """Some blocks are near enough for the bits and some are not; what a block that gave up has counted must go."""
    tree = parse_code(code, "python")
    expected = leaf_distances(tree, upgraded=False)
    with mock.patch.object(distances, "BLOCK", block), mock.patch.object(distances, "LEVELS", levels):
        np.testing.assert_array_equal(leaf_distances(tree, upgraded=False), expected)


def test_assignment():
    """METHODS D5: the two x of x = x + 1 are joined."""
    tree = parse_code("x = x + 1", "python")
    first, second = (int(tree.leaf_nodes[leaf]) for leaf in (0, 2))
    assert [first, second] in graph_edges(tree).tolist()
    assert [first, second] not in graph_edges(tree, upgraded=False).tolist()
    assert leaf_distances(tree)[0, 2] == 1
    assert leaf_distances(tree, upgraded=False).tolist() == [
        [0, 2, 3, 3, 3],
        [2, 0, 3, 3, 3],
        [3, 3, 0, 2, 2],
        [3, 3, 2, 0, 2],
        [3, 3, 2, 2, 0],
    ]


def test_edges_join_the_next_occurrence_only_and_once():
    tree = parse_code("x = [x, y, x]", "python")
    number = {int(node): leaf for leaf, node in enumerate(tree.leaf_nodes)}
    between = [(number[a], number[b]) for a, b in graph_edges(tree).tolist() if a in number]
    chain = [(leaf, leaf + 1) for leaf in range(8)]
    assert sorted(between) == sorted([*chain, (0, 3), (3, 7)])
    edges = graph_edges(parse_code("x\nx\nx", "python")).tolist()
    assert len({frozenset(edge) for edge in edges}) == len(edges)


def test_only_the_type_identifier_joins():
    """Fields and types have node types of their own, which METHODS D1.3 leaves apart."""
    tree = parse_code("func f(a T) T { return a.b + c.b }", "go")
    graph = networkx.Graph(graph_edges(tree).tolist())
    places = {
        text: [int(n) for n, t in zip(tree.leaf_nodes, tree.texts, strict=True) if t == text]
        for text in ("a", "b", "T")
    }
    assert graph.has_edge(*places["a"])
    assert not graph.has_edge(*places["b"])
    assert not graph.has_edge(*places["T"])


def test_one_leaf():
    assert leaf_distances(parse_code("x", "python")).tolist() == [[0]]
    assert leaf_distances(parse_code("x", "python")).dtype == np.int16


def test_deep_trees():
    """METHODS D4.7: no recursion, and paths longer than the bits go."""
    deep = 600
    tree = parse_code("x = " + "(" * deep + "1" + ")" * deep, "python")
    assert len(tree) == 2 * deep + 3
    graph = networkx.Graph(graph_edges(tree).tolist())
    found = leaf_distances(tree)
    for leaf in (0, 2, deep // 2, deep + 2, 2 * deep + 2):
        lengths = networkx.single_source_shortest_path_length(graph, int(tree.leaf_nodes[leaf]))
        assert found[leaf].tolist() == [lengths[int(node)] for node in tree.leaf_nodes]
    assert found.max() > distances.LEVELS


def test_thousands_of_leaves_take_little_memory():
    tree = parse_code("\n".join(f"def f{i}(a, b):\n    return a[{i}] + f{i - 1}(b)" for i in range(300)), "python")
    assert len(tree) > 5000
    tracemalloc.start()
    try:
        found = leaf_distances(tree)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * found.nbytes
    graph = networkx.Graph(graph_edges(tree).tolist())
    for leaf in (0, 2500, len(tree) - 1):
        lengths = networkx.single_source_shortest_path_length(graph, int(tree.leaf_nodes[leaf]))
        assert found[leaf].tolist() == [lengths[int(node)] for node in tree.leaf_nodes]


def test_only_very_deep_trees_need_scipy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy.sparse", None)
    assert leaf_distances(parse_code("x = 1", "python")).max() == 2
    with pytest.raises(MissingExtra, match=r"needs the package 'scipy', .*bertology\[code\]"):
        leaf_distances(parse_code("x = " + "(" * 200 + "1" + ")" * 200, "python"))
