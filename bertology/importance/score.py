"""How well does the model do its task?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy.names import DECODER_PREFIX, LABELS_ARGUMENT, LOGITS_OUTPUT
from ..anatomy.sites import Anatomy
from ..data.batches import IGNORED, Batch, BatchesOrTexts, examples, model_arguments, token_mask
from ..data.losses import (
    ExampleLoss,
    example_losses,
    is_causal,
    warn_if_it_sees_what_it_predicts,
    where_labels_are,
)
from ..data.metrics import GenerationMetric, Metric, MetricName, find_metric, measured, metric_name
from ..data.models import generated, is_encoder_decoder, task_model, writes
from ..data.outputs import check_token_labels, found, next_tokens, token_logits
from ..errors import DataError, LossError, checked, how_many
from ..results.result import Result
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import Accumulator, stat
from ..streaming.first_example import FirstExample
from ..streaming.identity import identity
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress

INVERSE_LOSS = "inverse_loss"


@dataclass(frozen=True, eq=False, repr=False)
class Score(Result):
    """The score of a model over a data set."""

    instead_of_plot: ClassVar[str] = "it is one number: print it"
    main: ClassVar[str | None] = "value"

    value: float
    """The metric, higher is better."""
    metric: str
    """What was measured."""
    examples: int
    """How many examples it was measured on."""
    labels: tuple[str, ...] = ()


class ScoreAccumulator(Accumulator):
    """Keeps logits and labels of all examples for a metric, for `accumulate`. Merging appends them."""

    needs_finite_weights = True

    examples: Tensor = stat("", torch.int64)

    @checked
    def __init__(self, metric: MetricName | Metric) -> None:
        self._metric = find_metric(metric)
        self._name = metric_name(metric)

    def zero(self, anatomy: Anatomy) -> ScoreAccumulator:
        """Forget everything."""
        self._alone = FirstExample(anatomy, lambda out, batch: predictions(anatomy.model, out, batch).logits)
        warn_if_it_sees_what_it_predicts(anatomy.model)
        return super().zero(anatomy)

    def forget(self, anatomy: Anatomy, device: torch.device) -> None:
        """Forget all examples."""
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []
        super().forget(anatomy, device)

    def update(self, batch: Batch, outputs: Any) -> None:
        """Keep the batch's logits and labels, on the CPU."""
        these = predictions(self.anatomy.model, outputs, batch)
        self.check_values(these.logits, these.example)
        self._logits.append(these.logits.detach().cpu())
        self._labels.append(these.labels.cpu())
        self.examples += examples(batch)

    def state(self) -> dict[str, Tensor]:
        """All logits and labels up to now."""
        empty = torch.empty(0)
        logits = torch.cat(self._logits) if self._logits else empty
        labels = torch.cat(self._labels) if self._labels else empty
        return super().state() | {"logits": logits, "labels": labels}

    def merge(self, other: dict[str, Tensor]) -> ScoreAccumulator:
        """Append the other's logits and labels to ours."""
        if other["logits"].numel():
            self._logits.append(other["logits"])
            self._labels.append(other["labels"])
        return super().merge(other)

    def compute(self) -> Score:
        """Apply the metric to all examples at once."""
        self.check_measured(self.examples, "example")
        value = measured(self._metric, torch.cat(self._logits), torch.cat(self._labels), int(self.examples))
        return Score(value, self._name, int(self.examples))


