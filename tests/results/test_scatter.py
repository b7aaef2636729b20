from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from bertology import attention_entropy, head_ablation, head_importance, prune_heads
from bertology.errors import DataError
from bertology.plot import head_scatter
from helpers.zoo import BY_NAME, batch


def ablations(**options):
    model = BY_NAME["bert"].build()
    prune_heads(model, {0: [1]})
    return [head_ablation(model, batch(lengths), metric="inverse_loss") for lengths in ((7, 4, 5), (3, 6))]


def test_a_point_for_each_head_and_r(tmp_path):
    one, other = ablations()
    figure = head_scatter(one, other, names=("here", "there"), path=tmp_path / "scatter.png")
    points = figure.axes[0].collections[0].get_offsets()
    there = ~one.change.isnan()
    assert there.sum() == 7
    assert np.allclose(points, torch.stack([one.change[there], other.change[there]], 1).numpy())
    x, y = one.change[there].numpy(), other.change[there].numpy()
    r = ((x - x.mean()) * (y - y.mean())).mean() / (x.std() * y.std())
    assert one.correlation(other) == pytest.approx(r)
    assert figure.axes[0].get_title() == f"Head ablation: r = {r:.2f}, 7 heads"
    assert figure.axes[0].get_xlabel() == "change on here"
    assert (tmp_path / "scatter.png").stat().st_size > 0


def test_in_axes_of_the_callers():
    one, other = ablations()
    left, right = Figure().subplots(1, 2)
    assert head_scatter(one, other, ax=right) is right
    assert len(right.collections[0].get_offsets()) == 7
    assert not left.collections
    with pytest.raises(DataError, match="pass as many axes as ax, got 2"):
        head_scatter(one, other, ax=[left, right])


def test_other_fields_and_other_measures():
    one, other = ablations()
    assert head_scatter(one, other, field="loss_change").axes[0].get_ylabel() == "loss_change on second data set"
    model = BY_NAME["bert"].build()
    importance = [head_importance(model, batch(lengths)) for lengths in ((7, 4, 5), (3, 6))]
    assert "8 heads" in head_scatter(*importance).axes[0].get_title()


def test_errors():
    one, other = ablations()
    entropy = attention_entropy(BY_NAME["bert"].build(), batch())
    with pytest.raises(DataError, match="compares two results of one kind and one model, got .*HeadAblation"):
        head_scatter(one, entropy)
    with pytest.raises(DataError, match="names must be two"):
        head_scatter(one, other, names=("here",))
    with pytest.raises(DataError, match="has no .* field losses"):
        head_scatter(one, other, field="losses")
    same = replace(one, change=torch.where(one.change.isnan(), one.change, 0.0))
    with pytest.raises(DataError, match="all 7 heads have the same effect"):
        head_scatter(same, other)
