"""Variants of a model on copies of a batch at once, each resumed where a recorded pass begins to differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..anatomy.modules import largest_eps
from ..anatomy.names import MASK_ENDING
from ..data.batch_errors import explained
from ..data.batches import Batch, call, device_of, examples, has_rows, rows_per_example, some_examples
from . import Recording, copied, first_position_only, recorded, tail_noted, tap
from .output_layer import Noted, output_layer, output_layer_left_out, products_noted
from .variants import Variants

# The maximum number of positions, and of elements of the output, in the copies of a batch that run at once. On a CPU,
# more positions are not faster, because they do not fit into its caches.
POSITIONS, POSITIONS_ON_CPU = 32768, 768
ELEMENTS = 2**25


class Seen(NamedTuple):
    """The results of a pass on copies of a batch that are kept."""

    losses: Tensor
    """[copy, example]"""
    logits: Tensor
    """[copy, row, label]"""
    truths: Tensor
    """[row]"""
    example_of: Tensor
    """[row]"""


class LeftOut(NamedTuple):
    """Parts of a model that its outputs do not need, on a batch."""

    tail: bool = False
    """All but the first position in the products after the attention of the last block."""
    output_layer: bool = False
    """The output layer, which is applied later to the positions that a loss reads."""


class Kind(NamedTuple):
    """What batches have in common for which a way was proven."""

    left_out: LeftOut
    arguments: tuple[tuple[str, int, bool], ...]
    """(name, number of axes, or -1 for no tensor, whether it is a mask that hides something) of each argument."""
    copies: int
    """How many copies ran at once in the proof."""


class Way(NamedTuple):
    """How a pass on copies of a batch runs."""

    start: str
    """One of those of the variants: "projection", the output projection of the changed layer; "block", its block;
    "copies", the start of the model, on copies of the batch; or "alone", the start, on the batch itself, which is
    correct for every model."""
    left_out: LeftOut = LeftOut()


class Branches:
    """Runs copies of a batch under gates `[copy, layer, unit]`, resumed from a recorded pass if that is exact.

    `variants` says what the gates are of, such as heads. `inputs` turns a batch into the arguments of the model. `look`
    takes outputs, the batch and the number of copies, and returns the results to keep. If these are losses alone that
    can be computed of the states before the output layer, `look_at_states` does so; it takes the layer too.
    """

    def __init__(
        self,
        variants: Variants,
        inputs: Callable[[Batch], Batch],
        look: Callable[[Any, Batch, int], Seen],
        look_at_states: Callable[[Any, Batch, int, nn.Module], Seen] | None = None,
    ) -> None:
        self._anatomy, self._variants, self._inputs = variants.anatomy, variants, inputs
        self._look, self._look_at_states = look, look_at_states
        self._ways: dict[tuple[int, Kind], Way] = {}
        self._tail: list[nn.Module] | None = None  # None until the first pass was recorded
        self._products: Noted = []
        self._output_layer: nn.Module | None = None
        self.left_out = LeftOut()
        """The parts that were left out of the last batch."""

    @contextmanager
    def recorded(self, batch: Batch) -> Iterator[Recording]:
        """Record the pass on a batch that runs in this `with` block."""
        with ExitStack() as noting:
            if self._tail is None:
                tail = noting.enter_context(tail_noted(self._anatomy))
                self._products = noting.enter_context(products_noted(self._anatomy)) if self._look_at_states else []
            else:
                tail = self._tail
            record = noting.enter_context(recorded(self._anatomy, examples(batch) * rows_per_example(batch)))
            noting.enter_context(self._variants.noted(record))
            yield record
        self._tail = tail

    def each(
        self, record: Recording, base: Seen, batch: Batch, gates: Tensor, outputs: Any
    ) -> Iterator[tuple[Tensor, Seen]]:
        """Run a recorded batch under each set of gates [variant, layer, unit]; yield the variants and their results.

        Variants that change no layer that ran are left out. `outputs` are those of the recorded pass, and `base` holds
        its results.
        """
        starts: dict[int, list[int]] = {row: [] for row in self._variants.ran(record)}
        for variant, rows in enumerate((gates != 1).any(-1)):
            starts.get(next((row for row in starts if rows[row]), -1), []).append(variant)
        positions = POSITIONS_ON_CPU if device_of(self._anatomy.model).type == "cpu" else POSITIONS
        at_once = positions // record.positions if record.positions and self._variants.copied else 0
        groups = [(row, some) for row, some in starts.items() if some]
        variants = [variant for _, some in groups for variant in some]
        if self._variants.shared and len(variants) <= at_once:
            groups = [(row, variants) for row, _ in groups[:1]]
        ways = self._find_ways(record, base, batch, {row: min(at_once, len(some)) for row, some in groups}, outputs)
        for row, variants in groups:
            way, most = ways[row], at_once
            if not way.left_out.output_layer:
                most = min(most, ELEMENTS // largest(outputs))
            for some in torch.split(torch.tensor(variants), 1 if way.start == "alone" else max(1, most)):
                yield some, self._run(record, batch, row, gates[some], way)

    def _find_ways(
        self, record: Recording, base: Seen, batch: Batch, copies: Mapping[int, int], outputs: Any
    ) -> dict[int, Way]:
        """How to resume at each of these layers {row: the most copies at once}, on a batch whose recorded pass gave
        these outputs and results."""
        if self._products:
            self._output_layer = output_layer(self._products, outputs)
            self._products = []  # which hold logits
        possible = LeftOut(
            tail=bool(self._tail) and self._reads_first(record, base, batch),
            output_layer=self._output_layer is not None,
        )
        arguments = self._arguments(batch)
        kinds = {row: Kind(possible, arguments, self._variants.tried(most)) for row, most in copies.items()}
        new = [row for row, kind in kinds.items() if (row, kind) not in self._ways]
        if new:
            order = list(self._variants.ran(record))
            first = next((row for row in new if kinds[row].copies > 1), None)
            trials = {
                row: self._variants.trial(row, kinds[row].copies, order[order.index(row) :] if row == first else ())
                for row in new
            }
            found = self._prove(record, base, batch, trials, possible)
            self._ways |= {(row, kinds[row]): way for row, way in found.items()}
        ways = {row: self._ways.get((row, kind), Way("alone")) for row, kind in kinds.items()}
        self.left_out = LeftOut(*(any(part) for part in zip(*(way.left_out for way in ways.values()), strict=True)))
        return ways

    def _arguments(self, batch: Batch) -> tuple[tuple[str, int, bool], ...]:
        """The arguments of the model for a batch, as a `Kind` has them."""
        given = {name: x for name, x in self._inputs(batch).items() if x is not None}
        axes = {name: x.dim() if isinstance(x, Tensor) else -1 for name, x in given.items()}
        hides = {name for name in given if name.endswith(MASK_ENDING) and axes[name] >= 0 and not given[name].all()}
        return tuple(sorted((name, axes[name], name in hides) for name in given))

    def _run(self, record: Recording, batch: Batch, row: int, gates: Tensor, way: Way) -> Seen:
        """Run copies of the batch under gates that change no layer before this row."""
        copies = len(gates)
        with ExitStack() as taps:
            if way.left_out.tail:
                taps.enter_context(first_position_only(self._tail or []))
            if way.left_out.output_layer and self._output_layer:
                taps.enter_context(output_layer_left_out(self._output_layer))
            self._variants.open(record, row, gates, batch, way.start, taps)
            with explained(self._anatomy.model, batch):
                outputs = call(self._anatomy.model, _copies(self._inputs(batch), batch, copies))
        if way.left_out.output_layer and self._output_layer and self._look_at_states:
            return self._look_at_states(outputs, _copies(batch, batch, copies), copies, self._output_layer)
        return self._look(outputs, _copies(batch, batch, copies), copies)

    def _prove(
        self, record: Recording, base: Seen, batch: Batch, trials: Mapping[int, Tensor], possible: LeftOut
    ) -> dict[int, Way]:
        """Find out how a pass can resume at each layer, by its trial, on the first examples of the batch.

        There are as many of them as copies in a trial, or more, if only more have the same arguments as the batch, such
        as a mask with padding. If several examples share a tensor of images, the whole batch is used.

        If a model passes state from layer to layer outside the outputs of its blocks, this state would be missing, or
        be left from another pass. Therefore copies, one unchanged and one with a change of the layer, must give the
        same outputs as full passes, directly after a pass that changed every layer. The unchanged one shows that
        nothing is missing; if variants never run at once on several copies, it is enough.

        If that pass or the changed copy gives the results of the unchanged model, as where no label of these examples
        counts, they show nothing: this batch runs from the start, and the next one is tried.
        """
        few = self._few(batch, max(map(len, trials.values())))
        if few is not batch:
            with self.recorded(few) as record:
                outputs = call(self._anatomy.model, self._inputs(few))
            base = self._look(outputs, few, 1)
        wanted = {row: self._alone(record, few, row, trial, base) for row, trial in trials.items()}
        resumes = any(self._resumes(start, record, row) for start in self._variants.starts for row in trials)
        if self._variants.shared and not all(self._tells(trial, wanted[row]) for row, trial in trials.items()):
            return {}
        other = self._changes_all(record, few, next(iter(trials))) if resumes else None
        tolerance = self._tolerance(base, other)
        if other is not None and all(torch.equal(x, y) for x, y in zip(other[:2], base[:2], strict=True)):
            return {}
        starts = ("alone",) if resumes and other is None else self._variants.starts
        shorter = [Way(start, possible) for start in starts if start != "alone" and any(possible)]
        found: dict[int, Way] = {}
        for row in reversed(list(trials)):
            for way in (*shorter, *map(Way, starts)):
                works = self._works(way, record, few, row, trials[row], wanted[row], tolerance)
                if way.start == "copies" and resumes:  # a full pass: the state that other layers leave is of the batch
                    self._changes_all(record, few, row)
                if works:
                    found[row] = way
                    break
        if resumes:  # a state that the first layers leave, such as a mask, is now that of a few examples
            call(self._anatomy.model, self._inputs(batch))
        return found | dict.fromkeys(_untold(trials, found), Way("alone"))

    def _resumes(self, start: str, record: Recording, row: int) -> bool:
        """Whether a pass that starts like this at a layer leaves out layers before it."""
        return start not in ("copies", "alone") and self._variants.can_start(start, record, row)

    def _few(self, batch: Batch, least: int) -> Batch:
        """The first examples of a batch, that many at least, with arguments of the same kind; or the batch itself."""
        if has_rows(batch):
            wanted = self._arguments(batch)
            for many in range(least, examples(batch)):
                some = some_examples(batch, slice(many))
                if self._arguments(some) == wanted:
                    return some
        return batch

    def _alone(self, record: Recording, batch: Batch, row: int, trial: Tensor, base: Seen) -> list[Tensor]:
        """The losses and logits of the copies of a trial, by a full pass for each that is changed."""
        changed = [
            base if (gates == 1).all() else self._run(record, batch, row, gates[None], Way("alone"))
            for gates in trial[1:]
        ]
        return [torch.cat(each) for each in zip(base[:2], *(seen[:2] for seen in changed), strict=True)]

    def _changes_all(self, record: Recording, batch: Batch, row: int) -> Seen | None:
        """Run a full pass that changes every layer, if the model can: if possible, also what its first blocks get.

        None if the model cannot.
        """
        for other_inputs in (tap(self._anatomy, "block", edit=_moved_inputs), nullcontext()):
            try:
                with other_inputs:
                    return self._run(record, batch, row, self._variants.changing_all(), Way("alone"))
            except Exception:  # such as blocks that cannot all be skipped, though each of them can
                continue
        return None

    def _reads_first(self, record: Recording, base: Seen, batch: Batch) -> bool:
        """Whether the model reads only the first position of the last block in all rows of this batch.

        Then other states at all other positions change no digit of what it gives: no tolerance is needed, which in half
        precision would be wider than what these positions change.
        """

        def end() -> Seen:
            with record.resumed_after_last_block():
                return self._look(call(self._anatomy.model, self._inputs(batch)), batch, 1)

        return self._gives(end, base, 0.0)

    def _works(
        self, way: Way, record: Recording, batch: Batch, row: int, gates: Tensor, wanted: list[Tensor], tolerance: float
    ) -> bool:
        if way.start == "alone":
            return True
        if not self._variants.can_start(way.start, record, row):
            return False
        return self._gives(lambda: self._run(record, batch, row, gates, way), wanted, tolerance)

    def _gives(self, run: Callable[[], Seen], wanted: Sequence[Tensor], tolerance: float) -> bool:
        """Whether a pass runs without an error and gives these losses and logits, up to a tolerance."""
        try:
            found = run()
        except Exception:  # any error means that this way does not work
            return False
        return _same(wanted, found, tolerance)

    def _tells(self, trial: Tensor, wanted: Sequence[Tensor]) -> bool:
        """Whether the copies that a trial changes, if any, have other results than the first."""
        return bool((trial == 1).all()) or not _same(wanted, [x[:1].expand_as(x) for x in wanted], self._tolerance())

    def _tolerance(self, base: Seen | None = None, other: Seen | None = None) -> float:
        """The part of the largest loss, or logit, that rounding may change.

        It is no more than a tenth of what a pass with changes in every layer changes, since states of that pass, or
        none, may not be taken for those of the batch.
        """
        rounding = min(1000 * largest_eps(self._anatomy.model), 0.05)
        if base is None or other is None:
            return rounding
        moved = [_apart(x, y) for x, y in zip(base[:2], other[:2], strict=True) if x.numel()]
        return min([rounding, *(0.1 * share for share in moved)])


def _untold(trials: Mapping[int, Tensor], found: Mapping[int, Way]) -> list[int]:
    """The rows whose copies were alike in their trials, if copies see each other in the trial of another row."""
    several = {row: trial for row, trial in trials.items() if len(trial) > 1}
    if all(found[row].start != "alone" for row in several):
        return []
    return [row for row, trial in several.items() if (trial == 1).all()]


def _moved_inputs(stack: str, layer: int, x: Tensor) -> Tensor:
    """Other states for the first block of a stack: those that it gets, with each element in the place of the next."""
    return x if layer else x.roll(1, -1)


def _copies(values: Batch, batch: Batch, copies: int) -> dict[str, Any]:
    return {key: copied(x, examples(batch), copies, 0) for key, x in values.items()}


def largest(outputs: Any) -> int:
    """The number of elements of the largest output."""
    values = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, tuple) else [outputs]
    return max((x.numel() for x in values if isinstance(x, Tensor)), default=0) or 1


def _same(wanted: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> bool:
    """Whether these are equal losses and logits, up to a tolerance."""
    return all(_close(x, y, tolerance) for x, y in zip(wanted[:2], found[:2], strict=True))


def _close(x: Tensor, y: Tensor, tolerance: float) -> bool:
    """Whether two tensors are equal, up to a fraction of the largest element."""
    return x.shape == y.shape and torch.allclose(x, y, rtol=0, atol=tolerance * _largest(x), equal_nan=True)


def _apart(x: Tensor, y: Tensor) -> float:
    """The largest difference of two tensors, as a fraction of the largest element of the first; infinite for NaN."""
    largest, moved = _largest(x), (x.double() - y.double()).abs().max().item()
    return moved / largest if largest and math.isfinite(moved) else math.inf


def _largest(x: Tensor) -> float:
    """The largest element by its absolute value among those that are finite."""
    return x[x.isfinite()].abs().max().item() if x.isfinite().any() else 0.0
