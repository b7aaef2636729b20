"""How many heads can be removed before the model gets worse?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.sites import Anatomy, Head, heads_where
from ..data.batches import Batch, Batches, BatchesOrTexts
from ..data.losses import ExampleLoss
from ..data.make_batches import as_batches
from ..data.metrics import Metric, MetricName, metric_name
from ..errors import DataError, check_share, checked, how_many, is_number, is_whole
from ..importance.head_importance import HeadImportance, ImportanceAccumulator, head_importance
from ..importance.score import Score, scorer
from ..results.axes import axes
from ..results.fields import model_name
from ..results.result import Result
from ..streaming.accumulate import accumulate
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress, progress_bar
from ..streaming.same_data import same_data
from ..tap.gates import gated
from .rankings import by_name, check_ranking, estimated_scores, fixed_scores, scaled


def open_heads(anatomy: Anatomy, only: str | None) -> Tensor:
    """[layer, head], bool: the heads that may go: all that there are, or those of one stack."""
    stacks = list(dict.fromkeys(site.stack for site in anatomy.sites))
    if only is not None and only not in stacks:
        raise DataError(f"only= takes a stack of this model, {' or '.join(map(repr, stacks))}, got {only!r}")
    rows = torch.tensor([only in (None, site.stack) for site in anatomy.sites])
    return anatomy.present & rows[:, None]


def step_sizes(there: Tensor, amount: float | int, keep: int) -> list[int]:
    """How many of the heads `there`, [layer, head], are gone after each step."""
    total = int(there.sum())
    free = int((there.sum(-1) - keep).clamp_min(0).sum())
    if not is_number(amount) or not amount > 0 or (not is_whole(amount) and amount > 1):
        raise DataError(
            f"amount is a share of all heads, above 0 and at most 1, or a whole number of heads, got {amount!r}"
        )
    # 0.05 * 144 * 5 must count as 36, also where it comes out a hair below.
    each = int(amount) if is_whole(amount) else total * float(amount)
    counts = [min(free, math.floor(each * step + 1e-9)) for step in range(1, math.ceil(free / each) + 1)]
    return [count for last, count in zip([0, *counts], counts, strict=False) if count > last]


def silence(scores: Tensor, gates: Tensor, size: int, keep: int) -> Tensor:
    """Close the gates of the open heads with the lowest scores, until `size` are gone; `keep` a layer stay open.

    Heads without a score (NaN) stay as they are, and do not count.
    """
    ranked = ~scores.isnan()
    # Heads that are gone come last.
    order = scores.masked_fill((gates == 0) | ~ranked, float("inf")).flatten().argsort(stable=True)
    new, gone = gates.clone(), int((ranked & (gates == 0)).sum())
    for place in order.tolist():
        if gone == size:
            break
        row, head = divmod(place, gates.shape[1])
        if new[row, head] and ranked[row, head] and int(new[row].sum()) > keep:
            new[row, head] = 0
            gone += 1
    return new


def _note_order(order: Tensor, gone: Tensor, scores: Tensor) -> None:
    """Number the heads that are gone after a step on from those of the steps before, lowest score first."""
    found = gone.flatten().nonzero().flatten()
    ranked = found[scores.flatten()[found].argsort(stable=True)]
    order.view(-1)[ranked] = int((~order.isnan()).sum()) + torch.arange(len(ranked), dtype=order.dtype)


def first_below(scores: Tensor, threshold: float) -> int | None:
    """The first step whose score is below this share of the whole model's, or is NaN; None where there is none."""
    check_share("threshold", threshold)
    check_whole_score(float(scores[0]), threshold)
    below = (~(scores >= threshold * scores[0])).nonzero().flatten().tolist()
    return below[0] if below else None


def check_whole_score(value: float, threshold: float | None) -> None:
    """Raise `DataError` where no share can be taken of the score of the whole model."""
    if threshold is not None and not (value > 0 or value == threshold == 0):
        raise DataError(
            f"threshold is a share of the whole model's score, which must be above 0, got {value:.4g}: take a metric "
            'that is, such as "inverse_loss" in the place of a negative loss'
        )


