"""Intervals, saving and pictures of patching."""

# oracle: the bootstrap of statistics

import pytest

from bertology import (
    HeadPatching,
    LayerPatching,
    Result,
    activation_patching,
    attribution_patching,
)
from bertology.errors import DataError
from bertology.metrics import logit_difference, probability
from helpers.patching import two
from helpers.zoo import BY_NAME


def test_intervals():
    model, (clean, corrupted) = BY_NAME["gpt2"].build(), two((5,) * 6)
    metric = logit_difference(1, 0)
    found = activation_patching(model, clean, corrupted, metric=metric)
    low, high = found.interval(resamples=200)
    assert ((low <= found.effect) & (found.effect <= high)).double().mean() > 0.9
    near = attribution_patching(model, clean, corrupted, metric=metric)
    low, high = found.correlation_interval(near, resamples=200)
    assert low <= found.correlation(near) <= high + 1e-9
    with pytest.raises(DataError, match="of the same parts of one model"):
        found.correlation(activation_patching(model, clean, corrupted, metric=metric, parts="blocks"))


def test_results_are_saved_and_drawn(tmp_path):
    model, (clean, corrupted) = BY_NAME["gpt2"].build(), two((5, 5))
    for parts, kind in (("heads", HeadPatching), ("attentions", LayerPatching), ("blocks", LayerPatching)):
        found = activation_patching(model, clean, corrupted, metric=logit_difference(1, 0), parts=parts, by_token=True)
        found.save(tmp_path / "patching.safetensors")
        assert Result.load(tmp_path / "patching.safetensors") == found
        assert type(found) is kind
        found.plot()
    assert "HeadPatching" in repr(activation_patching(model, clean, corrupted, metric=probability(1)))
