"""What is one head called?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .errors import HeadError

_PREFIX = {"encoder": "E", "decoder": "D", "cross": "X"}


@dataclass(frozen=True, order=True)
class Head:
    """One attention head, printed `L5H3`, or `EL0H1`, `DL0H1`, `XL0H1` in models with several stacks.

    `head` is its number in the unpruned layer: a head keeps its number when its neighbours are removed.

        >>> str(Head(5, 3)), str(Head(0, 1, "cross"))
        ('L5H3', 'XL0H1')
    """

    layer: int
    head: int
    stack: str = ""

    def __str__(self) -> str:
        prefix = _PREFIX.get(self.stack, f"{self.stack}." if self.stack else "")
        return f"{prefix}L{self.layer}H{self.head}"


Heads = Mapping[int, Iterable[int]] | Iterable[Head | tuple[int, int]]
"""Heads as `{layer: [heads]}`, as `(layer, head)` pairs, or as `Head`s."""


def head_at(labels: tuple[str, ...], row: int, head: int) -> Head:
    """Name the head at `[row, head]` of a result with these labels."""
    stack, _, layer = labels[row].rpartition(".")
    return Head(int(layer), head, stack)


def each_head(heads: Heads) -> list[Head | tuple[int, int]]:
    """List heads, however given, or raise `HeadError`."""
    wanted = "heads must be {layer: [heads]}, (layer, head) pairs or Heads"
    try:
        if isinstance(heads, Mapping):
            return [(int(layer), int(head)) for layer, some in heads.items() for head in some]
        return [h if isinstance(h, Head) else (int(h[0]), int(h[1])) for h in heads]
    except (TypeError, ValueError, IndexError) as error:
        raise HeadError(f"{wanted}, got {heads!r}") from error
