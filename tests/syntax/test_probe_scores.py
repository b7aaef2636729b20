import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertology.errors import ShapeError
from bertology.syntax import align
from bertology.syntax.attention_probe import (
    attention_probe,
)
from bertology.syntax.probe_scores import at_offset, best_tree, count_right, heads_of, left_branching, right_branching
from helpers.trees import CATS, wordpiece_tokenizer
from helpers.zoo import BY_NAME
from oracles import syntax_probes as oracles

# Scores


def test_counts_by_hand():
    model, batches = BY_NAME["bert"].build(), align(wordpiece_tokenizer(), CATS, batch_size=2)
    found = attention_probe(model, batches, batches, ignore=("det", "case"))
    sentences = [one.source for batch in batches for one in batch["annotations"]]
    assert found.words.tolist() == [sum(r not in ("det", "case") for r in s.relations) for s in sentences]
    assert found.words_with_punct.tolist() == [len(s.words) for s in sentences]
    assert (found.right <= found.words).all()
    assert (found.right <= found.right_with_punct).all()
    assert found.uas == found.right.sum().item() / found.words.sum().item()
    assert found.uas_with_punct == found.right_with_punct.sum().item() / 14
    assert found.interval()[0] < found.uas < found.interval()[1]
    for number, name in enumerate(found.baselines_named):
        by = {"right-branching": right_branching, "left-branching": left_branching}.get(
            name, lambda many, name=name: at_offset(many, int(name.split()[1]))
        )
        expected = [count_right(s, by(len(s.words)), ("det", "case")) for s in sentences]
        assert found.baseline_right[number].tolist() == expected
        assert found.baselines[name] == sum(expected) / found.words.sum().item()
    whole = attention_probe(model, batches, batches, ignore=())
    assert whole.uas == whole.uas_with_punct == found.uas_with_punct


def test_chains_and_offsets():
    assert right_branching(3) == [2, 3, 0]
    assert left_branching(3) == [0, 1, 2]
    assert at_offset(3, 1) == [2, 3, 3]
    assert at_offset(3, -2) == [0, 0, 1]
    assert right_branching(1) == left_branching(1) == [0]


# Trees


@settings(max_examples=60)
@given(st.integers(1, 5), st.booleans(), st.booleans(), st.integers(0, 10**6))
def test_the_best_of_all_trees(words, one_root, tied, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(words, words + 1, generator=generator, dtype=torch.float64) * 3
    if tied:
        scores = scores.round()
    found = best_tree(scores, one_root=one_root)
    assert oracles.is_tree(found)
    assert not one_root or found.count(0) == 1
    assert oracles.tree_sum(scores, found) == pytest.approx(oracles.best_tree(scores, one_root))


@settings(max_examples=20)
@given(st.integers(6, 25), st.floats(0.01, 1e4), st.integers(0, 10**6))
def test_always_a_tree(words, scale, seed):
    scores = scale * torch.randn(words, words + 1, generator=torch.Generator().manual_seed(seed))
    for one_root in (True, False):
        found = best_tree(scores, one_root=one_root)
        assert oracles.is_tree(found)
        assert not one_root or found.count(0) == 1
        shifted = best_tree(scores.log_softmax(1), one_root=one_root)  # of each word's scores, only differences count
        assert oracles.tree_sum(scores, shifted) == pytest.approx(oracles.tree_sum(scores, found), rel=1e-4)


def test_a_circle_is_broken_where_it_costs_least():
    scores = torch.tensor([[0.0, 9.0, 5.0], [2.0, 5.0, 9.0]])
    scores[0, 1], scores[1, 2] = 99, 99  # no word is its own head
    assert heads_of(scores, "greedy") == [2, 1]
    assert heads_of(scores, "tree") == heads_of(scores, "one-root tree") == [2, 0]
    apart = torch.tensor([[5.0, 0.0, 1.0], [5.0, 2.0, 0.0]])
    assert heads_of(apart, "tree") == [0, 0]
    assert heads_of(apart, "one-root tree") == [0, 1]
    assert best_tree(torch.zeros(1, 2)) == [0]


def test_scores_that_make_no_tree():
    for shape in ((2, 2), (0, 1), (3,)):
        with pytest.raises(ShapeError, match=r"scores must be \[words, words \+ 1\], with ROOT in the first column"):
            best_tree(torch.zeros(shape))
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ShapeError, match="scores must be finite, got NaN or infinity"):
            heads_of(torch.tensor([[0.0, 1.0, value], [0.0, 1.0, 2.0]]), "greedy")
    assert heads_of(torch.tensor([[0.0, math.nan]]), "greedy") == [0]  # a word as its own head is not looked at


def test_no_networkx_says_which_extra(monkeypatch):
    import sys

    from bertology.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(MissingExtra, match=r"'networkx'.*bertology\[syntax\]"):
        best_tree(torch.zeros(1, 2))
