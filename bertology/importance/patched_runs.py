"""Runs of a model with activations of another run put in, and their first-order estimate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..anatomy.mlps import dissect_mlps
from ..anatomy.sites import Anatomy, LayerLabels, Site
from ..data.answers import ExampleMetric
from ..data.batches import Batch, examples, rows_per_example, run_model, with_labels, without_labels
from ..errors import DataError, UnknownAnatomy
from ..streaming.gradient_check import check_gradient
from ..tap import tap, uncached
from ..tap.branches import Branches, Seen
from ..tap.gates import Replacement
from ..tap.gradient_cuts import lost_gradients
from ..tap.patches import BlockPatches, MlpPatches, gate_of
from ..tap.variants import HeadVariants
from .paired_inputs import Aligned

Place = int | tuple[str, int]
"""A layer of heads, by its row; or a block or an MLP, by its stack and its number."""
Group = tuple[int, Sequence[int]]
"""The row of a layer, and some of its heads."""
Edit = Callable[[Place, str, Tensor], Tensor]
"""`f(place, stack, x [row, position, ...]) -> x`"""


class Runs(ABC):
    """Runs one kind of parts of a model on a batch, with the activations of another batch put in.

    `values` and `source_values` are the metric of the batch as it is and of the other one, `[example]`.
    """

    branches: Branches
    """What runs the model with parts put in."""

    def __init__(self, anatomy: Anatomy, metric: ExampleMetric, steps: int | None) -> None:
        self.anatomy, self.metric, self.steps = anatomy, metric, steps
        self.aligned: Aligned
        self.first = 0
        self.followed = False
        self.ran: set[Place] = set()
        self._embedded: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None

    @abstractmethod
    def opened(self, undo: ExitStack, *, read: Edit | None = None, edit: Edit | None = None) -> None:
        """Read or edit all places while `undo` is open."""

    @abstractmethod
    def have_run(self) -> list[bool]:
        """[part]: which parts have run in any batch. Others, such as those of a tower for images, have no effect."""

    @abstractmethod
    def patched(self, tokens: Sequence[int | None]) -> Tensor:
        """[token, part, example]: the metric with each part put in, at each token, or at all where that is None."""

    def read(self, aligned: Aligned, first: int) -> None:
        """Run both batches, the first example of which has this number among all, and keep their activations."""
        self.aligned, self.first = aligned, first
        self.rows = examples(aligned.base) * rows_per_example(aligned.base)
        with torch.no_grad():
            self.source, self.source_values, _ = self._activations(aligned.source)
            with self.branches.recorded(aligned.base) if self.steps is None else nullcontext() as self._record:
                self.base, self.values, self._outputs = self._activations(aligned.base)
        self.ran |= set(self.base)
        self._moved: dict[Place, Tensor] = {}
        self._embedded = None

    def moved(self, place: Place, stack: str, positions: int) -> Tensor:
        """[row, position, ...]: what is put in at a place."""
        if place not in self._moved:
            self._moved[place] = self.aligned.moved(self.source[place], stack, positions)
        return self._moved[place]

    def mask(self, stack: str, positions: int, token: int | None) -> Tensor | None:
        """[row, position], bool: where it is put in; None for everywhere."""
        return self.aligned.mask(stack, self.rows, positions, token)

    def inputs(self, batch: Batch) -> Batch:
        """The arguments of the model for a batch."""
        model = self.anatomy.model
        return with_labels(model, batch) if self.metric.own else without_labels(model, batch)

    def run(self, batch: Batch) -> Any:
        """Run the model on a batch."""
        return run_model(self.anatomy.model, batch, labels=self.metric.own)

    def _activations(self, batch: Batch) -> tuple[dict[Place, Tensor], Tensor, Any]:
        """The activations, the metric [example] and the outputs of a batch."""
        found: dict[Place, Tensor] = {}

        def read(place: Place, stack: str, x: Tensor) -> Tensor:
            found[place] = x.detach().clone()  # some models add to what an MLP returned in place (Falcon)
            return x

        with ExitStack() as taps:
            self.opened(taps, read=read)
            outputs = self.run(batch)
        return found, self._values(outputs, batch).detach().double().cpu(), outputs

    @torch.no_grad()
    def under(self, gates: Tensor) -> Tensor:
        """[variant, example]: the metric under gates [variant, layer, unit], by passes that are resumed."""
        batch, values = self.aligned.base, self.values.expand(len(gates), -1).clone()
        assert self._record is not None
        with uncached(self.anatomy.model):
            for some, seen in self.branches.each(self._record, _only(self.values[None]), batch, gates, self._outputs):
                values[some] = seen.losses
        return values

    def look(self, outputs: Any, batch: Batch, copies: int) -> Seen:
        """The metric of copies of a batch."""
        values = self.metric.values(outputs, batch, self.first, copies).detach().double().cpu()
        return _only(values.reshape(copies, -1))

    def estimated(self, tokens: Sequence[int | None]) -> Tensor:
        """[token, part, example]: the change of the metric to first order, or by integrated gradients of some steps."""
        self.anatomy.check_exact_gradient("attribution would not be exact")
        total: dict[Place, Tensor] = {}
        steps = self.steps or 0
        for alpha in [0.0] if steps == 0 else [(step + 0.5) / steps for step in range(steps)]:
            for place, gradient in self._gradients(alpha).items():
                total[place] = total.get(place, 0) + gradient / max(1, steps)
        each = []
        for token in tokens:
            parts = []
            for place, stack in self.stacks():
                if place not in total:
                    parts += self.shares(place, None)
                    continue
                base = self.base[place]
                change = total[place].double() * (self.moved(place, stack, base.shape[1]) - base).double()
                where = self.mask(stack, base.shape[1], token)
                if where is not None:
                    change = change * where.to(change.device).view(*where.shape, *[1] * (change.dim() - 2))
                parts += self.shares(place, change)
            each.append(torch.stack([part.cpu() for part in parts]))
        return torch.stack(each)

    @abstractmethod
    def stacks(self) -> list[tuple[Place, str]]:
        """[place]: the places whose activations are put in, and the stack of each."""

    @abstractmethod
    def shares(self, place: Place, change: Tensor | None) -> list[Tensor]:
        """The change [row, position, ...] at a place, by parts: [example] each; 0 where the place did not run."""

    def _of_examples(self, x: Tensor) -> Tensor:
        """[example]: the sums of the rows of each example."""
        return x.reshape(examples(self.aligned.base), -1).sum(1)

    def _gradients(self, alpha: float) -> dict[Place, Tensor]:
        """The gradient of the metric at each place, with the inputs this far from one run to the other."""
        found: dict[Place, Tensor] = {}
        batch = self.aligned.base

        def edit(place: Place, stack: str, x: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                raise UnknownAnatomy(
                    f"the model runs its {stack} without gradients: all parts would seem to do nothing"
                )
            # In a frozen model no earlier operation requires a gradient: the graph starts here. What the model goes on
            # with is a copy, to which it may add in place.
            found[place] = x.requires_grad_() if not x.requires_grad else x
            return found[place].clone()

        with ExitStack() as taps, torch.inference_mode(False), torch.enable_grad():
            if alpha:
                taps.enter_context(self._inputs_between(alpha))
            self.opened(taps, edit=edit)
            lost: list[UnknownAnatomy] = []
            if not self.followed:
                lost = taps.enter_context(lost_gradients(self.anatomy, batch))
            values = self._values(self.run(batch), batch)
            if not values.requires_grad:
                raise UnknownAnatomy("the metric does not depend on any of the parts: it was detached from the graph")
            each = torch.autograd.grad(values.sum(), list(found.values()), allow_unused=True)
        if lost:
            check_gradient(self.anatomy, batch, self._values, lost[0], labelled=self.metric.own)
        self.followed = True
        return {place: x for place, x in zip(found, each, strict=True) if x is not None}

    def _values(self, outputs: Any, batch: Batch) -> Tensor:
        return self.metric.values(outputs, batch, self.first)

    @contextmanager
    def _inputs_between(self, alpha: float) -> Iterator[None]:
        """Move what the first block of each stack gets this far from one run to the other."""
        if self._embedded is None:
            self._embedded = self._first_inputs(self.aligned.base), self._first_inputs(self.aligned.source)
        mine, theirs = self._embedded
        if not mine or mine.keys() != theirs.keys() or any(mine[s].shape != theirs[s].shape for s in mine):
            raise DataError(
                "steps= needs the inputs of the first blocks of both texts, at as many positions: take steps=0"
            )

        def edit(stack: str, layer: int, x: Tensor) -> Tensor:
            return x if layer else x + alpha * (theirs[stack] - mine[stack])

        with tap(self.anatomy, "block", edit=edit, once=True):
            yield

    @torch.no_grad()
    def _first_inputs(self, batch: Batch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def read(stack: str, layer: int, x: Tensor) -> None:
            if layer == 0:
                found[stack] = x

        with tap(self.anatomy, "block", read=read):
            self.run(batch)
        return found


def _only(values: Tensor) -> Seen:
    """The metric [copy, example] by itself."""
    return Seen(values, torch.empty(len(values), 0), torch.empty(0), torch.empty(0, dtype=torch.long))


class _PutIn(Replacement):
    """Heads' outputs of another run, in the place of the batch's own, at all positions or at some."""

    def __init__(self, runs: HeadRuns) -> None:
        super().__init__(runs.anatomy, "source")
        self._runs = runs
        self.token: int | None = None

    def values(self, x: Tensor, site: Site, batch: Batch) -> Tensor:
        """The outputs for x, [..., batch, token, head, dim]. A batch of some examples is the first of all."""
        rows, positions = x.shape[-4:-2]
        if site.row not in self._runs.places:
            return x.new_zeros(())
        new = self._runs.moved(site.row, site.stack, positions)[:rows].to(x)
        where = self._runs.mask(site.stack, positions, self.token)
        return new if where is None else torch.where(where[:rows, :, None, None].to(x.device), new, x)


class HeadRuns(Runs):
    """Runs with outputs of heads put in, those of each group of heads of one layer at a time."""

    def __init__(self, anatomy: Anatomy, metric: ExampleMetric, steps: int | None, groups: Sequence[Group]) -> None:
        super().__init__(anatomy, metric, steps)
        anatomy.check_readable()
        self.groups = list(groups)
        self.places = {row for row, _ in groups}
        self._put_in = _PutIn(self)
        self.branches = Branches(HeadVariants(anatomy, self._put_in), self.inputs, self.look)
        self._gates = torch.ones(len(self.groups), anatomy.layers, anatomy.heads)
        for gates, (row, heads) in zip(self._gates, self.groups, strict=True):
            gates[row, list(heads)] = 0

    def stacks(self) -> list[tuple[Place, str]]:
        """[place]: the rows of the layers, and the stack of each."""
        return [(row, self.anatomy.sites[row].stack) for row in dict.fromkeys(row for row, _ in self.groups)]

    def have_run(self) -> list[bool]:
        """[part]: by the rows of their layers."""
        return [row in self.ran for row, _ in self.groups]

    def opened(self, undo: ExitStack, *, read: Edit | None = None, edit: Edit | None = None) -> None:
        """Read or edit the outputs of heads."""
        each = edit or read
        assert each is not None

        def apply(site: Site, x: Tensor) -> Tensor:
            return each(site.row, site.stack, x)

        if read is not None:
            undo.enter_context(tap(self.anatomy, "heads", read=apply))
            return
        undo.enter_context(tap(self.anatomy, "heads", edit=apply, once=True))

    def patched(self, tokens: Sequence[int | None]) -> Tensor:
        """[token, part, example]: the metric, by passes that resume at the first layer that is changed."""
        found = []
        for token in tokens:
            self._put_in.token = token
            found.append(self.under(self._gates))
        return torch.stack(found)

    def shares(self, place: Place, change: Tensor | None) -> list[Tensor]:
        """The change at a layer, [row, position, head, dim], by groups of heads."""
        each = []
        for heads in (heads for row, heads in self.groups if row == place):
            if change is None:
                each.append(torch.zeros(examples(self.aligned.base), dtype=torch.float64))
                continue
            kept = self.anatomy.sites[place].kept  # type: ignore[index]
            each.append(self._of_examples(change[:, :, [kept.index(head) for head in heads]]))
        return each


class LayerRuns(Runs):
    """Runs with what blocks or MLPs return put in: block 0 is the input of the first block of a stack."""

    def __init__(
        self, anatomy: Anatomy, metric: ExampleMetric, steps: int | None, *, only: str | None, mlps: bool = False
    ) -> None:
        super().__init__(anatomy, metric, steps)
        self._mlps = dissect_mlps(anatomy) if mlps else None
        if self._mlps is not None:
            self._mlps.check_readable()
            self._places = [(site.stack, site.row) for site in self._mlps.sites]
            self._names = [place for place in self._places if only in (None, place[0])]
            self.branches = Branches(MlpPatches(anatomy, self._mlps, self._put_in), self.inputs, self.look)
            all_labels = self._mlps.labels
            self.labels = all_labels if only is None else tuple(all_labels[row] for _, row in self._names)
            return
        stacks = [stack for stack in anatomy.stacks if stack.blocks and only in (None, stack.name)]
        if not stacks:
            raise UnknownAnatomy(
                f"no module of {type(anatomy.model).__name__} is a block whose output could be patched"
            )
        self._places = [(stack.name, layer) for stack in anatomy.stacks for layer in range(len(stack.blocks) + 1)]
        self._names = [place for place in self._places if place[0] in {stack.name for stack in stacks}]
        self.branches = Branches(BlockPatches(anatomy, self._places, self._put_in), self.inputs, self.look)
        numbers = (str(layer) for _, layer in self._names)
        several = tuple(f"{stack}.{layer}" for stack, layer in self._names)
        self.labels = several if len(stacks) > 1 else LayerLabels(numbers, stacks[0].name)

    def stacks(self) -> list[tuple[Place, str]]:
        """[place]: the stack and the number of each block, and the stack by itself."""
        return [(name, name[0]) for name in self._names]

    def have_run(self) -> list[bool]:
        """[part]: by stack and number."""
        return [name in self.ran for name in self._names]

    def opened(self, undo: ExitStack, *, read: Edit | None = None, edit: Edit | None = None) -> None:
        """Read or edit what blocks or MLPs return."""
        each = edit or read
        assert each is not None

        def apply(stack: str, layer: int, x: Tensor) -> Tensor:
            return each((stack, layer), stack, x)

        def apply_mlp(site: Site, x: Tensor) -> Tensor:
            # The tokens of all examples may be in one row (OPT).
            return apply(site.stack, site.row, x.reshape(self.rows, -1, x.shape[-1])).reshape(x.shape)

        where, place, call = self.anatomy, "block", apply
        if self._mlps is not None:
            where, place, call = self._mlps, "mlp", apply_mlp  # type: ignore[assignment]
        options: dict[str, Any] = {"read": call} if read is not None else {"edit": call, "once": True}
        undo.enter_context(tap(where, place, **options))

    def patched(self, tokens: Sequence[int | None]) -> Tensor:
        """[token, part, example]: the metric, by passes that resume at the first layer that is changed."""
        gates = torch.ones(len(self._names), len(tokens), len(self._places), 1)
        for of_place, name in zip(gates, self._names, strict=True):
            of_place[:, self._places.index(name), 0] = torch.tensor([float(gate_of(token)) for token in tokens])
        found = self.under(gates.flatten(0, 1))
        return found.reshape(len(self._names), len(tokens), -1).transpose(0, 1)

    def _put_in(self, place: Place, x: Tensor, token: int | None) -> Tensor:
        """[row, position, hidden]: x with what is put in. A batch of some examples is the first of all."""
        stack = place[0]  # type: ignore[index]
        new = self.moved(place, stack, x.shape[1])[: len(x)].to(x)
        where = self.mask(stack, x.shape[1], token)
        return new if where is None else torch.where(where[: len(x), :, None].to(x.device), new, x)

    def shares(self, place: Place, change: Tensor | None) -> list[Tensor]:
        """The change at a block, [row, position, hidden], in all."""
        if change is None:
            return [torch.zeros(examples(self.aligned.base), dtype=torch.float64)]
        return [self._of_examples(change)]
