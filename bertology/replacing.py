"""What stands where a head's output was?"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from .anatomy.sites import Anatomy, Site
from .data.batches import Batch, token_mask
from .data.padding import real_positions
from .errors import HeadError, ShapeError

Kind = Literal["zero", "mean", "resample"]


class StandIns:
    """What replaces heads' outputs in a model.

    "zero"; "mean", the head's own mean over the real tokens of the batch; "resample", for every position what the head
    puts out at a real token of the batch, drawn at random, the same one for all heads of a layer; or a tensor
    `[layer, head, dim]`. Draws begin anew from `seed` in every batch and layer.
    """

    def __init__(self, anatomy: Anatomy, replace: Tensor | str, seed: int = 0) -> None:
        self._anatomy, self._replace, self._seed = anatomy, replace, seed

    @property
    def are_something(self) -> bool:
        """Whether they are more than zeros."""
        return not isinstance(self._replace, str) or self._replace != "zero"

    @property
    def need_batch(self) -> bool:
        """Whether they hang on the batch."""
        return isinstance(self._replace, str) and self._replace != "zero"

    def instead_of(self, x: Tensor, site: Site, batch: Batch) -> Tensor:
        """What stands in for x, [..., batch, token, head, dim], all heads of a site; it broadcasts to its shape.

        An axis in front of it is copies of the batch.
        """
        if isinstance(self._replace, Tensor):
            return self._replace[site.row, list(site.kept), : site.dim].to(x)
        if self._replace == "zero":
            return x.new_zeros(())
        real = self._real(site, batch, *x.shape[-4:-2]).flatten().nonzero().flatten().cpu()
        flat = x.flatten(-4, -3)
        if self._replace == "mean":
            return flat[..., real.to(x.device), :, :].mean(-3)[..., None, None, :, :]
        generator = torch.Generator().manual_seed(self._seed)
        drawn = real[torch.randint(len(real), (flat.shape[-3],), generator=generator)]
        return flat[..., drawn.to(x.device), :, :].reshape(x.shape)

    def _real(self, site: Site, batch: Batch, rows: int, positions: int) -> Tensor:
        """[batch, token], bool: which of the positions are real tokens."""
        if batch.get("past_key_values") is not None:
            # The mask is of earlier tokens too, whose keys are kept: the newest are at its end.
            return token_mask(self._anatomy.model, batch, site.stack)[:, -positions:]
        return real_positions(self._anatomy, batch, site.stack, rows, positions)


def check_replacement(
    anatomy: Anatomy, replace: Tensor | str, places: list[tuple[int, int]] | None = None
) -> Tensor | str:
    """The replacement, if it is one for these heads, by default all: a `Kind`, or a tensor `[layer, head, dim]`.

    Raises `HeadError` for another kind, and for heads that have no tokens of one kind to take a mean over or to draw
    from; `ShapeError` for a tensor of another shape or with NaN.
    """
    if isinstance(replace, Tensor):
        _check_tensor(anatomy, replace, places)
    elif replace not in get_args(Kind):
        raise HeadError(f"replace must be 'zero', 'mean', 'resample' or a tensor [layer, head, dim], got {replace!r}")
    elif replace != "zero":
        rows = range(anatomy.layers) if places is None else {row for row, _ in places}
        several = [anatomy.sites[row].label for row in rows if anatomy.sites[row].runs > 1]
        if several:
            raise HeadError(
                f"the heads of {several[0]} run on several kinds of tokens: they have no one mean, nor tokens to draw "
                "from; take replace='zero' or a tensor"
            )
    return replace


def replacement_name(replace: str | Tensor) -> str:
    """What to call a replacement in a result."""
    return "given" if isinstance(replace, Tensor) else replace


def _check_tensor(anatomy: Anatomy, replace: Tensor, places: list[tuple[int, int]] | None) -> None:
    wanted = [anatomy.layers, anatomy.heads, max(site.dim for site in anatomy.sites)]
    if list(replace.shape) != wanted:
        raise ShapeError(f"replace must be [layer, head, dim] = {wanted}, got {list(replace.shape)}")
    heads = [(site.row, head) for site in anatomy.sites for head in site.kept] if places is None else places
    if any(replace[row, head, : anatomy.sites[row].dim].isnan().any() for row, head in heads):
        raise ShapeError("replace must hold numbers for the heads that are ablated, got NaN")
