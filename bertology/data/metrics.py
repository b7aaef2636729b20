"""Metrics of logits and labels, `metric(logits, labels) -> float`, and of what a model generates; higher is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, SupportsFloat, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError, checked, described, how_many, need
from .batches import IGNORED

Metric = Callable[[Tensor, Tensor], SupportsFloat | Mapping[str, SupportsFloat]]
MetricName = Literal["accuracy", "f1", "matthews", "pearson", "spearman", "pearson_spearman", "inverse_loss"]
"""What `metric` takes by name: those of `METRICS`, and one over the mean loss of an example."""


@checked
def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of examples whose true label has the highest logit; labels of -100 are left out."""
    guess, truth = _classes(logits, labels)
    return (guess == truth).double().mean().item()


@checked
def f1(logits: Tensor, labels: Tensor) -> float:
    """F1 of class 1 in a task with two classes; 0 when class 1 is neither predicted nor true of any example."""
    guess, truth = _two_classes(logits, labels)
    hits = (guess & truth).sum().item()
    total = guess.sum().item() + truth.sum().item()
    return 2 * hits / total if total else 0.0


@checked
def matthews(logits: Tensor, labels: Tensor) -> float:
    """Matthews correlation; 0 when all predictions or all labels are of one class.

    Of more than two classes it is the correlation R_K of Gorodkin (2004), with which GLUE scores its diagnostic set.
    """
    guess, truth = (F.one_hot(x.long(), logits.shape[-1]).double() for x in _classes(logits, labels))
    return _correlation(guess, truth)


@checked
def pearson(logits: Tensor, labels: Tensor) -> float:
    """Pearson correlation of one prediction per example with its label; 0 when either is constant."""
    return _correlation(*_numbers(logits, labels))


@checked
def spearman(logits: Tensor, labels: Tensor) -> float:
    """Spearman rank correlation, where equal values get their mean rank; 0 when either is constant."""
    guess, truth = _numbers(logits, labels)
    return _correlation(_ranks(guess), _ranks(truth))


@checked
def pearson_spearman(logits: Tensor, labels: Tensor) -> float:
    """The mean of Pearson and Spearman correlation, as GLUE scores STS-B."""
    return (pearson(logits, labels) + spearman(logits, labels)) / 2


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "pearson_spearman": pearson_spearman,
}


Generated = Callable[[list[list[int]], list[list[int]]], float]


class GenerationMetric:
    """A metric of what an encoder-decoder model generates, instead of its logits at the tokens of the labels.

    `score`, `pruning_curve`, `head_ablation` and `sole_head_ablation` take it as their `metric`: they call the model's
    `generate`, without labels, while heads are masked. Tokens are compared up to the first end-of-sequence token, which
    is left out, as is the decoder's start token.

    Args:
        metric: `f(generated, references) -> float`, of the token ids of all examples, two lists of lists.
        options: keyword arguments of the model's `generate`, such as `max_new_tokens` and `num_beams`. By default
            nothing is sampled.

    Raises `DataError` for a metric that is no function.

        >>> exact = GenerationMetric(lambda ours, theirs: sum(map(list.__eq__, ours, theirs)) / len(ours))
        >>> exact.metric([[5, 6], [7]], [[5, 6], [8]])
        0.5
    """

    @checked
    def __init__(self, metric: Generated, **options: Any) -> None:
        self.metric, self.options = metric, {"do_sample": False, **options}

    @property
    def __name__(self) -> str:
        """The name of the metric in results."""
        return getattr(self.metric, "__name__", type(self.metric).__name__)

    def __call__(self, generated: Tensor, references: Tensor) -> float:
        """The metric of token ids, both [example, token], where -100 is no token."""
        return self.metric(*([row[row != IGNORED].tolist() for row in x] for x in (generated, references)))


