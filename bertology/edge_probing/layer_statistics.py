"""At which layers does a model solve a task?

The statistics of Tenney et al. (2019), §3, from the F1 of cumulative probes and the mixing weights of the full probe.
The equations take any leading axes; `layer_statistics` combines them for a task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ..errors import DataError, ShapeError, checked, how_many, need
from ..results.axes import axes
from ..results.result import Result, cpu64

__all__ = [
    "LEAST_GAIN",
    "LayerStatistics",
    "centre_of_gravity",
    "differential",
    "expected_layer",
    "kl_from_uniform_bits",
    "kl_of_differential",
    "layer_statistics",
    "t_interval",
]

LEAST_GAIN = 0.01
"""The least gain of F1 from layer 0 to the last layer for which the expected layer is defined: one percentage point."""
_ROUNDING = 1e-9


def differential(f1: Tensor) -> Tensor:
    """[..., layer]: how much each layer adds to F1, Δ_ℓ = F_ℓ - F_ℓ₋₁ (Eq 3); may be negative, and is NaN at layer 0.

    >>> differential(torch.tensor([0.5, 0.75, 0.625])).tolist()
    [nan, 0.25, -0.125]
    """
    scores = checked_f1(f1)
    return torch.cat([torch.full_like(scores[..., :1], torch.nan), scores.diff(dim=-1)], dim=-1)


def expected_layer(f1: Tensor, *, least_gain: float = LEAST_GAIN) -> Tensor:
    """[...]: the expected layer Σ ℓ Δ_ℓ / Σ Δ_ℓ over ℓ from 1 to L, Δ unclipped (Eq 4), of F1 [..., layer].

    NaN when F1 gains less than `least_gain`, and when the value would be outside of 1 to L: see `layer_statistics`.

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
    """[...], bits: `kl_from_uniform_bits` of max(Δ, 0) over layers 1 to L, normalized to sum to 1, of F1 [..., layer].

    NaN when no layer adds anything.

    >>> kl_of_differential(torch.tensor([0.5, 0.75, 1.0])).item()
    0.0
    """
    added = checked_f1(f1).diff(dim=-1).clamp_min(0)
    total = added.sum(-1, keepdim=True)
    even = torch.full_like(added, 1 / added.shape[-1])
    bits = kl_from_uniform_bits(torch.where(total > 0, added / total, even))
    return bits.where(total[..., 0] > 0, torch.full_like(bits, torch.nan))


