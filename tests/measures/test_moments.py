"""Sums over pairs of vectors, moved to other means."""

import numpy as np
import pytest
import torch

from bertology.measures.moments import Moments
from oracles import layer_similarity as oracles

# oracle: the same sums of the vectors themselves, and kernels of all examples at once


def summed(x, y):
    """Moments of [example, vector, dimension], and Σ |x|², Σ |y|²."""
    of_x, of_y = x.square().sum(-1), y.square().sum(-1)
    flat_x, flat_y = x.flatten(1), y.flatten(1)
    return Moments(flat_x.T @ flat_y, of_x.T @ of_y, flat_x.T @ of_y, flat_y.T @ of_x), (of_x.sum(0), of_y.sum(0))


def centred(*shape, seed):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x - x.mean(0)


def test_moved_sums_are_those_of_moved_vectors():
    x, y = centred(9, 2, 3, seed=0), centred(9, 4, 5, seed=1)
    delta, epsilon = centred(2, 3, seed=2) + 1, centred(4, 5, seed=3) - 2
    sums, squares = summed(x, y)
    expected, _ = summed(x + delta, y + epsilon)
    found = sums.moved(9, squares, (delta, epsilon))
    for one, other in zip(found, expected[1:], strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(sums.products + 9 * torch.outer(delta.flatten(), epsilon.flatten()), expected.products)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(sums.moved(9, squares, (delta, -epsilon))[0], expected.norms)


def test_the_covariance_is_that_of_kernels():
    x, y = centred(9, 2, 3, seed=0), centred(9, 4, 5, seed=1)
    sums, squares = summed(x, y)
    found = sums.covariance(9, squares).numpy()
    expected = [[oracles.hsic(x[:, i].numpy(), y[:, j].numpy()) for j in range(4)] for i in range(2)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_fewer_than_four_examples_have_no_covariance():
    sums, squares = summed(centred(3, 2, 3, seed=0), centred(3, 1, 2, seed=1))
    assert sums.covariance(3, squares).isnan().all()
