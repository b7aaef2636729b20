"""What a variant of a model is: gates of its heads, MLPs left out, or blocks skipped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace as changed
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from ..anatomy.blocks import BlockAnatomy
from ..anatomy.sites import Anatomy, Site
from ..data.batches import Batch
from .calls import Calls
from .gates import Replacement
from .hooks import tap
from .resume import Recording, matrix
from .skipped import given_states, passed_on, skipping
from .states import flat_states, laid_out, state_of, with_state


class Variants(ABC):
    """One kind of parts of a model, which gates [copy, layer, unit] leave as they are, where they are 1, or change.

    A row of the axis `layer` is one site of the parts.
    """

    starts: ClassVar[tuple[str, ...]]
    """The ways in which a pass may start, as in `branches`, from the shortest one to "alone"."""
    copied: ClassVar[bool] = True
    """Whether variants that change the same layer may run at once, on copies of the batch."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy

    def noted(self, record: Recording) -> AbstractContextManager[Any]:
        """Note in a recording what resuming needs besides, during its pass."""
        return nullcontext()

    @abstractmethod
    def ran(self, record: Recording) -> Collection[int]:
        """The rows that ran in a recorded pass, in the order in which they ran."""

    shared: ClassVar[bool] = False
    """Whether variants that change different layers run at once if all of them can, from the first of these layers."""

    @abstractmethod
    def tried(self, copies: int) -> int:
        """How many copies show whether a pass may resume on so many at once."""

    @abstractmethod
    def trial(self, row: int, copies: int, later: Sequence[int]) -> Tensor:
        """[copy, layer, unit]: gates of so many copies that show whether a pass may resume at this layer.

        The first change nothing. Others change the layer, or `later`: all rows from this one on, in the order in which
        they run, or none where a pass that resumes earlier is tried too, and shows that copies do not see each other.
        """

    @abstractmethod
    def changing_all(self) -> Tensor:
        """[1, layer, unit]: gates that change every layer."""

    def can_start(self, start: str, record: Recording, row: int) -> bool:
        """Whether a pass may start like this at a layer."""
        return True

    @abstractmethod
    def open(self, record: Recording, row: int, gates: Tensor, batch: Batch, start: str, undo: ExitStack) -> None:
        """Let the model run under gates that change no layer before this row, while `undo` is open."""


class HeadVariants(Variants):
    """Gates of heads, and what replaces their outputs."""

    starts = ("projection", "block", "copies", "alone")

    def __init__(self, anatomy: Anatomy, replacement: Replacement) -> None:
        super().__init__(anatomy)
        self._replacement = replacement

    def ran(self, record: Recording) -> Collection[int]:
        """The layers whose attention ran."""
        return record.attentions.keys()

    def tried(self, copies: int) -> int:
        """Always two: the product with the changed heads is to be shown too."""
        return 2

    def trial(self, row: int, copies: int, later: Sequence[int]) -> Tensor:
        """One copy without a change, and one with the gates of the layer at one half."""
        ones = torch.ones(1, self.anatomy.layers, self.anatomy.heads)
        return torch.cat([ones, ones.index_fill(1, torch.tensor([row]), 0.5)])

    def changing_all(self) -> Tensor:
        """All gates at one half."""
        return torch.full((1, self.anatomy.layers, self.anatomy.heads), 0.5)

    def can_start(self, start: str, record: Recording, row: int) -> bool:
        """Not every site can be resumed at its projection."""
        return start != "projection" or record.can_resume_at_projection(row)

    def open(self, record: Recording, row: int, gates: Tensor, batch: Batch, start: str, undo: ExitStack) -> None:
        """Resume at the layer, and mix the heads with what replaces them."""
        resumes = start in ("projection", "block")
        sites = record.sites_from(row) if resumes else self.anatomy.sites
        changing = (gates != 1).any(-1).any(0)
        # If several layers share a place, their calls are counted there, so none of these sites may be left out.
        places = {site.place for site in sites if changing[site.row]}
        sites = tuple(site for site in sites if site.place in places and (start, site.row) != ("projection", row))
        if resumes:
            projected = self._projected(record, row, gates, batch) if start == "projection" else None
            undo.enter_context(record.resumed(row, len(gates), projected))
        if sites:
            mix = self._mix(gates, batch)
            once = self._replacement.depends_on_batch  # each run of a stack has its own tokens
            undo.enter_context(tap(changed(self.anatomy, sites=sites), "heads", edit=mix, once=once))

    def _projected(self, record: Recording, row: int, gates: Tensor, batch: Batch) -> Tensor:
        """[(copy batch), token, hidden]: the recorded output of the projection of a site, changed by the gates.

        Only the heads that change, usually one in each copy, are multiplied by their part of the matrix.
        """
        site, call, weight = self.anatomy.sites[row], record.attentions[row], matrix(self.anatomy.sites[row])
        assert call.heads is not None
        assert call.projected is not None
        assert weight is not None
        closed = 1 - gates[:, row, list(site.kept)]
        most = int((closed != 0).sum(1).max())
        heads = (closed != 0).int().argsort(dim=1, descending=True, stable=True)[:, :most]
        share = rearrange(closed.gather(1, heads).to(call.heads), "copy head -> copy head 1 1")
        heads = heads.to(call.heads.device)
        x = rearrange(call.heads, "batch token (head dim) -> batch token head dim", dim=site.dim)
        change = -_of_heads(x, heads)
        if not self._replacement.is_zero:
            change += _of_heads(self._replacement.values(x, site, batch).expand_as(x), heads)
        changes = rearrange(change * share, "copy head position dim -> copy position (head dim)")
        weights = rearrange(weight, "(head dim) hidden -> head dim hidden", dim=site.dim)[heads]
        unchanged = call.projected.flatten(0, 1).expand(len(gates), -1, -1)
        new = torch.baddbmm(unchanged, changes, rearrange(weights, "copy head dim hidden -> copy (head dim) hidden"))
        return new.reshape(-1, *call.projected.shape[1:])

    def _mix(self, gates: Tensor, batch: Batch) -> Callable[[Site, Tensor], Tensor]:
        """Mix the outputs of heads with their replacement: x ξ + s (1 - ξ)."""

        def edit(site: Site, x: Tensor) -> Tensor:
            some = gates[:, site.row, list(site.kept)]
            if (some == 1).all():
                return x
            each = rearrange(x, "(copy batch) token head dim -> copy batch token head dim", copy=len(gates))
            gate = rearrange(some.to(x), "copy head -> copy 1 1 head 1")
            new = each * gate
            if not self._replacement.is_zero:
                new = new + self._replacement.values(each, site, batch) * (1 - gate)
            return rearrange(new, "copy batch token head dim -> (copy batch) token head dim")

        return edit


