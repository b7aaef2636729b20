"""Which set of heads is enough for the task?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.sites import Anatomy, Head, heads_where
from ..data.batches import (
    Batch,
    BatchesOrTexts,
    check_repeatable,
    device_of,
    each_batch,
    examples,
    on_device,
    run_model,
)
from ..data.losses import ExampleLoss, example_losses, find_loss
from ..data.make_batches import as_batches
from ..errors import DataError, check_least, checked, is_whole
from ..results.axes import axes
from ..results.complete_file import locked
from ..results.fields import model_name
from ..results.result import Result, cpu64
from ..streaming.first_example import FirstExample, check_padding
from ..streaming.processes import Merge, check_same_work, gathered, merges, processes
from ..streaming.progress import Progress, progress_bar
from ..streaming.samplers import check_sampler
from ..tap import uncached, undisturbed
from ..tap.gates import gating
from .gate_training import GateSettings, GateTraining, Method, gates_of

OPEN = 0.5
"""A gate above this counts as open."""
MOST = 1e30
"""The upper limit of lr and penalty; above it, values computed from them can overflow in float32."""


@dataclass(frozen=True, eq=False, repr=False)
class LearnedGates(Result):
    """Gates of heads, trained so that the model keeps its loss with as few of them open as possible."""

    main: ClassVar[str | None] = "gates"

    gates: Annotated[Tensor, axes("layer head", words="gate, 0 closed, 1 open", scale="share")]
    """[layer, head]: the gates under a penalty on open ones, the mean over seeds; NaN for pruned heads."""
    scores: Annotated[Tensor, axes("layer head", words="logit of the gate")]
    """[layer, head]: the logits of these gates, which also rank heads whose gates are all 0 or all 1: what
    `pruning_curve(by=...)` takes."""
    rewarded: Annotated[Tensor | None, axes("layer head", words="gate, 0 closed, 1 open", scale="share")]
    """[layer, head]: with method="soft", the gates where open ones are rewarded; None otherwise."""
    each: Annotated[Tensor, axes("seed layer head")]
    """[seed, layer, head]: `gates` for each seed."""
    losses: Annotated[Tensor, axes("seed")]
    """[seed]: the mean loss on held-out data under the gates of this seed."""
    open_losses: Annotated[Tensor, axes("seed")]
    """[seed]: that loss with gates above 0.5 open, and all others closed."""
    base_loss: float
    """The mean loss of the whole model on held-out data."""
    training: Annotated[Tensor, axes("seed step")]
    """[seed, step]: the loss of the batch at each step, without the penalty."""
    seeds: Annotated[tuple[int, ...], axes("seed")]
    """[seed]: the seeds of training."""
    method: str
    """"l0", hard concrete gates with an L0 penalty, or "soft", sigmoids pushed down and up."""
    penalty: float
    """The penalty on each open gate."""
    leaking: bool
    """Whether `losses` are on the data that the gates were trained on."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""

    @checked
    def open_heads(self, threshold: float = OPEN) -> list[Head]:
        """The heads whose mean gate is above a threshold."""
        return heads_where(self.labels, self.gates > threshold)

    @checked
    def closed_heads(self, threshold: float = OPEN) -> list[Head]:
        """All other heads that are there: `prune_heads` takes them."""
        return heads_where(self.labels, self.gates <= threshold)

    @checked
    def roles(self, threshold: float = OPEN) -> dict[str, list[Head]]:
        """What the heads are to the task (Nam et al. 2025), for gates of method="soft".

        "facilitating" heads stay open under the penalty, "interfering" ones stay closed though open gates are rewarded,
        and "irrelevant" ones do whatever they are pushed to. Raises `DataError` for gates of another method.
        """
        if self.rewarded is None:
            raise DataError(f"only soft gates have roles: call fit_gates(method='soft'), got {self.method!r}")
        interfering = self.rewarded <= threshold
        facilitating = (self.gates > threshold) & ~interfering
        there = ~self.gates.isnan()
        kinds = {"facilitating": facilitating, "interfering": interfering, "irrelevant": ~(facilitating | interfering)}
        return {name: heads_where(self.labels, some & there) for name, some in kinds.items()}


