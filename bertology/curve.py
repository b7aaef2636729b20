"""How many heads can go before the model gets worse?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .anatomy import dissect
from .batches import Batches, check_repeatable
from .errors import DataError
from .head import Head, head_at
from .importance import HeadImportance, ImportanceAccumulator, head_importance
from .losses import ExampleLoss
from .masking import gated
from .metrics import metric_name
from .result import Result
from .scoring import scorer
from .site import Anatomy
from .streaming import accumulate


@dataclass(frozen=True, eq=False, repr=False)
class PruningCurve(Result):
    """The score of a model as it loses its heads, least important first."""

    _by_layer: ClassVar = ()

    heads_left: Tensor
    """[step]: how many heads are left; the first step is the whole model."""
    scores: Tensor
    """[step]: the metric with so many heads, higher is better."""
    gates: Tensor
    """[step, layer, head], 0 or 1: which heads are left."""
    metric: str
    """What was measured."""
    threshold: float | None
    """The share of the whole model's score below which the curve was stopped."""
    labels: tuple[str, ...]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""

    def mask(self, threshold: float | None = None) -> Tensor:
        """[layer, head], 0 or 1: the gates of the last step before the score first fell below the threshold.

        The threshold is a share of the whole model's score; by default the one that the curve was made with,
        or, without any, the last step.
        """
        threshold = self.threshold if threshold is None else threshold
        if threshold is None:
            return self.gates[-1]
        below = (self.scores < threshold * self.scores[0]).nonzero().flatten().tolist()
        return self.gates[below[0] - 1 if below and below[0] else -1]

    def heads_off(self, threshold: float | None = None) -> list[Head]:
        """The heads that `mask` silences, for `prune_heads`."""
        off = (self.gates[0] > 0) & (self.mask(threshold) == 0)
        return [head_at(self.labels, row, head) for row, head in off.nonzero().tolist()]


def pruning_curve(
    model: nn.Module,
    batches: Batches,
    *,
    metric: str | Callable[[Tensor, Tensor], float],
    importance: HeadImportance | Batches | None = None,
    reestimate: bool = False,
    amount: float | int = 0.1,
    threshold: float | None = None,
    keep: int = 0,
    normalize: str | None = "layer",
    loss: ExampleLoss | None = None,
    progress: str | None = None,
) -> PruningCurve:
    """Silence heads step by step, least important first, and score the model at every step.

    With the defaults this is Michel et al. 2019, §4: importance is estimated once, and 10 % of all heads go at each
    step until none is left. The loop of run_bertology.py is `reestimate=True, amount=max(1, heads // 10),
    threshold=0.9, normalize="all"`.

    Args:
        model: a model with a task head; it is only gated, never changed.
        batches: the data that is scored: one mapping of model arguments with labels, or an iterable of them
            (not an iterator: it is gone over at every step).
        metric: as in `score`: a GLUE metric by name, "inverse_loss", or `f(logits, labels) -> float`.
        importance: what ranks the heads: a `HeadImportance`, or data to estimate it on; by default `batches`.
        reestimate: estimate the importance of the heads that are left anew before every step.
        amount: a share of all heads (0.1: after k steps, ⌊0.1 k heads⌋ are gone), or a whole number of heads a step.
        threshold: stop after the first step that scores below this share of the whole model's score.
        keep: so many heads stay in every layer, its most important ones.
        normalize: how importance is compared across layers: "layer", "all" (see `HeadImportance.normalized`) or None.
        loss: for importance, `f(outputs, batch) -> [batch]`; by default that of the task head.
        progress: the title of a progress bar over steps; no bar without it.

    Raises `DataError` for an amount, threshold or `keep` that makes no sense, and for a threshold where the whole
    model scores 0 or less, of which no share can be taken.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "labels": torch.tensor([1, 0])}
        >>> pruning_curve(model, batch, metric="accuracy", amount=2).heads_left.tolist()
        [8, 6, 4, 2, 0]
    """
    _check(importance, reestimate, threshold, keep, normalize)
    check_repeatable(batches, why="pruning_curve")
    anatomy = dissect(model)
    given = importance if isinstance(importance, HeadImportance) else None
    if given is not None and given.scores.shape != anatomy.present.shape:
        raise DataError(
            f"importance is of another model: wanted scores [layer, head] = {list(anatomy.present.shape)}, "
            f"got {list(given.scores.shape)}"
        )
    ranked_on = batches if importance is None or given is not None else importance
    if reestimate:
        check_repeatable(ranked_on, why="pruning_curve with reestimate=True")  # type: ignore[arg-type]
    sizes = _steps(anatomy, amount, keep)

    def measure(gates: Tensor, *, ranking: bool) -> tuple[float, HeadImportance | None]:
        """Score the gated model; rank its heads in the same pass where the data is the same."""
        together = ranking and ranked_on is batches
        with gated(model, gates):
            results = accumulate(
                model, batches, scorer(metric, loss), *([ImportanceAccumulator(loss)] if together else [])
            )
            if ranking and not together:
                results += (head_importance(model, ranked_on, loss=loss),)  # type: ignore[arg-type]
        return results[0].value, results[1] if ranking else None

    gates = anatomy.present.double()
    value, estimated = measure(gates, ranking=given is None)
    current = given if given is not None else estimated
    if threshold is not None and value <= 0:
        raise DataError(f"threshold is a share of the whole model's score, which must be above 0, got {value:.4g}")
    steps, scores = [gates], [value]
    with tqdm(total=len(sizes), desc=progress, disable=progress is None) as bar:
        for size in sizes:
            assert current is not None
            gates = _silence(current, gates, size, keep, normalize)
            value, estimated = measure(gates, ranking=reestimate)
            current = estimated if reestimate else current
            steps.append(gates)
            scores.append(value)
            bar.update()
            if threshold is not None and value < threshold * scores[0]:
                break
    left = torch.tensor([int(g.sum()) for g in steps])
    all_scores = torch.tensor(scores, dtype=torch.float64)
    return PruningCurve(left, all_scores, torch.stack(steps), metric_name(metric), threshold, anatomy.labels)


