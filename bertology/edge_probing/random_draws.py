"""The random numbers of each seed and each step of training.

They depend only on the seed, the purpose and the step. So no random state has to be saved, a probe gets the same
random numbers alone or with other probes, and torch's global random state is not used.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

BEGINNING, DROPOUT, ORDER, CODE = range(4)
"""The purposes of random numbers: initial weights, dropout, the order of records in training and in a code."""


def generator(seed: int, purpose: int, step: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """The random generator for one seed, one purpose and one step."""
    if seed < 0:
        raise DataError(f"a seed must be 0 or more, got {seed}")
    state = np.random.SeedSequence((seed, purpose, step)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))


class Order:
    """The order of records in training: a new shuffle for each epoch."""

    def __init__(self, records: int, batch_size: int, seed: int) -> None:
        self._records, self._size, self._seed = records, batch_size, seed
        self._per_epoch = -(-records // batch_size)
        self._epoch, self._shuffled = -1, torch.empty(0, dtype=torch.int64)

    def at(self, step: int) -> Tensor:
        """[record] int64, ascending: the records of one step's batch. The last batch of an epoch may be smaller."""
        epoch, turn = divmod(step, self._per_epoch)
        if epoch != self._epoch:
            self._shuffled = torch.randperm(self._records, generator=generator(self._seed, ORDER, epoch))
            self._epoch = epoch
        return self._shuffled[turn * self._size : (turn + 1) * self._size].sort().values
