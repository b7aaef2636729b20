"""How do the vectors of a span become one?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pool(vectors: Tensor, scores: Tensor, tokens: Tensor, targets: Tensor, count: int) -> Tensor:
    """[probe, target, dim]: of each span, the mean of its tokens' vectors weighted by the softmax of their scores.

    For each of several probes, r = Σ_t α_t e_t over the span's tokens t, with α their softmax of z_t (Tenney et al.
    2019, ICLR, §3.2). Work and memory grow with the tokens in the spans, whatever the longest span.

    Args:
        vectors: [probe, token, dim], e.
        scores: [probe, token], z.
        tokens: [pair] int64: the tokens of the spans, span by span.
        targets: [pair] int64, ascending: which target's span that is; each of them has a token or more.
        count: how many targets there are.
    """
    probes, many, dim = vectors.shape
    each = torch.arange(probes, device=vectors.device)[:, None]
    rows, spans = (each * many + tokens).flatten(), (each * count + targets).flatten()
    starts = torch.searchsorted(spans, torch.arange(probes * count, device=spans.device))
    # A bag of embeddings is such a weighted sum, and makes no copy of the vectors for spans that overlap.
    shares = _softmax(scores.flatten().index_select(0, rows), spans, probes * count)
    pooled = F.embedding_bag(rows, vectors.reshape(-1, dim), starts, mode="sum", per_sample_weights=shares)
    return pooled.view(probes, count, dim)


def _softmax(scores: Tensor, spans: Tensor, many: int) -> Tensor:
    """[pair]: the softmax of scores over the pairs of each span."""
    highest = scores.new_full((many,), -torch.inf).scatter_reduce(0, spans, scores.detach(), "amax")
    weights = (scores - highest[spans]).exp()
    return weights / weights.new_zeros(many).index_add(0, spans, weights)[spans]