class GenerationAccumulator(Accumulator):
    """Generates from every batch, and keeps what was generated and the labels, for `accumulate`."""

    needs_finite_weights = True

    examples: Tensor = stat("", torch.int64)

    def __init__(self, metric: GenerationMetric) -> None:
        self._metric = metric

    def zero(self, anatomy: Anatomy) -> GenerationAccumulator:
        """Forget everything. Raises `DataError` for a model that does not generate from its labels' examples."""
        self._writer: Any = task_model(anatomy.model)
        if not writes(self._writer) or not hasattr(self._writer, "generate"):
            raise DataError(
                "a GenerationMetric needs an encoder-decoder model that generates, such as "
                f"BartForConditionalGeneration, got {type(self._writer).__name__}"
            )
        return super().zero(anatomy)

    def forget(self, anatomy: Anatomy, device: torch.device) -> None:
        """Forget all examples."""
        self._generated: list[Tensor] = []
        self._references: list[Tensor] = []
        super().forget(anatomy, device)

    def check_batch(self, batch: Batch) -> None:
        """Generate from the batch, without its labels: before other accumulators watch, which only watch one pass."""
        if batch.get(LABELS_ARGUMENT) is None:
            raise DataError("a GenerationMetric needs labels in every batch: they are the references")
        given = {
            name: x for name, x in model_arguments(batch).items()
            if name != LABELS_ARGUMENT and not name.startswith(DECODER_PREFIX)
        }  # fmt: skip
        written = generated(self.anatomy.model, **given, **self._metric.options).cpu()
        labels = batch[LABELS_ARGUMENT].cpu()
        if len(written) != len(labels):
            raise DataError(
                f"generate returned {len(written)} sequences for {how_many(len(labels), 'example')}: set "
                "num_return_sequences=1"
            )
        self._generated.append(self._until_end(written[:, 1:]))  # the first token is the decoder's start
        self._references.append(self._until_end(labels))
        self.examples += len(labels)

    def update(self, batch: Batch, outputs: Any) -> None:
        """Nothing: the outputs, at the tokens of the labels, are not looked at."""

    def _until_end(self, ids: Tensor) -> Tensor:
        """[example, token]: the tokens before the first end of a sequence, and -100 after them."""
        ends = self._metric.options.get("eos_token_id", self._writer.generation_config.eos_token_id)
        ended = torch.isin(ids, torch.as_tensor([] if ends is None else ends, dtype=ids.dtype)).cumsum(1) > 0
        return ids.masked_fill(ended, IGNORED)

    def state(self) -> dict[str, Tensor]:
        """All that was generated, and all references, up to now."""
        kept = {"generated": _padded(self._generated), "references": _padded(self._references)}
        return super().state() | kept

    def merge(self, other: dict[str, Tensor]) -> GenerationAccumulator:
        """Append the other's examples to ours."""
        if other["references"].numel():
            self._generated.append(other["generated"])
            self._references.append(other["references"])
        return super().merge(other)

    def compute(self) -> Score:
        """Apply the metric to all examples at once."""
        self.check_measured(self.examples, "example")
        state = self.state()
        metric, many = self._metric, int(self.examples)
        return Score(measured(metric, state["generated"], state["references"], many), metric_name(metric), many)


def _padded(batches: list[Tensor]) -> Tensor:
    """[example, token]: the token ids of some batches, with -100 after the shorter ones."""
    longest = max((x.shape[1] for x in batches), default=0)
    wide = [F.pad(x, (0, longest - x.shape[1]), value=IGNORED) for x in batches]
    return torch.cat(wide) if wide else torch.empty(0, 0, dtype=torch.int64)


L = TypeVar("L", bound="LossAccumulator")


class LossAccumulator(Accumulator):
    """A measure of the losses of examples, by the loss of the model's own task or another."""

    needs_finite_weights = True

    examples: Tensor = stat("", torch.int64)
    _loss: ExampleLoss

    def __init__(self, loss: ExampleLoss | None = None) -> None:
        self._own = loss
        self.needs_labels = loss is not None

    def settings(self) -> str:
        """The loss."""
        return identity(self._own)

    def zero(self: L, anatomy: Anatomy) -> L:
        """Forget everything; find the loss before any work is done."""
        self.choose_loss(anatomy, self._own)
        return super().zero(anatomy)

    def update(self, batch: Batch, outputs: Any) -> None:
        """Add the batch's losses."""
        losses = example_losses(self._loss, outputs, batch).detach()
        self.check_values(losses)
        self.add(losses)
        self.examples += examples(batch)

    def add(self, losses: Tensor) -> None:
        """Add the losses [example] of a batch to the sums."""
        raise NotImplementedError


