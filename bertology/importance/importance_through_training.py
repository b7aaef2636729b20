"""How does the importance of heads change through training?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.sites import Anatomy
from ..data.batches import BatchesOrTexts, check_repeatable
from ..data.losses import ExampleLoss
from ..data.metrics import spearman
from ..errors import DataError, beginning_of, checked, how_many, is_whole
from ..results.axes import axes
from ..results.result import Result
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress, progress_bar
from .head_importance import HeadImportance, head_importance


@dataclass(frozen=True, eq=False, repr=False)
class ImportanceSeries(Result):
    """How much the loss depends on each head, at several steps of training."""

    main: ClassVar[str | None] = "scores"
    _fields: ClassVar[tuple[str, ...]] = ("scores", "signed", "fisher", "stderr")

    steps: Annotated[Tensor, axes("step")]
    """[step]: the training steps, as they were given."""
    scores: Annotated[Tensor, axes("step layer head")]
    """[step, layer, head]: E|g|, as in `HeadImportance`; NaN for pruned heads."""
    signed: Annotated[Tensor, axes("step layer head")]
    """[step, layer, head]: E[g]."""
    fisher: Annotated[Tensor, axes("step layer head")]
    """[step, layer, head]: E[g²]."""
    stderr: Annotated[Tensor, axes("step layer head")]
    """[step, layer, head]: the standard error of `scores` over examples."""
    examples: int
    """How many examples each checkpoint was measured on."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""
    granularity: str = "example"
    """Whether the absolute value was taken for each "example" or for each "token"."""

    @checked
    def at(self, step: int) -> HeadImportance:
        """The importance at one training step, by its number."""
        places = (self.steps == step).nonzero().flatten().tolist()
        if not places:
            raise DataError(f"step {step} is not in this series: it has {', '.join(map(str, self.steps.tolist()))}")
        scores, signed, fisher, stderr = (getattr(self, name)[places[0]] for name in self._fields)
        n, labels = self.examples, self.labels
        return HeadImportance(
            scores, signed, fisher, stderr, n, labels, granularity=self.granularity, model_name=self.model_name
        )

    @checked
    def correlation(self, normalize: Literal["layer", "all"] | None = "layer") -> Tensor:
        """[step, step]: Spearman's rank correlation of all heads' scores between training steps.

        As for a pruning curve, the scores are first divided by their layer's l2 norm; None ranks them as they are.
        It is 0 with a checkpoint whose heads all score the same.
        """
        each = [self.at(int(step)) for step in self.steps]
        ranked = [(one.normalized(normalize) if normalize else one).scores.flatten() for one in each]
        ranked = [scores[~scores.isnan()] for scores in ranked]
        return torch.tensor([[spearman(a[:, None], b) for b in ranked] for a in ranked], dtype=torch.float64)


@merges
@checked
def importance_through_training(
    checkpoints: Iterable[tuple[int, Any]],
    batches: BatchesOrTexts,
    *,
    load: Callable[[Any], nn.Module] | None = None,
    loss: ExampleLoss | None = None,
    granularity: Literal["example", "token"] = "example",
    tokenizer: Any = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> ImportanceSeries:
    """Estimate the importance of all heads at each of several checkpoints of one training (Michel et al. 2019, §6).

    Each checkpoint is measured and released before the next one is requested. So a generator may load them one by one,
    or train a model and yield it now and then: measuring does not change the model.

    Args:
        checkpoints: pairs of a training step and a model, or a folder to load the model from.
        batches: one mapping of model arguments with labels, or an iterable of them (not an iterator: it is read again
            for each checkpoint).
        load: `f(folder) -> model`; by default `AutoModelForSequenceClassification.from_pretrained`, on the CPU.
        loss: as in `head_importance`.
        granularity: as in `head_importance`.
        progress: True for a progress bar over checkpoints, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for checkpoints that are not such pairs, for a step that is given twice, for no checkpoints, and
    for heads that differ from those of the first checkpoint, and folders without the weights of a classifier.

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
    with progress_bar(progress) as bar:
        for pair in checkpoints:
            step, where = _pair(pair, measured)
            model = where if isinstance(where, nn.Module) else (load or _load)(where)
            if measured:
                _check_heads(dissect(model), step, next(iter(measured.values())))
            measured[step] = head_importance(model, batches, loss=loss, granularity=granularity, tokenizer=tokenizer)
            del model, where, pair  # before the next one comes
            bar.update()
    if not measured:
        raise DataError("no checkpoints: wanted pairs of a step and a model or folder, got an empty iterable")
    first = next(iter(measured.values()))
    counts = sorted({one.examples for one in measured.values()})
    if len(counts) > 1:
        raise DataError(f"the batches must be the same for each checkpoint, got {counts} examples")
    fields: dict[str, Any] = {
        name: torch.stack([getattr(one, name) for one in measured.values()]) for name in ImportanceSeries._fields
    }
    return ImportanceSeries(
        steps=torch.tensor(list(measured)),
        examples=first.examples,
        labels=first.labels,
        granularity=granularity,
        model_name=first.model_name,
        **fields,
    )


def _pair(pair: Any, done: dict[int, HeadImportance]) -> tuple[int, Any]:
    wanted = "checkpoints are pairs (step, model) or (step, folder)"
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise DataError(f"{wanted}, got {type(pair).__name__}")
    step, where = pair
    if not is_whole(step):
        raise DataError(f"{wanted}, with a whole number as step, got {step!r}")
    step = int(step)
    if step in done:
        raise DataError(f"step {step} comes twice among the checkpoints")
    return step, where


def _load(folder: str | Path) -> nn.Module:
    from transformers import AutoModelForSequenceClassification

    if not isinstance(folder, (str, Path)):
        raise DataError(f"a checkpoint is a model or a folder, got {type(folder).__name__}; other kinds want load=")
    if not os.path.isdir(folder):
        raise DataError(f"there is no folder {folder} to load a checkpoint from; checkpoints of other kinds need load=")
    others = "load=f loads other models, such as load=bertology.load_pruned those that were pruned"
    try:
        model, told = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        if str(model.name_or_path) != str(folder):  # an adapter (peft): transformers 5 tells what it lacks itself
            told = AutoModelForSequenceClassification.from_pretrained(model.name_or_path, output_loading_info=True)[1]
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # those of transformers, safetensors and torch
        why = beginning_of(error)
        raise DataError(
            f"the checkpoint in {folder} cannot be loaded as a sequence classifier ({why}): {others}"
        ) from error
    # In the model below an adapter, the weights in whose place the adapter puts its own have other names.
    lacking = set(told["missing_keys"]).intersection(model.state_dict())
    if lacking:
        raise DataError(
            f"the checkpoint in {folder} lacks weights of a sequence classifier, such as {min(lacking)}, which would "
            f"be random: {others}"
        )
    loaded: nn.Module = model
    return loaded


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
            f"the checkpoint of step {step} has {how_many(int(anatomy.present.sum()), 'head')} left, or others than "
            f"the first, which has {int(there.sum())}: prune before the training, or after it"
        )
