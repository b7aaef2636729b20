"""Accumulators: their declared sums."""

import pytest
import torch

from bertology import Accumulator, accumulate, stat
from bertology.errors import BertologyError
from helpers.zoo import BY_NAME, batch


def test_an_axis_whose_size_is_not_known_is_named():
    class Misspelt(Accumulator):
        total: torch.Tensor = stat("layers head")

        def update(self, batch, outputs):
            raise AssertionError("no batch is run")

        def compute(self):
            return self.total

    with pytest.raises(BertologyError, match=r"the axis 'layers', whose size is not known: its axes are layer, head"):
        accumulate(BY_NAME["bert"].build(), batch(), Misspelt())
