"""Which types of leaves get much attention, and the leaves that are left."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertology.code_structure.leaf_maps import visible
from bertology.code_structure.leaf_types import (
    PUBLISHED_TYPES,
    TypeCounts,
    leaves_of,
    published_types,
    rank_sum,
    restricted,
)
from bertology.code_structure.masks import HighAttention, attention_mask
from bertology.errors import DataError, ShapeError
from oracles import cat as oracles

pytestmark = pytest.mark.any_transformers

few = settings(max_examples=50)
TYPES = ["identifier", "(", ")", "=", "def"]


def snippets_of(seed, many, heads=2):
    """[(attention [head, leaf, leaf], types)], some of one leaf, some all 0."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(many):
        leaves = int(torch.randint(1, 8, (), generator=generator))
        attention = torch.rand(heads, leaves, leaves, generator=generator, dtype=torch.float64)
        attention[torch.rand(heads, generator=generator) < 0.2] = 0
        found.append((attention, [TYPES[i] for i in torch.randint(5, (leaves,), generator=generator).tolist()]))
    return found


def counted(snippets):
    counts = TypeCounts()
    for attention, types in snippets:
        counts.add(attention_mask(attention), types)
    return counts


def check(counts, snippets):
    for head in range(2):
        shares, common = oracles.type_shares([(attention[head], types) for attention, types in snippets])
        found = dict(zip(counts.types, counts.share[head].tolist(), strict=True))
        assert {kind: share for kind, share in found.items() if share == share} == pytest.approx(shares, abs=1e-12)
        assert set(counts.ranking(head)) == {kind for kind in common if shares[kind] > 0}
        ranked = [shares[kind] for kind in counts.ranking(head)]
        assert ranked == sorted(ranked, reverse=True)


@given(st.integers(0, 2**31), st.integers(1, 6))
@few
def test_equals_loops(seed, many):
    snippets = snippets_of(seed, many)
    check(counted(snippets), snippets)


def test_loops_tell_other_types_apart():
    snippets = snippets_of(0, 6)
    check(counted(snippets), snippets)
    spoiled = [(attention, types[1:] + types[:1]) for attention, types in snippets]
    with pytest.raises(AssertionError):
        check(counted(spoiled), snippets)


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(0, 6))
@few
def test_any_split_of_the_snippets_gives_the_same(seed, many, first):
    snippets = snippets_of(seed, many)
    whole, one, other = counted(snippets), counted(snippets[:first]), counted(snippets[first:])
    one.merge(other)
    assert (one.types, one.snippets) == (whole.types, whole.snippets)
    for name in ("high", "total", "once"):
        assert torch.equal(getattr(one, name), getattr(whole, name))


def test_a_mask_of_all_pairs_gives_one():
    """METHODS D5."""
    counts = TypeCounts()
    counts.add(HighAttention(torch.ones(4, 4, dtype=torch.bool), torch.tensor(False)), ["a", "b", "b", "c"])
    assert counts.share.tolist() == [1, 1, 1]
    assert counts.total.tolist() == [8, 16, 8]
    assert counts.ranking() == ("a", "b", "c")


def test_a_single_type_has_a_quarter():
    """METHODS D5: of distinct weights a quarter is above the third quartile."""
    counts = TypeCounts()
    counts.add(attention_mask(torch.rand(20, 20, generator=torch.Generator().manual_seed(0))), ["a"] * 20)
    assert counts.share.tolist() == [0.25]


def test_common_types_have_more_pairs_than_there_are_leaves():
    first = attention_mask(torch.arange(16.0).view(4, 4))
    counts = TypeCounts()
    counts.add(first, ["a", "a", "b", "c"])
    assert set(counts.ranking()) == {"a", "b", "c"}
    for _ in range(2):  # now c is in one of three snippets: 2 · 4 pairs, and there are 12 leaves
        counts.add(first, ["a", "a", "b", "b"])
    assert counts.once == 12
    assert set(counts.ranking()) == {"a", "b"}


