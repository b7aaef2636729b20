"""Batches of spans: which vectors belong to which span of which target.

A target is one or two spans of tokens and their labels. A batch holds the vectors of its tokens once, at every
layer. Pairs (token, target) list the tokens of each span, so no padding is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import DataError, ShapeError, described, how_many
from ..results.views import brief


@dataclass(frozen=True, eq=False)
class EdgeBatch:
    """The targets of some records, with the vectors of the tokens in their spans."""

    vectors: Tensor
    """[token, layer, hidden]: each token's hidden state at every layer; layer 0 is the lexical one."""
    tokens: tuple[Tensor, ...]
    """For each side, [pair] int64: the rows of `vectors` in the targets' spans, span by span."""
    targets: tuple[Tensor, ...]
    """For each side, [pair] int64, ascending: the target whose span this is. Every target has a token on every side."""
    gold: Tensor
    """[target, label] float32: 1 for the labels that are true of a target, else 0."""

    __repr__ = brief

    @property
    def count(self) -> int:
        """The number of targets."""
        return len(self.gold)

    def to(self, device: torch.device | str) -> EdgeBatch:
        """The same batch on another device."""
        vectors, gold = self.vectors.to(device), self.gold.to(device)
        tokens, targets = (tuple(x.to(device) for x in many) for many in (self.tokens, self.targets))
        return EdgeBatch(vectors, tokens, targets, gold)

    def check(self) -> EdgeBatch:
        """The batch itself. Raises `ShapeError` if shapes disagree, and `DataError` if a span is empty or wrong."""
        if self.vectors.dim() != 3 or self.gold.dim() != 2 or len(self.tokens) != len(self.targets):
            raise ShapeError(
                "vectors must be [token, layer, hidden], gold [target, label], tokens and targets one [pair] per side; "
                f"got {list(self.vectors.shape)}, {list(self.gold.shape)}, {len(self.tokens)} and {len(self.targets)}"
            )
        for side, (tokens, targets) in enumerate(zip(self.tokens, self.targets, strict=True)):
            if tokens.shape != targets.shape or tokens.dim() != 1:
                raise ShapeError(
                    f"tokens and targets of side {side} must have the same shape [pair], got {list(tokens.shape)}"
                )
            if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < len(self.vectors):
                raise DataError(f"side {side} names a token that is not among the {len(self.vectors)} vectors")
            if not torch.equal(torch.unique_consecutive(targets).cpu(), torch.arange(self.count)):
                raise DataError(
                    f"side {side} must name all of the {how_many(self.count, 'target')} in ascending order, each with "
                    "a token or more: leave out targets without tokens"
                )
        return self


class BatchSource(Protocol):
    """A data set whose vectors are known, from which batches are read. `Store` is one."""

    @property
    def layers(self) -> int:
        """The number of layers, including the lexical one: L + 1."""

    @property
    def hidden(self) -> int:
        """The hidden size of the vectors."""

    @property
    def sides(self) -> int:
        """The number of spans per target, 1 or 2."""

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, in the order of the columns of `gold`."""

    @property
    def counted(self) -> tuple[str, ...]:
        """The labels that count in the score."""

    @property
    def records(self) -> int:
        """The number of records, each with one target or more."""

    @property
    def target_record(self) -> Tensor:
        """[target] int64, ascending: the record of each target, counted from 0."""

    def batch(self, records: Tensor | range) -> EdgeBatch:
        """All targets of these records, record by record in the order given."""


def check_sources(train: BatchSource, other: BatchSource, what: str = "dev") -> None:
    """Raise `DataError` if two data sets are not of the same task and model, or are empty."""
    for name in ("layers", "hidden", "sides", "labels", "counted"):
        one, two = getattr(train, name), getattr(other, name)
        if one != two:
            raise DataError(f"train and {what} must be of one task and one model, but {name} differ: {one} and {two}")
    for name, source in (("train", train), (what, other)):
        if source.records < 1:
            raise DataError(f"{name} has no records")
        source.batch(range(1)).check()


def check_gives_batches(*, needs: str = "batch", **sources: object) -> None:
    """Raise `DataError` for what gives no batches, or has no sizes, such as a task that was not encoded."""
    for name, source in sources.items():
        if source is not None and not hasattr(source, needs):
            raise DataError(f"{name} must be a Store, such as encode returns, got {described(source)}")