def t_interval(values: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """The lower and upper ends of Student's t-interval of the mean over the first axis of [seed, ...] (extra `stats`).

    Both are NaN for a single seed. Raises `DataError` for a level that is not between 0 and 1.

        >>> [round(end.item(), 3) for end in t_interval(torch.tensor([4.0, 5.0, 6.0]))]
        [2.516, 7.484]
    """
    if not 0 < level < 1:
        raise DataError(f"level must be the confidence level of the interval, between 0 and 1, got {level}")
    values, many = cpu64(values), len(values)
    if many < 2:
        return (torch.full_like(values.mean(0), torch.nan),) * 2
    quantile = need("scipy.stats", extra="stats").t.ppf((1 + level) / 2, many - 1)
    mean, half = values.mean(0), float(quantile) * values.std(0) / math.sqrt(many)
    return mean - half, mean + half


def unchecked_expected_layer(f1: Tensor) -> Tensor:
    """[...]: `expected_layer` without its checks."""
    added = f1.diff(dim=-1)
    return (added * torch.arange(1, f1.shape[-1])).sum(-1) / gain_of(f1)


def gain_of(f1: Tensor) -> Tensor:
    """[...]: how much all layers add to the F1 of layer 0."""
    return f1[..., -1] - f1[..., 0]


def is_layer(expected: Tensor, last: int) -> Tensor:
    """Whether the value is from 1 to the last layer; false for NaN."""
    return (expected >= 1 - _ROUNDING) & (expected <= last + _ROUNDING)


def checked_f1(f1: Tensor) -> Tensor:
    """F1 in float64, checked."""
    scores = _layers(f1, "f1", least=2)
    if not ((scores >= 0) & (scores <= 1)).all():
        raise DataError(
            f"f1 must be from 0 to 1, got values from {scores.min():.4g} to {scores.max():.4g}: "
            "divide percentages by 100, and look for probes that diverged"
        )
    return scores


def checked_mix(mix: Tensor) -> Tensor:
    """Mixing weights in float64, checked."""
    weights = _layers(mix, "mix", least=1)
    sums = weights.sum(-1)
    if not ((weights >= 0).all() and ((sums - 1).abs() < 1e-4).all()):
        raise DataError(
            "mixing weights must be 0 or more and sum to 1, "
            f"got sums from {sums.min():.4g} to {sums.max():.4g} and a least weight of {weights.min():.4g}: "
            "pass them after the softmax, without the factor γ"
        )
    return weights


def checked_gain(least_gain: float) -> float:
    """A gain of F1, checked."""
    if not 0 < least_gain < 1:
        raise DataError(f"least_gain must be a gain of F1 between 0 and 1, got {least_gain}")
    return least_gain


def _layers(values: Tensor, name: str, least: int) -> Tensor:
    if values.dim() == 0 or values.shape[-1] < least or values.numel() == 0:
        raise ShapeError(
            f"{name} must be [..., layer] with {how_many(least, 'layer')} or more, got {list(values.shape)}"
        )
    return cpu64(values).clone()


@dataclass(frozen=True, eq=False, repr=False)
class LayerStatistics(Result):
    """At which layers of a model one task is solved: for each training seed, and the mean over seeds (the properties).

    Layer 0 is the lexical layer, below the model's L layers. An expected layer that is not defined is NaN, and `why`
    has the reason. A mean over seeds is NaN if the value of one seed is NaN.
    """

    main: ClassVar[str | None] = "f1"

    f1: Annotated[Tensor, axes("seed layer")]
    """[seed, layer], 0 to 1: F1 of the cumulative probes, which read layers 0 to this one."""
    mix: Annotated[Tensor, axes("seed layer")]
    """[seed, layer]: the mixing weights of the probe that reads all layers; they sum to 1. NaN if not given."""
    differential: Annotated[Tensor, axes("seed layer", scale="signed")]
    """[seed, layer]: how much each layer adds to the F1 of the layer below (Eq 3); may be negative. NaN at layer 0."""
    expected_layers: Annotated[Tensor, axes("seed", unit="layers")]
    """[seed], layers from 1 to L: the mean layer, weighted by the differential scores (Eq 4); NaN if not defined."""
    centres: Annotated[Tensor, axes("seed", unit="layers")]
    """[seed], layers from 0 to L: the mean layer, weighted by the mixing weights (Eq 2)."""
    mix_bits: Annotated[Tensor, axes("seed", unit="bits")]
    """[seed], bits: how far the mixing weights are from uniform over L + 1 layers, K(s)."""
    differential_bits: Annotated[Tensor, axes("seed", unit="bits")]
    """[seed], bits: how far the differential scores, clipped at 0 and normalized to sum to 1, are from uniform over the
    L layers above 0, K(Δ); NaN when no layer adds anything."""
    why: Annotated[tuple[str, ...], axes("seed")]
    """[seed]: why the expected layer is not defined; empty if it is defined."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..."""

    @property
    def expected_layer(self) -> float:
        """The mean of `expected_layers` over seeds."""
        return self.expected_layers.mean().item()

    @property
    def centre_of_gravity(self) -> float:
        """The mean of `centres` over seeds."""
        return self.centres.mean().item()

    @property
    def kl_of_mix(self) -> float:
        """The mean of `mix_bits` over seeds."""
        return self.mix_bits.mean().item()

    @property
    def kl_of_differential(self) -> float:
        """The mean of `differential_bits` over seeds."""
        return self.differential_bits.mean().item()

    @property
    def gain(self) -> float:
        """How much all layers add to the F1 of layer 0, mean over seeds. The expected layer divides by it."""
        return (self.f1[:, -1] - self.f1[:, 0]).mean().item()

    @property
    def headroom(self) -> float:
        """1 minus the F1 of all layers, mean over seeds: what no layer adds."""
        return (1 - self.f1[:, -1]).mean().item()

    @checked
    def interval(self, field: str, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """The lower and upper ends of the interval for a field's mean over seeds: [layer] or scalars (extra `stats`).

        This is Student's t-interval. It covers the variation between seeds, not between data sets. It is NaN with one
        seed, and with two seeds it is so wide that its ends may be impossible values.
        Raises `DataError` for a name that is not a tensor field.
        """
        names = [name for name, value in vars(self).items() if isinstance(value, Tensor)]
        if field not in names:
            raise DataError(f"field must be one of {', '.join(names)}, got {field!r}")
        return t_interval(getattr(self, field), level)

    def __str__(self) -> str:
        first, last = (f"{100 * self.f1[:, layer].mean():.1f}" for layer in (0, -1))
        seeds = f", mean of {how_many(len(self.f1), 'seed')} with standard deviation" if len(self.f1) > 1 else ""
        lines = [f"F1 {first} at layer 0, {last} at layer {self.labels[-1]}{seeds}"]
        if math.isnan(self.expected_layer):
            lines.append(f"expected layer undefined: {next(filter(None, self.why))}")
        else:
            lines.append(f"expected layer {_spread(self.expected_layers)}")
        lines.append(f"KL of the differential scores from uniform {_spread(self.differential_bits)} bits")
        if not self.mix.isnan().any():
            lines.append(f"centre of gravity {_spread(self.centres)}")
            lines.append(f"KL of the mixing weights from uniform {_spread(self.mix_bits)} bits")
        return "\n".join(lines)


@checked
def layer_statistics(f1: Tensor, mix: Tensor | None = None, *, least_gain: float = LEAST_GAIN) -> LayerStatistics:
    """Summarize at which layers one task is solved (Tenney et al. 2019, §3, Eq 2 to 4).

    The expected layer divides by the gain F_L - F_0, so it is not meaningful when the gain is small. It is NaN, with a
    reason, for a seed whose gain is less than `least_gain` or whose expected layer is outside of 1 to L, and for all
    seeds if their mean gain is less than twice its standard error over seeds.

    Args:
        f1: [layer] or [seed, layer], 0 to 1: F1 of the probes that read layers 0 to each layer, layer 0 first.
        mix: [layer] or [seed, layer]: the mixing weights of the probe that reads all layers, after the softmax and
            without the factor γ.
        least_gain: between 0 and 1.

    Raises `ShapeError` for other shapes, `DataError` for values that cannot be F1, weights or a gain.

        >>> import torch
        >>> found = layer_statistics(torch.tensor([0.5, 0.5, 0.8, 0.9]), torch.tensor([0.1, 0.2, 0.3, 0.4]))
        >>> round(found.expected_layer, 2), round(found.centre_of_gravity, 2)
        (2.25, 2.0)
        >>> print(layer_statistics(torch.tensor([0.5, 0.6, 0.501])))
        F1 50.0 at layer 0, 50.1 at layer 2
        expected layer undefined: F1 gains 0.0010 from layer 0 to 2, less than 0.01
        KL of the differential scores from uniform 1.00 bits
    """
    scores = _rows(checked_f1(f1), "f1")
    weights = torch.full_like(scores, torch.nan) if mix is None else _rows(checked_mix(mix), "mix")
    if weights.shape != scores.shape:
        raise ShapeError(f"mix must be [seed, layer] = {list(scores.shape)} as f1 is, got {list(weights.shape)}")
    why = _why(scores, checked_gain(least_gain))
    defined = torch.tensor([not reason for reason in why])
    unknown = torch.full_like(scores[:, 0], torch.nan)
    return LayerStatistics(
        f1=scores,
        mix=weights,
        differential=differential(scores),
        expected_layers=unchecked_expected_layer(scores).where(defined, unknown),
        centres=unknown if mix is None else centre_of_gravity(weights),
        mix_bits=unknown if mix is None else kl_from_uniform_bits(weights),
        differential_bits=kl_of_differential(scores),
        why=why,
        labels=tuple(map(str, range(scores.shape[1]))),
    )


def _why(f1: Tensor, least_gain: float) -> tuple[str, ...]:
    """[seed]: why a seed has no expected layer; empty if it has one."""
    seeds, last = len(f1), f1.shape[1] - 1
    gains, expected = gain_of(f1), unchecked_expected_layer(f1)
    if seeds > 1 and gains.mean() < 2 * (error := gains.std().item() / math.sqrt(seeds)):
        text = f"F1 gains {gains.mean():.4f} from layer 0 to {last} on average over {how_many(seeds, 'seed')}"
        return (f"{text}, less than twice its standard error of {error:.4f}",) * seeds
    found = []
    for seed, (gain, layer) in enumerate(zip(gains.tolist(), expected.tolist(), strict=True)):
        of = f" with seed {seed}" if seeds > 1 else ""
        if gain < least_gain:
            found.append(f"F1 gains {gain:.4f} from layer 0 to {last}{of}, less than {least_gain}")
        elif not is_layer(expected[seed], last):
            found.append(f"it would be {layer:.1f}{of}, outside of layers 1 to {last}")
        else:
            found.append("")
    return tuple(found)


def _rows(values: Tensor, name: str) -> Tensor:
    if values.dim() > 2:
        raise ShapeError(f"{name} must be [layer] or [seed, layer], got {list(values.shape)}")
    return values if values.dim() == 2 else values[None]


def _spread(values: Tensor) -> str:
    """The mean over seeds, and the standard deviation if there are several."""
    return f"{values.mean():.2f}" + (f" ± {values.std():.2f}" if len(values) > 1 else "")
