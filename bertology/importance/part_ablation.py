"""What does the model lose without one MLP, or without one block?"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from ..anatomy.blocks import BlockAnatomy, blocks_of
from ..anatomy.dissect import dissect
from ..anatomy.mlps import dissect_mlps
from ..anatomy.sites import Anatomy
from ..data.batches import Batch, Batches, BatchesOrTexts, run_model
from ..data.caches import has_cache
from ..data.losses import ExampleLoss
from ..data.make_batches import as_batches
from ..data.metrics import GenerationMetric, Metric, MetricName, metric_name
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
from ..tap.branches import Seen
from ..tap.skipped import mlps_closed, skipping
from ..tap.variants import BlockVariants, MlpVariants, Variants
from .many_gates import BranchAccumulator
from .score import LossAccumulator, scorer

Part = Literal["mlp", "block"]


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


class PartAccumulator(BranchAccumulator):
    """Runs every batch without each MLP, or without each block."""

    def __init__(self, part: Part, metric: str | Metric, loss: ExampleLoss | None = None) -> None:
        super().__init__(metric, loss)
        self._part = part

    def part_of(self, anatomy: Anatomy) -> Anatomy:
        """The MLPs or the blocks."""
        return parts_of(anatomy, self._part)

    def variants(self, anatomy: Anatomy) -> tuple[Variants, Tensor]:
        """In each variant one part is left out."""
        parts = self.part_of(anatomy)
        gates = (1 - torch.eye(parts.layers))[:, :, None]
        if isinstance(parts, BlockAnatomy):
            return BlockVariants(anatomy, parts), gates
        return MlpVariants(anatomy, parts), gates

    @property
    def present(self) -> Tensor:
        """[layer, 1], bool: all parts."""
        return torch.ones(self.anatomy.layers, 1, dtype=torch.bool)

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Record the pass of the model itself, unless the batch has a cache, with which no pass can be resumed."""
        if not has_cache(batch):
            with super().watch(batch):
                yield
            return
        with ExitStack() as self._recording:
            yield

    def each(self, batch: Batch, base: Seen, outputs: Any) -> Iterator[tuple[Tensor, Seen]]:
        """Run the batch without each part: from the start, where it has a cache."""
        if not has_cache(batch):
            yield from super().each(batch, base, outputs)
            return
        for row in range(self.anatomy.layers):
            with left_out(self.anatomy, row) as ran:
                changed = run_model(self.anatomy.model, batch, labels=self.needs_labels)
            self._ran[list(ran)] = True
            yield torch.tensor([row]), self._look(changed, batch, 1)


def parts_of(anatomy: Anatomy, part: Part) -> Anatomy:
    """The MLPs or the blocks of a model."""
    return dissect_mlps(anatomy) if part == "mlp" else blocks_of(anatomy)


def left_out(parts: Anatomy, row: int) -> AbstractContextManager[set[int]]:
    """Leave out an MLP or a block while the `with` lasts; the set that is given holds its row once it has run."""
    return skipping(parts, {row}) if isinstance(parts, BlockAnatomy) else mlps_closed(parts, {row})


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

    What its down projection returns, bias included, is replaced by 0: the gate of the whole MLP is closed. The blocks
    before the ablated MLP run only once, so that each ablation costs about half a forward pass.

    Args:
        model: a model with a task head, whose MLPs `dissect_mlps` finds; it is edited while it runs, and never changed.
        batches: the data that is scored: one mapping of model arguments with labels, or an iterable of them; or texts
            with labels (see `make_batches`).
        metric: as in `score`: a metric by name, "inverse_loss" (for language models), or `f(logits, labels) -> float`.
            For a metric of logits, the logits of all examples are kept for each MLP; for "inverse_loss", none are kept.
            With a `GenerationMetric`, the model generates from all examples once for each MLP.
        loss: `f(outputs, batch) -> [batch]`; by default that of the task head.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar over batches, with a `GenerationMetric` over MLPs, or its title; no bar
            without it.
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
    return _ablated(model, batches, "mlp", metric, loss, tokenizer, progress)


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

    A block that is skipped passes on what it gets. The blocks before it run only once, so that each ablation costs
    about half a forward pass.

    Args:
        model: a model with a task head whose blocks are modules; it is edited while it runs, and never changed.
        batches: as in `mlp_ablation`.
        metric: as in `mlp_ablation`.
        loss: `f(outputs, batch) -> [batch]`; by default that of the task head.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar over batches, with a `GenerationMetric` over blocks, or its title; no bar
            without it.
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
    return _ablated(model, batches, "block", metric, loss, tokenizer, progress)


def _ablated(
    model: nn.Module, given: BatchesOrTexts, part: Part, metric: MetricName | Metric, loss: ExampleLoss | None,
    tokenizer: Any, progress: Progress,
) -> PartAblation:  # fmt: skip
    """Score the whole model, and the model without each part."""
    parts = parts_of(dissect(model), part)
    batches = as_batches(model, given, tokenizer, sort=False)
    if isinstance(metric, GenerationMetric):
        scores, losses = _generation_scores(model, batches, parts, metric, loss, progress)
    else:
        found = accumulate(model, batches, PartAccumulator(part, metric, loss), progress=progress)[0]
        without = found.laid_out(found.scores)[:, 0], found.laid_out(found.losses)[:, 0]
        scores, losses = (
            torch.cat([x[:1], rest]) for x, rest in zip((found.scores, found.losses), without, strict=True)
        )
    apart = losses[1:] - losses[0]
    return PartAblation(
        scores[1:] - scores[0], apart.mean(1), standard_error(apart), float(scores[0]), float(losses[0].mean()), part,
        metric_name(metric), losses.shape[1], parts.labels, model_name=model_name(model),
    )  # fmt: skip


def _generation_scores(
    model: nn.Module, given: Batches, parts: Anatomy, metric: GenerationMetric, loss: ExampleLoss | None,
    progress: Progress,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """[variant] and [variant, example]: scores and losses, of the whole model in row 0, by a pass for each part."""
    batches = same_data(given, why="a GenerationMetric")
    base, whole = accumulate(model, batches, scorer(metric), ExampleLossAccumulator(loss))
    scores, losses = [base.value], [whole.losses]
    for row in progress_bar(progress, range(parts.layers)):
        with left_out(parts, row) as ran:
            score, found = accumulate(model, batches, scorer(metric), ExampleLossAccumulator(loss, ran))
        scores.append(score.value if found.ran else torch.nan)
        losses.append(found.losses.masked_fill(torch.tensor(not found.ran), torch.nan))
    return torch.tensor(scores, dtype=torch.float64), torch.stack(losses)