@dataclass(frozen=True, eq=False, repr=False)
class PruningCurve(Result):
    """The score of a model as it loses its heads, least important first."""

    main: ClassVar[str | None] = "scores"

    heads_left: Annotated[Tensor, axes("step")]
    """[step]: how many heads are left, of those that may go; the first step is the whole model."""
    scores: Annotated[Tensor, axes("step")]
    """[step]: the metric with so many heads, higher is better."""
    gates: Annotated[Tensor, axes("step layer head")]
    """[step, layer, head], 0 or 1: which heads are left."""
    metric: str
    """What was measured."""
    threshold: float | None
    """The share of the whole model's score below which the curve was stopped."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""
    by: str = "importance"
    """What ranked the heads: "importance", "fisher", "magnitude", "random", or "given" for your own scores."""
    seed: int | None = None
    """The seed of a random order."""
    only: str | None = None
    """The stack to which pruning was limited, if any."""
    order: Annotated[Tensor, axes("layer head")] = field(default_factory=lambda: torch.empty(0))
    """[layer, head]: which head went first (0), second (1) and so on; NaN for those that stayed to the end."""

    @checked
    def stack(self, name: str) -> PruningCurve:
        """Refused, with `DataError`: the scores are of a model that lost heads of all stacks."""
        raise DataError(f"a curve has no part for one stack: call pruning_curve(..., only={name!r})")

    @checked
    def mask(self, threshold: float | None = None, *, keep: int = 1) -> Tensor:
        """[layer, head], 0 or 1: the gates of the last step before the score first fell below the threshold.

        A layer that would lose all its heads keeps those that went last. The score of such a set of heads is not among
        `scores`: a curve made with `pruning_curve(..., keep=1)` empties no layer, and scores each set that it returns.

        Args:
            threshold: a share of the whole model's score; by default the one that the curve was made with, or,
                without any, the last step is taken.
            keep: so many heads of each layer stay. With 0, whole layers of attention can go.

        Raises `DataError` for a threshold that is no share, or of a whole model that scores 0 or less, and for a number
        of heads that is not whole.
        """
        _check_keep(keep)
        threshold = self.threshold if threshold is None else threshold
        if threshold is None:
            return self._kept(self.gates[-1], int(keep))
        below = first_below(self.scores, threshold)
        return self._kept(self.gates[below - 1 if below else -1], int(keep))

    def _kept(self, gates: Tensor, keep: int) -> Tensor:
        """The gates, with `keep` heads open in each layer that had so many: those that went last."""
        there, gates = self.gates[0] > 0, gates.clone()
        order = self.order if self.order.numel() else (self.gates > 0).sum(0)
        for row in range(len(gates)):
            missing = min(keep, int(there[row].sum())) - int((gates[row] > 0).sum())
            if missing > 0:
                gone = (there[row] & (gates[row] == 0)).nonzero().flatten()
                last = order[row, gone].argsort(descending=True, stable=True)[:missing]
                gates[row, gone[last]] = self.gates[0, row, gone[last]]
        return gates

    @checked
    def heads_off(self, threshold: float | None = None, *, keep: int = 1) -> list[Head]:
        """The heads that `mask` silences with the same arguments, for `prune_heads`.

        By default one head stays in each layer. With `keep=0`, warns where the score stays above the threshold to the
        end, so that no head of the model would be left.
        """
        mask = self.mask(threshold, keep=keep)
        off = (self.gates[0] > 0) & (mask == 0)
        by_score = (self.threshold if threshold is None else threshold) not in (None, 0)
        if by_score and off.any() and not (mask > 0).any():
            warnings.warn(
                f"all {how_many(int(off.sum()), 'head')} are silent, and none is left: the score does not fall, so the "
                "data does not show which heads are needed. Pass keep=1 to leave one head in each layer",
                UserWarning,
                stacklevel=2,
            )
        return heads_where(self.labels, off)


@merges
@checked
def pruning_curve(
    model: nn.Module,
    batches: BatchesOrTexts,
    *,
    metric: MetricName | Metric,
    by: Literal["importance", "fisher", "magnitude", "random"] | Tensor = "importance",
    importance: HeadImportance | Batch | Iterable[Any] | None = None,
    reestimate: bool = False,
    amount: float | int = 0.1,
    threshold: float | None = None,
    keep: int = 0,
    normalize: str | None = "auto",
    only: str | None = None,
    seed: int = 0,
    loss: ExampleLoss | None = None,
    tokenizer: Any = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> PruningCurve:
    """Silence heads step by step, least important first, and score the model at every step.

    With the defaults this is Michel et al. 2019, §4: importance is estimated once, and 10 % of all heads go at each
    step until none is left. The loop of run_bertology.py is `reestimate=True, amount=max(1, heads // 10),
    threshold=0.9, normalize="all"`.

    Args:
        model: a model with a task head; it is only gated, never changed.
        batches: the data that is scored: one mapping of model arguments with labels, or an iterable of them
            (not an iterator: it is gone over at every step); or texts with labels (see `make_batches`).
        metric: as in `score`: a GLUE metric by name, "inverse_loss", `f(logits, labels) -> float`, or a
            `GenerationMetric` such as `metrics.bleu(...)`.
        by: what ranks the heads. "importance" is E|g|; "fisher" is E[g²], the diagonal Fisher information (Kwon et al.
            2022); "magnitude" is the l2 norm of the head's own query, key, value and projection weights, which needs
            to know them as `prune_heads` does; "random" is the baseline. Or a tensor `[layer, head]` of scores of your
            own, highest last to go. The paper's oracle ranks by what the metric loses without each head: for `change`,
            the metric without the head less the metric of the whole model, pass `by=-change`.
        importance: where importance or Fisher information comes from: a `HeadImportance`, or data to estimate it on;
            by default `batches`.
        reestimate: estimate the importance of the remaining heads again before every step.
        amount: a share of all heads (0.1: after k steps, ⌊0.1 k heads⌋ are gone), or a whole number of heads a step.
        threshold: stop after the first step that scores below this share of the whole model's score.
        keep: so many heads stay in every layer, its most important ones. With 0, the curve is drawn down to a model
            without heads; its `heads_off` keeps one in each layer all the same.
        normalize: how scores are compared across layers: "layer" and "all" scale them by `HeadImportance.normalized`'s
            rules, None takes them as they are. "auto" is "layer" for importance, as published, and None for the rest:
            Fisher information and magnitudes were published for comparison across layers as they are, and scores of
            your own are yours to scale.
        only: the stack whose heads alone may go, "encoder", "decoder" or "cross" (Michel et al. 2019, §5). `amount` is
            then a share of its heads.
        seed: of the random order.
        loss: for importance, `f(outputs, batch) -> [batch]`; by default that of the task head.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar over steps, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for options that make no sense, for scores that do not fit the model, and for a threshold where
    the whole model scores 0 or less, of which no share can be taken; `UnknownAnatomy` for "magnitude" where it is not
    known which weights are a head's own.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "labels": torch.tensor([1, 0])}
        >>> pruning_curve(model, batch, metric="accuracy", amount=2).heads_left.tolist()
        [8, 6, 4, 2, 0]
        >>> pruning_curve(model, batch, metric="accuracy", by="random", seed=3).by
        'random'
    """
    check_ranking(by, importance, reestimate, normalize)
    _check(threshold, keep)
    threshold, keep = None if threshold is None else float(threshold), int(keep)
    scored, ranked_on = _data(model, batches, importance, reestimate, tokenizer)
    anatomy = dissect(model)
    there = open_heads(anatomy, only)
    fixed = fixed_scores(anatomy, by, importance, seed)
    sizes = step_sizes(there, amount, keep)

    gated_model = _GatedModel(model, scored, ranked_on, metric, by, loss)
    gates = anatomy.present.double()
    whole, estimated = gated_model.measure(gates, ranking=fixed is None)
    current = fixed if fixed is not None else estimated
    check_whole_score(whole.value, threshold)
    steps, scores, order = [gates], [whole.value], torch.full_like(gates, float("nan"))
    with progress_bar(progress, total=len(sizes)) as bar:
        for size in sizes:
            assert current is not None
            ranks = scaled(current.masked_fill(~anatomy.present, float("nan")), by, normalize)
            gates = silence(ranks.masked_fill(~there, float("nan")), gates, size, keep)
            _note_order(order, steps[-1] - gates > 0, ranks)
            # After the last step nothing is left to rank.
            found, estimated = gated_model.measure(gates, ranking=reestimate and size < sizes[-1])
            current = estimated if reestimate else current
            steps.append(gates)
            scores.append(found.value)
            bar.update()
            if threshold is not None and not found.value >= threshold * scores[0]:
                break
    curve = PruningCurve(
        heads_left=torch.tensor([int(g[there].sum()) for g in steps]),
        scores=torch.tensor(scores, dtype=torch.float64),
        gates=torch.stack(steps),
        metric=metric_name(metric),
        threshold=threshold,
        labels=anatomy.labels,
        by=by_name(by),
        seed=seed if by_name(by) == "random" else None,
        only=only,
        order=order,
    )
    return replace(curve, model_name=model_name(model), n_examples=whole.examples)


def _data(
    model: nn.Module, batches: BatchesOrTexts, importance: Any, reestimate: bool, tokenizer: Any
) -> tuple[Batches, Batches]:
    """What is scored, and what heads are ranked on; both are checked to be the same in each pass."""
    made = as_batches(model, batches, tokenizer)
    scored = same_data(made, why="pruning_curve")
    if importance is None or isinstance(importance, HeadImportance) or importance is batches:
        return scored, scored
    ranked_on = as_batches(model, importance, tokenizer)
    if not reestimate:
        return scored, ranked_on
    return scored, same_data(ranked_on, why="pruning_curve with reestimate=True")


class _GatedModel(NamedTuple):
    """What is scored at every step, and how."""

    model: nn.Module
    batches: Batches
    ranked_on: Batches
    metric: MetricName | Metric
    by: str | Tensor
    loss: ExampleLoss | None

    def measure(self, gates: Tensor, *, ranking: bool) -> tuple[Score, Tensor | None]:
        """Score the gated model; rank its heads in the same pass where the data is the same."""
        together = ranking and self.ranked_on is self.batches
        accumulators = [ImportanceAccumulator(self.loss)] if together else []
        with gated(self.model, gates):
            results = accumulate(self.model, self.batches, scorer(self.metric, self.loss), *accumulators)
            if ranking and not together:
                results = (results[0], head_importance(self.model, self.ranked_on, loss=self.loss))
        return results[0], estimated_scores(results[1], self.by) if ranking else None


def _check(threshold: float | None, keep: int) -> None:
    if threshold is not None and (not is_number(threshold) or not 0 < threshold <= 1):
        raise DataError(f"threshold is a share of the whole model's score, above 0 and at most 1, got {threshold}")
    _check_keep(keep)


def _check_keep(keep: int) -> None:
    if not is_whole(keep) or keep < 0:
        raise DataError(f"keep is a number of heads in every layer, got {keep!r}: wanted a whole number, 0 or more")