@merges
@checked
def fit_gates(
    model: nn.Module,
    batches: BatchesOrTexts,
    *,
    method: Method = "l0",
    penalty: float = 0.02,
    steps: int = 200,
    lr: float = 0.1,
    held_out: BatchesOrTexts | None = None,
    seeds: Sequence[int] = (0,),
    loss: ExampleLoss | None = None,
    tokenizer: Any = None,
    checkpoint: str | Path | None = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> LearnedGates:
    """Train a gate for each head of a frozen model, so that the loss stays low with few gates open.

    Importance scores heads one by one, and misses that two heads do the same. Gates are trained together: of two such
    heads one stays open. It costs `steps` forward and backward passes for each seed.

    Args:
        model: a model with a task head; its weights stay as they are, in eval mode.
        batches: what the gates are trained on: one mapping of model arguments with labels, an iterable of them, or
            texts with labels (see `make_batches`). Each step takes one of them, drawn at random.
        method: "l0" are hard concrete gates, which become exactly 0 or 1, with a penalty on the expected number of open
            ones (Louizos et al. 2018, Voita et al. 2019). "soft" are sigmoids, trained twice: with a penalty on open
            gates, and with a reward (Nam et al. 2025).
        penalty: how much one open gate costs, in units of the loss. A head stays open where it lowers the loss by more.
        steps: the steps of Adam.
        lr: its learning rate, of the logits of the gates.
        held_out: data on which the loss under the gates is measured; by default `batches`, and the result is marked as
            `leaking`.
        seeds: of the draws of noise and batches. If the gate of a head differs between seeds, other heads can replace
            it.
        loss: `f(outputs, batch) -> [batch]`; by default that of the task head.
        tokenizer: needed for texts: the model's.
        checkpoint: a file from which an interrupted training resumes, given the same model and data. Each training has
            a file of its own, whose name ends in its number. They are removed at the end. Each process needs its own
            `checkpoint`.
        progress: True for a progress bar over trainings, or its title; no bar without it.
        merge: whose batches the gates are trained on under `torch.distributed`: those of "all" processes, or of a group
            of them. Each process then trains the same gates on all of these. With "none", this process trains alone, on
            its own batches.

    Raises `DataError` for options that make no sense, `LossError` when labels are missing or no loss is known,
    `UnknownAnatomy` where gradients do not reach the heads.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "labels": torch.tensor([1, 0])}
        >>> found = fit_gates(model, batch, steps=3)
        >>> found.gates.shape, found.leaking
        (torch.Size([2, 4]), True)
    """
    _check(method, penalty, steps, lr, seeds)
    anatomy = dissect(model)
    _check_model(anatomy)
    settings = GateSettings(method, float(penalty), int(steps), float(lr))
    seeds = tuple(int(seed) for seed in seeds)
    chosen = loss or find_loss(model)
    _check_same(model, (settings, seeds, held_out is None))
    with undisturbed(model), uncached(model), torch.inference_mode(False), locked(checkpoint):
        data = _kept(model, batches, tokenizer, "batches")
        other = data if held_out is None else _kept(model, held_out, tokenizer, "held-out batches")
        check_padding(anatomy, data[0])
        FirstExample(anatomy, chosen, chosen, custom=loss is not None).check(data[0])
        labelled = loss is not None
        trained = _trained(anatomy, data, chosen, settings, seeds, labelled, checkpoint, progress)
        found = _measured(anatomy, trained, other, chosen, settings, labelled=labelled)
        for one in trained:
            if one.file is not None:
                one.file.remove()
    gates, logits, rewarded, losses, open_losses, base = found
    rows = [one.losses for one in trained if one.sign > 0]
    return LearnedGates(
        gates=gates.mean(0),
        scores=logits.mean(0),
        rewarded=rewarded,
        each=gates,
        losses=losses,
        open_losses=open_losses,
        base_loss=base,
        training=torch.tensor(rows, dtype=torch.float64),
        seeds=seeds,
        method=method,
        penalty=settings.penalty,
        leaking=held_out is None,
        labels=anatomy.labels,
        model_name=model_name(model),
        n_examples=sum(map(examples, data)),
    )


def _trained(
    anatomy: Anatomy,
    data: Sequence[Batch],
    loss: ExampleLoss,
    settings: GateSettings,
    seeds: Sequence[int],
    labelled: bool,
    checkpoint: str | Path | None,
    progress: Progress,
) -> list[GateTraining]:
    """A training for each seed, and for soft gates each sign."""
    signs = (1, -1) if settings.method == "soft" else (1,)
    trained: list[GateTraining] = []
    for seed, sign in progress_bar(progress, [(seed, sign) for seed in seeds for sign in signs]):
        one = GateTraining(anatomy, data, loss, settings, seed, sign, labelled=labelled)
        if checkpoint is not None:
            one.resume_from(f"{checkpoint}.{len(trained)}")
        with torch.enable_grad():
            one.run()
        trained.append(one)
    return trained


def _check(method: str, penalty: float, steps: int, lr: float, seeds: Sequence[int]) -> None:
    if method not in ("l0", "soft"):
        raise DataError(f"method is 'l0' or 'soft', got {method!r}")
    check_least("penalty", penalty, 0)
    check_least("steps", steps, 1)
    if not lr > 0:
        raise DataError(f"lr must be above 0, got {lr!r}")
    for name, value in (("lr", lr), ("penalty", penalty)):
        if not value < MOST:
            raise DataError(f"{name} must be below {MOST:g}, got {value!r}")
    if not len(seeds) or not all(is_whole(seed) and 0 <= seed < 2**40 for seed in seeds):
        raise DataError(f"seeds must be one whole number or more from 0 up to 2**40, got {list(seeds)}")


def _check_model(anatomy: Anatomy) -> None:
    if not anatomy.present.any():
        raise DataError("there is no head to gate: all heads of this model were pruned")
    anatomy.check_exact_gradient("gates could not be trained by it")


def _check_same(model: nn.Module, settings: tuple[Any, ...]) -> None:
    """Raise `DataError` in all processes unless they train the same gates of the same model."""
    if processes() == 1:
        return
    check_same_work(model, [])
    every = gathered(settings, "settings of the training")
    if other := [theirs for theirs in every if theirs != every[0]]:
        raise DataError(
            f"the processes train gates with other settings: {every[0]} and {other[0]}. Pass the same in each of them, "
            "or merge='none', and each trains its own"
        )


def _kept(model: nn.Module, batches: BatchesOrTexts, tokenizer: Any, what: str) -> list[dict[str, Any]]:
    """The batches of all processes, checked and on the device of the model."""
    check_repeatable(batches, why="fit_gates")
    made = as_batches(model, batches, tokenizer)
    if processes() == 1:
        return list(each_batch(model, made))
    check_sampler(made)
    own = [on_device(batch, torch.device("cpu")) for batch in each_batch(model, made, may_be_empty=True)]
    device = device_of(model)
    kept = [on_device(batch, device) for part in gathered(own, what) for batch in part]
    if not kept:
        raise DataError(f"no {what} in any process: wanted mappings of model arguments in one or more")
    return kept


def _measured(
    anatomy: Anatomy,
    trained: Sequence[GateTraining],
    batches: Sequence[Batch],
    loss: ExampleLoss,
    settings: GateSettings,
    *,
    labelled: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, float]:
    """Gates and logits, [seed, layer, head], the rewarded ones, and what the losses are under them, [seed]."""

    def mean_loss(gates: Tensor) -> float:
        values = []
        with torch.no_grad(), gating(anatomy, gates):
            for batch in batches:
                outputs = run_model(anatomy.model, batch, labels=labelled)
                values.append(example_losses(loss, outputs, batch).double().cpu())
        return float(torch.cat(values).mean())

    absent = ~anatomy.present
    logits = torch.stack([cpu64(one.logits).masked_fill(absent, torch.nan) for one in trained if one.sign > 0])
    gates = gates_of(logits, settings.method)
    pushed = [gates_of(cpu64(one.logits), settings.method) for one in trained if one.sign < 0]
    rewarded = torch.stack(pushed).mean(0).masked_fill(absent, torch.nan) if pushed else None
    losses = torch.tensor([mean_loss(one.nan_to_num(1).float()) for one in gates], dtype=torch.float64)
    hard = torch.tensor([mean_loss((one > OPEN).float()) for one in gates], dtype=torch.float64)
    return gates, logits, rewarded, losses, hard, mean_loss(torch.ones(absent.shape))
