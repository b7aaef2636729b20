"""Is the change of a metric more than chance?

Two models are compared on the same examples, so all tests are paired. The t-test, McNemar's test and the correction of
Benjamini and Hochberg are scipy's (extra `stats`), which has none of Holm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..anatomy.sites import Head, heads_where
from ..data.metrics import METRICS, Metric, number_of
from ..errors import DataError, checked, need
from ..results.axes import axes
from ..results.result import Result
from ..results.statistics import bootstrap_draws, check_resamples
from .score import INVERSE_LOSS

Test = Literal["t", "mcnemar", "bootstrap"]
Of = Literal["metric", "loss"]
Correction = Literal["holm", "bh"] | None


@dataclass(frozen=True, eq=False, repr=False)
class Significance(Result):
    """How likely a change at least this large is by chance, for each head that was tested."""

    p: Annotated[Tensor, axes("layer head", words="p-value, corrected", scale="p-value")]
    """[layer, head]: the p-value, corrected for the number of heads that were tested; NaN for all others."""
    uncorrected: Annotated[Tensor, axes("layer head", words="p-value", scale="p-value")]
    """[layer, head]: the p-value of each head alone."""
    test: str
    """Which test: "t", "mcnemar" or "bootstrap"."""
    of: str
    """What was tested: "loss", "right" (whether examples are) or the metric's name."""
    correction: str | None
    """For how many heads were tested: "holm" (family-wise error), "bh" (false discovery rate) or None."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""

    @checked
    def heads(self, alpha: float = 0.01) -> list[Head]:
        """The heads whose change is significant at a level."""
        return heads_where(self.labels, self.p < alpha)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class PairedResult(Result):
    """The part of a result that compares ablated models with the whole model on the same examples.

    Each position of `[layer, head]` is one ablated model.
    """

    losses: Annotated[Tensor, axes("layer head example")]
    """[layer, head, example]: every example's loss in the ablated model."""
    base_losses: Annotated[Tensor, axes("example")]
    """[example]: every example's loss in the whole model."""
    logits: Annotated[Tensor, axes("layer head row label")]
    """[layer, head, row, label]: what the metric saw of the ablated model; empty for a metric of losses."""
    base_logits: Annotated[Tensor, axes("row label")]
    """[row, label]: what the metric saw of the whole model."""
    truths: Annotated[Tensor, axes("row")]
    """[row]: the labels that the metric saw."""
    example_of: Annotated[Tensor, axes("row")]
    """[row], int64: which example a row belongs to."""
    metric: str
    """What was measured."""
    replace: str
    """What replaced the output of the ablated heads: "zero", "mean", "resample" or "given"."""
    examples: int
    """How many examples were measured."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""

    def _tested(self) -> Tensor:
        """[layer, head], bool: the heads whose change is tested."""
        raise NotImplementedError

    @checked
    def significance(
        self,
        test: Test = "bootstrap",
        *,
        of: Of = "metric",
        correction: Correction = "holm",
        metric: Metric | None = None,
        resamples: int | None = None,
        seed: int = 0,
    ) -> Significance:
        """Test for each head whether the change is more than chance (extra `stats`, but for the default test).

        Args:
            test: "bootstrap", of the metric or the loss, over resampled examples; "t", a paired t-test on the
                examples' losses, or on whether they are right (the share of right labels in an example of several);
                "mcnemar", exact, on whether they are right.
            of: what changed: the "metric" or the "loss".
            correction: for the number of heads: "holm", "bh" (Benjamini-Hochberg) or None.
            metric: the metric itself, for the bootstrap to call, if it is not one of GLUE's.
            resamples: the number of bootstrap resamples; by default 1,000, and 400 for each head that p is
                corrected for: with fewer, no p could be below 0.01, however large the effect.
            seed: the seed of the bootstrap.

        Raises `DataError` for tests that do not fit the metric, `MissingExtra` without scipy.
        """
        check_correction(correction)
        there = self._tested()
        if resamples is None:
            # The least p of so many draws is 2 / (draws + 1), which the correction multiplies by the number of heads.
            resamples = max(1000, 400 * int(there.sum()) if correction else 0)
        p = torch.full(there.shape, float("nan"), dtype=torch.float64)
        p[there], tested = _Pairs(self, there).p_values(test, of, metric, resamples, seed)
        return Significance(
            corrected(p, correction), p, test, tested, correction, self.labels,
            model_name=self.model_name, n_examples=self.examples,
        )  # fmt: skip


class _Pairs:
    """Some ablated models of a result, each paired with the whole model."""

    def __init__(self, result: PairedResult, there: Tensor) -> None:
        self.losses, self.base_losses = result.losses[there], result.base_losses  # [variant, example] and [example]
        self.logits, self.base_logits = result.logits[there], result.base_logits  # [variant, row, label], [row, label]
        self.truths, self.example_of, self.metric = result.truths, result.example_of, result.metric

    def p_values(self, test: Test, of: Of, metric: Metric | None, resamples: int, seed: int) -> tuple[Tensor, str]:
        """[variant]: p-values, and what was tested."""
        if test not in ("t", "mcnemar", "bootstrap") or of not in ("metric", "loss"):
            raise DataError(f"wanted test='t', 'mcnemar' or 'bootstrap', of='metric' or 'loss', got {test!r} of {of!r}")
        check_resamples(resamples)
        if of == "metric" and not self.logits.numel() and self.metric != INVERSE_LOSS:
            raise DataError(f"{self.metric!r} is a metric of generated texts, which were not kept: take of='loss'")
        by_loss = of == "loss" or not self.logits.numel()
        examples = len(self.base_losses)
        if test == "mcnemar":
            if by_loss or not self._one_row_each():
                raise DataError("McNemar's test is about one label an example being right: take 't' or 'bootstrap'")
            return mcnemar(self._right(self.logits), self._right(self.base_logits)), "right"
        if by_loss:
            changes = self.losses - self.base_losses
        elif test == "t" or (self.metric == "accuracy" and self._one_row_each()):
            changes = self._change_of_right()
        else:
            score = metric or self._known()
            return bootstrap(lambda drawn: self._changes(score, drawn), examples, resamples, seed), self.metric
        if test == "t":
            return t_test(changes), "loss" if by_loss else "right"
        p = bootstrap(lambda drawn: changes[:, drawn].mean(1), examples, resamples, seed)
        return p, "loss" if by_loss else self.metric

    def _known(self) -> Metric:
        if self.metric not in METRICS:
            raise DataError(
                f"the bootstrap computes the metric again: pass metric=, the function {self.metric!r} itself"
            )
        return METRICS[self.metric]

    def _right(self, logits: Tensor) -> Tensor:
        """[..., row], bool."""
        if self.truths.is_floating_point() or self.truths.dim() != 1 or self.base_logits.dim() != 2:
            raise DataError("this test needs classes that are right or wrong, got other labels: take of='loss'")
        return logits.argmax(-1) == self.truths

    def _change_of_right(self) -> Tensor:
        """[variant, example]: how much larger the share of an example's labels that are right is than in the model."""
        change = self._right(self.logits).double() - self._right(self.base_logits).double()
        rows = torch.zeros(len(self.base_losses), dtype=change.dtype).index_add(
            0, self.example_of, change.new_ones(change.shape[1])
        )
        return change.new_zeros(len(change), len(rows)).index_add(1, self.example_of, change) / rows.clamp_min(1)

    def _changes(self, score: Metric, examples: Tensor) -> Tensor:
        """[variant]: how much the score changes over these examples."""
        if self._one_row_each():
            rows = examples
        else:
            order = self.example_of.argsort(stable=True)
            ends = self.example_of.bincount(minlength=len(self.base_losses)).cumsum(0)
            starts = [0, *ends.tolist()]
            rows = torch.cat([order[starts[i] : starts[i + 1]] for i in examples.tolist()])
        truths = self.truths[rows]
        base = number_of(score, self.base_logits[rows], truths)
        return torch.tensor([number_of(score, some[rows], truths) - base for some in self.logits], dtype=torch.float64)

    def _one_row_each(self) -> bool:
        return torch.equal(self.example_of, torch.arange(len(self.base_losses)))


