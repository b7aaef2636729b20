"""Attention maps that know their tokens: one example without padding, words, pictures."""

# oracle: loops over the tokens of words, written here

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

import bertology as bt
from bertology.data.tokens import beginning, label_of, token_strings, word_strings
from bertology.errors import DataError, HeadError
from bertology.measures.example_maps import example_maps
from helpers.trees import wordpiece_tokenizer

TEXTS = ["stars purred on a mat", "the cat"]
TOKENS = (
    ("[CLS]", "star", "##s", "purr", "##ed", "on", "a", "mat", "[SEP]"),
    ("[CLS]", "the", "cat", "[SEP]", "", "", "", "", ""),
)
WORD_OF = ((-1, 0, 0, 1, 1, 2, 3, 4, -1), (-1, 0, 1, -1, -2, -2, -2, -2, -2))
SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return wordpiece_tokenizer()


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**SMALL)).eval()


@pytest.fixture(scope="module")
def maps(model: Any, tokenizer: Any) -> bt.AttentionMaps:
    return bt.attention_maps(model, TEXTS, tokenizer=tokenizer)


def joined(x: torch.Tensor, groups: list[list[int]]) -> torch.Tensor:
    """[group, group]: attention to the tokens of a word is summed, attention from them averaged."""
    out = torch.zeros(len(groups), len(groups))
    for i, queries in enumerate(groups):
        for j, keys in enumerate(groups):
            out[i, j] = sum(float(x[q, k]) for q in queries for k in keys) / len(queries)
    return out


@pytest.mark.parametrize("capture", [bt.attention_maps, bt.hidden_states, bt.head_outputs])
def test_every_capture_of_texts_knows_its_tokens(capture: Any, model: Any, tokenizer: Any, tmp_path: Any) -> None:
    found = capture(model, TEXTS, tokenizer=tokenizer)
    assert found.tokens == TOKENS
    assert found.word_of == WORD_OF
    found.save(tmp_path / "capture")
    again = bt.Result.load(tmp_path / "capture")
    assert again == found
    assert again.tokens == TOKENS
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    without = capture(model, batch)
    assert (without.tokens, without.word_of) == ((), ())
    assert without.allclose(found, rtol=0, atol=1e-6)
    assert without != found
    of_batch = capture(model, batch, tokenizer=tokenizer)
    assert (of_batch.tokens, of_batch.word_of) == (TOKENS, ())
    assert "tokens" not in repr(without)
    assert "[CLS]" in repr(found)


def test_padding_on_the_left_moves_the_tokens(model: Any, tokenizer: Any) -> None:
    left = copy.deepcopy(tokenizer)
    left.padding_side = "left"
    found = bt.attention_maps(model, TEXTS, tokenizer=left)
    assert found.tokens[1] == ("",) * 5 + ("[CLS]", "the", "cat", "[SEP]")
    assert found.word_of[1] == (-2,) * 5 + (-1, 0, 1, -1)
    shown = example_maps(found, 1, None, words=False)
    assert shown.queries == shown.keys == ["[CLS]", "the", "cat", "[SEP]"]
    torch.testing.assert_close(shown.maps, found.values[:, 1, :, 5:, 5:])


def test_one_example_is_without_padding(maps: bt.AttentionMaps) -> None:
    shown = example_maps(maps, 1, None, words=False)
    assert shown.maps.shape == (2, 4, 4, 4)
    torch.testing.assert_close(shown.maps.sum(-1), torch.ones(2, 4, 4))
    with pytest.raises(DataError, match="example must be from 0 to 1, got 2"):
        example_maps(maps, 2, None, words=False)


def test_words_join_their_tokens(maps: bt.AttentionMaps) -> None:
    shown = example_maps(maps, 0, None, words=True)
    assert shown.queries == shown.keys == ["[CLS]", "stars", "purred", "on", "a", "mat", "[SEP]"]
    groups = [[0], [1, 2], [3, 4], [5], [6], [7], [8]]
    for layer in range(2):
        for head in range(4):
            wanted = joined(maps.values[layer, 0, head], groups)
            torch.testing.assert_close(shown.maps[layer, head], wanted, rtol=1e-5, atol=1e-6)
    wrong = joined(maps.values[0, 0, 0].T, groups)
    assert not torch.allclose(shown.maps[0, 0], wrong, atol=1e-3)


def test_pruned_heads_stay_nan_also_over_words(model: Any, tokenizer: Any) -> None:
    smaller = copy.deepcopy(model)
    bt.prune_heads(smaller, ["L1H2"])
    shown = example_maps(bt.attention_maps(smaller, TEXTS, tokenizer=tokenizer), 0, None, words=True)
    assert shown.maps[1, 2].isnan().all()
    assert not shown.maps[1, 3].isnan().any()


def test_words_are_refused_where_they_are_not_known(model: Any, tokenizer: Any) -> None:
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    for given in (bt.attention_maps(model, batch), bt.attention_maps(model, batch, tokenizer=tokenizer)):
        with pytest.raises(DataError, match="the words are not known: measure a text with a fast tokenizer"):
            given.plot("L0H0", words=True)


def test_an_encoder_decoder_has_tokens_on_both_sides(tokenizer: Any) -> None:
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    writer = transformers.T5ForConditionalGeneration(config).eval()
    found = bt.attention_maps(writer, [("the cat sat", "stars"), ("a mat", "a")], tokenizer=tokenizer)
    assert found.decoder_tokens[0] == ("[PAD]", "[CLS]", "star", "##s")
    shown = example_maps(found, 0, "cross", words=False)
    assert (shown.queries, shown.keys) == (["[PAD]", "[CLS]", "star", "##s"], ["[CLS]", "the", "cat", "sat", "[SEP]"])
    short = example_maps(found, 1, "cross", words=False)
    assert short.keys == ["[CLS]", "a", "mat", "[SEP]"]
    torch.testing.assert_close(short.maps.sum(-1), torch.ones(2, 2, len(short.queries)))
    with pytest.raises(DataError, match="several stacks: say which, stack='...', one of encoder, decoder, cross"):
        found.plot()
    assert len(found.plot("DL1H1").axes) == 2
    assert len(found.plot(stack="cross").axes) == 2
    with pytest.raises(DataError, match="the words are not known"):
        found.plot("XL1H1", words=True)


