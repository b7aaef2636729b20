"""Pairs of batches, clean and corrupted, and which position of one belongs to which of the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.names import LABELS_ARGUMENT, NO_TEXT_ARGUMENTS
from ..anatomy.sites import Anatomy
from ..data.answers import token_index
from ..data.batch_checks import input_name
from ..data.batches import BatchesOrTexts, each_batch, examples, reads_text, shows_padding, token_mask
from ..data.caches import check_no_cache
from ..data.make_batches import as_batches
from ..data.padding import check_tokens, real_positions
from ..errors import DataError, ShapeError, described, how_many, is_whole

Positions = Sequence[int] | Sequence[tuple[int, int]]
"""Positions of tokens, the same in both texts, or pairs of a position in the clean and in the corrupted text."""


def pairs(
    model: nn.Module, clean: BatchesOrTexts, corrupted: BatchesOrTexts, tokenizer: Any
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each clean batch with its corrupted one. Both have the labels of the clean one.

    Raises `DataError` for other numbers of batches or examples, and for a batch with a cache.
    """
    both = [each_batch(model, as_batches(model, data, tokenizer, sort=False)) for data in (clean, corrupted)]
    for number, (one, other) in enumerate(zip_longest(*both)):
        if one is None or other is None:
            raise DataError(
                f"clean and corrupted must have the same number of batches, but only one of them has batch {number}"
            )
        yield one, matched(one, other, f"clean and corrupted, batch {number},")


