"""Training many probes at once, each as if it were trained alone."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError, checked, how_many
from ..results.complete_file import locked
from ..results.views import brief
from ..streaming.checkpoint import Checkpoint
from ..streaming.identity import add_tensor
from ..streaming.progress import Progress, progress_bar
from .optimizer import PAPER, AMSGrad, Patience, Training
from .probes import Probes
from .random_draws import Order
from .scores import judge, micro_f1
from .span_batches import BatchSource, check_gives_batches, check_sources
from .store import Store

AT_ONCE = 32
"""The number of records that are read at a time to identify a data set."""


def digest_of(train: BatchSource, dev: BatchSource, probes: Probes, settings: Training) -> str:
    """A digest that identifies a training: of its settings, its initial probes and all of its data."""
    digest = hashlib.sha256(f"{settings} {probes.seeds} {probes.step}".encode())
    for x in (probes.layers, probes.weights):
        add_tensor(digest, x)
    for source in (train, dev):
        sizes = (source.records, source.layers, source.hidden, source.sides, source.labels, source.counted)
        digest.update(repr(sizes).encode())
        add_tensor(digest, source.target_record)
        if isinstance(source, Store):
            digest.update(source.digest().encode())  # from its checksums: its vectors may be larger than memory
            continue
        for start in range(0, source.records, AT_ONCE):
            batch = source.batch(range(start, min(start + AT_ONCE, source.records)))
            for x in (batch.vectors, *batch.tokens, *batch.targets, batch.gold):
                add_tensor(digest, x)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Trained:
    """Trained probes with their best weights, and the course of their training."""

    probes: Probes
    """The probes in eval mode, each with the weights of its best validation."""
    settings: Training
    """The settings of training, with the width and dropout of the probes."""
    steps: Tensor
    """[probe] int64: the number of steps that each probe was trained for."""
    best_steps: Tensor
    """[probe] int64: the number of steps before its best validation."""
    validation_f1: Tensor
    """[probe, validation] float64: F1 at each validation; NaN after a probe stopped."""
    validation_bits: Tensor
    """[probe, validation] float64: the loss at each validation, in bits per target, summed over labels; NaN after a
    probe stopped."""
    losses: Tensor
    """[probe, validation] float64: the mean loss of the steps before each validation; NaN after a probe stopped."""
    stopped: tuple[str, ...]
    """[probe]: why each probe stopped: its "patience" ended, its "learning rate" became too low, or all "validations"
    were used up. In the last case more training may help."""

    __repr__ = brief


@checked
def train_probes(
    train: BatchSource, dev: BatchSource, probes: Probes, settings: Training = PAPER, *,
    checkpoint: str | Path | None = None, progress: Progress = None,
) -> Trained:  # fmt: skip
    """Train several probes at once, each as if it were alone (Tenney et al. 2019; settings as in their program).

    A batch is some records with all their targets. The loss is the mean of the binary cross-entropy over targets and
    labels. The gradient of each probe is clipped, and Adam (AMSGrad) makes a step at the probe's own learning rate. The
    probes are validated on `dev` at regular intervals by micro-F1 over the labels that count, or by the loss with
    `Training(choose_by="loss")`. The validations decide, for each probe alone, its learning rate, when it stops, and
    its best weights. A probe that has stopped takes no more time.

    The vectors from `train` and `dev` are used without changes: the encoder is frozen, and its own dropout is off. (In
    the released program it is on while probes train, except for layer 0.)

    Args:
        train: the records to train on.
        dev: the records that decide learning rates, the end of training and the best weights.
        probes: the initial probes; they are not changed. Training takes place on their device.
        settings: by default the paper's settings for tasks of medium size. Width and dropout are those of the probes.
        checkpoint: a file to which the training is written every minute, and from which an interrupted training
            resumes. On a CPU the result is the same to the last bit. It is removed when the training is complete.
        progress: True for a progress bar over steps, or its title; no bar without it.

    Raises `DataError` for data sets that do not match each other or the probes, for a `dev` without any label that
    counts, for losses that are not finite, and for a checkpoint of another training.

        >>> from bertology.edge_probing import EdgeBatch
        >>> class Toy:  # whether the first element of a vector is above 0
        ...     layers, hidden, sides, labels, counted, records = 1, 4, 1, ("yes",), ("yes",), 64
        ...     target_record = torch.arange(64)
        ...     def batch(self, records):
        ...         vectors = torch.randn(64, 1, 4, generator=torch.Generator().manual_seed(0))[list(records)]
        ...         rows = torch.arange(len(vectors))
        ...         return EdgeBatch(vectors, (rows,), (rows,), (vectors[:, 0, :1] > 0).float())
        >>> probes = Probes(torch.ones(1, 1, dtype=torch.bool), 4, 1, 1, width=16)
        >>> trained = train_probes(Toy(), Toy(), probes, Training(lr=0.01, validate_every=20, max_validations=5))
        >>> trained.stopped, bool(trained.validation_f1.max() > 0.9)
        (('validations',), True)
    """
    check_gives_batches(train=train, dev=dev)
    trained, file = train_resumably(train, dev, probes, settings, checkpoint, progress)
    if file is not None:
        file.remove()
    return trained


def train_resumably(
    train: BatchSource, dev: BatchSource, probes: Probes, settings: Training, checkpoint: str | Path | None,
    progress: Progress,
) -> tuple[Trained, Checkpoint | None]:  # fmt: skip
    """As `train_probes`, but the checkpoint of the complete training is kept until the caller removes it."""
    check_sources(train, dev)
    if len(train.labels) != probes.labels:
        raise DataError(f"the probes are for {how_many(probes.labels, 'label')}, train has {len(train.labels)}")
    settings = dataclasses.replace(
        settings, width=probes.width, dropout=probes.dropout, input_dropout=probes.input_dropout
    )
    file = None
    if checkpoint is not None:
        otherwise = "a training with other settings, other probes or other data"
        file = Checkpoint(checkpoint, digest_of(train, dev, probes, settings), otherwise=otherwise)
    with torch.inference_mode(False), torch.enable_grad(), locked(checkpoint):
        run = _Run(train, dev, probes, settings)
        if file is not None:
            file.load(run)
        with progress_bar(progress, initial=run.step, total=settings.max_steps) as bar:
            while run.alive:
                run.advance()
                bar.update()
                bar.set_postfix(probes=len(run.alive), refresh=False)
                if file is not None:
                    file.keep(run)
        if file is not None:
            file.write(run)
    return run.trained(), file


class _Run:
    """The state of a training."""

    def __init__(self, train: BatchSource, dev: BatchSource, probes: Probes, settings: Training) -> None:
        self._train, self._dev, self._settings = train, dev, settings
        self._order = Order(train.records, settings.batch_size, settings.order)
        self._all = probes
        self.alive = list(range(len(probes.seeds)))
        self._patience = [Patience(settings.lr) for _ in self.alive]
        self._seen: list[list[list[float]]] = [[] for _ in self.alive]  # F1 and bits at each validation
        self._best = probes.weights.detach().clone()
        self._keep(self.alive, probes.select(self.alive))
        self._optimizer = AMSGrad(self._probes.weights.detach())
        self._first = probes.step
        self.step = 0

    def _keep(self, alive: list[int], probes: Probes) -> None:
        """Continue with only some of the probes."""
        self.alive, self._probes = alive, probes.train()
        self._losses = torch.zeros(len(alive), dtype=torch.float64, device=probes.weights.device)

    def advance(self) -> None:
        """Make one training step, and validate after every `validate_every` steps."""
        weights = self._probes.weights
        batch = self._train.batch(self._order.at(self.step)).to(weights.device)
        if not batch.count:
            raise DataError(f"the batch of step {self.step} has no targets: leave out records without targets")
        losses = loss_of(self._probes(batch), batch.gold)
        (gradient,) = torch.autograd.grad(losses.sum(), weights)
        lrs = [self._patience[probe].lr for probe in self.alive]
        self._optimizer.step(weights.detach(), gradient, lrs, self._settings.clip)
        self._losses += losses.detach()
        self.step += 1
        if self.step % self._settings.validate_every == 0:
            self._validate()

    def _validate(self) -> None:
        settings = self._settings
        losses = (self._losses / settings.validate_every).tolist()
        self._losses.zero_()
        for probe, loss in zip(self.alive, losses, strict=True):
            if not math.isfinite(loss):
                raise DataError(
                    f"the loss of probe {probe} is {loss} in the steps before step {self.step}: "
                    "lower the learning rate, and look for NaN or overflow in the vectors"
                )
        found, bits = judge(self._probes, self._dev, records=settings.dev_records, batch_size=settings.batch_size)
        f1 = micro_f1(*(x.sum(1) for x in found[:3]))
        scores = (f1 if settings.choose_by == "f1" else -bits).tolist()
        for place, probe in enumerate(self.alive):
            self._seen[probe].append([f1[place].item(), bits[place].item()])
            if self._patience[probe].see(scores[place], losses[place], settings):
                self._best[probe] = self._probes.weights.detach()[place]
        remaining = [place for place, probe in enumerate(self.alive) if not self._patience[probe].stops(settings)]
        if len(remaining) < len(self.alive):
            self._optimizer.select(remaining)
            alive = [self.alive[place] for place in remaining]
            if alive:
                self._keep(alive, self._probes.select(remaining))
            self.alive = alive

    def trained(self) -> Trained:
        """The probes with their best weights."""
        every, settings = self._settings.validate_every, self._settings
        probes = self._all.select(range(len(self._all.seeds))).eval()
        with torch.no_grad():
            probes.weights.copy_(self._best)
        return Trained(
            probes=probes,
            settings=settings,
            steps=torch.tensor([len(one.scores) * every for one in self._patience]),
            best_steps=torch.tensor([(one.best + 1) * every for one in self._patience]),
            validation_f1=_side_by_side([[f1 for f1, _ in seen] for seen in self._seen]),
            validation_bits=_side_by_side([[bits for _, bits in seen] for seen in self._seen]),
            losses=_side_by_side([one.losses for one in self._patience]),
            stopped=tuple(one.stops(settings) for one in self._patience),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that are needed to resume."""
        return {
            "weights": self._probes.weights, "best": self._best, "losses": self._losses,
            "moments": self._optimizer.moments, "steps": self._optimizer.steps,
        }  # fmt: skip

    def numbers(self) -> dict[str, Any]:
        """Everything else that is needed to resume, as JSON can store it."""
        patience = [dataclasses.asdict(one) for one in self._patience]
        return {"step": self.step, "alive": self.alive, "patience": patience, "seen": self._seen}

    def resume(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Resume the training where it was interrupted."""
        device = self._best.device
        tensors = {name: x.to(device) for name, x in tensors.items()}
        self.step, alive = numbers["step"], numbers["alive"]
        self._patience, self._seen = [Patience(**one) for one in numbers["patience"]], numbers["seen"]
        self._best = tensors["best"]
        if alive:
            self._keep(alive, self._all.select(alive))
            with torch.no_grad():
                self._probes.weights.copy_(tensors["weights"])
        self.alive, self._losses = alive, tensors["losses"]
        self._probes.step = self._first + self.step
        self._optimizer.moments, self._optimizer.steps = tensors["moments"], tensors["steps"]


def loss_of(logits: Tensor, gold: Tensor) -> Tensor:
    """[probe]: the mean over targets and labels of the binary cross-entropy of logits [probe, target, label].

    >>> loss_of(torch.zeros(1, 2, 3), torch.ones(2, 3)).item() == torch.tensor(2.0).log().item()
    True
    """
    gold = gold.to(logits.dtype).expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, gold, reduction="none").mean((1, 2))


def _side_by_side(rows: list[list[float]]) -> Tensor:
    """[probe, validation]: lists of different lengths, padded with NaN."""
    longest = max(map(len, rows))
    return torch.tensor([row + [float("nan")] * (longest - len(row)) for row in rows], dtype=torch.float64)
