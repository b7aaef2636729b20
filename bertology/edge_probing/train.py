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

from ..errors import DataError
from ..streaming.checkpoint import Checkpoint
from ..streaming.identity import add_tensor
from ..streaming.progress import Progress, progress_bar
from .optimizer import PAPER, AMSGrad, Patience, Training
from .probes import Probes
from .random_draws import Order
from .scores import judge, micro_f1
from .span_batches import BatchSource, check_sources

COMPARED_RECORDS = 32
"""The number of records of a data set that identify it."""


def digest_of(train: BatchSource, dev: BatchSource, probes: Probes, settings: Training) -> str:
    """Tell one training from another: by its settings, its probes as they begin, the shape and start of its data."""
    digest = hashlib.sha256(f"{settings} {probes.seeds} {probes.step}".encode())
    for x in (probes.layers, probes.weights):
        add_tensor(digest, x)
    for source in (train, dev):
        told = (source.records, source.layers, source.hidden, source.sides, source.labels, source.counted)
        digest.update(repr(told).encode())
        add_tensor(digest, source.target_record)
        batch = source.batch(range(min(COMPARED_RECORDS, source.records)))
        for x in (batch.vectors, *batch.tokens, *batch.targets, batch.gold):
            add_tensor(digest, x)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Trained:
    """Probes at their best, and how they came there."""

    probes: Probes
    """Each with the weights of its best validation, in eval mode."""
    settings: Training
    """The settings of training; width and dropout are the probes' own."""
    steps: Tensor
    """[probe] int64: how many steps each was trained for."""
    best_steps: Tensor
    """[probe] int64: after how many steps it was at its best."""
    validation_f1: Tensor
    """[probe, validation] float64: F1 at each validation; NaN after a probe stopped."""
    validation_bits: Tensor
    """[probe, validation] float64: the loss then, in bits of all labels a target; NaN after a probe stopped."""
    losses: Tensor
    """[probe, validation] float64: the mean loss of the steps before each validation; NaN after a probe stopped."""
    stopped: tuple[str, ...]
    """[probe]: why each stopped: its "patience" or its "learning rate" ran out, or all "validations" were made: then it
    may not have been done."""


def train_probes(
    train: BatchSource, dev: BatchSource, probes: Probes, settings: Training = PAPER, *,
    checkpoint: str | Path | None = None, progress: Progress = None,
) -> Trained:  # fmt: skip
    """Train several probes at once, each as if it were alone (Tenney et al. 2019; settings as in their program).

    A batch is some records with all their targets; the loss is the mean of the binary cross-entropy over targets and
    labels. Each probe's gradient is clipped, and followed by Adam (AMSGrad) at the probe's own learning rate. The
    probes are scored on `dev` every so often, by micro-F1 over the labels that count; from that follow, for each alone,
    its learning rate, when it stops, and its best weights (from the loss with `Training(choose_by="loss")`). A probe
    that has stopped costs nothing more.

    The vectors come from `train` and `dev` as they are: the encoder is frozen, and its own dropout is off. (The
    released program leaves it on while probes train, but for layer 0.)

    Args:
        train: the records to learn from.
        dev: the records by which learning rates, the end and the best weights are chosen.
        probes: the probes as they begin; they stay as they are. Training takes place where their weights are.
        settings: by default the paper's for tasks of middling size. Width and dropout are what the probes have.
        checkpoint: a file to which the training is written every minute, and from which an interrupted one resumes,
            on a CPU to the same bits. It is removed when the training is complete.
        progress: True for a progress bar over steps, or its title; no bar without it.

    Raises `DataError` for data sets that do not fit each other or the probes, for a `dev` without any label that
    counts, for losses that are not finite, and for a checkpoint of another training.

        >>> from bertology.edge_probing import EdgeBatch
        >>> class Toy:  # whether a vector's first number is above 0
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
    trained, file = train_resumably(train, dev, probes, settings, checkpoint, progress)
    if file is not None:
        file.remove()
    return trained


def train_resumably(
    train: BatchSource, dev: BatchSource, probes: Probes, settings: Training, checkpoint: str | Path | None,
    progress: Progress,
) -> tuple[Trained, Checkpoint | None]:  # fmt: skip
    """As `train_probes`, but the checkpoint stays, with the complete training, until the caller removes it."""
    check_sources(train, dev)
    if len(train.labels) != probes.labels:
        raise DataError(f"the probes are for {probes.labels} labels, train has {len(train.labels)}")
    settings = dataclasses.replace(
        settings, width=probes.width, dropout=probes.dropout, input_dropout=probes.input_dropout
    )
    file = None
    if checkpoint is not None:
        otherwise = "a training with other settings, other probes or other data"
        file = Checkpoint(checkpoint, digest_of(train, dev, probes, settings), otherwise=otherwise)
    with torch.inference_mode(False), torch.enable_grad():
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
    """A training on its way."""

    def __init__(self, train: BatchSource, dev: BatchSource, probes: Probes, settings: Training) -> None:
        self._train, self._dev, self._settings = train, dev, settings
        self._order = Order(train.records, settings.batch_size, settings.order)
        self._all = probes
        self.alive = list(range(len(probes.seeds)))
        self._patience = [Patience(settings.lr) for _ in self.alive]
        self._seen: list[list[list[float]]] = [[] for _ in self.alive]  # of each validation, F1 and bits
        self._best = probes.weights.detach().clone()
        self._keep(self.alive, probes.select(self.alive))
        self._optimizer = AMSGrad(self._probes.weights.detach())
        self._first = probes.step
        self.step = 0

    def _keep(self, alive: list[int], probes: Probes) -> None:
        """Go on with some of the probes."""
        self.alive, self._probes = alive, probes.train()
        self._losses = torch.zeros(len(alive), dtype=torch.float64, device=probes.weights.device)

    def advance(self) -> None:
        """One step of training, and a validation if it is time for that."""
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
        going = [place for place, probe in enumerate(self.alive) if not self._patience[probe].stops(settings)]
        if len(going) < len(self.alive):
            self._optimizer.select(going)
            alive = [self.alive[place] for place in going]
            if alive:
                self._keep(alive, self._probes.select(going))
            self.alive = alive

    def trained(self) -> Trained:
        """The probes at their best."""
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
        """All tensors that it needs to resume."""
        return {
            "weights": self._probes.weights, "best": self._best, "losses": self._losses,
            "moments": self._optimizer.moments, "steps": self._optimizer.steps,
        }  # fmt: skip

    def numbers(self) -> dict[str, Any]:
        """All else that it needs, as JSON takes it."""
        patience = [dataclasses.asdict(one) for one in self._patience]
        return {"step": self.step, "alive": self.alive, "patience": patience, "seen": self._seen}

    def resume(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Take up the training where it was interrupted."""
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
    """[probe, validation]: lists of different lengths; NaN where one is at its end."""
    longest = max(map(len, rows))
    return torch.tensor([row + [float("nan")] * (longest - len(row)) for row in rows], dtype=torch.float64)
