"""What is the mean output of each head?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ..anatomy.sites import Anatomy, Site
from ..data.batches import Batch, BatchesOrTexts
from ..data.padding import real_positions
from ..errors import checked
from ..results.axes import axes
from ..results.result import Result, cpu64
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import Accumulator, stat
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress
from ..tap import tap


@dataclass(frozen=True, eq=False, repr=False)
class HeadMeans(Result):
    """Each head's mean output over the real tokens of a data set."""

    instead_of_plot: ClassVar[str] = (
        "plot.over_layers({'norm': result.values.norm(dim=-1)}, result.labels, unit='norm') draws their norms"
    )

    values: Annotated[Tensor, axes("layer head dim")]
    """[layer, head, dim]: what `ablated(replace=...)` takes; NaN for pruned heads, and beyond a head's own width."""
    tokens: Annotated[Tensor, axes("layer")]
    """[layer], int64: how many real tokens were averaged over."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""


class MeansAccumulator(Accumulator):
    """Sums every head's output over real tokens, for `accumulate`."""

    needs_finite_weights = True

    total: Tensor = stat("layer head dim")
    tokens: Tensor = stat("layer", torch.int64)

    def zero(self, anatomy: Anatomy) -> MeansAccumulator:
        """Forget everything."""
        return super().zero(anatomy)

    def sizes(self) -> dict[str, int]:
        """The widest head's width."""
        return {"dim": max(site.dim for site in self.anatomy.sites)}

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Add the outputs at real tokens."""

        def read(site: Site, x: Tensor) -> None:
            some = x[real_positions(self.anatomy, batch, site.stack, *x.shape[:2]).to(x.device)]
            total = some.sum(0, dtype=torch.float64).to(self.total.device)
            self.total[site.row, list(site.kept), : site.dim] += total
            self.tokens[site.row] += len(some)

        with tap(self.anatomy, "heads", read=read):
            yield

    def update(self, batch: Batch, outputs: Any) -> None:
        """Nothing is left to do."""

    def compute(self) -> HeadMeans:
        """Divide."""
        self.check_measured(self.tokens, "real token")
        tokens = self.tokens.cpu()
        values = cpu64(self.total) / tokens[:, None, None]
        for site in self.anatomy.sites:
            values[site.row, :, site.dim :] = float("nan")
        values[~self.anatomy.present] = float("nan")
        return HeadMeans(values, tokens, self.anatomy.labels)


@merges
@checked
def head_means(
    model: nn.Module, batches: BatchesOrTexts, *, tokenizer: Any = None, progress: Progress = None, merge: Merge = "all"
) -> HeadMeans:
    """Average every head's output over the real tokens of a data set.

    The means are what a head is replaced by in a mean ablation: `ablated(model, heads, replace=means.values)`.

    Args:
        model: any model with attention heads; measured in eval mode, left as it was found.
        batches: one mapping of model arguments, or an iterable of them; or texts (see `make_batches`).
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for batches that cannot be used, `UnknownAnatomy` where heads cannot be read.

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> head_means(model, {"input_ids": torch.tensor([[5, 6, 7]])}).values.shape
        torch.Size([2, 4, 8])
    """
    return accumulate(model, batches, MeansAccumulator(), tokenizer=tokenizer, progress=progress)[0]
