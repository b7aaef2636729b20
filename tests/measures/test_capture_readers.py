"""What is kept of a capture, where: the rest is tested with `capture` and the single functions."""

import pytest
import torch

from bertology.errors import DataError
from bertology.measures.capture_readers import InMemory, Keeping

# oracle: torch's own conversion of the same tensor.


def test_tensors_are_kept_as_they_are_by_default():
    x = torch.randn(2, 3)
    assert Keeping().converted(x) is x
    assert InMemory().keep("hidden", "encoder", x) is x
    assert Keeping().is_plain
    assert not Keeping(dtype=torch.float32).is_plain


def test_only_float16_may_overflow():
    x = torch.tensor([1.0, 7e4, float("nan")])
    assert torch.equal(Keeping(dtype=torch.bfloat16).converted(x)[:2], x[:2].to(torch.bfloat16))
    with pytest.raises(DataError, match="7e\\+04 was captured, but the limit of float16 is 65504"):
        Keeping(dtype=torch.float16).converted(x)
    infinite = torch.tensor([1.0, float("inf")])  # as it was computed
    assert torch.equal(Keeping(dtype=torch.float16).converted(infinite), infinite.half())
