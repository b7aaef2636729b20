"""Sums over pairs of vectors about their means, which can be moved to other means."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FEWEST = 4
"""The fewest examples of which a covariance without bias can be computed."""


class Moments(NamedTuple):
    """Sums over examples, each of which has several vectors x, and several y, all of which are about their means."""

    products: Tensor
    """[left, right]: Σ x yᵀ, of the dimensions of all x with those of all y."""
    norms: Tensor
    """[x, y]: Σ |x|²|y|²."""
    left: Tensor
    """[left, y]: Σ x |y|²."""
    right: Tensor
    """[right, x]: Σ y |x|²."""

    def moved(
        self, many: int, squares: tuple[Tensor, Tensor], moves: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`norms`, `left` and `right` of x + δ and y + ε, where Σ x and Σ y are 0.

        Args:
            many: how many examples there are.
            squares: Σ |x|², [x], and Σ |y|², [y].
            moves: δ, [x, dimension], and ε, [y, dimension]. `products` are changed by many δ εᵀ.
        """
        (of_x, of_y), (delta, epsilon) = squares, moves
        xs, ys = len(of_x), len(of_y)
        delta_square, epsilon_square = delta.square().sum(1), epsilon.square().sum(1)
        columns = torch.split(self.products, epsilon.shape[1], 1)
        rows = torch.split(self.products, delta.shape[1])
        by_y = torch.stack([part @ one for part, one in zip(columns, epsilon, strict=True)], 1)  # Σ x (y·ε)
        by_x = torch.stack([part.T @ one for part, one in zip(rows, delta, strict=True)], 1)  # Σ y (x·δ)
        left = self.left + 2 * by_y + torch.outer(delta.flatten(), of_y + many * epsilon_square)
        right = self.right + 2 * by_x + torch.outer(epsilon.flatten(), of_x + many * delta_square)
        of_left, both = ((delta[..., None] * some.reshape(xs, -1, ys)).sum(1) for some in (self.left, by_y))
        of_right = (epsilon[..., None] * self.right.reshape(ys, -1, xs)).sum(1).T
        norms = self.norms + 2 * of_right + 2 * of_left + 4 * both + torch.outer(of_x, epsilon_square)
        norms = norms + torch.outer(delta_square, of_y + many * epsilon_square)
        return norms, left, right

    def covariance(self, many: int, squares: tuple[Tensor, Tensor]) -> Tensor:
        """[x, y]: the unbiased HSIC of linear kernels (Song et al. 2012, eq. 5); NaN of fewer than 4 examples.

        With K = X Xᵀ and L = Y Yᵀ without their diagonals it is
        (tr K L + 1ᵀK1 1ᵀL1 / ((n-1)(n-2)) - 2 1ᵀK L1 / (n-2)) / (n (n-3)). It is the same for any means, and where they
        are 0, 1ᵀK1 = -Σ |x|² and 1ᵀK L1 = Σ |x|²|y|².
        """
        n, (of_x, of_y) = many, squares
        if n < FEWEST:
            return torch.full_like(self.norms, torch.nan)
        sides = [len(x) // many for x, many in zip((self.left, self.right), self.norms.shape, strict=True)]
        blocks = [torch.split(row, sides[1], 1) for row in torch.split(self.products, sides[0])]
        trace = torch.stack([torch.stack([block.square().sum() for block in row]) for row in blocks])
        ones = torch.outer(of_x, of_y) / ((n - 1) * (n - 2))
        return (trace - self.norms + ones - 2 * self.norms / (n - 2)) / (n * (n - 3))
