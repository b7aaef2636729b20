"""What does the model lose without one MLP, or without one block?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ..anatomy.blocks import blocks_of
from ..anatomy.dissect import dissect
from ..anatomy.mlps import dissect_mlps
from ..anatomy.sites import Anatomy, Site
from ..data.batches import BatchesOrTexts
from ..data.losses import ExampleLoss
from ..data.make_batches import as_batches
from ..data.metrics import Metric, MetricName, metric_name
from ..errors import checked
from ..results.axes import axes
from ..results.fields import model_name
from ..results.result import Result
from ..results.statistics import standard_error
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import stat
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress, progress_bar
from ..streaming.same_data import same_data
from ..tap import tap
from ..tap.skipped import skipping
from .score import LossAccumulator, scorer


@dataclass(frozen=True, eq=False, repr=False)
class PartAblation(Result):
    """What a model loses without one of its parts, for each part: an MLP, or a whole block."""

    main = "change"

    change: Annotated[Tensor, axes("layer", words="change of the metric without it", scale="signed")]
    """[layer]: the metric without the part minus that of the whole model; below 0 the part helps. NaN for parts that do
    not run, such as those of an image tower in batches of text."""
    loss_change: Annotated[Tensor, axes("layer", words="change of the loss without it", scale="signed")]
    """[layer]: the mean loss without the part minus that of the whole model; above 0 the part helps. NaN as above."""
    loss_stderr: Annotated[Tensor, axes("layer", words="standard error of the change of the loss")]
    """[layer]: the standard error of `loss_change` over examples, each compared with itself; infinite for one."""
    base: float
    """The whole model's metric."""
    base_loss: float
    """The whole model's mean loss."""
    part: str
    """What was ablated: "mlp" or "block"."""
    metric: str
    """What was measured."""
    examples: int
    """How many examples were averaged over."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: the parts, `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks."""

    def _heading(self) -> str:
        return {"mlp": "MLP ablation", "block": "Block ablation"}.get(self.part, super()._heading())


@dataclass(frozen=True, eq=False, repr=False)
class ExampleLosses(Result):
    """The loss of each example of a data set."""

    losses: Annotated[Tensor, axes("example")]
    """[example]: the loss of every example."""
    labels: tuple[str, ...] = ()
    ran: bool = False
    """Whether a part that was looked at ran in any batch."""


class ExampleLossAccumulator(LossAccumulator):
    """Keeps the loss of every example, for `accumulate`. Merging appends them.

    `ran` holds the parts that ran up to now, of those that are looked at: what did not run in any process is told.
    """

    by_example = True

    runs: Tensor = stat("", torch.int64)

    def __init__(self, loss: ExampleLoss | None = None, ran: Collection[int] = ()) -> None:
        super().__init__(loss)
        self._ran = ran

    def settings(self) -> str:
        """The loss. What ran is found while the model runs, and differs between processes."""
        return super().settings()

    def forget(self, anatomy: Anatomy, device: torch.device) -> None:
        """Forget all examples."""
        self._losses: list[Tensor] = []
        super().forget(anatomy, device)

    def add(self, losses: Tensor) -> None:
        """Keep the batch's losses."""
        self._losses.append(losses.double().cpu())
        self.runs += len(self._ran)

    def state(self) -> dict[str, Tensor]:
        """All losses up to now."""
        losses = torch.cat(self._losses) if self._losses else torch.empty(0, dtype=torch.float64)
        return super().state() | {"losses": losses}

    def merge(self, other: dict[str, Tensor]) -> ExampleLossAccumulator:
        """Append the other's losses to ours."""
        self._losses.append(other["losses"])
        return super().merge(other)

    def compute(self) -> ExampleLosses:
        """All losses, in the order of the examples."""
        self.check_measured(self.examples, "example")
        return ExampleLosses(torch.cat(self._losses), ran=bool(self.runs))


Without = Callable[[], AbstractContextManager[set[int]]]
"""Takes a part out of the model while the `with` lasts; the set that it gives holds its row once it has run."""


