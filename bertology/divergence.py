"""How far apart is the attention of every two heads?

The Jensen-Shannon distance of p and q, with m = (p + q) / 2, is H(m) - H(p)/2 - H(q)/2. Summed over queries, it is a
sum over the single weights of their maps, whatever query or text each is of: each head's weights are laid in one long
row, and pieces of these rows that stay in the processor's cache are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

CACHE_BYTES = 2**19
"""How much memory a piece takes for each thread: there are two more of its size on the way."""
DEVICE_BYTES = 2**28
"""How much memory a piece takes on other devices, where a call costs more than what it does."""
GROUP = 256
"""How many numbers are summed up in the maps' own precision: sums of more lose digits that the distances need."""


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
    memory = CACHE_BYTES * torch.get_num_threads() if on_cpu else DEVICE_BYTES
    many = memory // (sum(x.shape[1] for x in maps) * max(4, maps[0].element_size()))
    return max(1, many // GROUP) * GROUP


def distances(pieces: Iterable[Tensor], total: Tensor) -> Tensor:
    """[head, head], nats: add to `total` the sum of m ln(1/m) - p ln(1/p) / 2 - q ln(1/q) / 2 over the weights.

    A head has no distance from itself, or NaN if one of its weights is NaN.
    """
    for piece in pieces:
        with torch.inference_mode():  # slices cost less
            sums = torch.cat(_sums_of_pairs(piece)).to(total.device).sum(1, dtype=total.dtype)
            one, other = torch.triu_indices(*total.shape, device=total.device)
            own = sums[one == other]
            total[one, other] += (own[one] + own[other]) / 2 - sums
    return total.copy_(total.triu() + total.triu(1).mT)


def _sums_of_pairs(piece: Tensor) -> list[Tensor]:
    """Of each head, [itself and those after it, group]: the sums of m ln m of a piece `[head, weight]`."""
    heads, width = piece.shape
    groups = -(-width // GROUP)
    # Half of each weight, so that a sum of two is m; with the smallest number on top, for which x ln x is as good as 0.
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
