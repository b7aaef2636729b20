"""How much of a model's behaviour does a set of heads keep, and how stable is such a set?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.modules import rounding
from ..anatomy.sites import Anatomy, Head, Heads, heads_where
from ..data.batches import BatchesOrTexts
from ..data.losses import ExampleLoss
from ..data.metrics import Metric, MetricName, spearman
from ..errors import DataError, check_least, checked
from ..results.axes import axes, axes_of, main_field
from ..results.result import Result
from ..results.statistics import Interval, bootstrap_sums, percentile_interval
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress
from ..tap.gates import Kind, replacement_name
from .corrupted_heads import CorruptedHeads
from .many_gates import score_variants


@dataclass(frozen=True, eq=False, repr=False)
class Faithfulness(Result):
    """How much of the model's behaviour a set of heads keeps: 0 as without any head, 1 as the whole model."""

    kept: Annotated[Tensor, axes("layer head", words="1: kept, 0: replaced", scale="share")]
    """[layer, head], 0 or 1: which heads are kept; NaN for pruned heads."""
    value: float
    """(m_kept - m_none) / (m_whole - m_none), of the metric."""
    of_loss: float
    """The same of the mean loss."""
    random: Annotated[Tensor, axes("variant")]
    """[variant]: `value` for random sets of as many heads."""
    random_of_loss: Annotated[Tensor, axes("variant")]
    """[variant]: `of_loss` for these sets."""
    scores: tuple[float, float, float]
    """The metric with no head, with the set, and of the whole model."""
    losses: Annotated[Tensor, axes("example")]
    """[example]: the loss of every example with the set."""
    base_losses: Annotated[Tensor, axes("example")]
    """[example]: that of the whole model."""
    none_losses: Annotated[Tensor, axes("example")]
    """[example]: that with no head."""
    metric: str
    """What was measured."""
    replace: str
    """What replaced the output of all other heads: "zero", "mean", "resample", "corrupted" or "given"."""
    size: int
    """How many heads are kept."""
    examples: int
    """How many examples were measured."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""

    @property
    def p(self) -> float:
        """The share of sets of as many heads, this one among them, whose loss is at least as faithful."""
        return (1 + int((self.random_of_loss >= self.of_loss).sum())) / (1 + len(self.random_of_loss))

    @checked
    def heads(self) -> list[Head]:
        """The heads that are kept."""
        return heads_where(self.labels, self.kept == 1)

    @checked
    def interval(self, level: float = 0.95, *, resamples: int = 1000, seed: int = 0) -> Interval:
        """The ends of `of_loss`: percentiles of a bootstrap over examples.

        Raises `DataError` for a level that is not between 0 and 1, and for fewer than 1 resamples.
        """
        each = (self.none_losses, self.losses, self.base_losses)
        none, kept, whole = bootstrap_sums(*each, resamples=resamples, seed=seed)
        low, high = percentile_interval((kept - none) / (whole - none), level)
        return float(low), float(high)


@merges
@checked
def faithfulness(
    model: nn.Module,
    batches: BatchesOrTexts,
    heads: Heads,
    *,
    metric: MetricName | Metric,
    replace: Kind | Tensor = "mean",
    corrupted: BatchesOrTexts | None = None,
    random_sets: int = 20,
    loss: ExampleLoss | None = None,
    seed: int = 0,
    tokenizer: Any = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> Faithfulness:
    """Keep a set of heads, replace all others, and measure how much of the model's behaviour is left.

    0 is the model with all heads replaced, and 1 the whole model; a set can do better than that. Random sets of as many
    heads show what any set of this size keeps.

    Args:
        model: a model with a task head; it is gated, and never changed.
        batches: the data that is scored: one mapping of model arguments with labels, or an iterable of them; or texts
            with labels (see `make_batches`). Choose the set on other data.
        heads: the heads that are kept: `{layer: [heads]}`, `(layer, head)` pairs, `Head`s or their names.
        metric: as in `score`.
        replace: what replaces the output of the other heads, as in `head_ablation`. By default their mean over
            `batches`, which keeps what is the same in all texts.
        corrupted: inputs that differ from `batches` in what the answer depends on, with as many tokens: the other heads
            then have their outputs on these, token by token, in the place of `replace`. 0 is then the model with the
            outputs of all its heads on the corrupted inputs. Their labels are not looked at.
        random_sets: how many random sets are scored.
        loss: `f(outputs, batch) -> [batch]`; by default that of the task head.
        seed: of the random sets, and of the draws for "resample".
        tokenizer: needed for texts: the model's.
        progress: True for a progress bar over batches, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` where the whole model has the same metric or loss as one without heads, so that there is nothing
    to keep, and for corrupted inputs that do not fit, with other numbers of tokens, or with `replace` given as well;
    and the errors of `head_ablation`.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "labels": torch.tensor([1, 0])}
        >>> faithfulness(model, batch, ["L0H1", "L1H2"], metric="inverse_loss", random_sets=3).size
        2
    """
    check_least("random_sets", random_sets, 0)
    anatomy = dissect(model)
    kept = torch.zeros(anatomy.present.shape)
    for row, head in anatomy.resolve(heads):
        kept[row, head] = 1
    against = None if corrupted is None else _against(model, corrupted, tokenizer, replace)
    found = score_variants(
        model,
        batches,
        lambda anatomy: _gates(anatomy, kept, int(random_sets), seed),
        metric=metric,
        replace=against or replace,
        loss=loss,
        seed=seed,
        progress=progress,
        tokenizer=tokenizer,
    )
    if against is not None:
        against.check_end()
    scores, losses = found.scores.double(), found.losses
    step = rounding(model)
    of_metric, of_loss = _shares(scores, found.metric, step), _shares(losses.mean(1), "loss", step)
    return Faithfulness(
        kept=kept.double().masked_fill(~anatomy.present, torch.nan),
        value=float(of_metric[2]),
        of_loss=float(of_loss[2]),
        random=of_metric[3:],
        random_of_loss=of_loss[3:],
        scores=(float(scores[1]), float(scores[2]), float(scores[0])),
        losses=losses[2],
        base_losses=losses[0],
        none_losses=losses[1],
        metric=found.metric,
        replace=replacement_name(replace) if against is None else against.name,
        size=int(kept.sum()),
        examples=losses.shape[1],
        labels=anatomy.labels,
        model_name=found.model_name,
    )


def _against(model: nn.Module, corrupted: BatchesOrTexts, tokenizer: Any, replace: Kind | Tensor) -> CorruptedHeads:
    """The outputs of heads on corrupted inputs. Raises `DataError` where another replacement was named too."""
    if isinstance(replace, Tensor) or replace != "mean":
        raise DataError("pass corrupted= or replace=, not both: each says what stands for the outputs of other heads")
    return CorruptedHeads(model, corrupted, tokenizer)


def _gates(anatomy: Anatomy, kept: Tensor, random_sets: int, seed: int) -> Tensor:
    """[variant, layer, head]: no head, the set, and random sets of as many heads."""
    there = anatomy.present.nonzero()
    gates = torch.zeros(2 + random_sets, *kept.shape)
    gates[1] = kept
    generator = torch.Generator().manual_seed(seed)
    for some in gates[2:]:
        chosen = there[torch.randperm(len(there), generator=generator)[: int(kept.sum())]]
        some[chosen[:, 0], chosen[:, 1]] = 1
    gates[:, ~anatomy.present] = 1  # pruned heads keep their gates, which change nothing
    return gates


def _shares(values: Tensor, name: str, step: float) -> Tensor:
    """[variant]: where values lie between those of the whole model, the first, and of no head, the second."""
    whole, none = values[0], values[1]
    if abs(whole - none) <= step * max(abs(whole), abs(none)):
        other = "" if name in ("inverse_loss", "loss") else ", such as 'inverse_loss'"
        raise DataError(
            f"the {name} is {float(whole):.6g} with all heads and without any, so faithfulness is not defined: use "
            f"another metric{other}, or more data"
        )
    return (values - none) / (whole - none)


@dataclass(frozen=True, eq=False, repr=False)
class HeadAgreement(Result):
    """How far several rankings of heads agree, such as those of resampled data."""

    main: ClassVar[str | None] = "jaccard"

    jaccard: Annotated[Tensor, axes("variant variant")]
    """[variant, variant]: the heads in both sets of the best, over those in any of the two."""
    correlation: Annotated[Tensor, axes("variant variant")]
    """[variant, variant]: Spearman's rank correlation of all heads."""
    share: Annotated[Tensor, axes("layer head", words="share of the sets with this head", scale="share")]
    """[layer, head]: the share of the sets that a head is in; NaN for pruned heads."""
    chance: float
    """The expected Jaccard index of two random sets of this size."""
    size: int
    """How many heads are in each set."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""

    @property
    def mean_jaccard(self) -> float:
        """The mean Jaccard index of two different sets."""
        return _mean_of_pairs(self.jaccard)

    @property
    def mean_correlation(self) -> float:
        """The mean rank correlation of two different rankings."""
        return _mean_of_pairs(self.correlation)


@checked
def head_agreement(results: Sequence[Result], size: int, *, field: str | None = None) -> HeadAgreement:
    """Compare the best heads of several results, such as one measure on resampled data (Jaccard, rank correlation).

    Args:
        results: results of one kind and of one model, with a `[layer, head]` field.
        size: how many of the best heads each set has.
        field: the `[layer, head]` field that ranks the heads, highest first; by default what the result is about.

    Raises `DataError` for fewer than two results, for results of other heads, and for a size that no set can have.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> texts = {"input_ids": torch.randint(9, (8, 4)), "labels": torch.tensor([0, 1] * 4)}
        >>> halves = [{name: x[half] for name, x in texts.items()} for half in (slice(4), slice(4, 8))]
        >>> head_agreement([head_importance(model, half) for half in halves], 3).jaccard.shape
        torch.Size([2, 2])
    """
    if len(results) < 2:
        raise DataError(f"head_agreement compares two results or more, got {len(results)}")
    name = field or main_field(type(results[0])) or ""
    declared = axes_of(type(results[0])).get(name)
    if declared is None or declared.names != ("layer", "head"):
        raise DataError(f"{type(results[0]).__name__} has no [layer, head] field {name!r}: name one with field=")
    if any(type(one) is not type(results[0]) or one.labels != results[0].labels for one in results):
        raise DataError("results must be of one measure and of one model")
    scores = torch.stack([getattr(one, name).detach().cpu().double() for one in results])
    there = ~scores[0].isnan()
    if not all(torch.equal(~one.isnan(), there) for one in scores):
        raise DataError("results must be of the same heads: some heads are NaN in one result, and not in another")
    flat, many = scores[:, there], int(there.sum())
    if not 1 <= size < many:
        raise DataError(f"size must be from 1 to {many - 1}, fewer than the heads that there are, got {size}")
    sets = torch.zeros_like(flat)
    sets.scatter_(1, flat.argsort(dim=1, descending=True, stable=True)[:, :size], 1)
    both = sets @ sets.T
    share = scores.new_full(there.shape, torch.nan)
    share[there] = sets.mean(0)
    overlaps = [(math.comb(size, k) * math.comb(many - size, size - k), k) for k in range(size + 1)]
    chance = sum(ways * k / (2 * size - k) for ways, k in overlaps) / math.comb(many, size)
    return HeadAgreement(
        jaccard=both / (2 * size - both),
        correlation=torch.tensor([[spearman(a[:, None], b) for b in flat] for a in flat], dtype=torch.float64),
        share=share,
        chance=chance,
        size=int(size),
        labels=results[0].labels,
        model_name=results[0].model_name,
    )


def _mean_of_pairs(values: Tensor) -> float:
    return float(values[~torch.eye(len(values), dtype=torch.bool)].mean())
