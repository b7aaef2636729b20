"""The probes: span pooling, mixing of layers, and a classifier.

Many probes are computed at once: every weight has a leading axis `probe`, and one matrix product serves all probes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import DataError, ShapeError, checked, described, how_many
from .random_draws import BEGINNING, DROPOUT, generator
from .span_batches import EdgeBatch


def pool(vectors: Tensor, scores: Tensor, tokens: Tensor, targets: Tensor, count: int) -> Tensor:
    """[probe, target, dim]: for each span, the mean of its tokens' vectors weighted by the softmax of their scores.

    For each of several probes, r = Σ_t α_t e_t over the span's tokens t, where α is the softmax of z over these tokens
    (Tenney et al. 2019, ICLR, §3.2). Time and memory grow with the number of tokens in all spans, without padding to
    the longest span.

    Args:
        vectors: [probe, token, dim], e.
        scores: [probe, token], z.
        tokens: [pair] int64: the tokens of the spans, span by span.
        targets: [pair] int64, ascending: the target of each span; each target has one token or more.
        count: the number of targets.
    """
    probes, many, dim = vectors.shape
    each = torch.arange(probes, device=vectors.device)[:, None]
    rows, spans = (each * many + tokens).flatten(), (each * count + targets).flatten()
    starts = torch.searchsorted(spans, torch.arange(probes * count, device=spans.device))
    # An embedding bag computes this weighted sum without a copy of the vectors for spans that overlap.
    shares = _softmax(scores.flatten().index_select(0, rows), spans, probes * count)
    pooled = F.embedding_bag(rows, vectors.reshape(-1, dim), starts, mode="sum", per_sample_weights=shares)
    return pooled.view(probes, count, dim)


def _softmax(scores: Tensor, spans: Tensor, many: int) -> Tensor:
    """[pair]: the softmax of scores over the pairs of each span."""
    highest = scores.new_full((many,), -torch.inf).scatter_reduce(0, spans, scores.detach(), "amax")
    weights = (scores - highest[spans]).exp()
    return weights / weights.new_zeros(many).index_add(0, spans, weights)[spans]


Shapes = dict[str, tuple[int, ...]]


class Probes(nn.Module):
    """Several independent edge probes, each of which reads some of the layers (Tenney et al. 2019, ICLR, §3.2).

    Each probe mixes the layers of a token, h = γ Σ_l s_l h_l with s = softmax(a) over its own layers (Tenney et al.
    2019, Eq 1), projects h to `width`, pools the tokens of a span by self-attentive pooling, concatenates the spans of
    both sides, and scores the labels: Linear, tanh, LayerNorm, dropout, Linear. The two sides have separate weights.
    As in the released code, the mixed vectors have dropout too; a token has the same dropout on both sides.

    Weights are initialized as those of `torch.nn.Linear`, the mix with a = 0 and γ = 1. Initial weights and dropout
    depend only on the probe's seed, not on its layers nor on the other probes. So probes of one seed differ only by
    the layers they read.

    Args:
        layers: [probe, layer] bool: which layers each probe mixes, the lexical layer 0 first.
        hidden: the hidden size of the vectors.
        labels: the number of labels.
        sides: the number of spans per target, 1 or 2.
        seeds: one seed for all probes, or one for each, 0 or more. Torch's global random state is not used.
        width: the width of projections and of the hidden layer.
        dropout: of the hidden layer.
        input_dropout: of the mixed vectors.

    Raises `ShapeError` and `DataError` for sizes and settings that are not possible, such as a probe without layers.

        >>> Probes(torch.ones(3, 13, dtype=torch.bool).tril(), 768, 2, 2).mix.shape
        torch.Size([3, 13])
    """

    layers: Tensor

    @checked
    def __init__(
        self, layers: Tensor, hidden: int, labels: int, sides: int, *, seeds: int | Sequence[int] = 0,
        width: int = 256, dropout: float = 0.3, input_dropout: float = 0.2,
    ) -> None:  # fmt: skip
        super().__init__()
        _check(layers, hidden, labels, sides, width, (dropout, input_dropout))
        self.seeds = (seeds,) * len(layers) if isinstance(seeds, int) else tuple(seeds)
        if len(self.seeds) != len(layers):
            raise ShapeError(f"seeds must be one for each of {how_many(len(layers), 'probe')}, got {len(self.seeds)}")
        self._sizes = (hidden, labels, sides, width)
        self.width, self.dropout, self.input_dropout = width, dropout, input_dropout
        self.sides, self.labels = sides, labels
        self._shapes = _shapes(layers.shape[1], *self._sizes)
        self.register_buffer("layers", layers.clone())
        drawn = {seed: _begin(self._shapes, seed) for seed in self.seeds}
        self.weights = nn.Parameter(torch.stack([drawn[seed] for seed in self.seeds]))
        """[probe, weight]: all weights of a probe, concatenated; `parts` splits them."""
        self.step = 0
        """The number of training steps so far; it decides dropout together with the seed."""

    def parts(self) -> dict[str, Tensor]:
        """Views of all weights by name, each with a leading axis `probe`."""
        pieces = torch.split(self.weights, [math.prod(shape) for shape in self._shapes.values()], dim=1)
        return {name: piece.view(-1, *shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)}

    @property
    def mix(self) -> Tensor:
        """[probe, layer]: the mixing weights s, which sum to 1; 0 for layers that a probe does not read."""
        return self._mix(self.parts()["mix"]).detach()

    @property
    def gamma(self) -> Tensor:
        """[probe]: the factor γ of each mix."""
        return self.parts()["gamma"][:, 0].detach()

    @checked
    def select(self, which: Iterable[int]) -> Probes:
        """A copy of some of the probes, by their indices. Raises `DataError` for an index that does not exist."""
        places = list(which)
        many = len(self.seeds)
        wrong = [x for x in places if isinstance(x, bool) or not hasattr(x, "__index__") or not -many <= x < many]
        if wrong or not places:
            came = described(wrong[0]) if wrong else "none"
            raise DataError(f"select takes indices of probes, from 0 to {many - 1}, got {came}")
        hidden, labels, sides, width = self._sizes
        chosen = Probes(
            self.layers[places], hidden, labels, sides, seeds=[self.seeds[place] for place in places], width=width,
            dropout=self.dropout, input_dropout=self.input_dropout,
        ).to(self.weights)  # fmt: skip
        with torch.no_grad():
            chosen.weights.copy_(self.weights[places])
        chosen.step = self.step
        return chosen.train(self.training)

    def forward(self, batch: EdgeBatch) -> Tensor:
        """[probe, target, label]: the logits of every label of every target."""
        parts, shape = self.parts(), batch.vectors.shape
        if shape[1:] != (self.layers.shape[1], self._sizes[0]) or len(batch.tokens) != self.sides:
            raise ShapeError(
                f"vectors must be [token, layer, hidden] = [*, {self.layers.shape[1]}, {self._sizes[0]}], "
                f"with {how_many(self.sides, 'side')}, got {list(shape)} with {len(batch.tokens)}"
            )
        shares = self._mix(parts["mix"]) * parts["gamma"]
        of_inputs, of_inner = self._dropped(((shape[0], shape[2]), (batch.count, self._sizes[3])))
        spans = [self._span(parts, shares, of_inputs, batch, side) for side in range(self.sides)]
        x = torch.baddbmm(parts["inner_bias"][:, None], torch.cat(spans, 2), parts["inner"]).tanh()
        x = F.layer_norm(x, x.shape[2:]) * parts["scale"][:, None] + parts["shift"][:, None]
        if of_inner is not None:
            x = x * of_inner
        return torch.baddbmm(parts["outer_bias"][:, None], x, parts["outer"])

    def _span(
        self, parts: dict[str, Tensor], shares: Tensor, dropped: Tensor | None, batch: EdgeBatch, side: int
    ) -> Tensor:
        """[probe, target, width]: the pooled spans of one side. Only their tokens are mixed, each once."""
        weight, bias, attend, attend_bias = (
            parts[f"{name}{side + 1}"] for name in ("project", "project_bias", "attend", "attend_bias")
        )
        rows, tokens = torch.unique(batch.tokens[side], return_inverse=True)
        by_layer = batch.vectors[rows].to(shares.dtype).transpose(0, 1)
        mixed = (shares @ by_layer.reshape(len(by_layer), -1)).view(len(shares), *by_layer.shape[1:])
        if dropped is not None:
            mixed = mixed * dropped[:, rows]
        projected = torch.baddbmm(bias[:, None], mixed, weight)
        scores = torch.baddbmm(attend_bias[:, None], projected, attend)[:, :, 0]
        return pool(projected, scores, tokens, batch.targets[side], batch.count)

    def _mix(self, a: Tensor) -> Tensor:
        return a.masked_fill(~self.layers, -torch.inf).softmax(1)

    def _dropped(self, shapes: tuple[tuple[int, int], tuple[int, int]]) -> list[Tensor | None]:
        """The dropout masks of inputs and hidden layer: [probe, *shape], or [1, *shape] for all probes."""
        if not self.training:
            return [None, None]
        seeds = sorted(set(self.seeds))
        device, made = self.weights.device, []
        draws = [generator(seed, DROPOUT, self.step, device) for seed in seeds]
        self.step += 1
        which = torch.tensor([seeds.index(seed) for seed in self.seeds] if len(seeds) > 1 else [0], device=device)
        for shape, share in zip(shapes, (self.input_dropout, self.dropout), strict=True):
            kept = (
                torch.stack([torch.rand(shape, generator=draw, dtype=torch.float32, device=device) for draw in draws])
                >= share
            )
            made.append((kept.to(self.weights.dtype) / (1 - share))[which] if share else None)
        return made


def cumulative(layers: int) -> Tensor:
    """[probe, layer] bool: which layers cumulative probes mix: the first probe only layer 0, the last all layers.

    >>> cumulative(3).int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    return torch.ones(layers, layers, dtype=torch.bool).tril()


