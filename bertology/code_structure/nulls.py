"""What would attention score that knows nothing of structure: shuffled attention, or one that knows distances alone?

The third null model, random weights, is a model of its own: `bertology.syntax.randomized`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, ShapeError
from .masks import as_floats


def shuffled(x: Tensor, *, snippet: int, seed: int = 0, valid: Tensor | None = None) -> Tensor:
    """[..., leaf, leaf]: maps whose pairs of leaves have changed places at random, all maps alike.

    A threshold does not see places, so that the mask of a shuffled map is the shuffled mask of the map: shuffle the
    mask, and no quantile need be found twice. To shuffle the mask of the distances in place of those of all heads is
    the same, the other way round, and one for all. The score is 1/7 on average, where a quarter of the pairs are in
    either mask, and less where ties make them fewer.

    Args:
        x: [..., leaf, leaf]: attention, or a mask of it (`attention_mask(...).mask`), or of distances.
        snippet: the number of the snippet: each is shuffled in its own way, on any device and in any order.
        seed: of the random numbers.
        valid: [leaf, leaf] bool: the pairs that change places: `visible` for a decoder. All, without it.

    Raises `ShapeError` for other shapes.

        >>> import torch
        >>> shuffled(torch.arange(4).view(2, 2), snippet=0).sort().values.sum().item()
        6
    """
    leaves = _leaves(x, valid)
    where = None if valid is None else valid.flatten().nonzero()[:, 0].to(x.device)
    state = int(np.random.SeedSequence([seed, snippet]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    generator = torch.Generator().manual_seed(state)
    order = torch.randperm(leaves * leaves if where is None else len(where), generator=generator).to(x.device)
    flat = x.flatten(-2)
    if where is None:
        return flat.index_select(-1, order).view(x.shape)
    return flat.index_copy(-1, where, flat.index_select(-1, where[order])).view(x.shape)


class OffsetMeans:
    """Attention that knows of two leaves only how far apart they stand in the text: its mean at each signed offset.

    Fed with one snippet it is that snippet's own; fed with all of them in a first pass, that of a model that looks at
    positions alone. Sums over pairs of leaves: any split of the snippets gives the same. Where leaves are to be left
    out by type, take the offsets in the whole snippet, and leave them out of the map that comes back.

        >>> import torch
        >>> means = OffsetMeans()
        >>> means.add(torch.tensor([[0.5, 0.2, 0.1], [0.3, 0.7, 0.4], [0.0, 0.1, 0.6]]))
        >>> means.map(2)
        tensor([[0.6000, 0.3000],
                [0.2000, 0.6000]], dtype=torch.float64)
    """

    total: Tensor
    """[..., offset] float64: the attention at offset j - i, the longest negative one first."""
    pairs: Tensor
    """[offset] int64: the pairs of leaves at it."""

    def __init__(self) -> None:
        self.total, self.pairs = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)

    def add(self, attention: Tensor, *, valid: Tensor | None = None) -> None:
        """Count one snippet's maps, [..., leaf, leaf]; as many at each call.

        `valid` [leaf, leaf] bool are the pairs that count. Raises `ShapeError` for other shapes, and `DataError` for
        attention that is not finite where it counts.
        """
        leaves = _leaves(attention, valid)
        counted = torch.ones(leaves, leaves, dtype=torch.bool) if valid is None else valid.cpu()
        values = attention.detach() if valid is None else attention.detach().masked_fill(~valid.to(attention.device), 0)
        new = OffsetMeans()
        new.total, new.pairs = slanted(values).sum(-2).cpu(), slanted(counted).sum(-2).to(torch.int64)
        if not new.total.isfinite().all():
            raise DataError("attention weights are not finite: look for NaN or overflow in the model's weights")
        self.merge(new)

    def merge(self, other: OffsetMeans) -> None:
        """Add the sums over other snippets, of as many maps. Raises `ShapeError` for others."""
        if not len(other.pairs):
            return
        if not len(self.pairs):
            self.total, self.pairs = other.total.clone(), other.pairs.clone()
            return
        if self.total.shape[:-1] != other.total.shape[:-1]:
            raise ShapeError(f"wanted {list(self.total.shape[:-1])} maps, got {list(other.total.shape[:-1])}")
        width = max(len(self.pairs), len(other.pairs))
        self.total = _widened(self.total, width) + _widened(other.total, width)
        self.pairs = _widened(self.pairs, width) + _widened(other.pairs, width)

    def map(self, leaves: int, *, dtype: torch.dtype = torch.float64, device: Any = None) -> Tensor:
        """[..., leaf, leaf]: the map of a snippet of so many leaves; 0 at offsets that no pair that counts had.

        Raises `DataError` for more leaves than any snippet had that was added.
        """
        middle = len(self.pairs) // 2
        if leaves > middle + 1 or not len(self.pairs):
            raise DataError(
                f"wanted a map of {leaves} leaves, but the means are of snippets of at most "
                f"{middle + 1 if len(self.pairs) else 0}: add one that is as long"
            )
        means = (self.total / self.pairs.clamp_min(1)).to(dtype)
        place = torch.arange(leaves)
        found = means.to(device).index_select(-1, (place - place[:, None] + middle).flatten().to(device))
        return found.view(*means.shape[:-1], leaves, leaves)


def positional(attention: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """[..., leaf, leaf]: each map with its mean at every signed offset in place of its values.

    What it scores is what a map owes to positions, by its own average; `OffsetMeans` takes the average over snippets.
    Pairs that do not count are 0. Raises `ShapeError` and `DataError` as `OffsetMeans.add` does.

        >>> import torch
        >>> positional(torch.tensor([[0.5, 0.5], [0.0, 1.0]]))
        tensor([[0.7500, 0.5000],
                [0.0000, 0.7500]])
    """
    means = OffsetMeans()
    means.add(attention, valid=valid)
    found = means.map(attention.shape[-1], dtype=as_floats(attention).dtype, device=attention.device)
    return found if valid is None else found.masked_fill(~valid.to(found.device), 0)


def slanted(x: Tensor) -> Tensor:
    """[..., leaf, offset] float64: [..., leaf, leaf] with its columns by offset j - i, from -(leaf - 1) to leaf - 1.

    Places without a leaf are 0.
    """
    leaves = x.shape[-1]
    new = torch.zeros(*x.shape[:-1], max(0, 2 * leaves - 1), dtype=torch.float64, device=x.device)
    if x.numel():
        # Entry (i, j) of a map belongs at i (2 n - 1) + j - i + n - 1: rows that start 2 n - 2 apart.
        stride = (*new.stride()[:-2], 2 * leaves - 2, 1)
        new.as_strided(x.shape, stride, leaves - 1).copy_(x)
    return new


def _widened(x: Tensor, width: int) -> Tensor:
    side = (width - x.shape[-1]) // 2
    return torch.nn.functional.pad(x, (side, side))


def _leaves(x: Tensor, valid: Tensor | None) -> int:
    if x.dim() < 2 or x.shape[-1] != x.shape[-2]:
        raise ShapeError(f"wanted maps [..., leaf, leaf], got {list(x.shape)}")
    if valid is not None and (valid.shape != x.shape[-2:] or valid.dtype != torch.bool):
        raise ShapeError(f"valid must be {list(x.shape[-2:])} bool, got {list(valid.shape)} {valid.dtype}")
    return x.shape[-1]