# Pictures.


def texts_of(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_a_head_is_drawn_with_its_tokens(maps: bt.AttentionMaps) -> None:
    for figure in (maps.plot("L1H2"), maps.plot((1, 2)), maps.plot(layer=1, head=2), maps.plot(head="L1H2")):
        axes = figure.axes[0]
        assert texts_of(axes.xaxis) == texts_of(axes.yaxis) == list(TOKENS[0])
        drawn = torch.tensor(axes.images[0].get_array().filled(float("nan")))
        torch.testing.assert_close(drawn, maps.values[1, 0, 2])
        assert axes.get_title() == "Attention of L1H2: “[CLS] stars purred on a mat [SEP]”\nBertModel, example 0 of 2"
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("to: key", "from: query")
    assert texts_of(maps.plot("L1H2", example=1).axes[0].xaxis) == ["[CLS]", "the", "cat", "[SEP]"]
    assert texts_of(maps.plot("L1H2", words=True).axes[0].yaxis)[1:3] == ["stars", "purred"]


def test_all_heads_are_drawn_with_the_first_layer_at_the_bottom(maps: bt.AttentionMaps) -> None:
    axes = maps.plot().axes[0]
    drawn = torch.tensor(axes.images[0].get_array().filled(float("nan")))
    assert drawn.shape == (2 * 9, 4 * 9)
    torch.testing.assert_close(drawn[9:, :9], maps.values[0, 0, 0])  # the image begins at the top
    torch.testing.assert_close(drawn[:9, 27:], maps.values[1, 0, 3])
    assert texts_of(axes.yaxis) == ["0", "1"]
    assert texts_of(axes.xaxis) == ["0", "1", "2", "3"]
    assert axes.get_ylim() == (-0.5, 1.5)


def test_a_layer_is_drawn_with_a_panel_for_each_head(maps: bt.AttentionMaps) -> None:
    panels = maps.plot(layer=1).axes[:4]
    assert [axes.get_title() for axes in panels] == ["L1H0", "L1H1", "L1H2", "L1H3"]
    assert len({axes.images[0].get_clim() for axes in panels}) == 1


def test_long_texts_have_fewer_labels_and_smaller_tiles(model: Any) -> None:
    torch.manual_seed(0)
    found = bt.attention_maps(model, {"input_ids": torch.randint(4, 40, (1, 200))})
    axes = found.plot("L0H1").axes[0]
    assert 40 < len(axes.get_xticks()) <= 200
    assert texts_of(axes.xaxis)[:2] in (["0", "1"], ["0", "2"], ["0", "3"])
    assert "200 positions" in axes.get_title()
    whole = torch.tensor(found.plot().axes[0].images[0].get_array().filled(float("nan")))
    assert whole.shape == (2 * 48, 4 * 48)
    assert whole.max() == found.values.max()


def test_what_cannot_be_drawn_is_refused(maps: bt.AttentionMaps) -> None:
    with pytest.raises(DataError, match="head=3 is the number of a head in a layer: say the layer too"):
        maps.plot(3)
    with pytest.raises(HeadError, match="layer 5 is out of range"):
        maps.plot(layer=5)
    with pytest.raises(HeadError, match="head 7 is out of range"):
        maps.plot("L0H7")
    with pytest.raises(DataError, match="example must be from 0 to 1, got -1"):
        maps.plot(example=-1)


# Tokens as strings.


def test_tokens_are_readable_strings() -> None:
    class Bytes:
        tokens = ("Ġkeys", "un", "Ġ", "åľ", "ĊĊ", "##s", "▁so", None)

        def convert_ids_to_tokens(self, number: int) -> str | None:
            return self.tokens[number]

        def convert_tokens_to_string(self, tokens: list[str]) -> str:
            read = {"Ġkeys": " keys", "Ġ": " ", "åľ": "\ufffd", "ĊĊ": "\n\n", "▁so": "so"}
            return read.get(tokens[0], tokens[0])

    ids = torch.arange(8)[None]
    (found,) = token_strings(Bytes(), ids, torch.ones(1, 8))
    assert found == (" keys", "un", " ", "åľ", "\n\n", "##s", " so", "<7>")
    assert [label_of(one) for one in found[:5]] == ["keys", "un", "␣", "åľ", "\\n\\n"]
    told = label_of("\r\n\x1b[2J\u2028\tend")
    assert told == r"\r\n\x1b[2J\u2028\tend"
    assert len(told.splitlines()) == 1
    assert word_strings((" un", "##like", "ly", "[SEP]"), (0, 0, 0, -1)) == ["unlikely", "[SEP]"]
    assert beginning(["The", " keys", " are", " here"], 7) == "The keys …"
    assert beginning(["The", " keys", " are"], 7) == "The keys are"  # nothing is cut for so little
    for tokens in (["the", "cat", "[SEP]"], ["The", " cat", " sat"], ["a" * 50], ["é"]):
        assert "…" not in beginning(tokens, len("".join(tokens)) + 2)
        assert "…" not in beginning(tokens, len("".join(tokens)) - 1)
    assert beginning(["a" * 50, "b"], 20) == f"{'a' * 20}…"
    assert beginning(["the", "key", "##s"], 40) == "the keys"
