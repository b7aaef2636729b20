"""Which heads are alike?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from .anatomy.sites import Head, head_at
from .errors import DataError, HeadError, need
from .results.result import Result

Reduce = Literal["mean", "sum"]
Linkage = Literal["average", "complete", "single"]


@dataclass(frozen=True, eq=False, repr=False)
class HeadDistances(Result):
    """How far apart the attention of every two heads is, over a data set (Clark et al. 2019, §6).

    The rows of `js` are all heads of all layers, layer by layer: head h of layer l is row `l * heads_per_layer + h`.
    """

    _by_layer: ClassVar = ("queries",)

    js: Tensor
    """[head, head], nats: 0 is the same attention, ln 2 no key in common; NaN for pruned heads and across stacks."""
    queries: Tensor
    """[layer]: the real query tokens that were compared."""
    heads_per_layer: int
    """How many rows of `js` each layer has: the heads of the widest, before pruning."""
    labels: tuple[str, ...]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""
    smoothing: float = 0.0
    """How much of each row of attention was spread over all keys alike."""
    reduce: Reduce = "mean"
    """Whether `js` is the mean over all query tokens, or their sum."""

    @property
    def heads(self) -> list[Head]:
        """The name of each row of `js`, pruned heads included."""
        return [head_at(self.labels, row, h) for row in range(len(self.labels)) for h in range(self.heads_per_layer)]

    def between(self, a: Head | tuple[int, int], b: Head | tuple[int, int]) -> float:
        """The distance of two heads, given as `Head`s or (layer, head) pairs; NaN where they have none.

        Raises `HeadError` for a head that is not in this result.
        """
        return self.js[self._row(a), self._row(b)].item()

    def stack(self, name: str) -> HeadDistances:
        """Only the heads of one stack, "encoder", "decoder" or "cross", of a model with several."""
        cut = super().stack(name)
        rows = [row for row in range(len(self.js)) if self.labels[row // self.heads_per_layer] in cut.labels]
        return replace(cut, js=self.js[rows][:, rows])

    def embed(self, dims: int = 2, *, seed: int = 0) -> Tensor:
        """[head, dim]: a point for each head, such that points are as far apart as heads are, as nearly as can be.

        Metric multidimensional scaling of `js` itself, as in the paper's Figure 6: the best of five starts
        (extra `syntax`). NaN for pruned heads. Only distances mean anything: a picture may be turned and mirrored.

        Raises `DataError` for fewer heads than `dims` + 1, and where heads have no distance, as across stacks.
        """
        there, js = self._compared()
        if not 1 <= dims < len(js):
            raise DataError(f"dims must be from 1 to {len(js) - 1}, one less than the {len(js)} heads, got {dims!r}")
        points, _ = need("sklearn.manifold", extra="syntax").smacof(
            js.numpy(), metric=True, n_components=dims, n_init=5, n_jobs=1, max_iter=1000, eps=1e-10,
            random_state=seed, normalized_stress=False,
        )  # fmt: skip
        out = torch.full((len(self.js), dims), float("nan"), dtype=torch.float64)
        out[there] = torch.from_numpy(points)
        return out

    def clusters(self, k: int, *, linkage: Linkage = "average") -> Tensor:
        """[layer, head], int64: which of `k` clusters each head is in, numbered by their first heads; -1 for pruned.

        Agglomerative clustering (extra `syntax`): the two clusters that are nearest become one, until `k` are left.
        How far apart two clusters are is the "average", the largest ("complete") or the smallest ("single") distance
        between their heads.

        Raises `DataError` for `k` out of range, and where heads have no distance, as across stacks.
        """
        if linkage not in get_args(Linkage):
            raise DataError(f"linkage must be 'average', 'complete' or 'single', got {linkage!r}")
        there, js = self._compared()
        if not 1 <= k <= len(js):
            raise DataError(f"k must be from 1 to {len(js)}, the number of heads, got {k!r}")
        found = [0] * len(js)
        if len(js) > 1:
            kind = need("sklearn.cluster", extra="syntax").AgglomerativeClustering
            found = kind(n_clusters=k, metric="precomputed", linkage=linkage).fit_predict(js.numpy()).tolist()
        numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(found))}
        out = torch.full((len(self.js),), -1)
        out[there] = torch.tensor([numbers[cluster] for cluster in found])
        return out.view(-1, self.heads_per_layer)

    def __str__(self) -> str:
        within, across = self._by_layers()
        lines = [
            f"HeadDistances: {int(self._there.sum())} heads, Jensen-Shannon distance in nats, "
            f"{self.reduce} over query tokens" + (f", smoothing {self.smoothing:g}" if self.smoothing else ""),
            f"{'layer':>10}  {'within':>9}  {'to others':>9}  {'tokens':>9}",
        ]
        for row, label in enumerate(self.labels):
            means = (f"{x:9.4g}" if x == x else " " * 9 for x in (within[row].item(), across[row].item()))
            lines.append(f"{label:>10}  {'  '.join(means)}  {self.queries[row].item():9}")
        return "\n".join(lines)

    def _by_layers(self) -> tuple[Tensor, Tensor]:
        """[layer]: the mean distance between two heads of a layer, and from its heads to those of other layers."""
        layer = torch.arange(len(self.js)) // self.heads_per_layer
        same = layer[:, None] == layer
        own = self.js.masked_fill(~same, float("nan")).fill_diagonal_(float("nan"))
        other = self.js.masked_fill(same, float("nan"))
        return own.view(len(self.labels), -1).nanmean(1), other.view(len(self.labels), -1).nanmean(1)

    @property
    def _there(self) -> Tensor:
        """[head], bool: which heads were measured."""
        return ~self.js.diagonal().isnan()

    def _compared(self) -> tuple[Tensor, Tensor]:
        """Which heads were measured, and their distances; a `DataError` where some have none."""
        there = self._there
        js = self.js[there][:, there]
        if js.isnan().any():
            names = [head for head, is_there in zip(self.heads, there.tolist(), strict=True) if is_there]
            a, b = (names[row] for row in js.isnan().nonzero()[0].tolist())
            way = f": take .stack({a.stack!r}) or another stack first" if a.stack != b.stack else ""
            raise DataError(f"heads {a} and {b} do not attend between the same tokens and have no distance{way}")
        if len(js) == 0:
            raise DataError("no head is left in this result: there is nothing to compare")
        return there, js

    def _row(self, head: Head | tuple[int, int]) -> int:
        if isinstance(head, Head):
            rows = [row for row, one in enumerate(self.heads) if _is(head, one)]
            if len(rows) == 1:
                return rows[0]
            what = "in several stacks; say which" if rows else "not in this result"
            raise HeadError(f"head {head} is {what}: its layers are {', '.join(self.labels)}")
        layer, number = head
        if not (0 <= layer < len(self.labels) and 0 <= number < self.heads_per_layer):
            raise HeadError(
                f"head {number} of layer {layer} is out of range: this result has {len(self.labels)} layers of "
                f"{self.heads_per_layer} heads"
            )
        return layer * self.heads_per_layer + number


def _is(wanted: Head, one: Head) -> bool:
    return (wanted.layer, wanted.head) == (one.layer, one.head) and wanted.stack in ("", one.stack)
