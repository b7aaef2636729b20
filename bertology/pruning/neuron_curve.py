"""How many neurons, or heads and neurons together, can be removed before the model gets worse?"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..anatomy.dissect import dissect
from ..anatomy.mlps import MlpAnatomy, dissect_mlps
from ..anatomy.sites import Anatomy, Site
from ..data.batches import Batches, BatchesOrTexts
from ..data.losses import ExampleLoss
from ..data.make_batches import as_batches
from ..data.metrics import Metric, MetricName, metric_name
from ..errors import DataError, UnknownAnatomy, checked, is_number, is_whole
from ..importance.head_importance import HeadImportance, ImportanceAccumulator
from ..importance.neuron_importance import NeuronImportance, NeuronImportanceAccumulator
from ..importance.score import Score, scorer
from ..results.axes import axes
from ..results.fields import model_name
from ..results.result import Result
from ..streaming.accumulate import accumulate
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress, progress_bar
from ..streaming.same_data import same_data
from ..tap.gates import gating
from .curve import first_below
from .parts_of_heads import check_in_memory, check_plain, inner_layer
from .rankings import ESTIMATED, RANKINGS, check_known, estimated_scores, head_magnitudes, random_scores


@dataclass(frozen=True, eq=False, repr=False)
class NeuronCurve(Result):
    """The score of a model as it loses its neurons, or heads and neurons, lowest score per parameter first."""

    main: ClassVar[str | None] = "scores"

    parameters_left: Annotated[Tensor, axes("step")]
    """[step]: how many parameters of the heads and neurons that may go are left; the first step is the whole model."""
    scores: Annotated[Tensor, axes("step")]
    """[step]: the metric with this many parameters, higher is better."""
    neurons_gone: Annotated[Tensor, axes("layer neuron")]
    """[layer, neuron]: the step at which a neuron goes, from 1; NaN for those that stay, or are not there."""
    heads_gone: Annotated[Tensor, axes("layer head")]
    """[layer, head]: the step at which a head goes; NaN for those that stay. Its layers are those of attention."""
    metric: str
    """What was measured."""
    by: str
    """What ranked them: "importance", "fisher", "magnitude" or "random"."""
    kinds: str
    """What may go: "neurons", or "both" heads and neurons."""
    seed: int | None
    """The seed of a random order."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: the MLPs, `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks."""

    @checked
    def stack(self, name: str) -> NeuronCurve:
        """Refused, with `DataError`: the scores are of a model that lost neurons of all stacks."""
        raise DataError("a curve has no part for one stack")

    @checked
    def last_step(self, threshold: float) -> int:
        """The last step before the score first fell below this share of the whole model's score.

        Raises `DataError` for a threshold that is no share, or of a whole model that scores 0 or less.
        """
        below = first_below(self.scores, threshold)
        return len(self.scores) - 1 if below is None else below - 1

    @checked
    def neurons_off(self, threshold: float) -> dict[int, list[int]]:
        """{row: neurons} that are silent at `last_step(threshold)`, for `prune_neurons`."""
        return _by_row(self.neurons_gone <= self.last_step(threshold))

    @checked
    def heads_off(self, threshold: float) -> dict[int, list[int]]:
        """{row: heads} that are silent at `last_step(threshold)`, for `prune_heads`."""
        return _by_row(self.heads_gone <= self.last_step(threshold))


def _by_row(gone: Tensor) -> dict[int, list[int]]:
    return {row: some.nonzero().flatten().tolist() for row, some in enumerate(gone) if some.any()}


class _Units(NamedTuple):
    """Heads or neurons that may go."""

    anatomy: Anatomy
    scores: Tensor
    """[layer, unit]: what ranks them."""
    cost: Tensor
    """[layer]: how many parameters one of them has."""


