"""What a variant of a model is: gates of its heads, MLPs left out, or blocks skipped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace as changed
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from ..anatomy.sites import Anatomy, Site
from ..data.batches import Batch
from .gates import Replacement
from .hooks import tap
from .resume import Recording, matrix


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

    @abstractmethod
    def trial(self, row: int) -> Tensor:
        """[copy, layer, unit]: gates that show whether a pass may resume at this layer; the first change nothing."""

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

    def trial(self, row: int) -> Tensor:
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
