"""Every result has a picture of its own axes, or says what to call instead."""

import dataclasses
import pickle
from typing import get_type_hints

import pytest
import torch

import bertology.code_structure
import bertology.edge_probing
import bertology.syntax  # noqa: F401
from bertology import (
    Result,
    attention_gradients,
    attention_maps,
    head_means,
    head_outputs,
    hidden_states,
    score,
)
from bertology.code_structure import LeafTypes
from bertology.corpora.documents import KINDS
from bertology.errors import DataError
from bertology.results.axes import axes_of
from bertology.results.result import _pictures
from bertology.syntax import CoreferenceHeads
from helpers.zoo import BY_NAME, batch

SIZES = {"layer": 2, "head": 3, "class": 2, "kind": len(KINDS), "direction": 2, "probe": 2, "seed": 2, "model": 2}
KINDS_OF_RESULTS = sorted(
    (k for k in Result._kinds.values() if k.__module__.startswith("bertology.") and dataclasses.is_dataclass(k)),
    key=lambda kind: kind.__name__,
)


def filled(kind):
    """A result of random values, all axes of one name equally long."""
    hints, values = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        declared = axes_of(kind).get(field.name)
        shape = [SIZES.get(axis, 4) for axis in declared.names] if declared else []
        if hints[field.name] is torch.Tensor:
            values[field.name] = torch.rand(shape)
        elif declared and "dict" in str(hints[field.name]):
            values[field.name] = {"encoder": torch.rand(shape)}
        elif declared:
            values[field.name] = tuple(f"{declared.names[0]} {place}" for place in range(shape[0]))
        elif field.default is dataclasses.MISSING:
            values[field.name] = {int: 1, float: 0.5, str: "text", bool: True}.get(hints[field.name], ())
    return kind(**values)


@pytest.mark.parametrize("kind", KINDS_OF_RESULTS, ids=lambda kind: kind.__name__)
def test_a_picture_or_what_to_call_instead(kind):
    try:
        result = filled(kind)
        figure = result.plot()
    except DataError as error:
        told = str(error)
    except (TypeError, ValueError, IndexError) as error:
        pytest.skip(f"random values make no {kind.__name__} ({error})")
    else:
        assert figure._repr_png_()[:4] == b"\x89PNG"
        return
    own = any(one in _pictures for one in kind.__mro__ if one is not Result)
    assert own or (f"{kind.__name__} has no picture: " in told and kind.instead_of_plot in told)


@pytest.fixture
def gradients():
    return attention_gradients(BY_NAME["bert"].build(), batch(), tokens={"low": [3, 4, 5, 6], "high": [30, 31]})


def test_gradients_show_their_values_by_class(gradients):
    shown = str(gradients)
    assert "values: [2, 4, 3] float64" in shown
    for name in ("low", "high", "other"):
        assert f"values of {name} [layer, head]:\n" in shown
    assert f"{gradients.values[1, 2, 0].item():.4g}" in shown
    lines = shown.splitlines()
    assert lines[lines.index("pairs [layer, class]:") + 1].split() == ["low", "high", "other"]
    figure = gradients.plot()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == ["to low: values", "to high: values", "to other: values"]
    drawn = torch.tensor(figure.axes[1].images[0].get_array().filled(0.0))
    torch.testing.assert_close(drawn, gradients.values[..., 1])
    assert figure._suptitle.get_text() == "Attention gradients\nBertForSequenceClassification, 3 examples"


def test_a_field_of_other_axes_names_them(gradients):
    axes = gradients.plot(field="pairs").axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("class", "layer")
    assert [text.get_text() for text in axes.get_xticklabels()] == ["low", "high", "other"]
    with pytest.raises(
        DataError, match=r"has no \[layer, head\] field values: it has none; plot\(field=...\) draws pairs"
    ):
        gradients.plot(field="values")


def test_shares_of_types_and_of_mentions_are_drawn():
    types = LeafTypes(
        torch.tensor([[1, 2], [3, 0]]), torch.tensor([[4, 4], [4, 4]]), torch.ones(2), torch.tensor([1, 1]),
        ("(", "name"), ("0", "1"),
    )  # fmt: skip
    axes = types.plot().axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["(", "name"]
    assert axes.images[0].get_array().tolist() == [[0.25, 0.5], [0.75, 0]]
    mentions = dataclasses.replace(filled(CoreferenceHeads), right=torch.randint(0, 5, (len(KINDS), 2, 2, 3)))
    mentions = dataclasses.replace(mentions, mentions=torch.arange(5, 5 + len(KINDS)))
    every = torch.tensor(mentions.plot().axes[0].images[0].get_array().filled(0.0))
    torch.testing.assert_close(every, mentions.right[:, 0].sum(0) / mentions.mentions.sum().double())
    figure = mentions.plot(kind=KINDS[1])
    drawn = torch.tensor(figure.axes[1].images[0].get_array().filled(0.0))
    torch.testing.assert_close(drawn, mentions.accuracy[1, 1].double())
    with pytest.raises(DataError, match="kind must be one of"):
        mentions.plot(kind="none")


@pytest.mark.parametrize(
    ("measure", "told"),
    [
        (attention_maps, "AttentionMaps has no picture: draw one head over a text with bertology.syntax.head_view"),
        (hidden_states, "HiddenStates has no picture: it holds a vector for each token and layer"),
        (head_outputs, "HeadOutputs has no picture: plot.over_layers draws a norm"),
        (head_means, "HeadMeans has no picture: plot.over_layers draws a norm"),
        (lambda model, inputs: score(model, inputs, metric="accuracy"), "Score has no picture: it is one number"),
    ],
)
def test_results_without_a_picture_say_what_to_call(measure, told):
    with pytest.raises(DataError, match=told):
        measure(BY_NAME["bert"].build(), batch()).plot()


def test_notebooks_show_figures():
    figure = attention_gradients(BY_NAME["bert"].build(), batch(), tokens={"low": [3]}).plot()
    assert figure._repr_png_()[:4] == b"\x89PNG"
    assert pickle.loads(pickle.dumps(figure))._repr_png_()[:4] == b"\x89PNG"