def _of_heads(x: Tensor, heads: Tensor) -> Tensor:
    """[copy, head, position, dim]: the outputs, in `x [batch, token, head, dim]`, of `heads [copy, head]`."""
    some = x.flatten(0, 1).index_select(1, heads.flatten())
    return rearrange(some, "position (copy head) dim -> copy head position dim", copy=len(heads))


class PartVariants(Variants):
    """Gates [copy, layer, 1] of MLPs or blocks: 0 leaves one out. A variant leaves out one, and runs alone."""

    starts: ClassVar[tuple[str, ...]] = ("block", "alone")
    copied = False

    def __init__(self, anatomy: Anatomy, parts: Anatomy) -> None:
        super().__init__(anatomy)
        self.parts = parts

    @contextmanager
    def noted(self, record: Recording) -> Iterator[None]:
        """Note in which call of a block each part runs."""
        calls = Calls([(site.place, site) for site in self.parts.sites for _ in range(site.runs)], once=False)

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            row = calls.next(module).row
            record.parts[row] = record.running
            self._note(record, row, args, kwargs)

        with ExitStack() as undo:
            calls.watch(self.parts, undo)
            for module in calls.modules:
                undo.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
            yield

    def _note(self, record: Recording, row: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note what a part was given."""

    def ran(self, record: Recording) -> Collection[int]:
        """The parts that ran."""
        return record.parts.keys()

    def tried(self, copies: int) -> int:
        """One."""
        return 1

    def trial(self, row: int, copies: int, later: Sequence[int]) -> Tensor:
        """One copy without a change."""
        return torch.ones(1, self.parts.layers, 1)

    def changing_all(self) -> Tensor:
        """All parts left out."""
        return torch.zeros(1, self.parts.layers, 1)


class MlpVariants(PartVariants):
    """MLPs whose output is replaced: by 0."""

    def open(self, record: Recording, row: int, gates: Tensor, batch: Batch, start: str, undo: ExitStack) -> None:
        """Resume at the block of the MLP, and let MLPs return 0."""
        over: set[int] = set()
        if start == "block":
            over = record.ended_before(record.parts[row])
            undo.enter_context(record.resumed_after(over, len(gates)))
        sites = [site for site in self.parts.sites if record.parts.get(site.row) not in over]
        changing = {site.row for site in sites if (gates[:, site.row] != 1).any()}
        # If several layers share a place, their calls are counted there, so none of these sites may be left out.
        places = {site.place for site in sites if site.row in changing}
        sites = [site for site in sites if site.place in places]

        def edit(site: Site, x: Tensor) -> Tensor:
            return self._edited(record, site, x, gates[:, site.row, 0]) if site.row in changing else x

        if sites:
            undo.enter_context(tap(changed(self.parts, sites=tuple(sites)), "mlp", edit=edit))

    def _edited(self, record: Recording, site: Site, x: Tensor, gates: Tensor) -> Tensor:
        """What an MLP that returned x returns under `gates [copy]`, not all of which are 1."""
        return torch.zeros_like(x)


class BlockVariants(PartVariants):
    """Blocks that pass on what they get."""

    parts: BlockAnatomy

    def _note(self, record: Recording, row: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        record.given[row] = given_states(args, kwargs)

    def open(self, record: Recording, row: int, gates: Tensor, batch: Batch, start: str, undo: ExitStack) -> None:
        """Resume after the block, which returns what it was given, or skip blocks."""
        closed = {site.row for site in self.parts.sites if gates[0, site.row] == 0}
        if start == "alone":
            undo.enter_context(skipping(self.parts, closed))
            return
        number = record.parts[row]
        instead = {number: self._passed_on(record, row)} if row in closed else {}
        undo.enter_context(record.resumed_after(record.ended_before(number) | {number}, len(gates), instead))

    def _passed_on(self, record: Recording, row: int) -> Any:
        """What the block returns if it passes on its input."""
        call, site = record.blocks[record.parts[row]], self.parts.sites[row]
        x, layout = state_of(call.output), call.stack.layout
        states = passed_on(site, record.given[row], layout, flat_states(x, layout, site.label))
        return with_state(call.output, laid_out(states, layout, x))
