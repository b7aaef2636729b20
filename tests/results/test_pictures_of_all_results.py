"""Every result has a picture of its own axes, or says what to call instead."""

import dataclasses
import pickle
from dataclasses import replace
from io import BytesIO
from typing import get_type_hints

import matplotlib.pyplot as plt
import matplotlib.style
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

import bertology.code_structure
import bertology.edge_probing
import bertology.plot
import bertology.syntax
from bertology import (
    Head,
    HeadImportance,
    NeuronImportance,
    Result,
    Significance,
    attention_gradients,
    block_ablation,
    block_influence,
    head_means,
    head_outputs,
    hidden_states,
    mixing_ratio,
    score,
)
from bertology.code_structure import LeafTypes
from bertology.corpora.documents import KINDS
from bertology.errors import DataError
from bertology.plot import head_map, over_layers
from bertology.results.axes import axes_of
from bertology.results.result import PlotOptions, _options, _pictures
from bertology.syntax import CoreferenceHeads
from helpers.results import made
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
        if hints[field.name] in (torch.Tensor, torch.Tensor | None):
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
    assert "values [layer, head, class]: [2, 4, 3] float64" in shown
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
        (hidden_states, "HiddenStates has no picture: it holds a vector for each token and layer"),
        (head_outputs, r"HeadOutputs has no picture: plot.over_layers\("),
        (head_means, r"HeadMeans has no picture: plot.over_layers\("),
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


@pytest.fixture(scope="module")
def measured():
    return {type(result).__name__: result for result in made()}


def has_map(kind):
    return any(axes.names == ("layer", "head") for axes in axes_of(kind).values())


def one_record(result):
    """The result, or of a result over several records that of the first: pictures of trajectories are of one."""
    return result.sentence(0) if hasattr(result, "sentence") else result


PICTURES = [
    kind.__name__
    for kind in KINDS_OF_RESULTS
    if not kind.__subclasses__() and (set(kind.__mro__) & (_pictures.keys() - {Result}) or has_map(kind))
]


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_in_axes_of_the_caller(kind, measured):
    result = one_record(measured[kind])
    figure = result.plot()
    bars = {axes for axes in figure.axes if axes.get_label() == "<colorbar>"}
    panels = len([axes for axes in figure.axes if axes.get_visible() and axes not in bars])
    own = Figure(figsize=(12, 8))
    given = list(own.subplots(1, panels, squeeze=False)[0])
    ax = given[0] if panels == 1 else given
    assert result.plot(ax=ax) is ax
    assert all(axes.has_data() or axes.patches for axes in given)
    assert own.get_suptitle() == ""
    own.savefig(BytesIO(), dpi=50)
    with pytest.raises(DataError, match=rf"this picture has {panels} panels?: pass as many axes"):
        result.plot(ax=[*given, *given])
    with pytest.raises(DataError, match="ax takes matplotlib axes, as figure.subplots"):
        result.plot(ax="here")


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_are_readable_on_dark_paper(kind, measured):
    with matplotlib.style.context("dark_background"):
        figure = one_record(measured[kind]).plot()
        for axes in figure.axes:
            inside = {id(text) for text in axes.texts if axes.images}  # on the colour of its cell
            for text in axes.findobj(Text):
                if text.get_text() and text.get_visible() and id(text) not in inside:
                    assert sum(to_rgb(text.get_color())) > 0.8, text
    assert plt.get_fignums() == []


def renamed(result, name):
    """The result with this in the place of all names of tokens, words and classes."""
    names = {"model_name": name}
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if field.name.endswith("labels") or not isinstance(value, tuple) or not value:
            continue
        if isinstance(value[0], str):
            names[field.name] = tuple(f"{name}{number}" for number in range(len(value)))
        elif isinstance(value[0], tuple):
            names[field.name] = tuple(tuple(name if isinstance(x, str) else x for x in one) for one in value)
    return dataclasses.replace(result, **names)


