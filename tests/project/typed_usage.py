"""What type checkers see of the library: mypy and pyright read this file, strictly; nothing runs it.

Each line with `ignore` holds a mistake that both must find: an `ignore` that is not needed is an error, too.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import assert_type

import bertology
from bertology import AttentionMaps, Head, HeadImportance, HeadScore, Pruned, PruningCurve, Score
from bertology.metrics import accuracy
from bertology.plot import curves, head_scatter, heatmap


def pictures(found: HeadImportance, curve: PruningCurve, axes: Axes, several: list[Axes]) -> None:
    """A picture is a figure, or the axes that were given."""
    assert_type(found.plot(), Figure)
    assert_type(found.plot(field="scores", path="scores.png"), Figure)
    assert_type(found.plot(ax=axes), Axes)
    assert_type(curve.plot(ax=several), list[Axes])
    assert_type(curves([curve]), Figure)
    assert_type(curves([curve], ax=axes), Axes)
    assert_type(head_scatter(found, found, ax=axes), Axes)
    assert_type(heatmap(found, axes), None)
    found.plot(ax="axes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    found.plot(feild="scores")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def metrics(model: nn.Module, batch: dict[str, Tensor]) -> None:
    """A metric is a name or a function; a typo in a name is found."""
    assert_type(bertology.score(model, batch, metric="accuracy"), Score)
    assert_type(bertology.score(model, batch, metric="inverse_loss").value, float)
    bertology.score(model, batch, metric=accuracy)
    bertology.head_ablation(model, batch, metric=lambda logits, labels: (logits.argmax(-1) == labels).float().mean())
    bertology.pruning_curve(model, batch, metric=lambda logits, labels: {"right": 0.5})
    bertology.score(model, batch, metric="acuracy")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bertology.head_ablation(model, batch, metric="f2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bertology.pruning_curve(model, batch, metric=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def heads(model: nn.Module, batches: list[dict[str, Tensor]]) -> None:
    """Results keep their class; heads are heads."""
    found = bertology.head_importance(model, batches)
    assert_type(found, HeadImportance)
    assert_type(found.scores, Tensor)
    assert_type(found["L1H2"], float)
    assert_type(found.top(3), list[HeadScore])
    assert_type(found.stack("encoder"), HeadImportance)
    assert_type(HeadImportance.load("importance.safetensors"), HeadImportance)
    assert_type(found.ranking(), list[Head])
    assert_type(bertology.prune_heads(model, found.bottom(3)), Pruned)
    bertology.head_importance(batches, model)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def texts(model: nn.Module, tokenizer: Any, data: DataLoader[tuple[str, int]]) -> None:
    """Texts are taken in every form, and pictures of maps are typed."""
    maps = bertology.attention_maps(model, "The keys are here.", tokenizer=tokenizer)
    assert_type(maps, AttentionMaps)
    assert_type(maps.tokens, tuple[tuple[str, ...], ...])
    assert_type(maps.plot("L2H0", words=True), Figure)
    assert_type(maps.plot(layer=2, head=0), Figure)
    assert_type(maps.show("L2H0").html, str)
    bertology.head_importance(model, (["good", "bad"], [1, 0]), tokenizer=tokenizer)
    bertology.head_importance(model, [("good", 1), ("bad", 0)], tokenizer=tokenizer)
    bertology.head_importance(model, data, tokenizer=tokenizer)
    bertology.head_importance(model, bertology.make_batches(["good"], tokenizer, model=model))
    bertology.attention_maps(model, 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
