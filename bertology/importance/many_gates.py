"""Many sets of gates in one pass over the data, each from the layer where it changes something."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from dataclasses import replace as dataclass_replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.sites import Anatomy
from ..data.batches import (
    Batch,
    Batches,
    BatchesOrTexts,
    with_labels,
    without_labels,
)
from ..data.caches import check_no_cache
from ..data.losses import ExampleLoss, TokenLoss, example_losses
from ..data.make_batches import as_batches
from ..data.metrics import GenerationMetric, Metric, find_metric, measured, metric_name
from ..errors import DataError
from ..measures.head_means import head_means
from ..results.axes import axes
from ..results.result import Result
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import Accumulator
from ..streaming.identity import identity
from ..streaming.progress import Progress, progress_bar
from ..streaming.same_data import same_data
from ..tap import uncached
from ..tap.branches import Branches, Seen
from ..tap.gates import Replacement, ablated, check_replacement
from ..tap.variants import HeadVariants, Variants
from .score import INVERSE_LOSS, predictions, score

NAN = float("nan")
B = TypeVar("B", bound="BranchAccumulator")


@dataclass(frozen=True, eq=False, repr=False)
class VariantScores(Result):
    """The scores of the full model, in row 0, and under each set of gates, in the rows after it."""

    main: ClassVar[str | None] = "scores"

    scores: Annotated[Tensor, axes("variant")]
    """[variant]: the metric."""
    losses: Annotated[Tensor, axes("variant example")]
    """[variant, example]: the loss of every example."""
    logits: Annotated[Tensor, axes("variant row label")]
    """[variant, row, label]: the logits for the metric; empty if the metric is computed from losses."""
    truths: Annotated[Tensor, axes("row")]
    """[row]: the labels."""
    example_of: Annotated[Tensor, axes("row")]
    """[row], int64: the example that a row belongs to."""
    present: Annotated[Tensor, axes("layer head", words="1: the head is there", scale="share")]
    """[layer, head], bool: which heads exist, that is, were not pruned."""
    ran: Annotated[Tensor, axes("layer")]
    """[layer], bool: which layers ran."""
    metric: str
    """The name of the metric."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: as in every result."""

    def laid_out(self, values: Tensor) -> Tensor:
        """[layer, head, ...]: `values` [variant, ...] with one variant per head; NaN for pruned heads, and for layers
        that did not run."""
        wide = values[1:].to(torch.promote_types(values.dtype, torch.float32))
        laid = wide.new_full((*self.present.shape, *values.shape[1:]), NAN)
        laid[self.present] = wide
        laid[~self.ran] = NAN
        return laid


