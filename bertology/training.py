"""Which heads matter as training goes on?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .anatomy.dissect import dissect
from .anatomy.sites import Anatomy
from .data.batches import Batches, check_repeatable
from .data.losses import ExampleLoss
from .data.metrics import spearman
from .errors import DataError
from .importance import HeadImportance, head_importance
from .results.result import Result


@dataclass(frozen=True, eq=False, repr=False)
class ImportanceSeries(Result):
    """How much the loss hangs on each head, at one step of training after the other."""

    _by_layer: ClassVar = ()
    _fields: ClassVar = ("scores", "signed", "fisher", "stderr")

    steps: Tensor
    """[step]: the numbers of the training steps, as they were given."""
    scores: Tensor
    """[step, layer, head]: E|g|, as in `HeadImportance`; NaN for pruned heads."""
    signed: Tensor
    """[step, layer, head]: E[g]."""
    fisher: Tensor
    """[step, layer, head]: E[g²]."""
    stderr: Tensor
    """[step, layer, head]: the standard error of `scores` over examples."""
    examples: int
    """How many examples each checkpoint was measured on."""
    labels: tuple[str, ...]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""
    granularity: str = "example"
    """Of what the absolute value was taken: "example" or "token"."""

    def at(self, step: int) -> HeadImportance:
        """The importance at one training step, by its number."""
        places = (self.steps == step).nonzero().flatten().tolist()
        if not places:
            raise DataError(f"step {step} is not in this series: it has {', '.join(map(str, self.steps.tolist()))}")
        scores, signed, fisher, stderr = (getattr(self, name)[places[0]] for name in self._fields)
        n, labels = self.examples, self.labels
        return HeadImportance(scores, signed, fisher, stderr, n, labels, granularity=self.granularity)

    def correlation(self, normalize: Literal["layer", "all"] | None = "layer") -> Tensor:
        """[step, step]: Spearman's rank correlation of all heads' scores between training steps.

        As for a pruning curve, the scores are first divided by their layer's l2 norm; None ranks them as they are.
        It is 0 with a checkpoint whose heads all score the same.
        """
        each = [self.at(int(step)) for step in self.steps]
        ranked = [(one.normalized(normalize) if normalize else one).scores.flatten() for one in each]
        ranked = [scores[~scores.isnan()] for scores in ranked]
        return torch.tensor([[spearman(a[:, None], b) for b in ranked] for a in ranked], dtype=torch.float64)

    def stack(self, name: str) -> ImportanceSeries:
        """Only the layers of one stack, "encoder", "decoder" or "cross", of a model with several."""
        cut = [self.at(int(step)).stack(name) for step in self.steps]
        fields: Any = {field: torch.stack([getattr(one, field) for one in cut]) for field in self._fields}
        return replace(self, labels=cut[0].labels, **fields)


def importance_through_training(
    checkpoints: Iterable[tuple[int, Any]],
    batches: Batches,
    *,
    load: Callable[[Any], nn.Module] | None = None,
    loss: ExampleLoss | None = None,
    granularity: Literal["example", "token"] = "example",
    progress: str | None = None,
) -> ImportanceSeries:
    """Estimate the importance of all heads at each of several checkpoints of one training (Michel et al. 2019, §6).

    Each checkpoint is measured as it comes, and let go before the next is asked for: a generator may load them one by
    one, or train a model and yield it now and then; it gets it back as it was.

    Args:
        checkpoints: pairs of a training step's number and a model, or a folder to load it from.
        batches: one mapping of model arguments with labels, or an iterable of them (not an iterator: it is gone over
            for each checkpoint).
        load: `f(folder) -> model`; by default `AutoModelForSequenceClassification.from_pretrained`, on the CPU.
        loss: as in `head_importance`.
        granularity: as in `head_importance`.
        progress: the title of a progress bar over checkpoints; no bar without it.

    Raises `DataError` for checkpoints that are no such pairs, come twice or not at all, or whose heads are not those of
    the first.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "labels": torch.tensor([1, 0])}
        >>> def training():
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     for step in range(3):
        ...         yield step, model
        ...         model(**batch).loss.backward()
        ...         optimizer.step()
        >>> series = importance_through_training(training(), batch)
        >>> series.scores.shape, series.correlation().shape
        (torch.Size([3, 2, 4]), torch.Size([3, 3]))
    """
    check_repeatable(batches, why="importance_through_training")
    measured: dict[int, HeadImportance] = {}
    with tqdm(desc=progress, disable=progress is None) as bar:
        for pair in checkpoints:
            step, where = _pair(pair, measured)
            model = where if isinstance(where, nn.Module) else (load or _load)(where)
            if measured:
                _check_heads(dissect(model), step, next(iter(measured.values())))
            measured[step] = head_importance(model, batches, loss=loss, granularity=granularity)
            del model, where, pair  # before the next one comes
            bar.update()
    if not measured:
        raise DataError("no checkpoints: wanted pairs of a step and a model or folder, got an empty iterable")
    first = next(iter(measured.values()))
    counts = sorted({one.examples for one in measured.values()})
    if len(counts) > 1:
        raise DataError(f"the batches must be the same for each checkpoint, got {counts} examples")
    fields = {name: torch.stack([getattr(one, name) for one in measured.values()]) for name in ImportanceSeries._fields}
    return ImportanceSeries(
        steps=torch.tensor(list(measured)),
        examples=first.examples,
        labels=first.labels,
        granularity=granularity,
        **fields,
    )


def _pair(pair: Any, done: dict[int, HeadImportance]) -> tuple[int, Any]:
    wanted = "checkpoints are pairs (step, model) or (step, folder)"
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise DataError(f"{wanted}, got {type(pair).__name__}")
    step, where = pair
    if isinstance(step, bool) or not isinstance(step, int):
        raise DataError(f"{wanted}, with a whole number as step, got {step!r}")
    if step in done:
        raise DataError(f"step {step} comes twice among the checkpoints")
    return step, where


def _load(folder: str | Path) -> nn.Module:
    from transformers import AutoModelForSequenceClassification

    if not isinstance(folder, (str, Path)):
        raise DataError(f"a checkpoint is a model or a folder, got {type(folder).__name__}; other kinds want load=")
    return AutoModelForSequenceClassification.from_pretrained(folder)


def _check_heads(anatomy: Anatomy, step: int, first: HeadImportance) -> None:
    """Whether a checkpoint has the heads of the first one."""
    there = ~first.scores.isnan()
    if anatomy.labels != first.labels or anatomy.present.shape != there.shape:
        raise DataError(
            f"the checkpoint of step {step} is of another architecture: it has [layer, head] = "
            f"{list(anatomy.present.shape)} in the layers {', '.join(anatomy.labels)}; "
            f"the first has {list(there.shape)} in {', '.join(first.labels)}"
        )
    if not torch.equal(anatomy.present, there):
        raise DataError(
            f"the checkpoint of step {step} has {int(anatomy.present.sum())} heads left, or others than the first, "
            f"which has {int(there.sum())}: prune before the training, or after it"
        )