@merges
@checked
def mlp_ablation(
    model: nn.Module,
    batches: BatchesOrTexts,
    *,
    metric: MetricName | Metric,
    loss: ExampleLoss | None = None,
    tokenizer: Any = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> PartAblation:
    """Remove one MLP at a time, and measure how the metric and the loss change.

    What its down projection returns, bias included, is replaced by 0: the gate of the whole MLP is closed. There is one
    pass over the data for each MLP.

    Args:
        model: a model with a task head, whose MLPs `dissect_mlps` finds; it is edited while it runs, and never changed.
        batches: the data that is scored: one mapping of model arguments with labels, or an iterable of them (not an
            iterator: it is gone over for every MLP); or texts with labels (see `make_batches`).
        metric: as in `score`: a metric by name, "inverse_loss" (for language models), or `f(logits, labels) -> float`.
        loss: `f(outputs, batch) -> [batch]`; by default that of the task head.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar over MLPs, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `UnknownAnatomy` for a model without MLPs of known form, and the errors of `score`.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, hidden_size=24, intermediate_size=64)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "labels": torch.tensor([1, 0])}
        >>> mlp_ablation(model, batch, metric="accuracy").change.shape
        torch.Size([2])
    """
    mlps = dissect_mlps(model)
    return _ablated(
        model, batches, [partial(_closed, mlps, row) for row in range(mlps.layers)], mlps.labels, "mlp", metric=metric,
        loss=loss, tokenizer=tokenizer, progress=progress,
    )  # fmt: skip


@contextmanager
def _closed(mlps: Anatomy, row: int) -> Iterator[set[int]]:
    """Close the gate of one MLP while the `with` lasts."""
    ran: set[int] = set()

    def edit(site: Site, x: Tensor) -> Tensor:
        if site.row != row:
            return x
        ran.add(row)
        return torch.zeros_like(x)

    with tap(mlps, "mlp", edit=edit):
        yield ran


@merges
@checked
def block_ablation(
    model: nn.Module,
    batches: BatchesOrTexts,
    *,
    metric: MetricName | Metric,
    loss: ExampleLoss | None = None,
    tokenizer: Any = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> PartAblation:
    """Skip one block at a time, and measure how the metric and the loss change.

    A block that is skipped passes on what it gets. There is one pass over the data for each block.

    Args:
        model: a model with a task head whose blocks are modules; it is edited while it runs, and never changed.
        batches: as in `mlp_ablation`.
        metric: as in `score`: a metric by name, "inverse_loss" (for language models), or `f(logits, labels) -> float`.
        loss: `f(outputs, batch) -> [batch]`; by default that of the task head.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar over blocks, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `UnknownAnatomy` for a model in which no module is a block (XLM), `ShapeError` for a block that returns
    another number of tokens than it gets, and the errors of `score`.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "labels": torch.tensor([1, 0])}
        >>> block_ablation(model, batch, metric="accuracy").part
        'block'
    """
    blocks = blocks_of(dissect(model))
    return _ablated(
        model, batches, [partial(skipping, blocks, {row}) for row in range(blocks.layers)], blocks.labels, "block",
        metric=metric, loss=loss, tokenizer=tokenizer, progress=progress,
    )  # fmt: skip


def _ablated(
    model: nn.Module, given: BatchesOrTexts, parts: Sequence[Without], labels: tuple[str, ...], part: str, *,
    metric: MetricName | Metric, loss: ExampleLoss | None, tokenizer: Any, progress: Progress,
) -> PartAblation:  # fmt: skip
    """Score the whole model, and the model without each of these parts."""
    batches = as_batches(model, given, tokenizer, sort=False)
    batches = same_data(batches, why=f"{part}_ablation")
    base, whole = accumulate(model, batches, scorer(metric, loss), ExampleLossAccumulator(loss))
    scores, losses = [], []
    for without in progress_bar(progress, parts):
        with without() as ran:
            score, found = accumulate(model, batches, scorer(metric, loss), ExampleLossAccumulator(loss, ran))
        scores.append(score.value if found.ran else torch.nan)
        losses.append((found.losses - whole.losses).masked_fill(torch.tensor(not found.ran), torch.nan))
    apart = torch.stack(losses)
    change = torch.tensor(scores, dtype=torch.float64) - base.value
    return PartAblation(
        change, apart.mean(1), standard_error(apart), base.value, float(whole.losses.mean()), part, metric_name(metric),
        len(whole.losses), labels, model_name=model_name(model),
    )  # fmt: skip
