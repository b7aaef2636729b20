"""Results of patching: what each head or each layer carries of the difference between two inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from ..errors import DataError, checked, how_many
from ..results.axes import axes
from ..results.result import Result
from ..results.statistics import Interval, bootstrap_sums, percentile_interval


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Patching(Result):
    """What all results of patching have in common.

    The effect of a part is (m - m_into) / (m_from - m_into), of the means over examples of the metric m: of the patched
    run, of the run that is patched, and of the run whose activations are put in. Into the corrupted run, 0 is the
    corrupted run and 1 the clean one.
    """

    main: ClassVar[str | None] = "effect"

    clean: Annotated[Tensor, axes("example")]
    """[example]: the metric of the clean run."""
    corrupted: Annotated[Tensor, axes("example")]
    """[example]: the metric of the corrupted run."""
    metric: str
    """What was measured."""
    into: str
    """Which run was patched, with activations of the other: "corrupted" or "clean"."""
    steps: int | None
    """None where every patch was run; otherwise the steps of integrated gradients, 0 for the gradient alone."""
    examples: int
    """How many pairs of inputs there were."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""

    tokens: Annotated[tuple[str, ...] | None, axes("token")] = None
    """[token]: the tokens of the first clean input that were patched alone; the positions that were asked for if its
    tokens are not known, and None without positions."""

    effect: Tensor
    patched: Tensor

    @property
    def gap(self) -> float:
        """The mean metric of the clean run minus that of the corrupted one."""
        return float(self.clean.mean() - self.corrupted.mean())

    @checked
    def interval(self, level: float = 0.95, *, resamples: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
        """The lower and upper ends of the effects: percentiles of a bootstrap over the pairs of inputs.

        Raises `DataError` for a level that is not between 0 and 1, and for fewer than 1 resamples.
        """
        return percentile_interval(self._drawn(resamples, seed), level)

    @checked
    def correlation(self, other: Patching) -> float:
        """Pearson's r between the effects here and in another result, over all heads or layers that both have.

        Raises `DataError` where the two are not of the same parts, and where r is not defined.
        """
        self._check_alike(other)
        r = float(_correlations(self.effect[None], other.effect[None])[0])
        if r != r:
            raise DataError("no correlation: all parts have the same effect in one of the two")
        return r

    @checked
    def correlation_interval(
        self, other: Patching, level: float = 0.95, *, resamples: int = 1000, seed: int = 0
    ) -> Interval:
        """The ends of a bootstrap interval of `correlation`: the same pairs of inputs are drawn for both results.

        Raises `DataError` as `correlation`, and where the two are not of the same number of pairs.
        """
        self._check_alike(other)
        if other.examples != self.examples:
            raise DataError(
                f"both must be of the same inputs, got {self.examples} and {how_many(other.examples, 'example')}"
            )
        drawn = _correlations(self._drawn(resamples, seed), other._drawn(resamples, seed))
        low, high = percentile_interval(drawn, level)
        return float(low), float(high)

    def _check_alike(self, other: Patching) -> None:
        if type(self) is not type(other) or self.effect.shape != other.effect.shape:
            raise DataError(
                f"both results must be of the same parts of one model, got {type(self).__name__} "
                f"{list(self.effect.shape)} and {type(other).__name__} {list(other.effect.shape)}"
            )

    def _drawn(self, resamples: int, seed: int) -> Tensor:
        """[draw, ...]: the effects of the parts over resampled pairs."""
        sums = bootstrap_sums(self.patched, self.clean, self.corrupted, resamples=resamples, seed=seed)
        patched, clean, corrupted = sums
        base, source = (corrupted, clean) if self.into == "corrupted" else (clean, corrupted)
        wide = [-1] + [1] * (patched.dim() - 1)
        return (patched - base.view(wide)) / (source - base).view(wide)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class HeadPatching(Patching):
    """How much of the difference between two inputs each head carries.

    NaN for pruned heads, for layers that did not run, and for heads that were not asked for.
    """

    effect: Annotated[Tensor, axes("layer head", words="share of the difference in the metric", scale="signed")]
    """[layer, head]: the effect of the head at all positions that were patched; NaN for pruned heads."""
    patched: Annotated[Tensor, axes("layer head example")]
    """[layer, head, example]: the metric with the head's output put in; where it was not run, its estimate."""
    token_effect: Annotated[Tensor | None, axes("layer head token")] = None
    """[layer, head, token]: the effect of the head at each token alone; None without `by_token=True`."""

    def _heading(self) -> str:
        what = "Head patching" if self.steps is None else "Estimated head patching"
        return f"{what} into the {self.into} run"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class LayerPatching(Patching):
    """How much of the difference between two inputs each layer carries."""

    effect: Annotated[Tensor, axes("layer")]
    """[layer]: the effect of the layer at all positions that were patched; NaN for layers that did not run."""
    patched: Annotated[Tensor, axes("layer example")]
    """[layer, example]: the metric with the layer's output put in; where it was not run, its estimate."""
    parts: str
    """What was put in: "attentions", all heads of a layer, "mlps", or "blocks", the hidden states after each block."""
    token_effect: Annotated[
        Tensor | None, axes("layer token", words="share of the difference in the metric", scale="signed")
    ] = None
    """[layer, token]: the effect of the layer at each token alone; None without `by_token=True`."""


def _correlations(one: Tensor, other: Tensor) -> Tensor:
    """[draw]: Pearson's r between values [draw, ...], over the elements that both have."""
    x, y = one.flatten(1).double(), other.flatten(1).double()
    there = ~(x.isnan() | y.isnan()).any(0)
    x, y = (v[:, there] - v[:, there].mean(1, keepdim=True) for v in (x, y))
    return (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))
