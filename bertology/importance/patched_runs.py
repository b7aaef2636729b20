"""Runs of a model with activations of another run put in, and their first-order estimate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ..anatomy.mlps import dissect_mlps
from ..anatomy.sites import Anatomy, LayerLabels, Site
from ..data.answers import ExampleMetric
from ..data.batches import Batch, device_of, examples, rows_per_example, run_model, with_labels, without_labels
from ..errors import DataError, UnknownAnatomy
from ..streaming.gradient_check import check_gradient
from ..tap import copied, tap, uncached
from ..tap.branches import POSITIONS, POSITIONS_ON_CPU, Branches, Seen
from ..tap.gates import Replacement
from ..tap.gradient_cuts import lost_gradients
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

    def __init__(self, anatomy: Anatomy, metric: ExampleMetric) -> None:
        self.anatomy, self.metric = anatomy, metric
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
        self.rows = self.running_rows = examples(aligned.base) * rows_per_example(aligned.base)
        with torch.no_grad():
            self.source, self.source_values = self._activations(aligned.source)
            self.base, self.values = self._activations(aligned.base)
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

    def _activations(self, batch: Batch) -> tuple[dict[Place, Tensor], Tensor]:
        found: dict[Place, Tensor] = {}

        def read(place: Place, stack: str, x: Tensor) -> Tensor:
            found[place] = x.detach().clone()  # some models add to what an MLP returned in place (Falcon)
            return x

        with ExitStack() as taps:
            self.opened(taps, read=read)
            outputs = self.run(batch)
        return found, self._values(outputs, batch).detach().double().cpu()

    def estimated(self, tokens: Sequence[int | None], steps: int) -> Tensor:
        """[token, part, example]: the change of the metric to first order, or by integrated gradients of some steps."""
        self.anatomy.check_exact_gradient("attribution would not be exact")
        total: dict[Place, Tensor] = {}
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

    def __init__(self, anatomy: Anatomy, metric: ExampleMetric, groups: Sequence[Group]) -> None:
        super().__init__(anatomy, metric)
        anatomy.check_readable()
        self.groups = list(groups)
        self.places = {row for row, _ in groups}
        self._put_in = _PutIn(self)
        self._branches = Branches(HeadVariants(anatomy, self._put_in), self.inputs, self._look)
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
        batch = self.aligned.base
        with torch.no_grad(), uncached(self.anatomy.model):
            with self._branches.recorded(batch) as record:
                outputs = self.run(batch)
            base = self._look(outputs, batch, 1)
            found = base.losses.expand(len(tokens), len(self._gates), -1).clone()
            for number, token in enumerate(tokens):
                self._put_in.token = token
                for some, seen in self._branches.each(record, base, batch, self._gates, outputs):
                    found[number, some] = seen.losses
        return found

    def _look(self, outputs: Any, batch: Batch, copies: int) -> Seen:
        values = self.metric.values(outputs, batch, self.first, copies).detach().double().cpu()
        return Seen(values.reshape(copies, -1), torch.empty(copies, 0), torch.empty(0), torch.empty(0).long())

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

    def __init__(self, anatomy: Anatomy, metric: ExampleMetric, *, only: str | None, mlps: bool = False) -> None:
        super().__init__(anatomy, metric)
        self._at_once: int | None = None
        self._mlps = dissect_mlps(anatomy) if mlps else None
        if self._mlps is not None:
            self._mlps.check_readable()
            self._names = [(site.stack, site.row) for site in self._mlps.sites if only in (None, site.stack)]
            all_labels = self._mlps.labels
            self.labels = all_labels if only is None else tuple(all_labels[row] for _, row in self._names)
            return
        stacks = [stack for stack in anatomy.stacks if stack.blocks and only in (None, stack.name)]
        if not stacks:
            raise UnknownAnatomy(
                f"no module of {type(anatomy.model).__name__} is a block whose output could be patched"
            )
        self._names = [(stack.name, layer) for stack in stacks for layer in range(len(stack.blocks) + 1)]
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
            if len(x) == self.running_rows:
                return apply(site.stack, site.row, x)
            # The tokens of all examples in one row (OPT).
            return apply(site.stack, site.row, x.reshape(self.running_rows, -1, x.shape[-1])).reshape(x.shape)

        where, place, call = self.anatomy, "block", apply
        if self._mlps is not None:
            where, place, call = self._mlps, "mlp", apply_mlp  # type: ignore[assignment]
        options: dict[str, Any] = {"read": call} if read is not None else {"edit": call, "once": True}
        undo.enter_context(tap(where, place, **options))

    @torch.no_grad()
    def patched(self, tokens: Sequence[int | None]) -> Tensor:
        """[token, part, example]: the metric, by passes on several copies of the batch where these agree with one."""
        found = self.values.expand(len(tokens), len(self._names), -1).clone()
        flat = found.view(-1, found.shape[-1])
        variants = [(name, token) for token in tokens for name in self._names]
        if self._at_once is None:
            self._at_once = self._copies_at_once()
        for start in range(0, len(variants), self._at_once):
            some = variants[start : start + self._at_once]
            flat[start : start + len(some)] = self._run(some)
        return found

    def _copies_at_once(self) -> int:
        """How many copies of a batch run at once: 1 if the model gives copies of a batch other results than one."""
        positions = POSITIONS_ON_CPU if device_of(self.anatomy.model).type == "cpu" else POSITIONS
        widest = max((x.shape[0] * x.shape[1] for x in self.base.values()), default=1)
        most = max(1, positions // max(1, widest))
        if most == 1:
            return 1
        try:
            both = self._run([(self._names[0], -1)] * 2)
        except Exception:  # any error means that copies cannot be run together
            return 1
        return most if torch.allclose(both, self.values.expand_as(both), rtol=1e-4, atol=1e-5) else 1

    def _run(self, variants: Sequence[tuple[tuple[str, int], int | None]]) -> Tensor:
        """[variant, example]: the metric of copies of the batch, each with one block put in; -1 for no token."""
        copies, batch = len(variants), self.aligned.base
        many = {key: copied(x, examples(batch), copies, 0) for key, x in batch.items()}

        def edit(place: Place, stack: str, x: Tensor) -> Tensor:
            here = [(copy, token) for copy, (name, token) in enumerate(variants) if name == place and token != -1]
            if not here:
                return x
            each = x.reshape(copies, -1, *x.shape[1:]).clone()
            new = self.moved(place, stack, x.shape[1])
            for copy, token in here:
                where = self.mask(stack, x.shape[1], token)
                each[copy] = new if where is None else torch.where(where[..., None].to(x.device), new, each[copy])
            return each.reshape(x.shape)

        with uncached(self.anatomy.model), ExitStack() as taps:
            self.running_rows = copies * self.rows
            self.opened(taps, edit=edit)
            outputs = self.run(many)
            self.running_rows = self.rows
        return self.metric.values(outputs, many, self.first, copies).double().cpu().view(copies, -1)

    def shares(self, place: Place, change: Tensor | None) -> list[Tensor]:
        """The change at a block, [row, position, hidden], in all."""
        if change is None:
            return [torch.zeros(examples(self.aligned.base), dtype=torch.float64)]
        return [self._of_examples(change)]
