"""The share of a process in the data, of which no example comes twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from ..errors import DataError, checked, described
from .processes import Merge, merges, process, processes

T = TypeVar("T")


@checked
@merges
def own_share(items: Iterable[T], *, merge: Merge = "all") -> Iterable[T]:
    """Take every n-th item of the data, those of this process among the n processes of `torch.distributed`.

    No item is in two shares, and none is left out. Shares may differ by one item, and may be empty: measures take both.
    A process that is alone takes everything.

    Args:
        items: batches, texts, sentences or snippets, in the same order in every process. Of a DataLoader or a generator
            each process makes all batches, and keeps its own; of a list it takes its own alone.
        merge: as in the measure: "all" processes, or a group of them. With "none", this process takes everything.

    Returns a list of a list, and of anything else an iterable that can be read as often as `items`.

    Raises `DataError` for one batch, one text, and for batches of `align` or `align_code`: share what these are given.

        >>> own_share(["The keys are here.", "It rains."])
        ['The keys are here.', 'It rains.']
    """
    if isinstance(items, Mapping):
        raise DataError(f"own_share takes a list of batches, got one batch: {described(items)}")
    if hasattr(items, "skipped"):
        raise DataError(
            f"own_share takes sentences or snippets, of which each process aligns its own, got {described(items)}: "
            "call align(tokenizer, own_share(sentences))"
        )
    place, many = process(), processes()
    if isinstance(items, (list, tuple)):
        return list(items[place::many])
    return _SizedShare(items, place, many) if isinstance(items, Sized) else _Share(items, place, many)


@dataclass(frozen=True)
class _Share(Generic[T]):
    """Every n-th item of an iterable."""

    items: Iterable[T]
    place: int
    many: int

    def __iter__(self) -> Iterator[T]:
        return islice(self.items, self.place, None, self.many)


class _SizedShare(_Share[T]):
    """Every n-th item of an iterable that knows how many it has."""

    def __len__(self) -> int:
        return len(range(self.place, len(self.items), self.many))  # type: ignore[arg-type]
