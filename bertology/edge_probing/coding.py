"""How many bits do the labels of a task take, if the probes of a layer learn them on the way?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import DataError
from .layers.code_length import PORTIONS, CodeLength, Predict, online_code
from .probing import cumulative_probes
from .spans import BatchSource, EdgeBatch, check_sources
from .training.counting import bits_of, logits_of
from .training.drawing import CODE, generator
from .training.optimizing import Training
from .training.together import train_probes

CODING = Training(choose_by="loss")
"""The paper's settings for tasks of middling size, but what a probe is judged by is what it is for: probabilities."""


def code_lengths(
    train: BatchSource, dev: BatchSource, *, seed: int = 0, settings: Training = CODING,
    portions: Sequence[float] = PORTIONS, device: torch.device | str = "cpu", progress: str | None = None,
) -> CodeLength:  # fmt: skip
    """Measure how long a task's labels are in online code with the probes of all layers (Voita and Titov 2020).

    The records of `train` are shuffled and cut into blocks. The first is sent in uniform code, each other one in the
    code of probes that were trained anew on all blocks before it; what is sent is all labels of each target, also
    those that do not count in F1. There is a probe for each layer l, which reads layers 0 to l, as in `probe_layers`:
    a layer that makes the task easier than those below shortens the code. `online_code` says what the numbers mean.

    Args:
        train: the records whose labels are sent: what `encode` makes of a task and a model.
        dev: other records, whose labels the receiver has: they are no part of the code, and decide learning rates, the
            end of training and the best weights of all probes. So nothing ever sees the block that is sent next.
        seed: of initial weights and dropout, 0 or more.
        settings: by default `Training(choose_by="loss")`: the code is made of probabilities, so that the loss on `dev`
            is what decides. With "f1" a probe that says no yes is the best until another does, which is a valid code,
            if a long one. Weights are only chosen at validations: `validate_every` should be small where the first
            blocks are, for a probe soon knows a few records by heart. `order` is also the seed of the shuffle.
        portions: shares of the records, ascending to 1: where blocks end. Blocks that would be empty are left out.
        device: where to train.
        progress: the title of a progress bar over blocks; no bar without it.

    There is one training a block, of which the last is on half of the records: with the portions of the paper all of
    them take at most ten times what `probe_layers` takes, less where patience ends them.

    Returns the code of each probe; `labels` are the layers, `0`, `1` ... Where documents are long, records of one lie
    in several blocks: the shuffle takes records, not documents.

    Raises `DataError` as `online_code` and `train_probes` do, and where `dev` is `train`.

        >>> from bertology.edge_probing import EdgeBatch
        >>> class Toy:  # whether a vector's first number is above 0, which only layer 1 tells
        ...     layers, hidden, sides, labels, counted, records = 2, 4, 1, ("no", "yes"), ("yes",), 64
        ...     target_record = torch.arange(64)
        ...     def __init__(self, seed):
        ...         self.vectors = torch.randn(64, 2, 4, generator=torch.Generator().manual_seed(seed))
        ...     def batch(self, records):
        ...         vectors = self.vectors[torch.as_tensor(records)]
        ...         yes, rows = vectors[:, 1, 0] > 0, torch.arange(len(vectors))
        ...         return EdgeBatch(vectors, (rows,), (rows,), torch.stack([~yes, yes], 1).float())
        >>> settings = Training(lr=0.01, validate_every=10, max_validations=5, width=16, choose_by="loss")
        >>> found = code_lengths(Toy(0), Toy(1), settings=settings, portions=(0.1, 0.5, 1))
        >>> found.uniform.tolist(), bool(found.compression[1] > found.compression[0])
        ([12.0, 52.0, 64.0], True)
    """
    if train is dev:
        raise DataError("dev must be other records than train, whose labels the probes must not know beforehand")
    shuffled = _Some(train, torch.randperm(train.records, generator=generator(settings.order, CODE)))
    check_sources(shuffled, dev)
    targets = torch.bincount(shuffled.target_record, minlength=shuffled.records)
    with torch.inference_mode(False):
        probes = cumulative_probes(train, (seed,), settings).to(device)

        def fit(records: range) -> Predict:
            trained = train_probes(shuffled.first(len(records)), dev, probes, settings).probes

            def bits(block: range) -> Tensor:
                found = logits_of(trained, shuffled, block, settings.batch_size)
                return torch.stack([bits_of(logits, batch.gold) for _, batch, logits in found]).sum(0)

            return bits

        return online_code(
            fit, uniform=targets * len(train.labels), portions=portions, names=[str(n) for n in range(train.layers)],
            progress=progress,
        )  # fmt: skip


class _Some:
    """Some records of a source, in an order of their own: a `BatchSource`."""

    def __init__(self, source: BatchSource, which: Tensor) -> None:
        self._source, self._which = source, which
        self.layers, self.hidden, self.sides = source.layers, source.hidden, source.sides
        self.labels, self.counted, self.records = source.labels, source.counted, len(which)
        targets = torch.bincount(source.target_record.cpu(), minlength=source.records)
        self.target_record = torch.arange(len(which)).repeat_interleave(targets[which])

    def first(self, many: int) -> _Some:
        """The first of them."""
        return _Some(self._source, self._which[:many])

    def batch(self, records: Tensor | range) -> EdgeBatch:
        """All targets of these records, by their new numbers, in the order given."""
        return self._source.batch(self._which[torch.as_tensor(records, dtype=torch.int64)])