@pytest.mark.parametrize("kind", PICTURES)
def test_dollar_signs_are_no_formulas(kind, measured):
    figure = one_record(renamed(measured[kind], "$a_{$")).plot()
    figure.savefig(BytesIO(), dpi=40)  # matplotlib raises ValueError where it reads a formula


@pytest.mark.parametrize("kind", PICTURES)
def test_titles_of_models_with_long_names_are_not_cut(kind, measured):
    name = "DistilBertForSequenceClassification (organisation/a-long-name-of-a-model-uncased)"
    figure = one_record(dataclasses.replace(measured[kind], model_name=name)).plot()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    titles = [axes.title for axes in figure.axes] + ([figure._suptitle] if figure._suptitle else [])
    for title in titles:
        box = title.get_window_extent(canvas.get_renderer())
        if title.get_text():
            assert box.x0 >= -1, title
            assert box.x1 <= figure.bbox.x1 + 1, title
            assert box.y1 <= figure.bbox.y1 + 1, title


def test_signs_and_p_values_have_scales_of_their_own():
    values = torch.tensor([[0.2, -0.1], [0.4, float("nan")]])
    importance = HeadImportance(values.abs(), values, values.abs(), values.abs(), 3, ("0", "1"))
    signed = importance.plot(field="signed").axes
    assert signed[0].images[0].get_clim() == pytest.approx((-0.4, 0.4))
    assert signed[0].images[0].get_cmap().name == "RdBu"
    assert signed[1].get_ylabel() == "mean gradient of the gate, E[g]"
    above = replace(importance, signed=values.abs()).plot(field="signed").axes[0].images[0]
    assert above.get_clim() == pytest.approx((-0.4, 0.4))
    assert importance.plot().axes[0].images[0].get_cmap().name == "viridis"
    p = torch.tensor([[0.5, 0.04], [0.002, float("nan")], [1e-9, 0.0]])
    axes, bar = Significance(p, p, "t", "loss", "holm", ("0", "1", "2")).plot().axes
    assert isinstance(axes.images[0].norm, LogNorm)
    marks = {(text.get_position()[0], round(text.get_position()[1])): text.get_text() for text in axes.texts}
    assert marks == {(1, 0): "*", (0, 1): "**", (0, 2): "***", (1, 2): "***"}
    assert bar.get_ylabel() == "p-value, corrected\n* below 0.05, ** below 0.01, *** below 0.001"