@checked
def bleu(decode: Callable[[list[int]], str], *, tokenize: str = "13a", **options: Any) -> GenerationMetric:
    """BLEU of what an encoder-decoder model generates, 0 to 100, over all examples together (extra `bleu`).

    Args:
        decode: the text of token ids, such as `partial(tokenizer.decode, skip_special_tokens=True)`.
        tokenize: how sacrebleu splits texts into words; "none" splits at blanks only.
        options: as in `GenerationMetric`.

    Raises `MissingExtra` without sacrebleu.

        >>> bleu(str, tokenize="none", max_new_tokens=20).metric([[5, 6, 7, 8]], [[5, 6, 7, 8]])
        100.0
    """
    sacrebleu = need("sacrebleu", extra="bleu")

    def bleu(generated: list[list[int]], references: list[list[int]]) -> float:
        ours, theirs = ([decode(ids) for ids in some] for some in (generated, references))
        return round(sacrebleu.BLEU(tokenize=tokenize, force=True).corpus_score(ours, [theirs]).score, 10)

    return GenerationMetric(bleu, **options)


def find_metric(metric: str | Metric) -> Metric:
    """The metric with this name, or the function that was passed. Raises `DataError` for an unknown name."""
    if callable(metric):
        return metric
    if not isinstance(metric, str) or metric not in METRICS:
        known = ", ".join(name for name in get_args(MetricName) if name != metric)
        raise DataError(f"no metric is called {metric!r}: wanted a function of (logits, labels) or one of {known}")
    return METRICS[metric]


def measured(metric: Metric, logits: Tensor, labels: Tensor, examples: int) -> float:
    """The value of a metric over all examples.

    Raises `DataError` for NaN among the logits, and for a metric that is NaN or not one number.
    """
    if logits.isnan().any():
        raise DataError("the logits hold NaN, so no metric of them means anything: look at the model's weights")
    number = number_of(metric, logits, labels)
    if number != number:
        raise DataError(f"the metric {metric_name(metric)} is NaN over {how_many(examples, 'example')}")
    return number


def number_of(metric: Metric, logits: Tensor, labels: Tensor) -> float:
    """What a metric returns; of a mapping, as libraries of metrics return, its only value.

    Raises `DataError` where it is not one number.
    """
    value, name = metric(logits, labels), metric_name(metric)
    if isinstance(value, Mapping):
        if len(value) != 1:
            raise DataError(
                f"the metric {name} must return one number, got {len(value)}: {', '.join(map(str, value))}. "
                "Choose one of them: metric=lambda logits, labels: f(logits, labels)[name]"
            )
        value = next(iter(value.values()))
    try:
        number = None if isinstance(value, (str, bool)) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None:
        raise DataError(f"the metric {name} must return one number, got {described(value)}")
    return number


def metric_name(metric: str | Metric) -> str:
    """The name of a metric in a result or a figure."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)


def _classes(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if logits.shape[:-1] != labels.shape or labels.is_floating_point():
        raise DataError(
            f"this metric wants logits [example, label] and integer labels [example], "
            f"got {list(logits.shape)} and {labels.dtype} {list(labels.shape)}: for one class a text, pass whole "
            "numbers; for other labels, a function of (logits, labels) as metric="
        )
    there = labels != IGNORED
    if not there.any():
        raise DataError("there are no labels to score: all of them are -100")
    count, truth = logits.shape[-1], labels[there]
    wrong = truth[(truth < 0) | (truth >= count)]
    if wrong.numel():
        raise DataError(
            f"labels must be from 0 to {count - 1} for logits of {how_many(count, 'class')}, or {IGNORED} to be left "
            f"out, got {wrong[0].item()}"
        )
    return logits[there].argmax(-1), truth


def _two_classes(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    guess, truth = _classes(logits, labels)
    if logits.shape[-1] != 2:
        raise DataError(f"this metric is for two classes, got logits for {logits.shape[-1]}")
    return guess == 1, truth == 1


def _numbers(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if logits.numel() != labels.numel():
        raise DataError(
            f"this metric wants one prediction per label, got {list(logits.shape)} for labels {list(labels.shape)}"
        )
    return logits.reshape(-1).double(), labels.reshape(-1).double()


def _correlation(x: Tensor, y: Tensor) -> float:
    """The correlation of numbers [example], or of vectors [example, label], each less its mean over examples."""
    x, y = x - x.mean(0), y - y.mean(0)
    size = x.norm() * y.norm()
    return ((x * y).sum() / size).item() if size > 0 else 0.0


def _ranks(x: Tensor) -> Tensor:
    _, place, counts = torch.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[place]
