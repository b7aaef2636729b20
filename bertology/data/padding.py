"""Which positions of a stack are real tokens and which are padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy.names import (
    DECODER_PREFIX,
    LABELS_ARGUMENT,
    MASK_ARGUMENT,
    NO_TEXT_ARGUMENTS,
    SPAN_ARGUMENTS,
)
from ..anatomy.oddities import block_oddities_of
from ..anatomy.sites import Anatomy, Site
from ..errors import DataError, how_many
from .batch_checks import check_real
from .batches import (
    IGNORED,
    Batch,
    adds_before,
    examples,
    fit_mask,
    key_mask,
    model_arguments,
    reads_text,
    rows_per_example,
    some_examples,
    token_mask,
)
from .caches import has_cache
from .models import prompt_tokens, writes


def real_positions(anatomy: Anatomy, batch: Batch, stack: str, rows: int, positions: int) -> Tensor:
    """[row, position], bool: which of the `positions` of a stack are tokens of the text, and no padding.

    Raises `DataError` when padding is not known: the stack has another number of rows than the text, or pools tokens.
    """
    mask = _stack_mask(anatomy, batch, stack)
    if mask is None:
        return torch.ones(rows, positions, dtype=torch.bool)
    _check_rows(anatomy, stack, mask, rows)
    return mask if mask.shape[1] == positions else fit_mask(mask, positions, anatomy, stack)


def check_tokens(anatomy: Anatomy, batch: Batch, stack: str, positions: int) -> None:
    """Raise `DataError` unless it is known at which of a stack's positions the tokens of its text are.

    It is not where the stack has positions of its own, or pools tokens.
    """
    odd, tokens = block_oddities_of(anatomy.runner(stack)), token_mask(anatomy.model, batch, stack).shape[1]
    if positions < tokens or (positions > tokens and not (odd.pads or odd.prefixes)):
        raise DataError(
            f"the {stack} has {how_many(positions, 'position')} but the text has {how_many(tokens, 'token')}, so "
            "positions cannot be matched to tokens"
        )


class Mapped(Protocol):
    """What has the shape and the device of rows of a map, or of what was made of them."""

    @property
    def shape(self) -> Sequence[int]:
        """[batch, head, query, ...]"""

    @property
    def device(self) -> torch.device:
        """Where it is."""


class RealQueries:
    """The queries of a batch that are not padding, block by block while the model runs.

    Most stacks have one position per token. For any other stack the number of positions is known only after its last
    block: `check` then raises `DataError` if it is not known which of them are padding.
    With `text_only`, only the queries of stacks that read the text itself can be asked for.
    """

    def __init__(self, anatomy: Anatomy, batch: Batch, *, text_only: bool = False) -> None:
        self._anatomy = anatomy
        stacks = {site.stack for site in anatomy.sites}
        wanted = {stack for stack in stacks if reads_text(anatomy.model, stack)} if text_only else stacks
        self._masks = {stack: _stack_mask(anatomy, batch, stack) for stack in wanted}
        self._complete = {
            stack: mask is None or (bool(mask.all()) and not adds_before(anatomy, stack))
            for stack, mask in self._masks.items()
        }
        for stack, mask in self._masks.items():
            if mask is not None and not self._complete[stack]:
                name = MASK_ARGUMENT if reads_text(anatomy.model, stack) else DECODER_PREFIX + MASK_ARGUMENT
                # A decoder that makes its inputs from labels has the mask of these.
                check_real(mask, name if name in batch else LABELS_ARGUMENT)
        # Earlier tokens in a cache are keys, but no queries.
        cached = wanted if has_cache(batch) else ()
        self._keys = {
            stack: key_mask(anatomy.model, batch, stack) for stack in cached if self._masks[stack] is not None
        }
        self.positions: dict[Site, int] = {}
        # What was asked before: all layers are given one tensor.
        self._asked: dict[tuple[str, int, int, int, int, torch.device], Tensor] = {}
        self._real: dict[tuple[str, int, int, torch.device], Tensor] = {}

    def among(self, site: Site, rows: slice, x: Mapped) -> Tensor:
        """[batch, query], bool: which of these rows of `x [batch, head, query, ...]` are real. Do not change it."""
        self.positions[site] = max(rows.stop, self.positions.get(site, 0))
        batch, _, queries = x.shape[:3]
        asked = (site.stack, rows.start, rows.stop, batch, queries, x.device)
        if asked not in self._asked:
            self._asked[asked] = self._find(site, rows, x)
        return self._asked[asked]

    def _find(self, site: Site, rows: slice, x: Mapped) -> Tensor:
        """`among`, for what was not asked before: stacks whose queries are all real are given one tensor."""
        mask = self._masks[site.stack]
        if mask is not None:
            _check_rows(self._anatomy, site.stack, mask, x.shape[0])
        # What a model adds behind a complete text is padding (Longformer).
        if mask is None or (self._complete[site.stack] and rows.stop <= mask.shape[1]):
            mask, which = None, ("", x.shape[0], x.shape[2], x.device)
        else:
            which = (site.stack, rows.start, rows.stop, x.device)
        if which not in self._real:
            self._real[which] = self._real_among(mask, site, rows, x)
        return self._real[which]

    def _real_among(self, mask: Tensor | None, site: Site, rows: slice, x: Mapped) -> Tensor:
        if mask is None:
            return torch.ones(x.shape[0], x.shape[2], dtype=torch.bool, device=x.device)
        if rows.stop > mask.shape[1]:
            mask = fit_mask(mask, rows.stop, self._anatomy, site.stack)
        return mask[:, rows].to(x.device)

    def first(self, site: Site, x: Mapped) -> Tensor:
        """[batch]: the position of the first real token among the keys of `x [batch, head, query, key]`."""
        mask = self._keys.get(site.stack, self._masks[site.stack])
        if mask is None or bool(mask.all() if self._keys else self._complete[site.stack]):
            return torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        return fit_mask(mask, x.shape[3], self._anatomy, site.stack).int().argmax(1).to(x.device)

    def are_of_text(self, site: Site, x: Mapped) -> bool:
        """Whether `x [batch, head, query, key]`, in one piece, is attention from the text's tokens to themselves."""
        mask = self._masks.get(site.stack)
        tokens = None if mask is None else mask.shape[1]
        return reads_text(self._anatomy.model, site.stack) and tuple(x.shape[2:]) == (tokens, tokens)

    def check(self) -> None:
        """Raise `DataError` if a stack has another number of positions than the mask."""
        for site, positions in self.positions.items():
            mask = self._masks[site.stack]
            if mask is not None and not self._complete[site.stack]:
                fit_mask(mask, positions, self._anatomy, site.stack)