class BranchAccumulator(Accumulator):
    """Runs every batch under many sets of gates. It runs the model itself, and cannot share a pass with others."""

    needs_finite_weights = True
    by_example = True

    _loss: ExampleLoss

    def __init__(self, metric: str | Metric, loss: ExampleLoss | None = None) -> None:
        self._own = loss
        self._metric = None if metric == INVERSE_LOSS else find_metric(metric)
        self._name = metric_name(metric)
        self.needs_labels = loss is not None

    @abstractmethod
    def variants(self, anatomy: Anatomy) -> tuple[Variants, Tensor]:
        """What is varied in a model, and the gates [variant, layer, unit] of all variants."""

    @property
    @abstractmethod
    def present(self) -> Tensor:
        """[layer, unit], bool: what there is a variant of, in the order of variants."""

    def zero(self: B, anatomy: Anatomy) -> B:
        """Reset the results, and find the loss before the model runs."""
        self.choose_loss(anatomy, self._own)
        self._variants, self._gates = self.variants(anatomy)
        states = self._look_at_states if self._metric is None and isinstance(self._loss, TokenLoss) else None
        self._branches = Branches(self._variants, self._inputs, self._look, states)
        self._kept: list[Seen] = []
        self._ran = torch.zeros(self._gates.shape[1], dtype=torch.bool)
        return super().zero(anatomy)

    def check_batch(self, batch: Batch) -> None:
        """Check the loss on the first example."""
        with uncached(self.anatomy.model):
            super().check_batch(batch)

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Record the pass of the model itself."""
        check_no_cache(batch, why="a batch is run in several copies at once")
        self.start_batch(batch)
        with uncached(self.anatomy.model), ExitStack() as self._recording:
            self._record = self._recording.enter_context(self._branches.recorded(batch))
            yield
        del self._record

    def start_batch(self, batch: Batch) -> None:
        """Get ready for a batch, before the model runs on it."""

    def update(self, batch: Batch, outputs: Any) -> None:
        """Run the batch under all gates, and keep losses and logits."""
        self._recording.close()
        base = self._look(outputs, batch, 1)
        self.check_values(base.losses[0])
        # Gates that change nothing give the results of the full model.
        losses, logits = (torch.cat([x] * (1 + len(self._gates))) for x in base[:2])
        for some, seen in self.each(batch, base, outputs):
            losses[1 + some], logits[1 + some] = seen.losses, seen.logits
        before = sum(seen.losses.shape[1] for seen in self._kept)
        self._kept.append(Seen(losses, logits, base.truths, base.example_of + before))

    def each(self, batch: Batch, base: Seen, outputs: Any) -> Iterator[tuple[Tensor, Seen]]:
        """Run the batch, whose pass was recorded, under all gates; yield numbers of variants, and their results."""
        self._ran[list(self._variants.ran(self._record))] = True
        yield from self._branches.each(self._record, base, batch, self._gates, outputs)

    def _inputs(self, batch: Batch) -> Batch:
        return (
            with_labels(self.anatomy.model, batch) if self.needs_labels else without_labels(self.anatomy.model, batch)
        )

    def _look(self, outputs: Any, batch: Batch, copies: int) -> Seen:
        losses = example_losses(self._loss, outputs, batch).detach().double().cpu().reshape(copies, -1)
        if self._metric is None:
            return _only(losses)
        found = predictions(self.anatomy.model, outputs, batch)
        logits = found.logits.detach().cpu()
        rows = len(logits) // copies
        logits = logits.reshape(copies, rows, *logits.shape[1:])
        return Seen(losses, logits, found.labels[:rows].cpu(), found.example[:rows].cpu())

    def _look_at_states(self, outputs: Any, batch: Batch, copies: int, layer: nn.Module) -> Seen:
        """The same, without logits, of the states before the output layer."""
        assert isinstance(self._loss, TokenLoss)
        losses = example_losses(partial(self._loss.of_states, layer=layer), outputs, batch)
        return _only(losses.detach().double().cpu().reshape(copies, -1))

    def state(self) -> dict[str, Tensor]:
        """All losses and logits so far."""
        kept = {name: torch.empty(0) for name in Seen._fields}
        if self._kept:
            axes = (1, 1, 0, 0)
            joined = (torch.cat(x, axis) for x, axis in zip(zip(*self._kept, strict=True), axes, strict=True))
            kept = dict(zip(Seen._fields, joined, strict=True))
        return super().state() | kept | {"ran": self._ran}

    def merge(self: B, other: dict[str, Tensor]) -> B:
        """Append the examples of the other accumulator."""
        before = sum(seen.losses.shape[1] for seen in self._kept)
        if other["losses"].numel():
            seen = Seen(*(other[name] for name in Seen._fields))
            self._kept.append(seen._replace(example_of=seen.example_of + before))
        self._ran = self._ran | other["ran"]
        return super().merge(other)

    def compute(self) -> VariantScores:
        """Score the model and each of its variants."""
        self.check_measured(len(self._kept), "example")
        state = self.state()
        losses, logits, truths, example_of = (state[name] for name in Seen._fields)
        if self._metric is None:
            scores = 1 / losses.mean(1)
        else:
            values = [measured(self._metric, one, truths, losses.shape[1]) for one in logits]
            scores = torch.tensor(values, dtype=torch.float64)
        labels = self.anatomy.labels
        return VariantScores(scores, losses, logits, truths, example_of, self.present, self._ran, self._name, labels)


class VariantAccumulator(BranchAccumulator):
    """Runs every batch under many sets of gates of heads."""

    def __init__(
        self,
        make_gates: Callable[[Anatomy], Tensor],
        metric: str | Metric,
        loss: ExampleLoss | None = None,
        replace: Tensor | str | Replacement = "zero",
        seed: int = 0,
    ) -> None:
        super().__init__(metric, loss)
        self._make_gates, self._replace, self._seed = make_gates, replace, seed

    def zero(self, anatomy: Anatomy) -> VariantAccumulator:
        """Reset the results. Raises `DataError` for a model without heads."""
        if not anatomy.present.any():
            raise DataError("there is no head to ablate: all heads of this model were pruned")
        return super().zero(anatomy)

    def variants(self, anatomy: Anatomy) -> tuple[Variants, Tensor]:
        """Heads and their gates."""
        gates, given = self._make_gates(anatomy), self._replace
        if not isinstance(given, Replacement):
            given = Replacement(anatomy, check_replacement(anatomy, given), self._seed)
        self._replacement = given
        return HeadVariants(anatomy, given), gates

    @property
    def present(self) -> Tensor:
        """[layer, head], bool: the heads that were not pruned."""
        return self.anatomy.present

    def settings(self) -> str:
        """The metric, the loss, the gates and the replacement of heads."""
        digest = hashlib.sha256(self._gates.numpy().tobytes())
        if isinstance(self._replace, Tensor):
            digest.update(self._replace.detach().double().cpu().numpy().tobytes())
        replaced = self._replacement.name
        return f"{identity(self._metric)} {identity(self._own)} {replaced} {self._seed} {digest.hexdigest()}"

    def start_batch(self, batch: Batch) -> None:
        """Let the replacement look at the batch."""
        self._replacement.start_batch(batch, self._inputs)


def _only(losses: Tensor) -> Seen:
    return Seen(losses, torch.empty(len(losses), 0), torch.empty(0), torch.empty(0, dtype=torch.long))


def score_variants(
    model: nn.Module,
    given: BatchesOrTexts,
    make_gates: Callable[[Anatomy], Tensor],
    *,
    metric: str | Metric,
    replace: str | Tensor | Replacement,
    loss: ExampleLoss | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Progress = None,
    tokenizer: Any = None,
) -> VariantScores:
    """Score a model under sets of gates; the means of heads, if needed, are computed over the same data."""
    batches: Batches = as_batches(model, given, tokenizer, sort=False)
    if isinstance(metric, GenerationMetric):
        batches = same_data(batches, why="a GenerationMetric")
        scores = _generation_scores(model, batches, make_gates, metric, replace, progress)
        found = score_variants(
            model, batches, make_gates, metric=INVERSE_LOSS, replace=replace, loss=loss, seed=seed,
            checkpoint=checkpoint, progress=progress,
        )  # fmt: skip
        return dataclass_replace(found, scores=scores, metric=metric_name(metric))
    if isinstance(replace, str) and replace == "mean":
        batches = same_data(batches, why="replace='mean'")
        # Check everything before the means are computed.
        VariantAccumulator(make_gates, metric, loss).zero(dissect(model))
        replace = _own_means(model, batches)
    accumulator = VariantAccumulator(make_gates, metric, loss, replace, seed)
    return accumulate(model, batches, accumulator, checkpoint=checkpoint, progress=progress)[0]


def _own_means(model: nn.Module, batches: Batches) -> Tensor:
    """[layer, head, dim]: the means of heads over these data; 0 for layers that do not run, which nothing replaces."""
    means = head_means(model, batches)
    return means.values.masked_fill((means.tokens == 0)[:, None, None], 0.0)


def _generation_scores(
    model: nn.Module, batches: Batches, make_gates: Callable[[Anatomy], Tensor], metric: GenerationMetric,
    replace: str | Tensor | Replacement, progress: Progress,
) -> Tensor:  # fmt: skip
    """[variant]: the metric of what the whole model generates, and the model under each set of gates."""
    anatomy = dissect(model)
    if isinstance(replace, Replacement):
        raise DataError("corrupted= is not possible with a GenerationMetric, whose texts become longer token by token")
    check_replacement(anatomy, replace)
    if isinstance(replace, str) and replace not in ("zero", "mean"):
        raise DataError(f"replace={replace!r} is not possible with a GenerationMetric: take 'zero', 'mean' or a tensor")
    whole = score(model, batches, metric=metric).value
    if isinstance(replace, str) and replace == "mean":
        replace = _own_means(model, batches)
    values = [whole]
    for gates in progress_bar(progress, make_gates(anatomy)):
        off = [(row, head) for row, head in (anatomy.present & (gates == 0)).nonzero().tolist()]
        with ablated(model, off, replace=replace):  # type: ignore[arg-type]
            values.append(score(model, batches, metric=metric).value if off else whole)
    return torch.tensor(values, dtype=torch.float64)
