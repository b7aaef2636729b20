"""What do a probe's F1 and mixing weights say of layers, equation by equation?

Tenney et al. (2019), §3. The functions take any leading axes; `layer_statistics` puts them together for a task.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import DataError, ShapeError, need
from ...results.result import cpu64

LEAST_GAIN = 0.01
"""The gain of F1 from layer 0 to the last below which no expected layer is given: one point in a hundred."""
_ROUNDING = 1e-9


def differential(f1: Tensor) -> Tensor:
    """[..., layer]: how much each layer adds, Δ_ℓ = F_ℓ - F_ℓ₋₁ (Eq 3), also below 0; NaN at layer 0, which has none.

    >>> differential(torch.tensor([0.5, 0.75, 0.625])).tolist()
    [nan, 0.25, -0.125]
    """
    scores = checked_f1(f1)
    return torch.cat([torch.full_like(scores[..., :1], torch.nan), scores.diff(dim=-1)], dim=-1)


def expected_layer(f1: Tensor, *, least_gain: float = LEAST_GAIN) -> Tensor:
    """[...]: the expected layer Σ ℓ Δ_ℓ / Σ Δ_ℓ over ℓ from 1 to L, Δ unclipped (Eq 4), of F1 [..., layer].

    NaN where it means nothing: where F1 gains less than `least_gain`, and where it would be outside of 1 to L.
    `layer_statistics` says why.

    >>> expected_layer(torch.tensor([0.5, 0.75, 1.0])).item()
    1.5
    """
    scores = checked_f1(f1)
    found = unchecked_expected_layer(scores)
    means = (gain_of(scores) >= checked_gain(least_gain)) & is_layer(found, scores.shape[-1] - 1)
    return found.where(means, torch.full_like(found, torch.nan))


def centre_of_gravity(mix: Tensor) -> Tensor:
    """[...]: the mean layer Σ ℓ s_ℓ over ℓ from 0 to L (Eq 2), of mixing weights [..., layer] after the softmax.

    >>> centre_of_gravity(torch.tensor([0.25, 0.25, 0.5])).item()
    1.25
    """
    weights = checked_mix(mix)
    return (weights * torch.arange(weights.shape[-1])).sum(-1)


def kl_from_uniform_bits(weights: Tensor) -> Tensor:
    """[...], bits: KL(s ‖ uniform) over the last axis of weights [..., layer] that sum to 1; log₂ n at most.

    >>> kl_from_uniform_bits(torch.tensor([0.0, 1.0, 0.0, 0.0])).item()
    2.0
    """
    shares = checked_mix(weights)
    return torch.special.xlogy(shares, shares * shares.shape[-1]).sum(-1) / math.log(2)


def kl_of_differential(f1: Tensor) -> Tensor:
    """[...], bits: `kl_from_uniform_bits` over layers 1 to L of max(Δ, 0), made to sum to 1, of F1 [..., layer].

    NaN where no layer adds anything.

    >>> kl_of_differential(torch.tensor([0.5, 0.75, 1.0])).item()
    0.0
    """
    added = checked_f1(f1).diff(dim=-1).clamp_min(0)
    total = added.sum(-1, keepdim=True)
    even = torch.full_like(added, 1 / added.shape[-1])
    bits = kl_from_uniform_bits(torch.where(total > 0, added / total, even))
    return bits.where(total[..., 0] > 0, torch.full_like(bits, torch.nan))


def t_interval(values: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """The ends of Student's t-interval of the mean over the first axis of [seed, ...] (extra `stats`); NaN of one seed.

    >>> [round(end.item(), 3) for end in t_interval(torch.tensor([4.0, 5.0, 6.0]))]
    [2.516, 7.484]
    """
    if not 0 < level < 1:
        raise DataError(f"level is the share of intervals that hold the truth, between 0 and 1, got {level}")
    values, many = cpu64(values), len(values)
    if many < 2:
        return (torch.full_like(values.mean(0), torch.nan),) * 2
    quantile = need("scipy.stats", extra="stats").t.ppf((1 + level) / 2, many - 1)
    mean, half = values.mean(0), float(quantile) * values.std(0) / math.sqrt(many)
    return mean - half, mean + half


def unchecked_expected_layer(f1: Tensor) -> Tensor:
    """[...]: `expected_layer`, whatever it may mean."""
    added = f1.diff(dim=-1)
    return (added * torch.arange(1, f1.shape[-1])).sum(-1) / gain_of(f1)


def gain_of(f1: Tensor) -> Tensor:
    """[...]: how much F1 all layers add to that of layer 0."""
    return f1[..., -1] - f1[..., 0]


def is_layer(expected: Tensor, last: int) -> Tensor:
    """Whether it is a layer from 1 to the last; NaN is not."""
    return (expected >= 1 - _ROUNDING) & (expected <= last + _ROUNDING)


def checked_f1(f1: Tensor) -> Tensor:
    """F1 in float64, checked."""
    scores = _layers(f1, "f1", least=2)
    if not ((scores >= 0) & (scores <= 1)).all():
        raise DataError(
            f"f1 is a share from 0 to 1, got values from {scores.min():.4g} to {scores.max():.4g}: "
            "divide percentages by 100, and look for probes that diverged"
        )
    return scores


def checked_mix(mix: Tensor) -> Tensor:
    """Mixing weights in float64, checked."""
    weights = _layers(mix, "mix", least=1)
    sums = weights.sum(-1)
    if not ((weights >= 0).all() and ((sums - 1).abs() < 1e-4).all()):
        raise DataError(
            "mixing weights are 0 or more and sum to 1: pass them after the softmax, without the factor γ; "
            f"got sums from {sums.min():.4g} to {sums.max():.4g} and a least weight of {weights.min():.4g}"
        )
    return weights


def checked_gain(least_gain: float) -> float:
    """A gain of F1, checked."""
    if not 0 < least_gain < 1:
        raise DataError(f"least_gain is a gain of F1, a share between 0 and 1, got {least_gain}")
    return least_gain


def _layers(values: Tensor, name: str, least: int) -> Tensor:
    if values.dim() == 0 or values.shape[-1] < least or values.numel() == 0:
        raise ShapeError(f"{name} must be [..., layer] with {least} layers or more, got {list(values.shape)}")
    return cpu64(values).clone()
