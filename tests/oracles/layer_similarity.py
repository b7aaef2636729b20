"""Slow twins of the similarity of layers: kernels of all examples, and cosines pair by pair."""

from __future__ import annotations

import numpy as np


def hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, eq. 5: the unbiased HSIC of linear kernels with zero diagonals, of [example, feature]."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    parts = (
        np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    )
    return float(parts / (n * (n - 3)))


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al. 2019, with the unbiased HSIC."""
    return hsic(x, y) / float(np.sqrt(hsic(x, x) * hsic(y, y)))


def mean_cosine(x: np.ndarray) -> float:
    """The mean cosine of all pairs of rows."""
    found = []
    for i in range(len(x)):
        for j in range(i):
            found.append(x[i] @ x[j] / (np.linalg.norm(x[i]) * np.linalg.norm(x[j])))
    return float(np.mean(found))
