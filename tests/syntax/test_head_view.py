"""What one head does in one sentence: the view, its pictures and its HTML."""

import re

import pytest
import torch

from bertology import Head, Result, attention_maps, prune_heads
from bertology.errors import DataError, HeadError
from bertology.syntax import Sentence, align
from bertology.syntax.head_view import Arc, HeadView, show_head
from helpers.head_views import HEADS, RELATIONS, Tags, view
from helpers.zoo import BY_NAME
from oracles import views as oracles


@pytest.fixture(scope="module")
def tokenizer(minilm):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm, model_input_names=["input_ids", "attention_mask"])


@pytest.fixture(scope="module")
def sentence():
    return Sentence(
        ("Those", "warblers", "warble", "melodies", "."),
        (2, 3, 0, 3, 3),
        ("det", "nsubj", "root", "obj", "punct"),
    )


@pytest.fixture
def model(tokenizer):
    return BY_NAME["bert"].build(vocab_size=len(tokenizer))


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("direction", ["from dependent", "from head"])
def test_a_view_equals_loops_over_the_map(model, tokenizer, sentence, direction, special):
    found = show_head(model, tokenizer, sentence, (1, 2), direction=direction, special=special)
    batch = next(iter(align(tokenizer, [sentence])))
    aligned = batch.pop("annotations")[0]
    assert max(aligned.groups) + 1 < len(aligned.groups), "a word is to be split"
    whole = torch.tensor(oracles.word_map(attention_maps(model, batch).values[1, 0, 2].tolist(), aligned.groups))
    words = whole[1:-1, 1:-1]
    expected = whole if special else words
    torch.testing.assert_close(found.weights, expected.double(), atol=1e-6, rtol=0)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found.weights, expected.T.double(), atol=1e-6, rtol=0)
    right = oracles.arcs_right(words.tolist(), sentence.heads, direction == "from dependent")
    start = int(special)
    assert {arc.dependent - start: arc.right for arc in found.arcs} == right
    assert [arc.head - start + 1 for arc in found.arcs] == [head for head in sentence.heads if head]
    assert found.words == (("[CLS]", *sentence.words, "[SEP]") if special else sentence.words)
    assert found.special == ((0, 6) if special else ())
    assert (found.name, found.direction) == ("L1H2", direction)


def test_the_head_that_is_asked_for(model, tokenizer, sentence):
    prune_heads(model, {1: [0]})
    left = show_head(model, tokenizer, sentence, Head(1, 2))
    torch.testing.assert_close(left.weights, show_head(model, tokenizer, sentence, (1, 2)).weights)
    maps = attention_maps(
        model, {k: v for k, v in next(iter(align(tokenizer, [sentence]))).items() if k != "annotations"}
    )
    assert left.weights[0, 0].item() == pytest.approx(maps.values[1, 0, 2, 1, 1].item(), abs=1e-6)
    with pytest.raises(HeadError, match="head L1H0 was pruned before"):
        show_head(model, tokenizer, sentence, (1, 0))
    with pytest.raises(HeadError, match="layer 7 is out of range"):
        show_head(model, tokenizer, sentence, (7, 0))
    first = show_head(model, tokenizer, sentence, (0, 1), rows="first").weights
    assert (first - show_head(model, tokenizer, sentence, (0, 1)).weights).abs().max() > 1e-3


def test_words_without_a_tree(model, tokenizer):
    class Plain:
        words, name = ("Birds", "warble"), "two"

    found = show_head(model, tokenizer, Plain(), (0, 0))
    assert (found.heads, found.arcs, found.title) == ((), [], "L0H0")
    assert [text.get_text() for text in found.plot().axes[0].get_legend().get_texts()] == [
        "attention; the width is its weight"
    ]
    assert "gold" not in re.sub("<style>.*</style>", "", found.html(), flags=re.DOTALL)


def test_stacks_that_read_another_text(tokenizer, sentence):
    import transformers

    config = transformers.BartConfig(
        vocab_size=len(tokenizer), d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, pad_token_id=0, eos_token_id=2,
        decoder_start_token_id=2,
    )  # fmt: skip
    model = transformers.BartModel(config).eval()
    assert show_head(model, tokenizer, sentence, Head(0, 1, "encoder")).name == "EL0H1"
    for stack, name in (("decoder", "DL0H1"), ("cross", "XL0H1")):
        with pytest.raises(DataError, match=f"{name} does not attend from the text's tokens to themselves"):
            show_head(model, tokenizer, sentence, Head(0, 1, stack))


def test_a_decoder_looks_back(tokenizer, sentence):
    found = show_head(BY_NAME["llama"].build(vocab_size=len(tokenizer)), tokenizer, sentence, (0, 0))
    assert (found.weights.triu(1) == 0).all()


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("direction", ["from dependent", "from head"])
def test_arcs_of_a_view_made_by_hand(direction, special):
    shown, start = view(direction, special), int(special)
    assert shown.title == f"L4H2: 3 of 7 arcs right, {direction}"
    assert shown.arcs == [
        Arc(word + start, head - 1 + start, relation, word in (0, 1, 4))
        for word, (head, relation) in enumerate(zip(HEADS, RELATIONS, strict=True))
        if head
    ]
    lines = shown.lines()
    assert [line.weight for line in lines] == sorted(line.weight for line in lines)
    assert sum(line.right for line in lines) == 3
    if not special:
        assert len(lines) == 6


def test_what_is_right_is_shown_however_small():
    lines = view().lines(0.45)
    assert [(line.weight, line.right) for line in lines] == [
        (0.2, True), (0.4, True), (0.5, False), (0.6, False), (0.65, True),
    ]  # fmt: skip


def test_views_are_kept(tmp_path):
    view(special=True).save(tmp_path / "view.safetensors")
    found = Result.load(tmp_path / "view.safetensors")
    assert isinstance(found, HeadView)
    assert found.html() == view(special=True).html()
    assert found.arcs == view(special=True).arcs


def test_errors_of_a_sentence(model, tokenizer):
    with pytest.raises(DataError, match="none of 1 text can be used: a word has no token"):
        show_head(model, tokenizer, Sentence(("Yes", "\u200b"), (0, 1), ("root", "punct")), (0, 0))


@pytest.mark.shared
def test_a_head_of_a_real_model(minilm, shared):
    """A head's arcs that are right are those that `dependency_heads` counts."""
    from transformers import AutoModel, AutoTokenizer

    from bertology.syntax import dependency_heads, read_conllu

    model, tokenizer = AutoModel.from_pretrained(minilm), AutoTokenizer.from_pretrained(minilm)
    some = read_conllu(shared / "ud" / "en_ewt-ud-dev.conllu")[:4]
    counted = dependency_heads(model, align(tokenizer, some)).right.sum(0)
    for number, direction in enumerate(("from dependent", "from head")):
        right = 0
        for one in some:
            shown = show_head(model, tokenizer, one, (2, 1), direction=direction)
            assert len(Tags(shown.html()).found) > len(one.words)
            right += sum(arc.right for arc in shown.arcs)
        assert right == counted[number, 2, 1]
