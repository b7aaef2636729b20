"""AMSGrad with one learning rate per probe, and early stopping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.optim.adam import adam

from ..errors import DataError, check_share, checked


@checked
@dataclass(frozen=True)
class Training:
    """How probes are trained: by default as in Tenney et al. (2019), with their settings for tasks of medium size.

    Raises `DataError` for values that are out of range.
    """

    lr: float = 1e-4
    """The initial learning rate of Adam (AMSGrad)."""
    batch_size: int = 32
    """The number of records (not targets) in a batch."""
    validate_every: int = 500
    """The number of steps between validations: in the paper 1000 for large tasks, else 500, and 100 for small tasks.
    F1 is 0 until a probe predicts its first label, and patience may run out before that."""
    max_validations: int = 100
    """The most validations; in the paper 250 for large tasks."""
    patience_halve: int = 5
    """A probe's learning rate is halved after this many validations in a row without improvement. (The released program
    waits for one more, also for `patience_stop`.)"""
    patience_stop: int = 20
    """A probe stops after this many validations in a row that are not better than its best."""
    threshold: float = 1e-4
    """The least improvement that keeps the learning rate: of F1, from 0 to 1, or of the loss in bits per target."""
    min_lr: float = 1e-6
    """A probe stops when its learning rate is below this."""
    clip: float = 5.0
    """The largest norm of a probe's gradient; a larger gradient is scaled down to it."""
    dev_records: int | None = 5000
    """Validations use only this many records, the first ones; None for all."""
    width: int = 256
    """The width of a probe's projections and of its hidden layer."""
    dropout: float = 0.3
    """Dropout of the hidden layer."""
    input_dropout: float = 0.2
    """Dropout of the mixed vectors."""
    order: int = 0
    """The seed of the order of records, which is the same for all probes that train together."""
    choose_by: Literal["f1", "loss"] = "f1"
    """The criterion of validations, which decides the learning rate, the end of training and the best weights: F1 as in
    the paper, or the loss on `dev`, which suits results that use probabilities, such as code lengths."""

    def __post_init__(self) -> None:
        counts = ("batch_size", "validate_every", "max_validations", "patience_halve", "patience_stop", "width")
        for name in (*counts, *(["dev_records"] if self.dev_records is not None else [])):
            if getattr(self, name) < 1:
                raise DataError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise DataError(f"{name} must be a number above 0, got {getattr(self, name)}")
        for name in ("threshold", "min_lr"):
            if not 0 <= getattr(self, name) < math.inf:
                raise DataError(f"{name} must be a number, 0 or more, got {getattr(self, name)}")
        for name in ("dropout", "input_dropout"):
            check_share(name, getattr(self, name))
        if self.choose_by not in ("f1", "loss"):
            raise DataError(f"choose_by is 'f1' or 'loss', got {self.choose_by!r}")

    @classmethod
    def large(cls) -> Training:
        """The paper's settings for large tasks: all of OntoNotes and dependencies of Universal Dependencies."""
        return cls(validate_every=1000, max_validations=250)

    @classmethod
    def small(cls) -> Training:
        """The paper's settings for small tasks: proto-roles, definite pronouns, relations of SemEval."""
        return cls(validate_every=100)

    @property
    def max_steps(self) -> int:
        """The most steps of training."""
        return self.validate_every * self.max_validations


PAPER = Training()
"""The paper's settings for tasks of medium size."""


class AMSGrad:
    """AMSGrad for several probes at once, each with its own learning rate; gradients are clipped first.

    The steps are those of `torch.optim.adam.adam`, fused, on the rows of one tensor. Each probe's moments are a row
    too, so probes are selected by their indices.
    """

    def __init__(self, weights: Tensor) -> None:
        """For weights [probe, weight]."""
        self.moments = weights.new_zeros(3, *weights.shape)
        """[moment, probe, weight]: the means of g and of g², and the highest mean of g² so far."""
        self.steps = torch.zeros(len(weights), dtype=torch.float32, device=weights.device)
        """[probe]: the number of steps so far."""

    def select(self, places: Sequence[int]) -> None:
        """Keep only some of the probes."""
        self.moments, self.steps = self.moments[:, list(places)], self.steps[list(places)]

    @torch.no_grad()
    def step(self, weights: Tensor, gradients: Tensor, lrs: Sequence[float], clip: float) -> None:
        """Update weights [probe, weight] in place. Gradients are clipped by each probe's own norm, in place."""
        norms = gradients.norm(dim=1, keepdim=True)
        gradients.mul_((clip / (norms + 1e-6)).clamp_max(1))
        for lr in set(lrs):
            alike = [place for place, one in enumerate(lrs) if one == lr]
            w, g, mean, square, peak, steps = (
                [rows[place] for place in alike] for rows in (weights, gradients, *self.moments, self.steps)
            )
            adam(
                w, g, mean, square, peak, steps, fused=True, amsgrad=True, lr=lr, beta1=0.9, beta2=0.999, eps=1e-8,
                weight_decay=0.0, maximize=False,
            )  # fmt: skip


@dataclass
class Patience:
    """The learning rate and early stopping of one probe, decided by its validations."""

    lr: float
    scores: list[float] = field(default_factory=list)
    """The criterion at each validation, the higher the better: F1, or minus the loss."""
    losses: list[float] = field(default_factory=list)
    """The mean training loss of the steps before each validation."""
    lasting: float = -math.inf
    """To keep the learning rate, a score must be better than this by the threshold."""
    waited: int = 0
    """Validations since such a score, or since the learning rate was halved."""

    def see(self, score: float, loss: float, settings: Training) -> bool:
        """Take the score of a validation, and the training loss before it. Whether it is the best so far."""
        self.scores.append(score)
        self.losses.append(loss)
        if score > self.lasting + settings.threshold:
            self.lasting, self.waited = score, 0
        else:
            self.waited += 1
        if self.waited >= settings.patience_halve:
            self.lr, self.waited = self.lr / 2, 0
        return self.best == len(self.scores) - 1

    @property
    def best(self) -> int:
        """Which validation was the first with the highest score, counted from 0."""
        return self.scores.index(max(self.scores))

    def stops(self, settings: Training) -> str:
        """Why the probe stops: "patience", "learning rate" or "validations"; empty if it continues."""
        if len(self.scores) - 1 - self.best >= settings.patience_stop:
            return "patience"
        if self.lr < settings.min_lr:
            return "learning rate"
        return "validations" if len(self.scores) >= settings.max_validations else ""