def test_causal_maps():
    """Of four leaves a decoder sees ten pairs: each leaf is in five of their twenty sides."""
    attention = torch.arange(1.0, 17.0).view(4, 4)
    counts, valid = TypeCounts(), visible(4)
    counts.add(attention_mask(attention, valid=valid), ["a", "b", "c", "d"], valid=valid)
    assert counts.total.tolist() == [5, 5, 5, 5]
    assert counts.once == 2.5
    assert counts.high.tolist() == [0, 1, 1, 4]  # 14, 15 and 16 are high: the last leaf, to b, c and itself
    assert counts.ranking() == ("d", "b", "c")


def test_the_first_types_are_kept():
    counts = counted(snippets_of(1, 20))
    assert counts.frequent(0) == counts.ranking(0)[:8]
    assert counts.frequent(1, top=2) == counts.ranking(1)[:2]
    with pytest.raises(DataError, match="top must be the number of types to keep, 1 or more, got 0"):
        counts.frequent(1, top=0)
    with pytest.raises(DataError, match=r"counts are for \[2\] maps: wanted one index per axis, got \[\]"):
        counts.frequent()
    with pytest.raises(DataError, match=r"got \[2\]"):
        counts.frequent(2)


def test_counts_check_shapes():
    counts = counted(snippets_of(0, 2))
    with pytest.raises(ShapeError, match=r"wanted one type per leaf, got 2 types and maps of \[3, 3\]"):
        counts.add(attention_mask(torch.rand(2, 3, 3)), ["a", "b"])
    with pytest.raises(ShapeError, match=r"wanted maps of \[2\] as before, got \[3\]"):
        counts.add(attention_mask(torch.rand(3, 1, 1)), ["a"])
    other = TypeCounts()
    other.add(attention_mask(torch.rand(1, 1)), ["a"])
    with pytest.raises(ShapeError, match=r"wanted counts of \[2\] maps, got \[\]"):
        counts.merge(other)


# The ranks that the notebook `model_free_frequent_type` of the authors' code prints for Python: types by P, at the last
# layer of CodeBERT, RoBERTa, UniXcoder and GraphCodeBERT.
PYTHON = [
    ') if ] for def : identifier return " , ( integer . [ = in none',
    'identifier none return integer ( . def ] = ) : for [ , if in "',
    'def ] : for ) = identifier ( , in if [ return . " integer none',
    'for if ) ] def return identifier : , = in [ ( . integer " none',
]


def test_the_published_list_of_python_comes_from_its_rankings():
    rankings = [one.split() for one in PYTHON]
    assert rank_sum(rankings) == published_types("python")
    assert rank_sum(rankings, below=14) == ("]",)
    spoiled = [rankings[0][::-1], *rankings[1:]]
    assert rank_sum(spoiled) != published_types("python")


def test_rank_sums():
    assert rank_sum([("a", "b", "c"), ("c", "b")], below=3) == ("b", "c")  # 1 + 1 and 2 + 0: a is in one alone
    with pytest.raises(DataError, match="wanted one ranking per model"):
        rank_sum([])
    with pytest.raises(DataError, match="types were published for python, java, javascript, go, not for 'php'"):
        published_types("php")
    with pytest.raises(DataError, match="with each type once"):
        rank_sum([("a", "a")])


def test_the_leaves_that_are_left():
    types = ("def", "identifier", "(", ")", "identifier")
    leaves = leaves_of(types, ["identifier", "("])
    assert leaves.tolist() == [1, 2, 4]
    x = torch.arange(50).view(2, 5, 5)
    assert torch.equal(restricted(x, leaves), x[:, [1, 2, 4]][:, :, [1, 2, 4]])
    assert restricted(x, leaves_of(types, ["for"])).shape == (2, 0, 0)


@pytest.mark.parametrize("language", sorted(PUBLISHED_TYPES))
def test_published_types_are_leaves_of_todays_grammars(language):
    pytest.importorskip("tree_sitter")
    from bertology.code_structure import parse_code

    code = {
        "python": "def f(a, b):\n    x = [i for i in a]\n    if x:\n        return b",
        "java": 'public int f(int a, int b) { String x = "s"; return a; }',
        "javascript": "function f(a, b) { return 's'; }",
        "go": 'func f(a pkg.T) string { if a == b { x.y = T{z: "s"} }; return "" }',
    }[language]
    missing = set(published_types(language)) - set(parse_code(code, language).types)
    assert missing == ({"string_literal"} if language == "java" else set())
