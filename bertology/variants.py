"""What does a model put out under many sets of gates, each by itself?

One pass of a batch is recorded; then several variants at a time go on, on copies of the batch, from the first layer
that they change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from .batches import Batch, examples, fit_mask, rows_per_example, token_mask, without_labels
from .errors import DataError
from .losses import ExampleLoss, example_losses, find_loss
from .metrics import Metric, find_metric, metric_name
from .result import Result
from .scoring import INVERSE_LOSS, predictions
from .site import Anatomy, Site
from .streaming import Accumulator
from .tap import copied, recorded, tap, uncached

# Copies of a batch that go through the model at once have at most so many positions, and so many logits.
POSITIONS = 4096
LOGITS = 2**25


@dataclass(frozen=True, eq=False, repr=False)
class VariantScores(Result):
    """How well a model does as it is, in row 0, and under each set of gates, in the rows after it."""

    scores: Tensor
    """[variant]: the metric."""
    losses: Tensor
    """[variant, example]: every example's loss."""
    logits: Tensor
    """[variant, row, label]: what the metric saw; empty for a metric of losses."""
    truths: Tensor
    """[row]: the labels."""
    example_of: Tensor
    """[row], int64: which example a row belongs to."""
    ran: Tensor
    """[layer], bool: which layers ran at all."""
    labels: tuple[str, ...] = ()


