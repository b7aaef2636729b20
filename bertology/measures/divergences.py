"""The Jensen-Shannon divergences between all pairs of heads, summed over queries.

That of p and q, with m = (p + q) / 2, is H(m) - H(p)/2 - H(q)/2. Summed over queries, it is a sum over the single
weights of their maps, whatever query or text each belongs to. So the weights of each head are written to one long row,
and the rows are compared in pieces that fit into the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

CACHE_BYTES = 2**19
"""How many bytes a piece takes on a CPU; two temporary arrays of the same size are needed too."""
DEVICE_BYTES = 2**28
"""How many bytes a piece takes on other devices, where starting an operation is what costs most."""
NUMPY = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Whether NumPy has the faster logarithm: with AVX-512 it takes less than half of the time of torch's, else more."""
GROUP = 256
"""How many elements are summed in the precision of the maps; longer sums lose digits that the distances need."""


def weights_in_pieces(
    maps: Sequence[Tensor], queries: Tensor, keys: Tensor | None, *, smoothing: float = 0.0
) -> Iterator[Tensor]:
    """[head, weight]: the real weights of all heads, piece by piece.

    Weights of 0 in all heads add nothing to any distance, smoothed or not, and are left out: half of them in a decoder.

    Args:
        maps: of each layer [batch, head, query, key].
        queries: [batch, query], bool: which are real.
        keys: [batch, key], bool: which are real; by default, those that any real query attends to.
        smoothing: s in p <- (1 - s) p + s / n, for the n real keys of a text.
    """
    seen = torch.stack([x.amax(1) for x in maps]).amax(0) != 0
    seen &= queries[:, :, None]
    keys = seen.any(1) if keys is None else keys
    seen &= keys[:, None]
    size = _piece_size(maps)
    waiting: list[Tensor] = []
    for example, many in enumerate(keys.sum(1).tolist()):
        rows = [x[example].flatten(1) for x in maps]
        places = seen[example].flatten().nonzero().squeeze(1)
        for start in range(0, len(places), size):
            part = torch.cat([x.index_select(1, places[start : start + size]) for x in rows])
            part = part.to(torch.promote_types(part.dtype, torch.float32))
            waiting.append(part.mul_(1 - smoothing).add_(smoothing / many) if smoothing else part)
            if sum(part.shape[1] for part in waiting) >= size:
                whole = torch.cat(waiting, dim=1)
                yield whole[:, :size]
                waiting = [whole[:, size:]]
    if any(part.shape[1] for part in waiting):
        yield torch.cat(waiting, dim=1)


def _piece_size(maps: Sequence[Tensor]) -> int:
    """How many weights of each head are compared at a time."""
    on_cpu = maps[0].device.type == "cpu"
    # NumPy compares a piece in each thread; torch divides one among its threads.
    memory = CACHE_BYTES * (1 if NUMPY else torch.get_num_threads()) if on_cpu else DEVICE_BYTES
    many = memory // (sum(x.shape[1] for x in maps) * max(4, maps[0].element_size()))
    return max(1, many // GROUP) * GROUP


def distances(pieces: Iterable[Tensor], total: Tensor) -> Tensor:
    """[head, head], nats: add to `total` the sum of m ln(1/m) - p ln(1/p) / 2 - q ln(1/q) / 2 over the weights.

    A head has no distance from itself, or NaN if one of its weights is NaN.
    """
    one, other = torch.triu_indices(*total.shape, device=total.device)
    sums = total.new_zeros(len(one))
    for of_piece in _sums(iter(pieces), total):
        sums += of_piece
    own = sums[one == other]
    total[one, other] += (own[one] + own[other]) / 2 - sums
    return total.copy_(total.triu() + total.triu(1).mT)


def _sums(pieces: Iterator[Tensor], total: Tensor) -> Iterator[Tensor]:
    """[pair]: of each piece the sums of m ln m, in the type of `total`: of each head with itself and those after it."""
    first = next(pieces, None)
    if first is None:
        return
    pieces = chain([first], pieces)
    if NUMPY and first.device.type == "cpu":
        yield from (torch.from_numpy(sums).to(total) for sums in _in_threads(pieces))
        return
    for piece in pieces:
        with torch.inference_mode():  # slices cost less
            sums_of_groups = torch.cat(_sums_of_pairs(piece)).to(total.device)
        yield sums_of_groups.sum(1, dtype=total.dtype)


def _in_threads(pieces: Iterator[Tensor]) -> Iterator[Any]:
    """[pair], float64: of each piece the sums of m ln m, by NumPy. Each thread of torch has a piece of its own."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        while some := [piece.numpy() for piece in islice(pieces, threads)]:
            yield from pool.map(_sums_of_pairs_by_numpy, some)


def _sums_of_pairs_by_numpy(piece: Any) -> Any:
    """[pair], float64: the sums of m ln m of a piece `[head, weight]`, as `_sums_of_pairs` has them."""
    heads, width = piece.shape
    groups = -(-width // GROUP)
    halves = np.full((heads, groups * GROUP), np.finfo(piece.dtype).tiny, piece.dtype)
    halves[:, :width] += piece * piece.dtype.type(0.5)
    means, logs = np.empty_like(halves), np.empty_like(halves)
    sums = []
    with np.errstate(all="ignore"):  # a weight that is NaN, or negative, gives NaN
        for head in range(heads):
            m = np.add(halves[head:], halves[head], out=means[: heads - head])
            log = np.log(m, out=logs[: heads - head])
            # A product of rows: the sums of m ln m over each group.
            products = m.reshape(-1, 1, GROUP) @ log.reshape(-1, GROUP, 1)
            sums.append(products.reshape(-1, groups).sum(1, dtype=np.float64))
    return np.concatenate(sums)


def _sums_of_pairs(piece: Tensor) -> list[Tensor]:
    """Of each head, [itself and those after it, group]: the sums of m ln m of a piece `[head, weight]`."""
    heads, width = piece.shape
    groups = -(-width // GROUP)
    # Half of each weight, so that a sum of two is m; plus the smallest positive number, for which x ln x is nearly 0.
    halves = piece.new_full((heads, groups * GROUP), torch.finfo(piece.dtype).tiny)
    halves[:, :width].add_(piece, alpha=0.5)
    means, logs = torch.empty_like(halves), torch.empty_like(halves)
    in_groups = logs.view(heads, groups, GROUP)
    sums = []
    for head in range(heads):
        many = heads - head
        m = torch.add(halves[head:], halves[head], out=means[:many])
        # The logarithm is vectorised, as torch.special.entr and torch.xlogy are not on the CPU.
        torch.log(m, out=logs[:many]).mul_(m)
        sums.append(in_groups[:many].sum(2))
    return sums
