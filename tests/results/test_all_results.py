"""Every result can be read: in a line, in a terminal, in a notebook, as a frame, as plain values and as an array."""

import dataclasses
import json
import math
import re
import sys

import numpy as np
import pytest
import torch

from bertology import AttentionEntropy, Result
from bertology.errors import DataError, MissingExtra
from bertology.results.axes import all_axes_of, axes_of, main_field
from helpers.results import made
from helpers.zoo import batch

KINDS = sorted(
    (k for k in Result._kinds.values() if k.__module__.startswith("bertology.") and not k.__subclasses__()),
    key=lambda kind: kind.__name__,
)
NO_ARRAY = {"CatComparison", "Efficiency", "Pruned"}
WIDE = {"LabelTrajectories"}  # a column for each layer of a sentence


@pytest.fixture(scope="module")
def results():
    return {type(result): result for result in made()}


each = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def large(kind, result):
    """The result with names that are as long and as many as in real data, and text that is HTML."""
    names = {}
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if field.name == "labels" or not (isinstance(value, tuple) and value and isinstance(value[0], str)):
            continue
        names[field.name] = tuple(f"<script>alert({n})</script>{name}" * 3 for n, name in enumerate(value))
    return dataclasses.replace(result, model_name="<b>Model</b>", **names)


@each
def test_repr_is_short(kind, results):
    for result in (results[kind], large(kind, results[kind])):
        assert repr(result).startswith(f"{kind.__name__}(")
        assert len(repr(result)) < 2000
        assert repr(result).count("\n") < 5


@each
def test_text_fits_a_terminal(kind, results):
    lines = str(results[kind]).splitlines()
    assert lines
    if kind.__name__ not in WIDE:
        assert [line for line in lines if len(line) > 80 and line.startswith((" ", "|"))] == []


@each
def test_html_is_safe_and_small(kind, results):
    html = results[kind]._repr_html_()
    dangerous = large(kind, results[kind])._repr_html_()
    assert "<script" not in dangerous
    assert "<b>Model" not in dangerous
    if "_repr_html_" not in vars(kind):
        assert kind.__name__ in html
        assert "&lt;b&gt;Model&lt;/b&gt;" in dangerous
    for text in (html, dangerous):
        assert len(text) < 100_000
        for tag in ("table", "tr", "td", "th", "div"):
            assert len(re.findall(rf"<{tag}[ >]", text)) == text.count(f"</{tag}>"), tag


@each
def test_frames_have_a_row_for_each_cell(kind, results):
    result = results[kind]
    frame = result.to_frame()
    assert len(frame) > 0
    declared = all_axes_of(kind)
    main = main_field(kind)
    if main in declared and isinstance(getattr(result, main), torch.Tensor):
        values = getattr(result, main)
        assert list(frame.columns)[: values.dim()] == [
            f"other_{axis}" if axis in declared[main].names[:place] else axis
            for place, axis in enumerate(declared[main].names)
        ]
        np.testing.assert_array_equal(frame[main].to_numpy(), values.flatten().numpy())
    for name in axes_of(kind):
        if isinstance(getattr(result, name), torch.Tensor):
            assert len(result.to_frame(name)) == getattr(result, name).numel()
    with pytest.raises(DataError, match=f"{kind.__name__} has no field 'nothing' with axes: it has"):
        result.to_frame("nothing")


@each
def test_plain_values_are_plain(kind, results):
    values = results[kind].to_dict()
    assert values.keys() == {field.name for field in dataclasses.fields(kind)}
    again = json.loads(json.dumps(values))
    assert set(again) == set(values)


@each
def test_arrays_hold_the_field_that_it_is_about(kind, results):
    result = results[kind]
    assert main_field(kind) is None or kind.__name__ not in NO_ARRAY
    if main_field(kind) is None:
        with pytest.raises(DataError, match=f"{kind.__name__} is no one array: take"):
            np.asarray(result)
        return
    array = np.asarray(result)
    assert array.dtype != object
    value = getattr(result, main_field(kind))
    value = next(iter(value.values())) if isinstance(value, dict) else value
    np.testing.assert_array_equal(array, np.asarray(value))
    assert np.asarray(result, dtype=np.float32).dtype == np.float32


def changed(result):
    """The result with one value changed a little, and by how much; or None if it has no tensor to change."""
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.isnan().all():
            other = value.clone()
            place = (~other.isnan()).flatten().nonzero()[0, 0]
            by = 1e-3 + 0.01 * other.view(-1)[place].abs().item()
            other.view(-1)[place] += by
            return dataclasses.replace(result, **{field.name: other}), by
    return None


@each
def test_equal_by_value(kind, results, tmp_path):
    result = results[kind]
    result.save(tmp_path / "result")
    again = Result.load(tmp_path / "result")
    assert again == result
    assert hash(again) == hash(result)
    assert again.allclose(result)
    if found := changed(result):
        other, by = found
        assert other != result
        assert not other.allclose(result)
        assert other.allclose(result, atol=2 * by)
    renamed = dataclasses.replace(result, model_name="another model")
    assert renamed != result
    assert renamed.allclose(result)
    assert result != "a string"
    assert not result.allclose(results[next(k for k in KINDS if k is not kind)])


