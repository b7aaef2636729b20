"""What tests of probes of syntax share."""

import pytest
import torch


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance, rtol=0)


def spoiled(found, expected):
    expected[0, 0] += 1e-3
    with pytest.raises(AssertionError):
        close(found, expected)
