"""Training of gates in front of a frozen model: what is minimized, step by step, and how it resumes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..anatomy.sites import Anatomy
from ..data.batches import Batch, examples, rows_per_example, run_model
from ..data.losses import ExampleLoss, example_losses
from ..errors import DataError, UnknownAnatomy, how_many
from ..streaming.checkpoint import Checkpoint
from ..streaming.gradient_check import check_gradient
from ..streaming.identity import add_batch, identity, model_identity
from ..tap.gates import gating
from ..tap.gradient_cuts import lost_gradients

Method = Literal["l0", "soft"]
BETA, GAMMA, ZETA = 0.33, -0.1, 1.1
"""The temperature of hard concrete gates, and the ends to which they are stretched (Louizos et al. 2018)."""
START = 2.0
"""The logit of each gate at the start: gates begin nearly open."""


class GateSettings(NamedTuple):
    """How gates are trained."""

    method: Method
    penalty: float
    steps: int
    lr: float


def gates_of(logits: Tensor, method: Method) -> Tensor:
    """The gates of a trained model: of hard concrete ones, without noise and without the temperature."""
    gates = torch.sigmoid(logits)
    return gates if method == "soft" else (gates * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def sampled(logits: Tensor, noise: Tensor) -> Tensor:
    """Hard concrete gates of uniform noise from 0 to 1: exactly 0 or 1 with a probability above 0."""
    gates = torch.sigmoid((noise.log() - (1 - noise).log() + logits) / BETA)
    return (gates * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def open_probability(logits: Tensor) -> Tensor:
    """The probability that a hard concrete gate is not 0."""
    return torch.sigmoid(logits - BETA * math.log(-GAMMA / ZETA))


class GateTraining:
    """One training of the gates of all heads: `run` takes the steps that are left."""

    def __init__(
        self,
        anatomy: Anatomy,
        batches: Sequence[Batch],
        loss: ExampleLoss,
        settings: GateSettings,
        seed: int,
        sign: int,
        *,
        labelled: bool,
    ) -> None:
        self.anatomy, self.batches, self.loss, self.settings = anatomy, batches, loss, settings
        self.seed, self.sign, self.labelled, self.step = seed, sign, labelled, 0
        device = next(anatomy.model.parameters()).device
        self.there = anatomy.present.to(device)
        self.logits = torch.full(self.there.shape, START, dtype=torch.float32, device=device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.logits], lr=settings.lr)
        self.losses: list[float] = []
        self.file: Checkpoint | None = None

    def run(self) -> None:
        """Take the steps that are left; the file, if there is one, is written every minute and at the end."""
        while self.step < self.settings.steps:
            self._take_step()
            if self.file is not None:
                self.file.keep(self)
        if self.file is not None:
            self.file.write(self)

    def _take_step(self) -> None:
        # Each step has its own generator, so that training resumes without the state of one.
        random = torch.Generator().manual_seed(1_000_003 * self.seed + self.step)
        batch = self.batches[int(torch.randint(len(self.batches), (), generator=random))]
        size = examples(batch), *self.logits.shape
        noise = torch.rand(size, generator=random, dtype=torch.float32).clamp(1e-6, 1 - 1e-6)
        if self.settings.method == "l0":
            each = sampled(self.logits, noise.to(self.logits.device)).transpose(0, 1)
            repeat = rows_per_example(batch)
            gates, open_ = each.repeat_interleave(repeat, dim=1), open_probability(self.logits)
        else:
            gates = open_ = torch.sigmoid(self.logits)
        value = self._loss_under(batch, gates)
        total = value + self.sign * self.settings.penalty * open_[self.there].sum()
        (self.logits.grad,) = torch.autograd.grad(total, [self.logits])
        self.optimizer.step()
        if not self.logits.isfinite().all():
            raise DataError(
                f"the gates are no longer finite numbers after {how_many(self.step + 1, 'step')}: take a smaller lr or "
                "penalty"
            )
        self.losses.append(value.item())
        self.step += 1

    def _loss_under(self, batch: Batch, gates: Tensor) -> Tensor:
        model = self.anatomy.model
        with gating(self.anatomy, gates), lost_gradients(self.anatomy, batch) as lost:
            values = example_losses(self.loss, run_model(model, batch, labels=self.labelled), batch)
        if lost:
            check_gradient(self.anatomy, batch, self.loss, lost[0], labelled=self.labelled)
        if not values.requires_grad:
            raise UnknownAnatomy("the loss does not depend on any head: it was detached from the graph")
        return values.mean()

    def tensors(self) -> dict[str, Tensor]:
        """The logits, and what the optimizer keeps of each."""
        kept = self.optimizer.state[self.logits]
        return {"logits": self.logits, **{name: torch.as_tensor(x) for name, x in kept.items()}}

    def numbers(self) -> dict[str, Any]:
        """The number of steps taken, and the loss of each."""
        return {"step": self.step, "losses": self.losses}

    def resume(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Begin where an interrupted training was."""
        self.step, self.losses = numbers["step"], list(numbers["losses"])
        with torch.no_grad():
            self.logits.copy_(tensors.pop("logits"))
        if self.step:
            self.optimizer.state[self.logits] = {name: x.clone() for name, x in tensors.items()}

    def resume_from(self, path: str) -> None:
        """Resume from a file, if it exists, and write to it from now on."""
        digest = hashlib.sha256("\n".join(model_identity(self.anatomy.model, "checkpoint")).encode())
        settings = (tuple(self.settings), self.seed, self.sign)
        digest.update(f"{settings} {identity(self.loss if self.labelled else None)}".encode())
        for batch in self.batches:
            add_batch(digest, batch)
        self.file = Checkpoint(path, digest.hexdigest(), otherwise="another model, other data or other settings")
        self.file.load(self)