def test_what_was_measured_is_known(results):
    kinds = {kind.__name__: result for kind, result in results.items()}
    assert kinds["AttentionEntropy"].model_name == "BertForSequenceClassification"
    many = len(batch()["input_ids"])
    assert kinds["AttentionEntropy"].n_examples == many
    assert str(kinds["AttentionEntropy"]).splitlines()[0] == (
        f"AttentionEntropy of BertForSequenceClassification, {many} examples"
    )
    assert f"of BertForSequenceClassification, {many} examples" in kinds["HeadImportance"]._repr_html_()
    counted = {name: result for name, result in kinds.items() if hasattr(result, "examples")}
    assert len(counted) > 8
    assert all(result.n_examples == result.examples for result in counted.values())
    for result in counted.values():
        assert dataclasses.replace(result, examples=result.examples + 1).n_examples == result.examples + 1
        assert dataclasses.replace(result, model_name="").n_examples == result.examples


def test_frames_name_layers_stacks_and_relations(results):
    values = torch.rand(3, 2)
    labels = ("encoder.0", "decoder.0", "cross.0")
    frame = AttentionEntropy(values, values, torch.arange(3), labels).to_frame()
    assert frame.layer.tolist() == [label for label in labels for _ in range(2)]
    kinds = {kind.__name__: result for kind, result in results.items()}
    heads = kinds["DependencyHeads"]
    accuracy = heads.to_frame()
    one = accuracy[(accuracy.relation == "det") & (accuracy.direction == "from head") & (accuracy.layer == 1)]
    np.testing.assert_array_equal(one.accuracy, heads.accuracy[heads.relations.index("det"), 1, 1])
    maps = kinds["AttentionMaps"].to_frame()
    assert list(maps.columns) == ["stack", "layer", "batch", "head", "query", "key", "values"]
    assert list(kinds["HeadDistances"].to_frame().columns) == ["head", "other_head", "js"]
    assert kinds["HeadDistances"].to_frame()["head"].iloc[0] == "L0H0"


def test_without_pandas(monkeypatch, results):
    monkeypatch.setitem(sys.modules, "pandas", None)
    result = next(iter(results.values()))
    with pytest.raises(MissingExtra, match=r"pip install 'bertology\[frames\]'"):
        result.to_frame()
    for result in results.values():
        assert len(result._repr_html_()) < 100_000


@pytest.mark.parametrize(
    "kind", sorted(Result._kinds.values(), key=lambda kind: kind.__name__), ids=lambda k: k.__name__
)
def test_no_field_hides_a_method(kind):
    methods = {name for name in dir(Result) if not name.startswith("_") and callable(getattr(Result, name))}
    assert {"top", "plot", "save", "stack"} <= methods
    if dataclasses.is_dataclass(kind):
        assert not methods & {field.name for field in dataclasses.fields(kind)}
    for name in methods:
        assert callable(getattr(kind, name)), f"{kind.__name__}.{name} hides Result.{name}"


def test_trajectories_have_labels_and_no_heads(results):
    (found,) = [result for kind, result in results.items() if kind.__name__ == "LabelTrajectories"]
    assert found.top_label.tolist() == found.probabilities.argmax(-1).tolist()
    with pytest.raises(DataError, match=r"has no \[layer, head\] field: its probabilities is"):
        found.top(3)


def test_values_of_layers_and_of_classes_are_printed(results):
    found = {kind.__name__: result for kind, result in results.items()}
    lines = str(found["BlockInfluence"]).splitlines()
    place = lines.index("influence [layer]:")
    assert lines[place + 1].split() == ["0", "1"]
    assert lines[place + 2].split() == [f"{x:.4g}" for x in found["BlockInfluence"].influence.tolist()]
    edges = found["EdgeAblation"]
    lines = str(edges).splitlines()
    place = lines.index("whole [class, class]:")
    assert lines[place + 1].split() == list(edges.classes)
    for row, name in enumerate(edges.classes):
        assert lines[place + 2 + row].split() == [name, *(f"{x:.4g}" for x in edges.whole[row].tolist())]


@pytest.mark.parametrize("kind", ["NeuronImportance", "DependencyHeads", "CoreferenceHeads"])
def test_results_without_a_ranking_of_heads_say_what_ranks(kind, results):
    (found,) = [result for one, result in results.items() if one.__name__ == kind]
    with pytest.raises(DataError, match=r"has no \[layer, head\] field: .*; (ranking|table)\(\) (has|returns)"):
        found.top(3)
    assert callable(getattr(found, found.instead_of_top.partition("(")[0]))


def test_a_large_map_stays_small():
    values = torch.randn(96, 128)
    values[0] = math.nan
    entropy = AttentionEntropy(values, values, torch.arange(96), tuple(map(str, range(96))))
    assert len(entropy._repr_html_()) < 100_000
    assert "40 rows and 40 columns shown" in entropy._repr_html_()
    assert max(map(len, str(entropy).splitlines())) <= 80
    assert "(32 more layers, 64 more columns)" in str(entropy)
