"""How does a probe score each word as the head of another?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

HIDDEN = 256
"""How wide the hidden layer of the probe of distances is (Clark et al. 2019, §5)."""
FEATURES = 8


class AttentionProbe(nn.Module):
    """Scores heads by weighted sums of attention maps, both ways (Clark et al. 2019, §5).

    A candidate i scores Σ_k w_k α^k_ij + u_k α^k_ji as the head of a dependent j, where α_ij is the attention from i to
    j. With vectors of length `dim`, the weights hang on the two words: w_k = W_k · (v_i ⊕ v_j) + b_k, and so does u_k.
    """

    def __init__(self, maps: int, dim: int = 0) -> None:
        """`maps` is how many attention maps there are. All weights begin at 0: no map is preferred to others."""
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2 * maps, dtype=torch.float32))
        """[direction * map]: u, of the attention from the dependent, then w, of that from the candidate; or the b."""
        self.ends = nn.Parameter(torch.ones(2, dtype=torch.float32))
        """[2]: r_s and r_e, for the attention to and from the special tokens before and behind the text."""
        self.of_candidate = nn.Parameter(torch.zeros(2 * maps, dim, dtype=torch.float32))
        self.of_dependent = nn.Parameter(torch.zeros(2 * maps, dim, dtype=torch.float32))

    def forward(self, maps: Tensor | None, vectors: Tensor | None) -> Tensor:
        """[word, ROOT and words]: the score of each candidate (columns) as the head of each word (rows).

        `maps` are [map, word and ends, word and ends], query before key; `vectors` are [word, dim].
        """
        assert maps is not None
        features = self.features(maps)
        weights = self.weights[:, None, None]
        if vectors is not None:
            of_candidate, of_dependent = with_root(vectors) @ self.of_candidate.T, vectors @ self.of_dependent.T
            weights = weights + of_candidate.T[:, None, :] + of_dependent.T[:, :, None]
        return (weights * features).sum(0)

    def features(self, maps: Tensor) -> Tensor:
        """[direction * map, word, ROOT and words]: what is weighted. ROOT stands for the ends of the text."""
        both = torch.cat([maps, maps.mT])
        start, end = self.ends
        root = start * both[:, 1:-1, 0] + end * both[:, 1:-1, -1]
        return torch.cat([root[:, :, None], both[:, 1:-1, 1:-1]], dim=2)


class DistanceProbe(nn.Module):
    """Scores heads by what the two words are and how far they are apart: what attention is to be better than.

    A multilayer perceptron of one hidden layer, with tanh, over [v_j; v_i; 8 features of their distance].
    """

    def __init__(self, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        inner = torch.empty(HIDDEN, 2 * dim + FEATURES, dtype=torch.float32)
        outer = torch.empty(1, HIDDEN, dtype=torch.float32)
        self.inner, self.outer = (nn.Parameter(nn.init.xavier_uniform_(x, generator=generator)) for x in (inner, outer))
        self.bias = nn.Parameter(torch.zeros(HIDDEN, dtype=torch.float32))

    def forward(self, maps: Tensor | None, vectors: Tensor | None) -> Tensor:
        """[word, ROOT and words]: as that of `AttentionProbe`; no maps are looked at."""
        assert vectors is not None
        dim = vectors.shape[1]
        dependent = vectors @ self.inner[:, :dim].T
        candidate = with_root(vectors) @ self.inner[:, dim:-FEATURES].T
        distance = distances(len(vectors)).to(vectors.device) @ self.inner[:, -FEATURES:].T
        hidden = dependent[:, None, :] + candidate[None, :, :] + distance + self.bias
        return hidden.tanh() @ self.outer[0]


def with_root(vectors: Tensor) -> Tensor:
    """[ROOT and words, dim]: the candidates' vectors. ROOT comes first, as in the scores, and its vector is 0."""
    return torch.cat([vectors.new_zeros(1, vectors.shape[1]), vectors])


def distances(many: int) -> Tensor:
    """[word, ROOT and words, 8]: how far a candidate is behind the word, or before it, as a share of the words; whether
    it is the word itself, one before or behind it, two before or behind it; whether it is ROOT."""
    steps = torch.arange(many)[None, :] - torch.arange(many)[:, None]
    shares = [steps.clamp_min(0) / many, (-steps).clamp_min(0) / many]
    places = [(steps == step).float() for step in (0, -1, 1, -2, 2)]
    words = torch.stack([*shares, *places, torch.zeros(many, many)], dim=2).float()
    root = torch.zeros(many, 1, FEATURES)
    root[:, :, -1] = 1
    return torch.cat([root.float(), words], dim=1)
