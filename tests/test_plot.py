import sys

import pytest
import torch
from matplotlib.figure import Figure
from zoo import BY_NAME, batch

from bertology import attention_entropy, head_importance, prune_heads, pruning_curve, score
from bertology.errors import DataError, MissingExtra, need
from bertology.plot import curves, draw, heatmap


def test_heat_maps_show_the_values(tmp_path):
    model = BY_NAME["bert"].build()
    prune_heads(model, {0: [1]})
    entropy = attention_entropy(model, batch())
    figure = entropy.plot(path=tmp_path / "entropy.png")
    assert (tmp_path / "entropy.png").read_bytes()[:4] == b"\x89PNG"
    image = figure.axes[0].images[0].get_array()
    torch.testing.assert_close(torch.tensor(image.filled(0.0)), entropy.mean.nan_to_num(), check_dtype=False)
    assert figure.axes[0].get_title() == "Attention entropy: mean"
    assert figure.axes[1].get_ylabel() == "nats"
    importance = head_importance(model, batch())
    assert draw(importance.normalized("layer")).axes[1].get_ylabel() == "share of the layer's l2 norm"


def test_curves_show_the_scores():
    curve = pruning_curve(BY_NAME["bert"].build(), batch(), metric="accuracy", amount=4, threshold=0.1)
    axes = curve.plot().axes[0]
    x, y = axes.lines[0].get_data()
    assert y.tolist() == curve.scores.tolist()
    assert x[0] == 0
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("heads silenced, % of 8", "accuracy")


def test_several_curves_share_a_plot(tmp_path):
    model, inputs = BY_NAME["bert"].build(), batch()
    many = [
        pruning_curve(model, inputs, metric="accuracy", amount=2, by=by, seed=7)
        for by in ("importance", "magnitude", "random", torch.rand(2, 4))
    ]
    axes = curves(many, path=tmp_path / "curves.png").axes[0]
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    for line, result in zip(axes.lines, many, strict=True):
        x, y = line.get_data()
        assert (x.tolist(), y.tolist()) == ([100, 75, 50, 25, 0], result.scores.tolist())
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert told == ["importance", "magnitude", "random (seed 7)", "given"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("heads left, %", "accuracy")
    own = curves(many[:2], labels=["a", "b"]).axes[0].get_legend().get_texts()
    assert [text.get_text() for text in own] == ["a", "b"]
    other = pruning_curve(model, inputs, metric="inverse_loss", amount=4)
    with pytest.raises(DataError, match="curves on one plot must be of one metric, got accuracy, inverse_loss"):
        curves([many[0], other])
    with pytest.raises(DataError, match="must be of one metric, got no curve"):
        curves([])


def test_errors():
    importance = head_importance(BY_NAME["bert"].build(), batch())
    with pytest.raises(
        DataError, match=r"HeadImportance has no \[layer, head\] field entropy: it has scores, signed, fisher, stderr"
    ):
        heatmap(importance, Figure().subplots(), field="entropy")
    with pytest.raises(DataError, match=r"Score has no \[layer, head\] field : it has none"):
        score(BY_NAME["bert"].build(), batch(), metric="accuracy").plot()


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        MissingExtra, match=r"needs the package 'matplotlib', which is not installed: pip install 'bertology\[plot\]'"
    ):
        need("matplotlib.figure", extra="plot")