def _check(importance: object, reestimate: bool, threshold: float | None, keep: int, normalize: str | None) -> None:
    if isinstance(importance, HeadImportance) and reestimate:
        raise DataError("reestimate=True estimates importance at every step: pass data, or nothing, as importance")
    if threshold is not None and not 0 < threshold <= 1:
        raise DataError(f"threshold is a share of the whole model's score, above 0 and at most 1, got {threshold}")
    if keep < 0:
        raise DataError(f"keep is a number of heads in every layer, got {keep}")
    if normalize not in ("layer", "all", None):
        raise DataError(f"normalize takes 'layer', 'all' or None, got {normalize!r}")


def _steps(anatomy: Anatomy, amount: float | int, keep: int) -> list[int]:
    """How many heads are gone after each step."""
    total = int(anatomy.present.sum())
    free = int((anatomy.present.sum(-1) - keep).clamp_min(0).sum())
    if isinstance(amount, bool) or amount <= 0 or (isinstance(amount, float) and amount > 1):
        raise DataError(
            f"amount is a share of all heads, above 0 and at most 1, or a whole number of heads, got {amount}"
        )
    # 0.05 * 144 * 5 must count as 36, also where it comes out a hair below.
    each = amount if isinstance(amount, int) else total * amount
    counts = [min(free, math.floor(each * step + 1e-9)) for step in range(1, math.ceil(free / each) + 1)]
    return [count for last, count in zip([0, *counts], counts, strict=False) if count > last]


def _silence(importance: HeadImportance, gates: Tensor, size: int, keep: int, normalize: str | None) -> Tensor:
    """Close the gates of the least important open heads, until `size` heads are gone; `keep` a layer stay open."""
    scaled = importance.normalized(normalize) if normalize else importance  # type: ignore[arg-type]
    present = ~scaled.scores.isnan()
    # Heads that are gone, or were never there, come last.
    order = scaled.scores.masked_fill((gates == 0) | ~present, float("inf")).flatten().argsort(stable=True)
    new, gone = gates.clone(), int((present & (gates == 0)).sum())
    for place in order.tolist():
        if gone == size:
            break
        row, head = divmod(place, gates.shape[1])
        if new[row, head] and int(new[row].sum()) > keep:
            new[row, head] = 0
            gone += 1
    return new
