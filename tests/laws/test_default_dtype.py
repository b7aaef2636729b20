"""Under another default dtype of torch, every measure of a model gives what it gives under float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import bertology as b
from bertology.syntax.attention_probe import distances
from helpers.zoo import BY_NAME, batch
from laws.test_inference_mode import CALLS

MORE = {
    "soft gates": lambda model, inputs: b.fit_gates(model, inputs, method="soft", steps=3),
    "bootstrap": lambda model, inputs: b.head_ablation(model, inputs, metric="f1").significance("bootstrap"),
    "faithfulness": lambda model, inputs: b.faithfulness(model, inputs, [(0, 1)], metric="inverse_loss", random_sets=3),
    "random curve": lambda model, inputs: b.pruning_curve(model, inputs, metric="inverse_loss", by="random"),
    "head_distances": b.head_distances,
    "attention_patterns": lambda model, inputs: b.attention_patterns(model, inputs, tokens={"low": [3]}),
}


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", [*CALLS, *MORE])
def test_every_measure_is_the_same(name, dtype):
    call = (CALLS | MORE)[name]
    model, inputs = BY_NAME["bert"].build().float(), batch()
    expected = call(model, inputs)
    with default(dtype):
        found = call(model, inputs)
    assert found.allclose(expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_features_of_distances(dtype):
    expected = distances(300)
    with default(dtype):
        assert torch.equal(distances(300), expected)