class InverseLossAccumulator(LossAccumulator):
    """One over the mean loss of an example, for models whose predictions are too many to keep (language models)."""

    total: Tensor = stat("")

    def add(self, losses: Tensor) -> None:
        """Add their sum."""
        self.total += losses.to(self.total.device).sum(dtype=torch.float64)

    def compute(self) -> Score:
        """Divide."""
        self.check_measured(self.examples, "example")
        return Score((self.examples / self.total).item(), INVERSE_LOSS, int(self.examples))


class Predictions(NamedTuple):
    """The logits and labels of a batch that are scored."""

    logits: Tensor
    """[row, label], or [row]."""
    labels: Tensor
    """[row], or [row, label] where several may hold."""
    example: Tensor
    """[row], int64: which example of the batch a row belongs to."""


def predictions(model: nn.Module, outputs: Any, batch: Batch) -> Predictions:
    """Logits and the labels that they are scored against: shifted for causal LMs, without padding for token labels."""
    labels = batch.get(LABELS_ARGUMENT)
    if labels is None:
        to_do = where_labels_are(model, batch, [LABELS_ARGUMENT])
        raise DataError(f"a score needs labels in every batch{to_do}. For other models use metric='{INVERSE_LOSS}'")
    try:
        (logits,) = found(outputs, LOGITS_OUTPUT)
    except LossError as error:
        raise DataError(
            f"a score needs logits from the model, got {type(outputs).__name__}; for other models use "
            f"metric='{INVERSE_LOSS}'"
        ) from error
    if labels.dim() == 2 and logits.dim() == 3:
        stack = "decoder" if is_encoder_decoder(model) else "encoder"
        real = token_mask(model, batch, stack)
        check_token_labels(labels, real)
        if is_causal(model):
            logits, labels, real = next_tokens(outputs, labels, real)
        else:
            logits = token_logits(outputs, labels)
        there = (labels != IGNORED) & real
        return Predictions(logits[there], labels[there], there.nonzero()[:, 0])
    return Predictions(logits, labels, torch.arange(len(labels), device=labels.device))


def scorer(metric: MetricName | Metric, loss: ExampleLoss | None = None) -> Accumulator:
    """The accumulator for a metric: a function of (logits, labels) or of what is generated, or a metric by name."""
    if isinstance(metric, GenerationMetric):
        return GenerationAccumulator(metric)
    return InverseLossAccumulator(loss) if metric == INVERSE_LOSS else ScoreAccumulator(metric)


@merges
@checked
def score(
    model: nn.Module,
    batches: BatchesOrTexts,
    *,
    metric: MetricName | Metric,
    loss: ExampleLoss | None = None,
    tokenizer: Any = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> Score:
    """Score the model on a data set.

    Args:
        model: a model with a task head; measured in eval mode, left as it was found.
        batches: one mapping of model arguments with labels, or an iterable of them; or texts with labels (see
            `make_batches`).
        metric: "accuracy", "f1", "matthews", "pearson", "spearman", "pearson_spearman" (see `metrics`);
            "inverse_loss", one over the mean loss of an example, for language models; `f(logits, labels) -> float`
            over all examples at once, higher is better; or a `GenerationMetric` such as `metrics.bleu(...)`, of what an
            encoder-decoder model generates.
        loss: for "inverse_loss", `f(outputs, batch) -> [batch]`; by default that of the task head.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` when labels or logits are missing, no metric is known by that name, or the metric is NaN.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "labels": torch.tensor([1, 0])}
        >>> score(model, batch, metric="accuracy").value in (0.0, 0.5, 1.0)
        True
    """
    return accumulate(model, batches, scorer(metric, loss), tokenizer=tokenizer, progress=progress)[0]