@merges
@checked
def neuron_curve(
    model: nn.Module,
    batches: BatchesOrTexts,
    *,
    metric: MetricName | Metric,
    kinds: Literal["neurons", "both"] = "neurons",
    by: Literal["importance", "fisher", "magnitude", "random"] = "importance",
    importance: BatchesOrTexts | None = None,
    amount: float = 0.1,
    keep: int = 0,
    seed: int = 0,
    loss: ExampleLoss | None = None,
    tokenizer: Any = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> NeuronCurve:
    """Silence neurons, or heads and neurons together, step by step, and score the model at every step.

    Those go first whose score is smallest for each of their parameters, so that heads and neurons of all layers are
    compared by what it costs to keep them. `pruning_curve` does it for heads alone, each counted as one.

    Args:
        model: a model with a task head, whose MLPs `dissect_mlps` finds; it is only gated, never changed.
        batches: the data that is scored: one mapping of model arguments with labels, or an iterable of them (not an
            iterator: it is gone over at every step); or texts with labels (see `make_batches`).
        metric: as in `score`: a metric by name, "inverse_loss", or `f(logits, labels) -> float`.
        kinds: what may go: "neurons", or "both" neurons and heads.
        by: "importance" is E|g|, "fisher" is E[g²] (see `neuron_importance`), both estimated once; "magnitude" is the
            l2 norm of the unit's own weights; "random" is the baseline.
        importance: the data on which importance is estimated; by default `batches`.
        amount: the share of all parameters of these units that goes at each step.
        keep: how many units stay in every layer: heads of its attention, neurons of its MLP.
        seed: of the random order.
        loss: for importance, `f(outputs, batch) -> [batch]`; by default that of the task head.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar over steps, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for options that make no sense, `UnknownAnatomy` for a model without MLPs of known form.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=24, intermediate_size=64)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "labels": torch.tensor([1, 0])}
        >>> neuron_curve(model, batch, metric="accuracy", amount=0.5).parameters_left.tolist()
        [6272, 3136, 0]
    """
    _check(by, kinds, amount, keep, importance)
    scored = _repeatable(model, batches, tokenizer)
    ranked_on = scored if importance is None else _repeatable(model, importance, tokenizer)
    mlps, anatomy = dissect_mlps(model), dissect(model)
    parts: list[Anatomy] = [mlps, anatomy] if kinds == "both" else [mlps]
    ranks = _scores(model, parts, by, ranked_on, loss, seed)
    units = [_Units(part, scores, _cost(part)) for part, scores in zip(parts, ranks, strict=True)]
    gone, left = _order(units, float(amount), int(keep), by_cost=by != "random")
    scores: list[Score] = []
    for step in progress_bar(progress, range(len(left))):
        with ExitStack() as opened:
            for one, when in zip(units, gone, strict=True):
                opened.enter_context(gating(one.anatomy, (~(when <= step)).float()))
            scores.append(accumulate(model, scored, scorer(metric, loss))[0])
    values = torch.tensor([one.value for one in scores], dtype=torch.float64)
    heads = gone[1] if kinds == "both" else torch.full((anatomy.layers, anatomy.heads), float("nan"))
    return NeuronCurve(
        torch.tensor(left), values, gone[0], heads, metric_name(metric), by, kinds, seed if by == "random" else None,
        mlps.labels, model_name=model_name(model), n_examples=scores[0].examples,
    )  # fmt: skip


def _check(by: str, kinds: str, amount: Any, keep: Any, importance: object) -> None:
    if by not in RANKINGS:
        raise DataError(f"by is {', '.join(map(repr, RANKINGS))}, got {by!r}")
    if kinds not in ("neurons", "both"):
        raise DataError(f"kinds is 'neurons' or 'both', got {kinds!r}")
    if not is_number(amount) or not 0 < amount <= 1:
        raise DataError(f"amount is a share of the parameters of all units, above 0 and at most 1, got {amount!r}")
    if not is_whole(keep) or keep < 0:
        raise DataError(f"keep is a number of units in every layer, got {keep!r}: wanted a whole number, 0 or more")
    if importance is not None and by not in ESTIMATED:
        raise DataError(f"importance= is for by='importance' and by='fisher', which come from data, got by={by!r}")


def _repeatable(model: nn.Module, given: BatchesOrTexts, tokenizer: Any) -> Batches:
    batches = as_batches(model, given, tokenizer)
    return same_data(batches, why="neuron_curve")


def _scores(
    model: nn.Module, parts: list[Anatomy], by: str, data: Batches, loss: ExampleLoss | None, seed: int
) -> list[Tensor]:
    """[layer, unit] for each part: what ranks its units."""
    if by == "random":
        return random_scores(parts, seed)
    if by == "magnitude":
        return [neuron_magnitudes(one) if isinstance(one, MlpAnatomy) else head_magnitudes(one) for one in parts]
    kinds = [NeuronImportanceAccumulator if isinstance(one, MlpAnatomy) else ImportanceAccumulator for one in parts]
    found: Iterable[NeuronImportance | HeadImportance] = accumulate(model, data, *(kind(loss) for kind in kinds))
    return [estimated_scores(one, by) for one in found]


def _layers(site: Site) -> list[nn.Module]:
    return list(dict.fromkeys((site.query, site.key, site.value, site.projection)))


def _cost(part: Anatomy) -> Tensor:
    """[layer]: how many parameters one unit has, its share of the layers around it.

    Biases of the output belong to no unit, and adapters (LoRA) are merged into the weights that they change.
    """
    costs = []
    for site in part.sites:
        size = sum(_size(layer, bias=layer is not site.projection) for layer in _layers(site))
        costs.append(size // max(1, len(site.kept)))
    return torch.tensor(costs)


def _size(layer: nn.Module, *, bias: bool) -> int:
    """How many weights a layer has, and biases: as it says itself, where they are packed (int8) or in an adapter."""
    inner = inner_layer(layer)
    inputs, outputs = getattr(inner, "in_features", None), getattr(inner, "out_features", None)
    its_bias = getattr(inner, "bias", None)
    its_bias = its_bias() if callable(its_bias) else its_bias  # of torch's int8
    if isinstance(inputs, int) and isinstance(outputs, int):
        return (inputs + (bias and its_bias is not None)) * outputs
    size = sum(p.numel() for p in layer.parameters())
    return size - (its_bias.numel() if isinstance(its_bias, Tensor) and not bias else 0)


@torch.no_grad()
def neuron_magnitudes(mlps: MlpAnatomy) -> Tensor:
    """[layer, neuron]: the l2 norm of a neuron's rows of the up and gate projections and column of the down projection.

    Biases do not count. Neurons that are not there are NaN.
    Raises `UnknownAnatomy` for weights that are not plain: quantized, or with adapters.
    """
    check_in_memory(mlps.model, "the size of its weights cannot be measured", UnknownAnatomy)
    out = torch.full((mlps.layers, mlps.neurons), float("nan"), dtype=torch.float64)
    for site in mlps.sites:
        many, squares = len(site.kept), 0.0
        for layer in map(inner_layer, _layers(site)):
            check_known(site, partial(check_plain, site, layer, groups_allowed=True))
            weight = layer.weight.flatten(2).sum(-1) if layer.weight.dim() > 2 else layer.weight
            outputs = layer is not inner_layer(site.projection)
            rows = weight if isinstance(layer, Conv1D) is not outputs else weight.T
            squares = squares + rows.double().square().sum(1).reshape(-1, many).sum(0).cpu()
        if many:
            out[site.row, list(site.kept)] = torch.as_tensor(squares).sqrt()
    return out


def _order(units: list[_Units], amount: float, keep: int, *, by_cost: bool) -> tuple[list[Tensor], list[int]]:
    """The step at which each unit goes, [layer, unit] for each kind, and how many parameters are left at each step."""
    gone = [torch.full(one.scores.shape, float("nan"), dtype=torch.float64) for one in units]
    there = [one.anatomy.present for one in units]
    places, ranks, costs = [], [], []
    for kind, one in enumerate(units):
        free = _free(one.scores, there[kind], keep)
        found = free.nonzero()
        ranks.append(one.scores[free] / (one.cost[found[:, 0]].clamp_min(1) if by_cost else 1))
        costs.append(one.cost[found[:, 0]])
        places += [(kind, row, number) for row, number in found.tolist()]
    total = sum(int((mask.sum(1) * one.cost).sum()) for one, mask in zip(units, there, strict=True))
    left, used, step = [total], 0, 1
    rank, cost = torch.cat(ranks), torch.cat(costs)
    for place in rank.argsort(stable=True).tolist():
        if used >= amount * total * step - 1e-9:
            left.append(total - used)
            step += 1
        kind, row, number = places[place]
        gone[kind][row, number] = step
        used += int(cost[place])
    return gone, [*left, total - used] if places else left


def _free(scores: Tensor, there: Tensor, keep: int) -> Tensor:
    """[layer, unit], bool: the units that may go: all but the `keep` of each layer with the highest scores."""
    free = there.clone()
    if keep:
        best = scores.masked_fill(~there, -float("inf")).argsort(dim=1, descending=True, stable=True)[:, :keep]
        free.scatter_(1, best, torch.zeros_like(best, dtype=torch.bool))
    return free
