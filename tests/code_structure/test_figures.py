"""Pictures of CAT-scores and of related heads: what is drawn, not how it looks."""

import math
import sys

import pytest
import torch
from matplotlib.colors import to_hex

from bertology import plot
from bertology.code_structure import CatComparison, RelationHeads, cat_over_layers, relation_maps
from bertology.errors import DataError, MissingExtra
from bertology.results.figures import COLOURS
from helpers.pictures import assert_inside

pytestmark = pytest.mark.any_transformers


def comparison(seed=0, kinds=("attention", "shuffled", "positional"), labels=("0", "1", "2"), snippets=6):
    torch.manual_seed(seed)
    shape = (len(kinds), len(labels), 4, snippets)
    either = torch.randint(5, 20, shape)
    matched = (either * torch.rand(shape)).long()
    names = tuple(f"{n}" for n in range(snippets))
    types = (None,) * len(labels)
    return CatComparison(matched[:, :, 0], either[:, :, 0], matched, either, kinds, types, names, 0.25, True, labels)


def related_heads(labels=("0", "1"), relations=("same block", "matching brackets")):
    torch.manual_seed(0)
    shape = (len(relations), len(labels), 4, 5)
    pairs = torch.randint(1, 9, (len(relations), len(labels), 5))
    names = tuple(map(str, range(5)))
    sums = torch.rand(shape).double(), torch.rand(shape).double()
    return RelationHeads(*sums, pairs, torch.zeros_like(pairs), relations, names, labels)


# Over the layers.


def test_scores_with_intervals_beside_nulls(tmp_path):
    some = {"python": comparison(0), "go": comparison(1, kinds=("attention", "shuffled"))}
    figure = cat_over_layers(some, title="BERT", path=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    axes = figure.axes[0]
    assert len(axes.containers) == 2
    for colour, one, drawn in zip(COLOURS, some.values(), axes.containers, strict=False):
        line, _, bars = drawn
        assert to_hex(line.get_color()) == colour.lower()
        assert line.get_ydata().tolist() == one.scores.macro.tolist()
        low, high = one.scores.interval()
        ends = torch.tensor([[(a[1], b[1]) for a, b in bars[0].get_segments()]]).double()
        torch.testing.assert_close(ends[0], torch.stack([low, high], 1))
    lines = [line for line in axes.lines if line.get_linestyle() in ("--", ":", "-.") or line.is_dashed()]
    assert [line.get_ydata().tolist() for line in lines] == [
        some["python"].of("shuffled").macro.tolist(),
        some["python"].of("positional").macro.tolist(),
        some["go"].of("shuffled").macro.tolist(),
    ]
    assert [1 / 7] * 2 in [list(line.get_ydata()) for line in axes.lines]
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == ["python", "go", "shuffled", "positional", "chance, 1/7"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "1", "2"]
    assert (axes.get_title(), axes.get_ylabel()) == ("BERT", "CAT-score, 95 % interval over snippets")
    assert_inside(figure)


def test_pooled_scores_and_some_nulls():
    one = comparison()
    figure = cat_over_layers({"a": one}, nulls=["positional"], average="micro", level=0.5)
    axes = figure.axes[0]
    assert axes.containers[0][0].get_ydata().tolist() == one.scores.micro.tolist()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "positional", "chance, 1/7"]
    assert axes.get_ylabel() == "CAT-score, 50 % interval over snippets"
    low, high = one.scores.interval(0.5, average="micro")
    ends = axes.containers[0][2][0].get_segments()[0]
    assert (ends[0][1], ends[1][1]) == pytest.approx((low[0].item(), high[0].item()))


def test_models_of_other_depth_and_layers_that_read_no_code():
    shallow, deep = comparison(labels=("0", "1")), comparison(labels=("0", "1", "2"))
    axes = cat_over_layers({"a": shallow, "b": deep}).axes[0]
    assert [len(drawn[0].get_ydata()) for drawn in axes.containers] == [2, 3]
    two = comparison(labels=("encoder.0", "decoder.0"))
    for counts in (two.matched, two.either, two.head_matched, two.head_either):
        counts[:, 1] = 0
    axes = cat_over_layers({"a": two}).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["encoder.0"]
    with pytest.raises(DataError, match="the layers of 'a' are 0, 1, those of another model encoder.0, .*: draw mod"):
        cat_over_layers({"a": shallow, "b": comparison(labels=("encoder.0", "encoder.1", "decoder.0"))})


def test_scores_that_make_no_picture():
    with pytest.raises(DataError, match="wanted one result of cat_scores or more, got none"):
        cat_over_layers({})
    with pytest.raises(DataError, match="no scores of 'random weights': the null models are shuffled, positional"):
        cat_over_layers({"a": comparison()}, nulls=["random weights"])
    nothing = comparison()
    nothing.either[:] = nothing.matched[:] = 0
    with pytest.raises(DataError, match="nothing to draw: no layer has a score"):
        cat_over_layers({"a": nothing})


def test_a_map_for_each_relation(tmp_path):
    found = related_heads()
    found.related[0, 1, 2] = math.nan
    figure = relation_maps(found, path=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    for place, relation in enumerate(found.relations):
        axes, best = figure.axes[place], found.best(relation)
        assert axes.get_title() == f"{relation}: {best.head} {best.gain:+.3f}"
        shown = axes.images[0].get_array()
        torch.testing.assert_close(torch.tensor(shown.filled(math.nan)), found.gain[place], equal_nan=True)
        frame = axes.patches[0]
        assert (frame.get_y() + 0.5, frame.get_x() + 0.5) == (best.head.layer, best.head.head)
        low, high = axes.images[0].get_clim()
        assert low == -high
    assert_inside(figure)
    found.pairs[0] = 0
    assert [axes.get_title()[:8] for axes in relation_maps(found, title="a").axes[:1]] == ["matching"]
    found.pairs[:] = 0
    with pytest.raises(DataError, match="no pair of leaves of same block, matching brackets was compared"):
        relation_maps(found)


def test_results_draw_themselves(tmp_path):
    figure = plot.draw(comparison(), path=tmp_path / "a.png")
    assert figure.legends[0].get_texts()[0].get_text() == "attention"
    assert comparison().plot(title="MiniLM").axes[0].get_title() == "MiniLM"
    assert plot.draw(related_heads(), path=tmp_path / "b.png").get_suptitle().startswith("Attention to related leaves")
    assert (tmp_path / "b.png").exists()


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (lambda: cat_over_layers({"a": comparison()}), lambda: relation_maps(related_heads())):
        with pytest.raises(MissingExtra, match=r"bertology\[plot\]"):
            draw()