def t_test(differences: Tensor) -> Tensor:
    """[variant]: two-sided p of a paired t-test on differences [variant, example]; 1 where nothing differs."""
    n = differences.shape[1]
    if n < 2:
        raise DataError(f"a t-test wants two examples or more, got {n}")
    mean, spread = differences.mean(1), differences.std(1)
    t = mean / (spread / n**0.5)
    p = torch.from_numpy(need("scipy.stats", extra="stats").t.sf(t.abs().numpy(), n - 1)) * 2
    # Where every example differs by the same, t is infinite: p is 0; where none differs, p is 1.
    return torch.where((differences == 0).all(1), torch.ones_like(p), p)


def mcnemar(right: Tensor, base: Tensor) -> Tensor:
    """[variant]: two-sided exact p that as many of the examples [variant, example] turned right as turned wrong."""
    gained = (right & ~base).sum(1).double()
    lost = (~right & base).sum(1).double()
    binomial = need("scipy.stats", extra="stats").binom
    p = 2 * torch.from_numpy(binomial.cdf(torch.minimum(gained, lost).numpy(), (gained + lost).numpy(), 0.5))
    return p.clamp_max(1)


def bootstrap(change: Callable[[Tensor], Tensor], examples: int, resamples: int, seed: int) -> Tensor:
    """[variant]: two-sided p of a paired bootstrap (Koehn 2004).

    `change` returns the changes [variant] over resampled examples, given as indices [example]. p is twice the share of
    draws in which the change is 0 or of the rarer sign, counting one draw more so that p is never 0.
    """
    changes = torch.stack([change(drawn) for some in bootstrap_draws(examples, resamples, seed) for drawn in some])
    rarer = torch.minimum((changes <= 0).sum(0), (changes >= 0).sum(0))
    return (2 * (rarer + 1).double() / (resamples + 1)).clamp_max(1)


def corrected(p: Tensor, how: Correction) -> Tensor:
    """p-values corrected for their number: "holm" (Holm 1979) or "bh" (Benjamini and Hochberg 1995); NaN stays."""
    there = ~p.isnan()
    if how is None or not there.any():
        return p
    found = p.clone()
    if how == "bh":
        found[there] = torch.from_numpy(need("scipy.stats", extra="stats").false_discovery_control(p[there].numpy()))
    else:
        values, order = p[there].sort()
        values = (values * torch.arange(len(values), 0, -1)).cummax(0)[0]
        found[there] = values.clamp_max(1)[order.argsort()]
    return found


def check_correction(how: Correction) -> None:
    """Raise `DataError` for an unknown correction, `MissingExtra` for that of scipy without scipy."""
    if how not in ("holm", "bh", None):
        raise DataError(f"correction takes 'holm', 'bh' or None, got {how!r}")
    if how == "bh":
        need("scipy.stats", extra="stats")