def padded_example(model: nn.Module, batch: Batch, *, before: bool = False) -> int | None:
    """The first example with padding in its text or in its decoder's, or None; with `before`, before a token of it."""
    for real in text_masks(model, batch).values():
        there = ~real[..., :-1] & real[..., 1:] if before else ~real
        rows = there.flatten(1).any(1)
        if rows.any():
            return int(rows.int().argmax())
    return None


def text_masks(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """{"decoder_" or "": [batch, token] or [batch, choice, token], bool}: the real tokens, where the batch tells them.

    A decoder that makes its inputs from labels reads what lies between two of them, also where it is ignored.
    """
    masks = {}
    for prefix in (DECODER_PREFIX, ""):
        mask = batch.get(prefix + MASK_ARGUMENT)
        axes = 3 if rows_per_example(batch) > 1 else 2
        if isinstance(mask, Tensor) and mask.dim() == axes and len(mask) == examples(batch):
            masks[prefix] = mask != 0
    labels = batch.get(LABELS_ARGUMENT)
    if writes(model) and DECODER_PREFIX not in masks and isinstance(labels, Tensor) and labels.dim() == 2:
        real = (labels != IGNORED).long()
        masks = {DECODER_PREFIX: (real.cumsum(1) > 0) & (real.flip(1).cumsum(1).flip(1) > 0)} | masks
    return masks


def alone(model: nn.Module, batch: Batch, example: int) -> dict[str, Any]:
    """One example of a batch without its padding, as a batch of its own."""
    one = model_arguments(some_examples(batch, slice(example, example + 1)))
    for prefix, real in text_masks(model, one).items():
        # The choices of multiple choice are rows of one example.
        kept = real.flatten(0, -2).any(0)
        if not prefix:
            before = (~kept).long().cumsum(0)
            for name in SPAN_ARGUMENTS:
                if isinstance(one.get(name), Tensor):
                    one[name] = one[name] - before[one[name].clamp(0, len(kept) - 1)]
        _keep(one, kept, real.dim() - 1, decoder=bool(prefix), labels=writes(model) == bool(prefix))
    return one


def _keep(one: dict[str, Any], kept: Tensor, axis: int, *, decoder: bool, labels: bool) -> None:
    """Leave out positions of what has one entry for each: of the decoder's arguments, or of the others."""
    for name, x in one.items():
        mine = labels if name == LABELS_ARGUMENT else name.startswith(DECODER_PREFIX) == decoder
        if not mine or name in NO_TEXT_ARGUMENTS or not isinstance(x, Tensor) or x.dim() <= axis:
            continue
        numbers = name == LABELS_ARGUMENT and x.is_floating_point()  # of several labels, not of tokens
        if x.shape[axis] == len(kept) and not numbers:
            one[name] = x.index_select(axis, kept.nonzero().flatten())


def _stack_mask(anatomy: Anatomy, batch: Batch, stack: str) -> Tensor | None:
    """[row, token], bool: the batch's real tokens, or None for a stack that reads images, which have no padding.

    Tokens that an adapter puts before the text are none of it.
    """
    if anatomy.reads_images(stack):
        return None
    mask = token_mask(anatomy.model, batch, stack)
    learned = prompt_tokens(anatomy.model) if reads_text(anatomy.model, stack) else 0
    return F.pad(mask, (learned, 0)) if learned else mask


def _check_rows(anatomy: Anatomy, stack: str, mask: Tensor, rows: int) -> None:
    if mask.shape[0] != rows:
        raise DataError(
            f"{type(anatomy.runner(stack)).__name__} has {how_many(rows, 'row')}, but the attention mask has "
            f"{len(mask)}: it is not known which positions are padding. Pass inputs of equal length, without an "
            "attention mask"
        )
