"""Edge-probing data in memory: a `BatchSource` of random vectors, and tasks whose answer sits at one layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bertology.edge_probing.span_batches import EdgeBatch

Span = tuple[int, int]


@dataclass(frozen=True)
class InMemory:
    """Records whose vectors are known: what a store is, without a file."""

    vectors: tuple[Tensor, ...]
    """For each record, [token, layer, hidden]."""
    spans: tuple[tuple[tuple[Span, ...], ...], ...]
    """For each record, of each target, one span a side."""
    truths: tuple[Tensor, ...]
    """For each record, [target, label] float32."""
    labels: tuple[str, ...]
    counted: tuple[str, ...]

    @property
    def layers(self) -> int:
        return self.vectors[0].shape[1]

    @property
    def hidden(self) -> int:
        return self.vectors[0].shape[2]

    @property
    def sides(self) -> int:
        return len(self.spans[0][0])

    @property
    def records(self) -> int:
        return len(self.spans)

    @property
    def target_record(self) -> Tensor:
        return torch.arange(self.records).repeat_interleave(torch.tensor([len(one) for one in self.spans]))

    def batch(self, records: Tensor | range) -> EdgeBatch:
        which = [int(record) for record in records]
        tokens: list[list[int]] = [[] for _ in range(self.sides)]
        targets: list[list[int]] = [[] for _ in range(self.sides)]
        first = count = 0
        for record in which:
            for spans in self.spans[record]:
                for side, (start, end) in enumerate(spans):
                    tokens[side] += range(first + start, first + end)
                    targets[side] += [count] * (end - start)
                count += 1
            first += len(self.vectors[record])
        return EdgeBatch(
            torch.cat([self.vectors[record] for record in which]),
            tuple(map(torch.tensor, tokens)), tuple(map(torch.tensor, targets)),
            torch.cat([self.truths[record] for record in which]),
        )  # fmt: skip

    def first(self, many: int) -> InMemory:
        """The first records."""
        return replace(self, vectors=self.vectors[:many], spans=self.spans[:many], truths=self.truths[:many])

    def with_truths(self, truths: Tensor) -> InMemory:
        """The same targets with other labels, [target, label]."""
        return replace(self, truths=truths.split([len(one) for one in self.truths]))


def random_source(
    records: int = 6, *, layers: int = 3, hidden: int = 8, labels: int = 4, sides: int = 2, seed: int = 0
) -> InMemory:
    """Texts of 2 to 7 tokens with 1 to 5 targets, spans and labels at random; a target may have no label, or several."""
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    vectors, spans, truths = [], [], []
    for _ in range(records):
        length, many = number(2, 8), number(1, 6)
        vectors.append(torch.randn(length, layers, hidden, generator=draw))
        made = []
        for _ in range(many * sides):
            start = number(0, length)
            made.append((start, number(start + 1, length + 1)))
        spans.append(tuple(tuple(made[i : i + sides]) for i in range(0, len(made), sides)))
        truths.append((torch.rand(many, labels, generator=draw) < 0.4).float())
    names = tuple(f"label{i}" for i in range(labels))
    return InMemory(tuple(vectors), tuple(spans), tuple(truths), names, names)


def at_one_layer(
    where: int, *, layers: int = 5, records: int = 300, hidden: int = 16, seed: int = 0, sides: int = 1
) -> InMemory:
    """One of two labels for each of three tokens of a text, by the sign of a number that is in layer `where` alone.

    With two sides: by the sign of the sum of two tokens' numbers.
    """
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randn(records, 3, layers, hidden, generator=draw)
    numbers = vectors[:, :, where, 0]
    yes = (numbers if sides == 1 else numbers + numbers.roll(1, dims=1)) > 0
    truths = torch.stack([~yes, yes], dim=2).float()
    spans = tuple(((i, i + 1), ((i - 1) % 3, (i - 1) % 3 + 1))[:sides] for i in range(3))
    return InMemory(tuple(vectors), (spans,) * records, tuple(truths), ("no", "yes"), ("no", "yes"))


def random_labels(source: InMemory, seed: int = 0) -> InMemory:
    """The same targets with the labels of others."""
    truths = torch.cat(source.truths)
    return source.with_truths(truths[torch.randperm(len(truths), generator=torch.Generator().manual_seed(seed))])