def _shapes(layers: int, hidden: int, labels: int, sides: int, width: int) -> Shapes:
    """The shapes of a probe's weights, input before output; each bias directly follows its weights."""
    shapes: Shapes = {"mix": (layers,), "gamma": (1,)}
    for side in range(1, sides + 1):
        shapes |= {f"project{side}": (hidden, width), f"project_bias{side}": (width,)}
        shapes |= {f"attend{side}": (width, 1), f"attend_bias{side}": (1,)}
    shapes |= {"inner": (sides * width, width), "inner_bias": (width,), "scale": (width,), "shift": (width,)}
    return shapes | {"outer": (width, labels), "outer_bias": (labels,)}


def _begin(shapes: Shapes, seed: int) -> Tensor:
    """[weight]: the weights of a new probe, uniform within ±1/√inputs as in `torch.nn.Linear`."""
    draw, bound = generator(seed, BEGINNING), 0.0
    pieces = []
    for name, shape in shapes.items():
        piece = torch.full(shape, float(name in ("gamma", "scale")), dtype=torch.float32)
        if name not in ("mix", "gamma", "scale", "shift"):
            bound = bound if "bias" in name else 1 / math.sqrt(shape[0])
            piece.uniform_(-bound, bound, generator=draw)
        pieces.append(piece.flatten())
    return torch.cat(pieces)


def _check(
    layers: Tensor, hidden: int, labels: int, sides: int, width: int, dropouts: tuple[float, ...]
) -> None:  # fmt: skip
    if layers.dim() != 2 or layers.dtype != torch.bool or not len(layers):
        raise ShapeError(f"layers must be [probe, layer] bool, got {list(layers.shape)} {layers.dtype}")
    if not layers.any(1).all():
        raise DataError(f"probe {int(layers.any(1).int().argmin())} reads no layer: give each probe one or more")
    if min(hidden, labels, width) < 1 or sides not in (1, 2):
        raise DataError(
            f"hidden, labels and width must be 1 or more and sides 1 or 2, got {hidden}, {labels}, {width} and {sides}"
        )
    if not all(0 <= share < 1 for share in dropouts):
        raise DataError(f"dropout must be from 0 to less than 1, got {dropouts[0]} and {dropouts[1]}")
