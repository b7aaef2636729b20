"""Pictures of trees and of frequent types: what is drawn, not how it looks."""

import pytest
import torch
from matplotlib.colors import to_hex

from bertology.code_structure import LeafTypes, frequent_types, parse_code, syntax_tree
from bertology.errors import DataError
from bertology.results.figures import COLOURS
from helpers.pictures import assert_inside

pytestmark = pytest.mark.any_transformers


def segments(figure):
    """{colour: the straight lines}."""
    return {to_hex(lines.get_colors()[0]): lines.get_segments() for lines in figure.axes[0].collections}


def test_the_edges_of_a_tree(tmp_path):
    tree = parse_code("x = f(x)\ny = x", "python", name="a $x$")
    figure = syntax_tree(tree, path=tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    axes = figure.axes[0]
    assert axes.get_title() == "a $x$"
    lines = segments(figure)
    assert len(lines["#999999"]) == len(tree.parents) - 1
    neighbours = [[list(end) for end in one] for one in lines[COLOURS[1].lower()]]
    assert neighbours == [[[leaf, 0], [leaf + 1, 0]] for leaf in range(len(tree) - 1)]
    # x is at the leaves 0, 4 and 8.
    assert [(line.get_xdata()[0], line.get_xdata()[-1]) for line in axes.lines] == [(0, 4), (4, 8)]
    drawn = {tuple(text.get_position()): text.get_text() for text in axes.texts}
    assert [drawn[leaf, 0] for leaf in range(len(tree))] == list(tree.texts)
    inner = [text for (_, height), text in drawn.items() if height > 0]
    assert sorted(inner) == sorted(kind for n, kind in enumerate(tree.node_types) if n not in tree.leaf_nodes)
    assert_inside(figure)


def test_parents_are_above_the_middle_of_their_children():
    tree = parse_code("f(a, b)", "go", broken="keep")
    places = {text.get_text(): text.get_position() for text in syntax_tree(tree).axes[0].texts}
    assert places["argument_list"] == (3, 1)  # of ( a , b ) at 1 to 5
    assert places["call_expression"] == (1.5, 2)


def test_the_tree_alone():
    figure = syntax_tree(parse_code("x = x", "python"), upgraded=False, title="plain")
    assert list(segments(figure)) == ["#999999"]
    assert not figure.axes[0].lines
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["syntax tree"]


def test_a_long_tree_is_refused():
    with pytest.raises(DataError, match="the tree has 123 leaves, and a picture has room for 120"):
        syntax_tree(parse_code("x = 1\n" * 41, "python"))


def types(share, snippets=(2, 2)):
    high = torch.tensor(share)
    total = torch.full_like(high, 10)
    once = torch.full((len(share),), 3.0)
    return LeafTypes(high, total, once, torch.tensor(snippets), ("(", "$x$", "def", "if"), ("0", "1"))


def test_frequent_types_of_each_layer(tmp_path):
    figure = frequent_types(types([[5, 9, 1, 2], [7, 1, 8, 0]]), top=2, path=tmp_path / "a.png")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["(", "$x$", "def"]  # the first in both layers
    cells = axes.images[0].get_array()
    assert cells.tolist() == [[0.5, 0.9, 0.1], [0.7, 0.1, 0.8]]
    frames = {(round(one.get_x() + 0.46), round(one.get_y() + 0.46)) for one in axes.patches}
    assert frames == {(0, 0), (1, 0), (0, 1), (2, 1)}
    assert_inside(figure)


def test_layers_that_read_no_code_are_left_out():
    figure = frequent_types(types([[0, 0, 0, 0], [7, 1, 8, 0]], (0, 2)))
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["1"]
    with pytest.raises(DataError, match="no layer has a type of leaves with high attention"):
        frequent_types(types([[0, 0, 0, 0], [0, 0, 0, 0]]))
