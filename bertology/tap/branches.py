"""Variants of a model on copies of a batch at once, each resumed where a recorded pass begins to differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..anatomy.modules import largest_eps
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
        self._ways: dict[tuple[int, LeftOut], Way] = {}
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
        starts = {row: variants for row, variants in starts.items() if variants}
        ways = self._find_ways(record, base, batch, list(starts), outputs)
        positions = POSITIONS_ON_CPU if device_of(self._anatomy.model).type == "cpu" else POSITIONS
        for row, variants in starts.items():
            way, at_once = ways[row], 1
            if record.positions and way.start != "alone" and self._variants.copied:
                elements = 1 if way.left_out.output_layer else largest(outputs)
                at_once = max(1, min(positions // record.positions, ELEMENTS // elements))
            for some in torch.split(torch.tensor(variants), at_once):
                yield some, self._run(record, batch, row, gates[some], way)

    def _find_ways(self, record: Recording, base: Seen, batch: Batch, rows: list[int], outputs: Any) -> dict[int, Way]:
        """How to resume at each of these layers, on a batch whose recorded pass gave these outputs and results."""
        if self._products:
            self._output_layer = output_layer(self._products, outputs)
            self._products = []  # which hold logits
        possible = LeftOut(
            tail=bool(self._tail) and self._reads_first(record, base, batch),
            output_layer=self._output_layer is not None,
        )
        new = [row for row in rows if (row, possible) not in self._ways]
        if new:
            self._prove(batch, new, possible)
            # A state that the first layers leave, such as a mask, is now that of a few examples.
            call(self._anatomy.model, self._inputs(batch))
        ways = {row: self._ways.get((row, possible), Way("alone")) for row in rows}
        self.left_out = LeftOut(*(any(part) for part in zip(*(way.left_out for way in ways.values()), strict=True)))
        return ways

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

    def _prove(self, batch: Batch, rows: list[int], possible: LeftOut) -> None:
        """Find out how a pass can resume at each layer, on the first example of the batch, or two if it is copied.

        If several examples share a tensor of images, the whole batch is used.

        If a model passes state from layer to layer outside the outputs of its blocks, this state would be missing, or
        be left from another pass. Therefore copies, one unchanged and one with the gates of the layer at one half, must
        give the same outputs as full passes, directly after a pass that changed every layer. If variants never run at
        once on several copies, the unchanged one is enough: it shows that nothing is missing.

        If that pass gives the results of the unchanged model, as where no label of these examples counts, they show
        nothing: this batch runs from the start, and the next one is tried.
        """
        few = some_examples(batch, slice(2 if self._variants.copied else 1)) if has_rows(batch) else batch
        with self.recorded(few) as record:
            outputs = call(self._anatomy.model, self._inputs(few))
        base = self._look(outputs, few, 1)
        trials = {row: self._variants.trial(row) for row in rows}
        wanted = {row: self._alone(record, few, row, trials[row], base) for row in rows}
        other = self._changes_all(record, few, rows[0])
        if other is not None and all(torch.equal(x, y) for x, y in zip(other[:2], base[:2], strict=True)):
            return
        starts = self._variants.starts if other is not None else ("alone",)
        shorter = [Way(start, possible) for start in starts if start != "alone" and any(possible)]
        ways = [*shorter, *map(Way, starts)]
        for row in reversed(rows):
            works = (way for way in ways if self._works(way, record, few, row, trials[row], wanted[row]))
            self._ways[row, possible] = next(works)

    def _alone(self, record: Recording, batch: Batch, row: int, trial: Tensor, base: Seen) -> list[Tensor]:
        """The losses and logits of the copies of a trial, by a full pass for each that is changed."""
        changed = [self._run(record, batch, row, gates[None], Way("alone")) for gates in trial[1:]]
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
        """Whether the model reads only the first position of the last block in all rows of this batch."""

        def end() -> Seen:
            with record.resumed_after_last_block():
                return self._look(call(self._anatomy.model, self._inputs(batch)), batch, 1)

        return self._gives(end, base)

    def _works(self, way: Way, record: Recording, batch: Batch, row: int, gates: Tensor, wanted: list[Tensor]) -> bool:
        if way.start == "alone":
            return True
        if not self._variants.can_start(way.start, record, row):
            return False
        works = self._gives(lambda: self._run(record, batch, row, gates, way), wanted)
        if way.start == "copies":  # a full pass, after which the state that other layers leave is that of the batch
            self._changes_all(record, batch, row)
        return works

    def _gives(self, run: Callable[[], Seen], wanted: Sequence[Tensor]) -> bool:
        """Whether a pass runs without an error and gives these losses and logits, up to rounding."""
        try:
            found = run()
        except Exception:  # any error means that this way does not work
            return False
        step = largest_eps(self._anatomy.model)
        return all(_close(x, y, min(1000 * step, 0.05)) for x, y in zip(wanted[:2], found[:2], strict=True))


def _moved_inputs(stack: str, layer: int, x: Tensor) -> Tensor:
    """Other states for the first block of a stack: those that it gets, with each element in the place of the next."""
    return x if layer else x.roll(1, -1)


def _copies(values: Batch, batch: Batch, copies: int) -> dict[str, Any]:
    return {key: copied(x, examples(batch), copies, 0) for key, x in values.items()}


def largest(outputs: Any) -> int:
    """The number of elements of the largest output."""
    values = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, tuple) else [outputs]
    return max((x.numel() for x in values if isinstance(x, Tensor)), default=0) or 1


def _close(x: Tensor, y: Tensor, tolerance: float) -> bool:
    """Whether two tensors are equal, up to a fraction of the largest element."""
    if x.shape != y.shape:
        return False
    largest = x[x.isfinite()].abs().max().item() if x.isfinite().any() else 0.0
    return torch.allclose(x, y, rtol=0, atol=tolerance * largest, equal_nan=True)
