"""What each command computes: a thin layer over the functions of the package."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ..anatomy.names import LABELS_ARGUMENT
from ..anatomy.sites import HeadScore
from ..data.losses import is_causal
from ..data.metrics import METRICS, MetricName
from ..errors import writable
from ..importance.head_importance import HeadImportance, ImportanceAccumulator, head_importance
from ..importance.score import INVERSE_LOSS, score
from ..measures.entropy import AttentionEntropy, EntropyAccumulator, attention_entropy
from ..pruning.curve import PruningCurve, pruning_curve
from ..pruning.prune import prune_heads, save_pruned
from ..streaming.accumulate import accumulate
from .files import Section
from .models import Loaded

Batches = list[Mapping[str, Any]]
Job = Callable[[Namespace, Loaded, Batches], list[Section]]


def _listed(scores: Sequence[HeadScore]) -> str:
    return ", ".join(f"{one.head} ({one.score:.3g})" for one in scores)


def _importance_section(found: HeadImportance) -> Section:
    rows = [("most important", _listed(found.top(5))), ("least important", _listed(found.bottom(5)))]
    words = "How much the loss depends on each head: the mean of |∂L/∂ξ| over examples (Michel et al. 2019, eq. 2)."
    return Section("importance", "Head importance", words, found, rows)


def _entropy_section(found: AttentionEntropy) -> Section:
    rows = [("most spread out", _listed(found.top(5))), ("most focused", _listed(found.bottom(5)))]
    words = "How spread out the attention of each head is, in nats; 0 means that it looks at one token."
    return Section("entropy", "Attention entropy", words, found, rows)


def _curve_section(args: Namespace, found: PruningCurve) -> Section:
    off = found.heads_off(args.threshold, keep=args.keep)
    many = int((found.gates[0] > 0).sum())
    rows = [
        (f"{found.metric} of the whole model", f"{found.scores[0]:.4g}"),
        (f"heads not needed for {args.threshold:.0%} of it", f"{len(off)} of {many}"),
    ]
    words = (
        f"The {found.metric} as heads are masked step by step, least important first (Michel et al. 2019, §4). Heads "
        "are ranked and scored on the same texts, so that other texts may need more of them."
    )
    return Section("curve", "Pruning curve", words, found, rows)


def importance(args: Namespace, loaded: Loaded, batches: Batches) -> list[Section]:
    """How much does the loss depend on each head?"""
    return [_importance_section(head_importance(loaded.model, batches, progress=_title(args, "importance")))]


def entropy(args: Namespace, loaded: Loaded, batches: Batches) -> list[Section]:
    """How spread out is each head's attention?"""
    return [_entropy_section(attention_entropy(loaded.model, batches, progress=_title(args, "entropy")))]


def curve(args: Namespace, loaded: Loaded, batches: Batches) -> list[Section]:
    """How many heads can be masked before the model gets worse?"""
    return [_curve_section(args, _curve(args, loaded, batches))]


def prune(args: Namespace, loaded: Loaded, batches: Batches) -> list[Section]:
    """Remove the heads that are not needed, or those that were named, and save the model."""
    metric = _metric(args, loaded.model)
    found = None if args.heads else _curve(args, loaded, batches)
    before = score(loaded.model, batches, metric=metric).value if found is None else found.scores[0].item()
    heads: Sequence[Any] = args.heads if found is None else found.heads_off(args.threshold, keep=args.keep)
    pruned = prune_heads(loaded.model, heads)
    folder = Path(args.output) / "model"
    save_pruned(loaded.model, folder)
    with writable(folder):
        loaded.tokenizer.save_pretrained(folder)
    after = score(loaded.model, batches, metric=metric, progress=_title(args, "score of the pruned model"))
    rows = [
        ("heads removed", str(len(heads))),
        ("parameters", f"{pruned.parameters_before:,} before, {pruned.parameters_after:,} after"),
        (after.metric, f"{before:.4g} before, {after.value:.4g} after"),
        ("saved in", f"{folder}; load it with bertology.load_pruned"),
    ]
    words = "The heads that are left in each layer, after the others were removed from the weights."
    curves = [] if found is None else [_curve_section(args, found)]
    return [*curves, Section("pruned", "Pruned model", words, pruned, rows, ("json", "safetensors"))]


def report(args: Namespace, loaded: Loaded, batches: Batches) -> list[Section]:
    """Importance and entropy in one pass and, where there are labels, the pruning curve."""
    if LABELS_ARGUMENT not in batches[0]:
        told = "bertology: warning: the texts have no labels, so that importance and the curve are left out"
        print(told, file=sys.stderr)
        return entropy(args, loaded, batches)
    accumulators = ImportanceAccumulator(), EntropyAccumulator()
    ranked, spread = accumulate(
        loaded.model, batches, *accumulators, progress=_title(args, "importance and entropy")
    )  # fmt: skip
    found = _curve(args, loaded, batches, importance=ranked)
    return [_importance_section(ranked), _curve_section(args, found), _entropy_section(spread)]


JOBS: dict[str, Job] = {f.__name__: f for f in (importance, entropy, curve, prune, report)}


def _curve(args: Namespace, loaded: Loaded, batches: Batches, **options: Any) -> PruningCurve:
    if args.by != "importance" or args.reestimate:
        options = {}
    return pruning_curve(
        loaded.model, batches, metric=_metric(args, loaded.model), by=args.by, amount=args.amount, seed=args.seed,
        reestimate=args.reestimate, progress=_title(args, "masking heads"), **options,
    )  # fmt: skip


def _metric(args: Namespace, model: Any) -> MetricName:
    """The metric that was named, or the usual one of the model's task."""
    if args.metric:
        return cast(MetricName, args.metric)
    if is_causal(model):
        return "inverse_loss"
    return "pearson" if model.config.num_labels == 1 else "accuracy"


METRIC_NAMES = (*METRICS, INVERSE_LOSS)


def _title(args: Namespace, what: str) -> str | None:
    return None if args.quiet else what
