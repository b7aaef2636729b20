"""Is a change of a metric more than chance?

Two models are compared on the same examples, so all tests are paired. They need scipy (extra `stats`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .errors import DataError
from .head import Head, head_at
from .result import Result

Test = Literal["t", "mcnemar", "bootstrap"]
Correction = Literal["holm", "bh"] | None


@dataclass(frozen=True, eq=False, repr=False)
class Significance(Result):
    """How likely a change at least as large is by chance, for each head."""

    _by_layer: ClassVar = ("p", "uncorrected")

    p: Tensor
    """[layer, head]: the p-value, corrected for the number of heads; NaN where there is none."""
    uncorrected: Tensor
    """[layer, head]: the p-value of each head alone."""
    test: str
    """Which test: "t", "mcnemar" or "bootstrap"."""
    of: str
    """What changed: the metric's name, or "loss"."""
    correction: str | None
    """For how many heads were tested: "holm" (family-wise error), "bh" (false discovery rate) or None."""
    labels: tuple[str, ...]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""

    def heads(self, alpha: float = 0.01) -> list[Head]:
        """The heads whose change is significant at a level."""
        return [head_at(self.labels, row, head) for row, head in (self.p < alpha).nonzero().tolist()]


def t_test(differences: Tensor) -> Tensor:
    """[variant]: two-sided p of a paired t-test on differences [variant, example]; 1 where nothing differs."""
    n = differences.shape[1]
    if n < 2:
        raise DataError(f"a t-test wants two examples or more, got {n}")
    mean, spread = differences.mean(1), differences.std(1)
    t = mean / (spread / n**0.5)
    p = torch.from_numpy(_scipy().t.sf(t.abs().numpy(), n - 1)) * 2
    # Where every example differs by the same, t is infinite: p is 0; where none differs, p is 1.
    return torch.where((differences == 0).all(1), torch.ones_like(p), p)


def mcnemar(right: Tensor, base: Tensor) -> Tensor:
    """[variant]: two-sided exact p that as many of the examples [variant, example] turned right as turned wrong."""
    gained = (right & ~base).sum(1).double()
    lost = (~right & base).sum(1).double()
    p = 2 * torch.from_numpy(_scipy().binom.cdf(torch.minimum(gained, lost).numpy(), (gained + lost).numpy(), 0.5))
    return p.clamp_max(1)


def bootstrap(change: Callable[[Tensor], Tensor], examples: int, resamples: int, seed: int) -> Tensor:
    """[variant]: two-sided p of a paired bootstrap (Koehn 2004).

    `change` gives the changes [variant] over examples drawn again, [example] of their numbers. p is twice the share of
    draws in which the change is 0 or of the rarer sign, counting one draw more so that p is never 0.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [change(torch.randint(examples, (examples,), generator=generator)) for _ in range(resamples)]
    changes = torch.stack(draws)
    rarer = torch.minimum((changes <= 0).sum(0), (changes >= 0).sum(0))
    return (2 * (rarer + 1) / (resamples + 1)).clamp_max(1).double()


def corrected(p: Tensor, how: Correction) -> Tensor:
    """p-values corrected for their number: "holm" (Holm 1979) or "bh" (Benjamini and Hochberg 1995); NaN stays."""
    if how not in ("holm", "bh", None):
        raise DataError(f"correction takes 'holm', 'bh' or None, got {how!r}")
    there = ~p.isnan()
    values, order = p[there].sort()
    n = len(values)
    if how is None or n == 0:
        return p
    ranks = torch.arange(1, n + 1, dtype=values.dtype)
    if how == "holm":
        values = (values * (n + 1 - ranks)).cummax(0)[0]
    else:
        values = (values * n / ranks).flip(0).cummin(0)[0].flip(0)
    found = p.clone()
    found[there] = values.clamp_max(1)[order.argsort()]
    return found


def _scipy() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError("tests of significance need scipy: pip install 'bertology[stats]'") from error
    return stats
