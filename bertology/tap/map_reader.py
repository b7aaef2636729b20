"""A reader of attention maps: what it reads, and how many query rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..anatomy.sites import Site
from .arriving import Arriving
from .calls import Calls
from .recompute import of_first_run

Reader = Callable[[Site, Tensor, slice], Any]


@dataclass(frozen=True, eq=False)
class Reading:
    """A reader, the sites that it reads, and in what form: "attention", "norms" or "entropy", in blocks or whole."""

    calls: Calls[Site]
    read: Reader
    what: str
    rows: int | None
    whole: bool
    arriving: Arriving | None = None

    def weighed(self, site: Site, weights: Tensor, rows: slice, value: Tensor | None) -> Tensor:
        """The weights of a block, or, for a reader of norms, |α f(x)| with the values of all keys."""
        if self.arriving is None or not self.calls.count:
            return weights
        return self.arriving.weighed(site, weights, value, rows)

    def give(self, site: Site, weights: Tensor, rows: slice, entropies: Tensor | None = None) -> None:
        """Give the reader a block of attention weights, or their entropies; not of a part that runs again."""
        if not self.calls.count:
            return
        if self.what != "entropy":
            self.read(site, weights, rows)
        else:
            found = of_first_run(attention_entropies)(weights) if entropies is None else entropies
            self.read(site, found, rows)


def attention_entropies(weights: Tensor) -> Tensor:
    """[..., query]: -Σ p ln p over the last axis of attention weights `[..., query, key]`, with 0 ln 0 = 0."""
    wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
    return torch.special.entr(wide).sum(-1)