def test_an_outlier_does_not_hide_the_other_heads():
    heads = [Head(n // 12, n % 12) for n in range(72)]
    places = torch.randn(72, 2, generator=torch.Generator().manual_seed(0))
    places[7] = torch.tensor([90.0, -40.0])
    axes = head_map(places, heads).axes[0]
    assert axes.get_xlim()[1] - axes.get_xlim()[0] < 12
    assert axes.get_xlabel() == "not shown, far from all others: L0H7"
    assert "L0H7" not in {text.get_text() for text in axes.texts}
    assert len(axes.texts) > 20


def test_error_bars_of_points_over_layers():
    values, errors = torch.rand(2, 3), torch.rand(2, 3)
    axes = over_layers({"a": values}, ["0", "1"], unit="x", errors={"a": errors}).axes[0]
    (bars,) = [one for one in axes.collections if hasattr(one, "get_segments")]
    lengths = [segment[1][1] - segment[0][1] for segment in bars.get_segments()]
    assert lengths == pytest.approx((2 * errors).flatten().tolist())


def test_type_checkers_know_the_options_of_all_pictures():
    ours = [picture for picture in _pictures.values() if picture.__module__.startswith("bertology.")]
    assert {"field", "ax", *PlotOptions.__annotations__} == set().union(*map(_options, ours))


@pytest.mark.parametrize("measure", [block_influence, mixing_ratio, block_ablation])
def test_results_of_layers_are_drawn_over_layers(measure):
    given = {"metric": "accuracy"} if measure is block_ablation else {}
    found = measure(BY_NAME["bert"].build(), batch(), **given)
    name = {block_influence: "influence", mixing_ratio: "ratio", block_ablation: "change"}[measure]
    (axes,) = found.plot().axes
    drawn = torch.tensor(axes.lines[0].get_xydata())
    torch.testing.assert_close(drawn[:, 1], getattr(found, name).double())
    assert drawn[:, 0].tolist() == [0, 1]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1"]
    assert axes.get_ylabel() == axes_of(type(found))[name].label.replace("the metric", "accuracy")
    assert axes.get_legend() is None
    low, high = axes.get_ylim()
    assert low <= 0 <= high
    other = {block_influence: "std", mixing_ratio: "attention", block_ablation: "loss_change"}[measure]
    (axes,) = found.plot(field=other).axes
    torch.testing.assert_close(torch.tensor(axes.lines[0].get_ydata()), getattr(found, other).double())
    assert other in axes.get_title()


def test_advice_on_other_pictures_can_be_followed(measured):
    for kind in ("HeadMeans", "HeadOutputs"):
        call = measured[kind].instead_of_plot.rpartition(" draws")[0]
        axes = eval(call, {"plot": bertology.plot, "result": measured[kind]}).axes[0]
        assert axes.get_ylabel() == "norm"
    neurons = measured["NeuronActivations"]
    Figure().subplots().imshow(neurons.values[0, 0].numpy())
    assert "axes.imshow(result.values[0, 0].numpy())" in neurons.instead_of_plot


def test_neurons_are_drawn_from_the_most_important_down(measured):
    axes = measured["NeuronImportance"].plot().axes[0]
    scores = measured["NeuronImportance"].scores
    for line, values in zip(axes.lines, scores, strict=True):
        assert line.get_ydata().tolist() == sorted(values.tolist(), reverse=True)
        assert line.get_xdata()[-1] == 100
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["1", "0"]  # as they lie in heat maps
    assert NeuronImportance(*[torch.zeros(2, 3)] * 4, 1, ("0", "1")).plot().axes[0].get_yscale() != "log"


def test_cut_attention_shows_its_values(measured):
    found = measured["EdgeAblation"]
    whole, apart, *_ = found.plot().axes
    low, high = whole.images[0].get_clim()
    assert low == -high
    drawn = torch.tensor(whole.images[0].get_array().filled(0.0))
    torch.testing.assert_close(drawn, found.whole)
    assert [text.get_text().partition("\n")[0] for text in whole.texts] == [f"{x:+.2g}" for x in found.whole.flatten()]
    assert (whole.get_xlabel(), whole.get_ylabel()) == ("to: class of the key", "from: class of the query")
    pairs = [text.get_text() for text in apart.get_xticklabels()]
    place = pairs.index("other → low")
    torch.testing.assert_close(torch.tensor(apart.images[0].get_array().filled(0.0))[:, place], found.change[:, 1, 0])
    once = replace(found, change=found.change[:0], labels=())
    assert [axes.get_title() for axes in once.plot().axes] == ["in all layers", ""]


def test_importance_through_training_is_drawn_over_steps(measured):
    one = measured["ImportanceSeries"]
    steps = torch.tensor([1, 50, 400])
    series = replace(
        one, steps=steps, **{name: torch.rand(3, 2, 4).double() for name in ("scores", "signed", "fisher", "stderr")}
    )
    lines, ranks, _ = series.plot().axes
    torch.testing.assert_close(torch.tensor(lines.lines[1].get_ydata()), series.scores[:, 1].mean(1))
    assert lines.lines[0].get_xdata().tolist() == steps.tolist()
    torch.testing.assert_close(torch.tensor(ranks.images[0].get_array().filled(0.0)), series.correlation())
    assert [text.get_text() for text in ranks.get_xticklabels()] == ["1", "50", "400"]


def test_structural_probes_and_codes_are_drawn_beside_their_baselines(measured):
    probe, code = measured["StructuralProbe"], measured["CodeLength"]
    axes = probe.plot().axes[0]
    by_label = {line.get_label(): line for line in axes.lines}
    assert by_label["UUAS of neighbours"].get_ydata()[0] == probe.adjacent
    torch.testing.assert_close(torch.tensor(by_label["Spearman's ρ of distances"].get_ydata()), probe.spearman)
    axes = code.plot().axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(code.online.tolist())
    assert [text.get_text() for text in axes.texts] == [f"{times:.2f}" for times in code.compression.tolist()]
    assert axes.lines[0].get_ydata()[0] == code.uniform.sum()


def test_gates_have_one_scale_and_words(measured):
    gates = measured["LearnedGates"].plot().axes[0].images[0]
    assert gates.get_clim() == (0, 1)
    found = measured["Faithfulness"]
    axes, bar = found.plot().axes
    assert [text.get_text() for text in bar.get_yticklabels()] == ["replaced\n(mean)", "kept"]
    title = f"Faithfulness {found.value:.2f} of inverse_loss: 1 of 8 heads kept"
    assert axes.get_title() == f"{title}\nBertForSequenceClassification, 3 examples"
    share = measured["HeadAgreement"].plot(field="share").axes[0].images[0]
    assert share.get_clim() == (0, 1)


def test_titles_say_of_what_they_are(measured):
    def title(kind):
        figure = one_record(measured[kind]).plot()
        return figure.get_suptitle() or figure.axes[0].get_title()

    assert title("HeadPatching").startswith("Head patching into the corrupted run: effect\nBert")
    assert title("LayerPatching").startswith("Effect of each block, put into the corrupted run\nBert")
    assert title("PartAblation").startswith("Block ablation\nBert")
    assert title("CatScores").startswith("CAT-scores: head_macro\nBert")
    assert title("LayerScores").startswith("Mixing weights and differential scores\n")
    assert title("LayerStatistics") == title("LayerScores")
    assert title("LogitLens") == "What each layer would answer\nBertForSequenceClassification, example 0 of 3"
    many = len(measured["StructuralProbe"].words)
    told = f"BertForSequenceClassification, {many} examples"
    assert title("StructuralProbe") == f"Structural probe\n{told}"
    assert title("ProbeResult") == f"Probe of attention and vectors: from_dependent\n{told}"
    view = measured["HeadView"]
    (text,) = [text.get_text() for text in view.plot().axes[0].texts if view.title in text.get_text()]
    assert text == f"{view.title}\nBertForSequenceClassification"


def test_signed_panels_have_0_in_the_middle(measured):
    attribution = measured["HeadAttribution"]
    for sign in (1, -1):
        values = sign * attribution.values.abs()
        clim = replace(attribution, values=values).plot().axes[0].images[0].get_clim()
        top = values.double().mean(1).abs().max().item()
        assert clim == pytest.approx((-top, top))


def test_a_lens_over_a_long_text_stays_a_page_wide(measured):
    one = measured["LogitLens"]
    sizes = {"best": torch.int64, "probability": torch.float64, "rank": torch.int64, "divergence": torch.float64}
    wide = {name: torch.zeros(3, 1, 600).to(dtype) for name, dtype in sizes.items()}
    long = replace(
        one, **wide, targets=torch.zeros(1, 600, dtype=torch.int64), mask=torch.ones(1, 600, dtype=torch.bool),
        names=((("a",) * 600,),) * 3, tokens=(),
    )  # fmt: skip
    figure = long.plot()
    assert figure.get_size_inches()[0] < 24
    assert not figure.axes[0].texts


def test_the_last_of_many_series_is_not_lost_on_dark_paper():
    series = {str(number): torch.rand(2, 3) for number in range(8)}
    with matplotlib.style.context("dark_background"):
        axes = over_layers(series, ["0", "1"], unit="x").axes[0]
        head_map(torch.rand(2, 2), [Head(0, 0), Head(5, 0)])
    for line in axes.lines:
        assert sum(to_rgb(line.get_color())) > 0.5
