import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertology.code_structure.leaf_maps import token_map
from bertology.errors import DataError, ShapeError
from helpers.leaves import few, seeds
from oracles import cat as oracles

pytestmark = pytest.mark.any_transformers

# Leaf maps.


def check_map(attention, leaf_of, leaves, causal=False, spoil=0.0):
    values, kept = token_map(attention, leaf_of, leaves, causal=causal)
    for one, x in zip(attention, values, strict=True):
        expected, expected_kept = oracles.token_map(one, leaf_of, causal)
        torch.testing.assert_close(x, torch.tensor(expected, dtype=x.dtype).view(x.shape) + spoil, atol=1e-12, rtol=0)
        assert kept.tolist() == expected_kept


@given(seeds, st.lists(st.integers(-3, 4), max_size=9), st.booleans())
@few
def test_leaf_maps_equal_loops(seed, leaf_of, causal):
    attention = torch.rand(2, len(leaf_of), len(leaf_of), generator=torch.Generator().manual_seed(seed)).double()
    if causal:
        leaf_of, attention = sorted(leaf_of), attention.tril()
    check_map(attention, leaf_of, 5, causal)
    if any(leaf >= 0 for leaf in leaf_of):
        with pytest.raises(AssertionError):
            check_map(attention, leaf_of, 5, causal, spoil=1e-6)


def test_one_token_a_leaf_is_the_restricted_map():
    attention = torch.rand(2, 6, 6)
    values, kept = token_map(attention, [-1, 2, -3, 0, 3, -1], 5)
    assert kept.tolist() == [0, 2, 3]
    assert torch.equal(values, attention[:, [3, 1, 4]][:, :, [3, 1, 4]])


@given(seeds, st.integers(1, 5), st.integers(0, 4))
@few
def test_a_token_that_is_there_twice_leaves_means_unchanged(seed, copies, which):
    attention = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    again = [*range(5), *[which] * copies]
    values = token_map(attention[:, again][:, :, again], again, 5).values
    torch.testing.assert_close(values, attention, atol=1e-12, rtol=0)


def test_leaf_maps_check_their_tokens():
    x = torch.rand(2, 3, 3)
    with pytest.raises(ShapeError, match=r"\[\.\.\., token, token\] over the 2 tokens of leaf_of, got \[2, 3, 3\]"):
        token_map(x, [0, 1], 2)
    with pytest.raises(DataError, match="leaf_of names leaf 2, but there are 2, counted from 0"):
        token_map(x, [0, 1, 2], 2)
    with pytest.raises(DataError, match="must be in the order of their leaves"):
        token_map(x, [1, 0, 2], 3, causal=True)