class VariantAccumulator(Accumulator):
    """Runs every batch under many sets of gates. It runs the model by itself: no other accumulator can be beside it."""

    def __init__(
        self,
        make_gates: Callable[[Anatomy], Tensor],
        metric: str | Metric,
        loss: ExampleLoss | None = None,
        replace: Tensor | str = "zero",
        seed: int = 0,
    ) -> None:
        self._make_gates, self._own, self._replace, self._seed = make_gates, loss, replace, seed
        self._metric = None if metric == INVERSE_LOSS else find_metric(metric)
        self._name = metric_name(metric)
        self.needs_labels = loss is not None

    def zero(self, anatomy: Anatomy) -> VariantAccumulator:
        """Forget everything; find the loss before any work is done."""
        self._loss = self._own or find_loss(anatomy.model)
        self._gates = self._make_gates(anatomy)
        self._kept: dict[str, list[Tensor]] = {name: [] for name in ("losses", "logits", "truths", "example_of")}
        self._ran = torch.zeros(anatomy.layers, dtype=torch.bool)
        self._ways: dict[int, bool | None] = {}
        self._batches = 0
        return super().zero(anatomy)

    def settings(self) -> str:
        """What tells this measure from others of its kind."""
        replaced = self._replace if isinstance(self._replace, str) else self._replace.double().sum().item()
        places = torch.arange(1, self._gates.numel() + 1, dtype=torch.float64)
        return f"{self._name} {replaced} {self._seed} {(self._gates.flatten().double() * places).sum().item()}"

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Record the model's own pass."""
        with uncached(self.anatomy.model), ExitStack() as self._recording:
            rows = examples(batch) * rows_per_example(batch)
            self._record = self._recording.enter_context(recorded(self.anatomy, rows))
            yield

    def update(self, batch: Batch, outputs: Any) -> None:
        """Run the batch under all gates, and keep losses and logits."""
        self._recording.close()
        self._ran[list(self._record.attentions)] = True
        losses, logits, truths, example = self._look(batch, outputs, 1)
        all_losses, all_logits = [losses], [logits]
        each, order = self._starts(), []
        at_once = self._at_once(logits)
        editor = Editor(self.anatomy, batch, self._replace, self._seed + self._batches)
        for row, variants in each.items():
            if row not in self._ways:
                self._ways[row] = self._prove(row, batch, outputs)
            for start in range(0, len(variants), at_once):
                some = variants[start : start + at_once]
                with self._gated(row, self._gates[some], editor):
                    several = self.anatomy.model(**self._inputs(batch, len(some)))
                losses, logits, _, _ = self._look(self._copies(batch, len(some)), several, len(some))
                all_losses.append(losses)
                all_logits.append(logits)
                order += some
        back = torch.tensor([0, *(1 + torch.tensor(order).argsort()).tolist()])
        before = sum(len(x[0]) for x in self._kept["losses"])
        for name, x in (
            ("losses", torch.cat(all_losses)[back]),
            ("logits", torch.cat(all_logits)[back]),
            ("truths", truths),
            ("example_of", example + before),
        ):
            self._kept[name].append(x)
        self._batches += 1

    def _starts(self) -> dict[int, list[int]]:
        """{row: variants}: those that go on from the same layer."""
        starts: dict[int, list[int]] = {}
        for number, gates in enumerate(self._gates):
            rows = (gates != 1).any(-1).nonzero().flatten().tolist()
            starts.setdefault(self._record.first_of(rows), []).append(number)
        return starts

    def _at_once(self, logits: Tensor) -> int:
        """How many copies of the batch go through the model at once."""
        return max(1, min(POSITIONS // self._record.positions, LOGITS // max(1, logits.numel())))

    def _copies(self, batch: Batch, copies: int) -> dict[str, Any]:
        return {key: copied(x, examples(batch), copies, 0) for key, x in batch.items()}

    def _inputs(self, batch: Batch, copies: int) -> dict[str, Any]:
        inputs = batch if self.needs_labels else without_labels(self.anatomy.model, batch)
        return self._copies(inputs, copies)

    def _look(self, batch: Batch, outputs: Any, copies: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Losses [copy, example]; logits [copy, row, label], truths [row] and whose they are [row]."""
        losses = example_losses(self._loss, outputs, batch).detach().double().cpu().reshape(copies, -1)
        if self._metric is None:
            return losses, torch.empty(copies, 0), torch.empty(0), torch.empty(0, dtype=torch.long)
        found = predictions(self.anatomy.model, outputs, batch)
        logits = found.logits.detach().cpu()
        rows = len(logits) // copies
        logits = logits.reshape(copies, rows, *logits.shape[1:])
        return losses, logits, found.labels[:rows].cpu(), found.example[:rows].cpu()

    @contextmanager
    def _gated(self, row: int, gates: Tensor, editor: Editor) -> Iterator[None]:
        """Gates [copy, layer, head] on so many copies of the batch, which go on from a layer where they can."""
        way, record = self._ways[row], self._record
        sites = record.sites_from(row) if way is not None else self.anatomy.sites
        rows = set((gates != 1).any(-1).any(0).nonzero().flatten().tolist())
        places = {site.place for site in sites if site.row in rows}
        sites = tuple(site for site in sites if site.place in places)
        with ExitStack() as taps:
            if way is not None:
                taps.enter_context(record.taken_up(row, len(gates), inside=way))
            if sites:
                taps.enter_context(tap(changed(self.anatomy, sites=sites), "heads", edit=editor.with_gates(gates)))
            yield

    def _prove(self, row: int, batch: Batch, outputs: Any) -> bool | None:
        """How a pass can go on from a layer: from its projection, from its block, or not at all (None).

        Two copies of the batch, without gates, must come out as the whole pass did. What a model hands from layer to
        layer by other ways than its blocks' outputs would be missing.
        """
        for inside in (True, False):
            if row < 0 or (inside and not self._record.can_enter(row)):
                continue
            try:
                with self._record.taken_up(row, 2, inside=inside):
                    again = self.anatomy.model(**self._inputs(batch, 2))
            except Exception:  # whatever the model misses
                continue
            if _twice(outputs, again):
                return inside
        return None

    def state(self) -> dict[str, Tensor]:
        """All losses and logits so far."""
        axes = {"losses": 1, "logits": 1, "truths": 0, "example_of": 0}
        kept = {name: torch.cat(some, axes[name]) if some else torch.empty(0) for name, some in self._kept.items()}
        return super().state() | kept | {"ran": self._ran}

    def merge(self, other: dict[str, Tensor]) -> VariantAccumulator:
        """Lay the other's examples behind ours."""
        before = sum(len(x[0]) for x in self._kept["losses"])
        if other["losses"].numel():
            for name, some in self._kept.items():
                some.append(other[name] + before if name == "example_of" else other[name])
        self._ran |= other["ran"]
        return super().merge(other)

    def compute(self) -> VariantScores:
        """Score the model and each of its variants."""
        all_of = self.state()
        if self._metric is None:
            scores = 1 / all_of["losses"].mean(1)
        else:
            values = [float(self._metric(logits, all_of["truths"])) for logits in all_of["logits"]]
            scores = torch.tensor(values, dtype=torch.float64)
        if scores.isnan().any():
            raise DataError(f"the metric {self._name} is NaN over {all_of['losses'].shape[1]} examples")
        return VariantScores(scores, **{name: all_of[name] for name in (*self._kept, "ran")})  # type: ignore[arg-type]


class Editor:
    """Mixes heads' outputs with what stands in for them: x ξ + s (1 - ξ)."""

    def __init__(self, anatomy: Anatomy, batch: Batch, replace: Tensor | str, seed: int) -> None:
        self._anatomy, self._batch, self._replace = anatomy, batch, replace
        self._seed = seed

    def with_gates(self, gates: Tensor) -> Callable[[Site, Tensor], Tensor]:
        """An edit for `tap`, with gates [copy, layer, head] for copies of the batch that lie end to end."""

        def edit(site: Site, x: Tensor) -> Tensor:
            some = gates[:, site.row, list(site.kept)]
            if (some == 1).all():
                return x
            each = rearrange(x, "(copy row) token head dim -> copy row token head dim", copy=len(gates))
            gate = rearrange(some.to(x), "copy head -> copy 1 1 head 1")
            new = each * gate
            if not isinstance(self._replace, str):
                new = new + self._replace[site.row, list(site.kept), : site.dim].to(x) * (1 - gate)
            elif self._replace == "resample":
                new = new + each.flatten(1, 2)[:, self._drawn(site, x, len(gates))].reshape(each.shape) * (1 - gate)
            return rearrange(new, "copy row token head dim -> (copy row) token head dim")

        return edit

    def _drawn(self, site: Site, x: Tensor, copies: int) -> Tensor:
        """[row * token]: for every position another, drawn among the real tokens of the batch."""
        runners = {stack.name: stack.module for stack in self._anatomy.stacks}
        runner = runners.get("decoder" if site.stack == "cross" else site.stack, self._anatomy.model)
        real = fit_mask(token_mask(self._anatomy.model, self._batch, site.stack), x.shape[1], runner)
        places = real.flatten().nonzero().flatten().cpu()
        generator = torch.Generator().manual_seed(self._seed)
        drawn = torch.randint(len(places), (x.shape[0] // copies * x.shape[1],), generator=generator)
        return places[drawn].to(x.device)


def _twice(once: Any, again: Any) -> bool:
    """Whether outputs are those of one pass, two times end to end, but for rounding."""
    pairs = [(x, y) for x, y in zip(_tensors(once), _tensors(again), strict=False) if len(y) == 2 * len(x)]
    close = 1000 * max((torch.finfo(x.dtype).eps for x, _ in pairs), default=0.0)
    return bool(pairs) and all((torch.cat([x, x]) - y).abs().max() <= close * x.abs().max() for x, y in pairs)


def _tensors(outputs: Any) -> list[Tensor]:
    values = outputs.values() if hasattr(outputs, "values") else outputs
    found = [outputs] if isinstance(outputs, Tensor) else [x for x in values if isinstance(x, Tensor)]
    return [x for x in found if x.is_floating_point() and x.dim() > 0]
