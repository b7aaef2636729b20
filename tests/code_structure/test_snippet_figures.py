"""Pictures of the attention in one snippet: what is drawn, not how it looks."""

import math
import sys

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch

from bertology import Head, attention_maps
from bertology.code_structure import (
    LeafAttention,
    align_code,
    attention_and_distance,
    code_arcs,
    leaf_attention,
    leaf_distances,
    parse_code,
    token_map,
)
from bertology.code_structure.snippet_figures import MAX_NAMED_LEAVES
from bertology.errors import DataError, HeadError, MissingExtra
from bertology.results.figures import COLOURS
from helpers.pictures import assert_inside
from helpers.zoo import BY_NAME

CODE = "def f(x):\n\t# of $x$\n\ty = [x] * 3\n\treturn g(y, x)"


@pytest.fixture(scope="module")
def tokenizer():
    """A token a character, as in byte-level models; ids below the zoo's 40."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    signs = ["[PAD]", "[UNK]", *sorted({sign for sign in CODE + "+-1234567890" if not sign.isspace()})]
    made = Tokenizer(models.WordLevel({sign: i for i, sign in enumerate(signs)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64)


def build(name="bert", **config):
    return BY_NAME[name].build(**{"n_positions" if name == "gpt2" else "max_position_embeddings": 64}, **config)


def tree(code=CODE, name="f"):
    return parse_code(code, "python", name=name)


@pytest.mark.parametrize(("name", "causal"), [("bert", False), ("gpt2", True)])
def test_the_attention_of_a_layer_and_a_head(tokenizer, name, causal):
    model, code = build(name), tree()
    one = align_code(tokenizer, [code]).batches[0]
    maps = attention_maps(model, {key: x for key, x in one.items() if key != "annotations"}).values[:, 0]
    values, kept = token_map(maps, one["annotations"][0].leaf_of, len(code), causal=causal)
    for where, wanted, called in (
        (1, values[1].mean(0), "layer 1"), ((1, 2), values[1, 2], "L1H2"), (Head(0, 3), values[0, 3], "L0H3"),
    ):  # fmt: skip
        found = leaf_attention(model, tokenizer, code, where)
        torch.testing.assert_close(found.weights, wanted)
        assert (found.name, found.causal, found.kept) == (called, causal, tuple(kept.tolist()))
    assert found.distances.tolist() == leaf_distances(code).tolist()
    assert (found.valid is None) == (not causal)


def test_heads_that_are_not_there(tokenizer):
    with pytest.raises(HeadError, match="layer 2 is out of range: this model's attention layers are 0 to 1"):
        leaf_attention(build(), tokenizer, tree(), 2)
    with pytest.raises(HeadError, match="head 4 of layer 0 is out of range"):
        leaf_attention(build(), tokenizer, tree(), (0, 4))
    with pytest.raises(DataError, match="longer than 64 tokens"):
        leaf_attention(build(), tokenizer, tree("x = " + "1 + " * 40 + "1"), 0)


def attention(weights, causal=False):
    code = tree("x = 1")
    return LeafAttention(torch.tensor(weights), (0, 1, 2), "L0H0", causal, code)


def test_the_strongest_pairs():
    found = attention([[0.9, 0.1, 0.4], [0.6, 0.9, 0.0], [0.2, 0.3, 0.9]])
    assert found.strongest(3) == [(1, 0), (0, 2), (2, 1)]
    assert found.strongest(9) == [(1, 0), (0, 2), (2, 1), (2, 0), (0, 1)]  # none without attention, none to itself
    assert found.strongest(9, apart=2) == [(0, 2), (2, 0)]
    for pairs, apart in ((0, 1), (1, 0)):
        with pytest.raises(DataError, match="wanted 1 or more pairs, of leaves 1 or more apart"):
            found.strongest(pairs, apart=apart)


def arrows(figure):
    return [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_arcs_over_the_code(tokenizer, tmp_path, name):
    model, code = build(name), tree()
    figure = code_arcs(model, tokenizer, code, (1, 2), pairs=9, path=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    found = leaf_attention(model, tokenizer, code, (1, 2))
    drawn = arrows(figure)
    assert len(drawn) == 9
    wanted = found.strongest(9)[::-1]  # the strongest lies on top
    colours = [COLOURS[0] if found.near[pair] else COLOURS[1] for pair in wanted]
    assert [to_hex(one.get_edgecolor()) for one in drawn] == [colour.lower() for colour in colours]
    alphas = [one.get_alpha() for one in drawn]
    assert alphas == sorted(alphas)
    near = sum(bool(found.near[pair]) for pair in wanted)
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == [f"near in the tree ({near})", f"not near ({9 - near})"]
    assert [text.get_text() for text in figure.texts] == ["L1H2 in f"]
    assert_inside(figure)


def test_code_as_it_stands(tokenizer):
    axes = code_arcs(build(), tokenizer, tree(), 0).axes[0]
    black = {(*text.get_position(), text.get_text()) for text in axes.texts if text.get_color() == "black"}
    grey = [text.get_text() for text in axes.texts if text.get_color() != "black"]
    assert grey == ["#", "of", "$x$"]  # a comment is in no leaf, and no formula
    assert {("def", 0), ("f(x):", 4), ("y", 4), ("return", 4), ("g(y,", 11)} <= {(text, x) for x, _, text in black}
    lines = sorted({y for _, y, _ in black})
    assert len(lines) == 3
    starts = {(1 + 4, lines[0]), (4, lines[1])}  # behind `def f`, and behind a tab
    assert starts & {(x + 1 if text == "f(x):" else x, y) for x, y, text in black} == starts


def test_arcs_end_at_the_middle_of_leaves(tokenizer):
    model, code = build(), tree("def f(x):\n\treturn x")
    drawn = arrows(code_arcs(model, tokenizer, code, 0, pairs=500))
    found = leaf_attention(model, tokenizer, code, 0)
    #          def  f    (    x    )    :    return x
    middles = [1.5, 4.5, 5.5, 6.5, 7.5, 8.5, 7.0, 11.5]
    assert len(drawn) == 8 * 7
    for one, (i, j) in zip(drawn, found.strongest(500)[::-1], strict=True):
        curve = one._path_original.vertices
        assert (curve[0][0], curve[-1][0]) == (middles[i], middles[j])


def test_neighbours_left_out_and_wide_letters(tokenizer):
    model, code = build(), tree("def f(x):\n\treturn x")
    assert len(arrows(code_arcs(model, tokenizer, code, 0, pairs=500, apart=2))) == 8 * 7 - 2 * 7
    wide = tree("f('數數', x)", name="")
    texts = {text.get_text(): text.get_position()[0] for text in code_arcs(model, tokenizer, wide, 0).axes[0].texts}
    assert texts["x)"] == 10


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_attention_beside_distance(tokenizer, tmp_path, name):
    model, code = build(name), tree()
    figure = attention_and_distance(model, tokenizer, code, 1, path=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    found = leaf_attention(model, tokenizer, code, 1)
    hidden = torch.zeros_like(found.near) if name == "bert" else ~found.valid
    for axes, wanted in zip(figure.axes, (found.weights, found.distances.double()), strict=False):
        shown = torch.tensor(axes.images[0].get_array().filled(math.nan))
        torch.testing.assert_close(shown, wanted.masked_fill(hidden, math.nan), equal_nan=True)
        assert [text.get_text() for text in axes.get_yticklabels()] == list(code.texts)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["attention", "distance in the U-AST, edges"]
    matched, either = found.counts
    assert figure.get_suptitle() == f"Layer 1 in f, CAT-score {matched / either:.2f}"
    assert_inside(figure)


def test_many_leaves_are_numbered(tokenizer):
    code = tree("+".join("x" * (MAX_NAMED_LEAVES // 2 + 1)))
    assert len(code) == MAX_NAMED_LEAVES + 1
    figure = attention_and_distance(build(), tokenizer, code, 0, title="many")
    assert [axes.get_ylabel() for axes in figure.axes[:2]] == ["leaf", "leaf"]
    assert figure.get_suptitle() == "many"
    few = attention_and_distance(build(), tokenizer, tree("f('xxxxxxxxxxxxxxxxx')"), 0)
    assert "xxxxxxxxxxxxx…" in [text.get_text() for text in few.axes[0].get_xticklabels()]


def test_without_matplotlib(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (code_arcs, attention_and_distance):
        with pytest.raises(MissingExtra, match=r"bertology\[plot\]"):
            draw(build(), tokenizer, tree(), 0)
