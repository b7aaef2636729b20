import math
import sys

import pytest
import torch
from matplotlib.colors import to_hex

from bertology import plot
from bertology.edge_probing.figures import layer_panels, layers_of_tasks, sentence_strips
from bertology.edge_probing.layer_statistics import layer_statistics
from bertology.edge_probing.scores import LayerScores
from bertology.edge_probing.tasks import EdgeTask, Record, Target
from bertology.edge_probing.trajectories import label_trajectories
from bertology.errors import DataError, MissingExtra
from bertology.results.figures import COLOURS
from helpers.pictures import assert_inside

pytestmark = pytest.mark.any_transformers


def tasks(seeds=1):
    """Three tasks of a model of 4 layers, of which the last is none."""
    torch.manual_seed(0)
    steady = torch.linspace(0.5, 0.9, 5, dtype=torch.float64) + torch.rand(seeds, 5, dtype=torch.float64) / 100
    early = torch.tensor([0.5, 0.8, 0.79, 0.85, 0.9], dtype=torch.float64) + torch.rand(seeds, 5).double() / 100
    mix = torch.randn(seeds, 5, dtype=torch.float64).softmax(1)
    return {
        "Winograd": layer_statistics(torch.full((seeds, 5), 0.5), mix),
        "Coref": layer_statistics(steady, mix.flip(1)),
        "POS": layer_statistics(early),
    }


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_tasks_in_their_order_with_bars(tmp_path):
    some = tasks()
    figure = layers_of_tasks(some, title="BERT", path=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    axes = figure.axes[0]
    numbers = [some["POS"].expected_layer, some["Coref"].expected_layer, some["Coref"].centre_of_gravity]
    numbers.append(some["Winograd"].centre_of_gravity)
    assert [float(bar.get_width()) for bar in axes.patches] == numbers
    f1 = [f"{100 * x:.1f}" for name in ("POS", "Coref") for x in some[name].f1[0, [0, -1]].tolist()]
    shown = [f"{x:.2f}" for x in numbers]
    assert texts(axes) == [
        *("task", "F1 at 0", "at 4"),
        *("POS", *f1[:2], shown[0]),
        *("Coref", *f1[2:], shown[1], shown[2]),
        *("Winograd", "50.0", "50.0", "no expected layer", shown[3]),
    ]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first task is on top
    assert (axes.get_xlim(), axes.get_xlabel(), axes.get_title()) == ((0, 4), "layer", "BERT")
    told = figure.legends[0]
    assert [text.get_text() for text in told.get_texts()] == ["expected layer", "centre of gravity"]
    drawn = [to_hex(bar.get_facecolor()) for bar in axes.patches]
    first, second = (to_hex(patch.get_facecolor()) for patch in told.get_patches())
    assert drawn == [first, first, second, second]
    assert not axes.lines  # one seed has no interval
    assert_inside(figure)


def test_intervals_over_seeds_are_drawn():
    some = tasks(4)
    axes = layers_of_tasks(some).axes[0]
    intervals = [some["POS"].interval("expected_layers"), some["Coref"].interval("expected_layers")]
    intervals += [some["Coref"].interval("centres"), some["Winograd"].interval("centres")]
    assert [list(line.get_xdata()) for line in axes.lines] == [[low.item(), high.item()] for low, high in intervals]
    for line, bar in zip(axes.lines, axes.patches, strict=True):
        assert list(line.get_ydata()) == pytest.approx([bar.get_y() + bar.get_height() / 2] * 2)


def test_panels_show_weights_and_differential_scores(tmp_path):
    some = tasks(2)
    figure = layer_panels(some, title="BERT", path=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    pos, coref, winograd, nothing = figure.axes
    assert not nothing.get_visible()
    bits = {
        name: (f"K(s) = {one.kl_of_mix:.2f} bits", f"K(Δ) = {one.kl_of_differential:.2f} bits")
        for name, one in some.items()
    }
    assert pos.get_title(loc="left") == f"POS   {bits['POS'][1]}"
    assert coref.get_title(loc="left") == f"Coref   {bits['Coref'][0]}   {bits['Coref'][1]}"
    assert winograd.get_title(loc="left") == f"Winograd   {bits['Winograd'][0]}   no expected layer"
    heights = [(round(bar.get_x() + bar.get_width() / 2), float(bar.get_height())) for bar in coref.patches]
    one = some["Coref"]
    gains = (one.f1[:, 1:] - one.f1[:, :-1]).mean(0) / (one.f1[:, -1] - one.f1[:, 0]).mean()
    assert gains.sum().item() == pytest.approx(1)
    expected = [*enumerate(one.mix.mean(0).tolist()), *enumerate(gains.tolist(), 1)]
    assert [place for place, _ in heights] == [place for place, _ in expected]
    assert [height for _, height in heights] == pytest.approx([height for _, height in expected])
    at = {to_hex(line.get_color()): line.get_xdata() for line in coref.lines}
    assert at[to_hex(COLOURS[0])] == [one.centre_of_gravity] * 2
    assert at[to_hex(COLOURS[1])] == [one.expected_layer] * 2
    assert len(pos.patches) == 4  # no mixing weights were given
    assert len(winograd.patches) == 5  # no differential scores
    assert_inside(figure)


@pytest.mark.parametrize(("many", "columns", "shape"), [(1, 2, (1, 1)), (8, 2, (4, 2)), (5, 3, (2, 3)), (3, 1, (3, 1))])
def test_panels_in_rows_and_columns(many, columns, shape):
    f1 = torch.linspace(0.5, 0.9, 25)
    figure = layer_panels({str(n): layer_statistics(f1, torch.full((25,), 0.04)) for n in range(many)}, columns=columns)
    assert len(figure.axes) == shape[0] * shape[1]
    assert sum(axes.get_visible() for axes in figure.axes) == many
    labelled = [axes.xaxis.get_major_ticks()[0].label1.get_visible() for axes in figure.axes[:many]]
    assert labelled == [number + shape[1] >= many for number in range(many)]
    assert list(figure.axes[0].get_xticks()) == [0, 4, 8, 12, 16, 20, 24]


def test_tasks_that_make_no_picture():
    shallow = layer_statistics(torch.tensor([0.5, 0.9]))
    for draw in (layers_of_tasks, layer_panels):
        with pytest.raises(DataError, match="wanted tasks of models with the same number of layers, got no tasks"):
            draw({})
        with pytest.raises(
            DataError, match="wanted tasks of models with the same number of layers, got POS of 4, other of 1"
        ):
            draw({"POS": tasks()["POS"], "other": shallow})
    with pytest.raises(DataError, match="columns, the number of panels side by side, must be 1 or more, got 0"):
        layer_panels(tasks(), columns=0)


def test_a_task_with_nothing_to_show_has_an_empty_panel():
    axes = layer_panels({"none": layer_statistics(torch.full((5,), 0.5))}).axes[0]
    assert not axes.patches
    assert list(axes.get_yticks()) == []
    assert layers_of_tasks({"none": layer_statistics(torch.full((5,), 0.5))}).axes[0].get_xlim() == (0, 4)


def sentence(layers=3, words=("Paris", "met", "Ann")):
    record = Record(words, (Target((0, 1), ("PERSON",)), Target((2, 3), ("PERSON",), None)))
    other = Record(("Rome",), (Target((0, 1), ("GPE",)),))
    task = EdgeTask.of("entities", [record, other], labels=("GPE", "ORG", "PERSON"))
    p = torch.zeros(layers, 3, 3, dtype=torch.float64)
    p[:, 0, 2] = torch.linspace(0.1, 0.9, layers, dtype=torch.float64)
    p[:, 0, 0] = 1 - p[:, 0, 2]
    p[:, 1, 2] = 0.75
    p[:, 2, 0] = 0.5
    return label_trajectories(p, task)


def test_strips_show_each_label_over_layers(tmp_path):
    one = sentence().sentence(0)
    figure = sentence_strips(one, path=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    paris, ann = figure.axes
    assert [axes.get_title(loc="left") for axes in (paris, ann)] == ["Paris", "Ann"]
    assert [text.get_text() for text in paris.get_yticklabels()] == ["GPE", "+ PERSON"]
    assert [text.get_text() for text in ann.get_yticklabels()] == ["+ PERSON"]
    assert paris.images[0].get_array().tolist() == one.probabilities[:, 0, [0, 2]].T.tolist()
    assert paris.images[0].get_clim() == (0, 1)
    assert texts(paris) == ["90", "50", "10", "10", "50", "90"]
    assert [(text.get_position(), text.get_text()) for text in ann.texts] == [((n, 0), "75") for n in range(3)]
    framed = [tuple(math.ceil(x) for x in patch.get_xy()) for patch in paris.patches]
    assert framed == [(0, 0), (1, 0), (2, 1)]  # of equals the first
    assert [text.get_text() for text in ann.get_xticklabels()] == ["0", "1", "2"]
    assert figure.get_suptitle() == "Paris met Ann"
    assert sentence_strips(one, title="Mine").get_suptitle() == "Mine"
    assert_inside(figure)
    assert_inside(one.plot(path=tmp_path / "b.png"))
    assert (tmp_path / "b.png").is_file()


@pytest.mark.parametrize("layers", [2, 7, 25])
def test_long_sentences_fit(layers):
    words = ("Paris", "met", "Ann", *("who", "had", "come", "to", "see", "what", "there", "is") * 2, "there")
    one = sentence(layers, words).sentence(0)
    figure = sentence_strips(one)
    assert_inside(figure)
    title = figure._suptitle.get_window_extent()
    assert 0 <= title.x0 < title.x1 <= figure.bbox.width
    assert figure.get_suptitle().split() == list(words)


def test_a_picture_is_of_one_sentence():
    with pytest.raises(
        DataError, match=r"targets of a single record, got 3 targets in 2 records: choose a record with \.sent"
    ):
        sentence_strips(sentence())
    one = sentence().sentence(0)
    with pytest.raises(DataError, match="targets of a single record, got 0 targets in 1 record"):
        sentence_strips(one.subset(torch.zeros(2, dtype=torch.bool)))


def test_statistics_draw_themselves(tmp_path):
    figure = tasks()["Coref"].plot(name="Coref", path=tmp_path / "a.png")
    assert figure.axes[0].get_title(loc="left").startswith("Coref   K(s)")
    assert (tmp_path / "a.png").is_file()


def scores():
    """Of a model of 2 layers and one seed."""
    cells, many = torch.ones(1, 3, 1), torch.ones(1, 3)
    f1, mix = torch.tensor([[0.5, 0.7, 0.9]]).double(), torch.tensor([[0.2, 0.2, 0.6]]).double()
    return LayerScores(
        f1, mix, torch.ones(1), *(cells,) * 6, many, many, cells, cells, (("patience",) * 3,), (0,), ("a",), ("a",), 1,
        "", ("0", "1", "2"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("result", "titles"),
    [
        (tasks()["Coref"], [tasks()["Coref"].plot().axes[0].get_title(loc="left")]),
        (scores(), [scores().statistics().plot().axes[0].get_title(loc="left")]),
        (sentence().sentence(0), ["Paris", "Ann"]),
    ],
)
def test_plot_draws_them(tmp_path, result, titles):
    for figure in (plot.draw(result, path=tmp_path / "a.png"), result.plot(path=tmp_path / "b.png")):
        assert [axes.get_title(loc="left") for axes in figure.axes] == titles
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with pytest.raises(DataError, match=r"has no \[layer, head\] field f1: it has none"):
        plot.draw(result, field="f1")


def test_scores_draw_their_statistics():
    axes = scores().plot(name="POS").axes[0]
    assert axes.get_title(loc="left").startswith("POS   K(s) =")
    assert [float(bar.get_height()) for bar in axes.patches] == pytest.approx([0.2, 0.2, 0.6, 0.5, 0.5])


def test_pictures_need_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (lambda: layers_of_tasks(tasks()), lambda: layer_panels(tasks()), sentence().sentence(0).plot):
        with pytest.raises(MissingExtra, match=r"needs the package 'matplotlib'.*bertology\[plot\]"):
            draw()


def test_intervals_need_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    assert "±" in str(tasks(3)["Coref"])
    with pytest.raises(MissingExtra, match=r"needs the package 'scipy'.*bertology\[stats\]"):
        tasks(3)["Coref"].interval("f1")
    tasks()["Coref"].interval("f1")  # NaN of one seed needs nothing