def matched(one: Mapping[str, Any], other: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The other batch, with the labels of the first. `what` are the two, for errors.

    Raises `DataError` for other numbers of examples, and for a batch with a cache.
    """
    for batch in (one, other):
        check_no_cache(batch, why="a batch is run in several copies at once")
    if examples(one) != examples(other):
        raise DataError(
            f"{what} must have the same examples in the same order, got {examples(one)} and {examples(other)}"
        )
    labels = {LABELS_ARGUMENT: one[LABELS_ARGUMENT]} if LABELS_ARGUMENT in one else {}
    return {name: x for name, x in other.items() if name != LABELS_ARGUMENT} | labels


@dataclass(frozen=True)
class Aligned:
    """Which positions of the batch that is run get the activations of which positions of the other one.

    `positions` are those that were asked for, None for all. `one_by_one` says whether each of them is patched alone.
    """

    anatomy: Anatomy
    base: Mapping[str, Any]
    source: Mapping[str, Any]
    positions: tuple[tuple[int, int], ...] | None
    """(in the batch that is run, in the other one)."""
    one_by_one: bool = False
    _known: dict[tuple[str, int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def check(self, stacks: Sequence[str]) -> None:
        """Raise `DataError` where texts of these stacks have other lengths, if all positions are patched."""
        for stack in stacks:
            if self._has_no_mask(stack):
                if self.positions is not None or self.one_by_one:
                    other = "" if len(stacks) == 1 else ": choose the stack with only="
                    raise DataError(
                        f"the {stack} has no mask [batch, token], so its tokens cannot be selected by position{other}"
                    )
                continue
            base, source = (token_mask(self.anatomy.model, batch, stack) for batch in (self.base, self.source))
            if self.positions is not None:
                here, there = zip(*self.positions, strict=True)
                token_index(source, there)
                _check_different(token_index(base, here), here)
                continue
            for row, (mine, theirs) in enumerate(zip(base.sum(1).tolist(), source.sum(1).tolist(), strict=True)):
                if mine != theirs:
                    raise DataError(
                        f"example {row} of a batch has {how_many(mine, 'token')} in one text and {theirs} in the "
                        "other: a patch puts each token's output in the place of the token at the same position. Use "
                        "texts with as many tokens as each other, or pass positions=, pairs (in clean, in corrupted)"
                    )
            if base.shape != source.shape or not torch.equal(base, source):
                raise DataError("clean and corrupted must be padded alike: pass batches of the same attention masks")
            if self.one_by_one:
                check_one_length(base.sum(1).tolist())

    def _has_no_mask(self, stack: str) -> bool:
        images = self.anatomy.reads_images(stack)
        images |= reads_text(self.anatomy.model, stack) and input_name(self.base) in NO_TEXT_ARGUMENTS
        return images or not all(shows_padding(self.anatomy.model, one, stack) for one in (self.base, self.source))

    def tokens(self, stack: str) -> int:
        """How many positions are patched one by one."""
        if self.positions is not None:
            return len(self.positions)
        return int(token_mask(self.anatomy.model, self.base, stack)[0].sum())

    def moved(self, x: Tensor, stack: str, positions: int) -> Tensor:
        """[row, position, ...]: the other batch's activations `x`, each at the position of its place in this batch.

        Raises `ShapeError` where all positions are patched, and there is another number of them.
        """
        if self.positions is None:
            if x.shape[1] != positions:
                raise ShapeError(
                    f"the {stack} has {how_many(positions, 'position')} in one input and {x.shape[1]} in the other: "
                    "all positions are patched, so there must be as many"
                )
            return x
        new = x.new_zeros(len(x), positions, *x.shape[2:])
        mine, theirs = self._places(stack, len(x), positions, x.shape[1])
        rows = torch.arange(len(x), device=x.device)[:, None]
        new[rows, mine.to(x.device)] = x[rows, theirs.to(x.device)]
        return new

    def mask(self, stack: str, rows: int, positions: int, token: int | None) -> Tensor | None:
        """[row, position], bool: which positions are patched; None for all. `token` is the number of one of them."""
        if self.positions is None and token is None:
            return None
        if self.positions is None:
            assert token is not None
            mine = token_index(self._real(self.base, stack, rows, positions), [token])
        else:
            mine = self._places(stack, rows, positions)[0]
            mine = mine if token is None else mine[:, token : token + 1]
        return torch.zeros(rows, positions, dtype=torch.bool, device=mine.device).scatter(1, mine, True)

    def _places(self, stack: str, rows: int, mine: int, theirs: int | None = None) -> tuple[Tensor, Tensor]:
        """[row, position], twice: the indices of the positions in this batch, and in the other one."""
        assert self.positions is not None
        here, there = zip(*self.positions, strict=True)
        if (stack, rows, mine) not in self._known:
            source = self._real(self.source, stack, rows, theirs or mine)
            self._known[stack, rows, mine] = (
                token_index(self._real(self.base, stack, rows, mine), here), token_index(source, there),
            )  # fmt: skip
        return self._known[stack, rows, mine]

    def _real(self, batch: Mapping[str, Any], stack: str, rows: int, positions: int) -> Tensor:
        check_tokens(self.anatomy, batch, stack, positions)
        return real_positions(self.anatomy, batch, stack, rows, positions)


def _check_different(places: Tensor, positions: Sequence[int]) -> None:
    """Raise `DataError` where two of the positions are the same token of a text, by their places [row, position]."""
    for row, some in enumerate(places.tolist()):
        for number, place in enumerate(some):
            if place in some[:number]:
                one, other = positions[some.index(place)], positions[number]
                raise DataError(f"positions {one} and {other} are the same token of text {row}: name each token once")


def check_one_length(tokens: Sequence[int]) -> None:
    """Raise `DataError` unless examples have as many tokens as each other, if each token is patched alone."""
    if len(set(tokens)) > 1:
        raise DataError(
            f"by_token=True needs examples of one length, got {sorted(set(tokens))} tokens: pass positions= to say "
            "which tokens are meant, from 0, or from the end if negative"
        )


def check_positions(positions: Positions | None, *, swap: bool) -> tuple[tuple[int, int], ...] | None:
    """Positions as pairs (in the batch that is run, in the other one), or `DataError`; `swap` says if clean is run."""
    if positions is None:
        return None
    found: list[tuple[int, int]] = []
    for one in positions:
        pair: tuple[Any, ...] = (one, one) if is_whole(one) else tuple(one) if isinstance(one, (tuple, list)) else ()
        if len(pair) != 2 or not all(is_whole(x) for x in pair):
            raise DataError(
                f"positions are whole numbers, or pairs (in clean, in corrupted) of them, got {described(one)}"
            )
        clean, corrupted = (int(x) for x in pair)
        found.append((clean, corrupted) if swap else (corrupted, clean))
    if not found:
        raise DataError("positions= is empty: name at least one, or leave it out to patch all positions")
    return tuple(found)
