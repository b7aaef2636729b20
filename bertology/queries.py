"""Which queries of a block of attention rows are real?"""

from __future__ import annotations

import torch
from torch import Tensor

from .batches import Batch, fit_mask, token_mask
from .site import Anatomy, Site


class RealQueries:
    """The real queries of a batch, asked for block by block while the model runs.

    Most stacks attend from the text's own tokens. How many positions another one has is known at its last block only:
    `check` then raises `DataError` if padding cannot be told among them.
    """

    def __init__(self, anatomy: Anatomy, batch: Batch) -> None:
        self._anatomy = anatomy
        self._masks = {site.stack: token_mask(anatomy.model, batch, site.stack) for site in anatomy.sites}
        self._complete = {stack: bool(mask.all()) for stack, mask in self._masks.items()}
        self._positions: dict[Site, int] = {}

    def among(self, site: Site, rows: slice, queries: int) -> Tensor:
        """[batch, query], bool: which of these rows are real."""
        mask = self._masks[site.stack]
        self._positions[site] = max(rows.stop, self._positions.get(site, 0))
        if self._complete[site.stack]:
            return torch.ones(mask.shape[0], queries, dtype=torch.bool, device=mask.device)
        if rows.stop > mask.shape[1]:
            mask = fit_mask(mask, rows.stop, self._runner(site))
        return mask[:, rows]

    def check(self) -> None:
        """Raise `DataError` if a stack attended from another number of positions than the mask has."""
        for site, positions in self._positions.items():
            if not self._complete[site.stack]:
                fit_mask(self._masks[site.stack], positions, self._runner(site))

    def _runner(self, site: Site) -> torch.nn.Module:
        names = {stack.name: stack.module for stack in self._anatomy.stacks}
        return names.get("decoder" if site.stack == "cross" else site.stack, self._anatomy.model)
