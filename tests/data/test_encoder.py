"""Token ids, padding and labels of texts, for models that differ in what they take."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch.utils.data import DataLoader

import bertology as bt
from bertology import make_batches
from bertology.errors import DataError
from helpers.trees import wordpiece_tokenizer

SMALL = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
TEXTS = ["the cat sat on a mat", "sat"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return wordpiece_tokenizer()


def without_padding(tokenizer: Any, side: str = "right") -> Any:
    made = copy.deepcopy(tokenizer)
    made.pad_token = None
    made.padding_side = side
    return made


def gpt2(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return getattr(transformers, kind)(transformers.GPT2Config(**SMALL, **ends, **more)).eval()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_decoder_without_a_padding_token_is_measured_as_text_by_text(side: str, tokenizer: Any) -> None:
    own = without_padding(tokenizer, side)
    before = repr(own), own.special_tokens_map
    model = gpt2("GPT2LMHeadModel")
    found = bt.hidden_states(model, TEXTS, tokenizer=own)
    for example, text in enumerate(TEXTS):
        alone = bt.hidden_states(model, text, tokenizer=own).values[:, 0]
        of_batch = found.values[:, example][:, found.mask[example]]
        torch.testing.assert_close(of_batch, alone, rtol=1e-4, atol=1e-5)
    assert (repr(own), own.special_tokens_map) == before
    assert found.mask[1].tolist() == ([True] * 3 + [False] * 5)[:: 1 if side == "right" else -1]


def test_texts_are_their_own_labels_for_causal_models_alone(tokenizer: Any) -> None:
    model = gpt2("GPT2LMHeadModel")
    (batch,) = make_batches(TEXTS, tokenizer, model=model)
    assert batch["labels"][1].tolist() == [*tokenizer("sat")["input_ids"], *[-100] * 5]
    assert torch.equal(batch["labels"][0], batch["input_ids"][0])
    by_hand = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": batch["labels"]}
    wanted = bt.head_importance(model, by_hand)
    assert bt.head_importance(model, TEXTS, tokenizer=tokenizer).allclose(wanted, rtol=1e-5, atol=1e-8)
    assert "labels" not in next(iter(make_batches(TEXTS, tokenizer)))
    assert "labels" not in next(iter(make_batches(TEXTS, tokenizer, model=gpt2("GPT2Model"))))


def test_a_classifier_without_a_padding_token_gets_texts_one_by_one(tokenizer: Any) -> None:
    model = gpt2("GPT2ForSequenceClassification", num_labels=2, pad_token_id=None)
    batches = list(make_batches((TEXTS, [0, 1]), without_padding(tokenizer), model=model))
    assert [len(batch["input_ids"]) for batch in batches] == [1, 1]
    found = bt.head_importance(model, (TEXTS, [0, 1]), tokenizer=without_padding(tokenizer))
    assert found.examples == 2


def test_padding_is_the_token_by_which_a_classifier_knows_it(tokenizer: Any) -> None:
    model = gpt2("GPT2ForSequenceClassification", num_labels=2, pad_token_id=39)
    (batch,) = make_batches((TEXTS, [0, 1]), tokenizer, model=model)
    assert batch["input_ids"][1, 3:].tolist() == [39] * 5
    with torch.no_grad():
        alone = model(**tokenizer("sat", return_tensors="pt")).logits
        together = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


def test_arguments_that_a_model_does_not_take_are_left_out(tokenizer: Any) -> None:
    segmented = copy.deepcopy(tokenizer)
    segmented.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    config = transformers.DistilBertConfig(vocab_size=40, dim=16, hidden_dim=16, n_layers=1, n_heads=2)
    model = transformers.DistilBertModel(config).eval()
    assert bt.attention_maps(model, TEXTS, tokenizer=segmented) == bt.attention_maps(model, TEXTS, tokenizer=tokenizer)
    rows = [{**dict(segmented(text)), "idx": 3, "title": "no argument"} for text in TEXTS]
    (batch,) = make_batches(rows, segmented, model=model)
    assert set(batch) - {"token_type_ids"} == {"input_ids", "attention_mask"}


def test_an_encoder_decoder_writes_the_text_of_its_labels(tokenizer: Any) -> None:
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    loader = DataLoader([("the cat", "sat"), ("a mat", "cat")], batch_size=2)  # type: ignore[arg-type]
    for data in ([("the cat", "sat"), ("a mat", "cat")], (["the cat", "a mat"], ["sat", "cat"]), loader):
        (batch,) = make_batches(data, tokenizer, model=model, sort=False)
        assert batch["input_ids"][0].tolist() == tokenizer("the cat")["input_ids"]
        assert batch["labels"][0].tolist() == tokenizer("sat")["input_ids"]
    for data in ([("the cat", "sat"), ("sat", "the cat sat")], [{"text": "the cat", "label": "sat"}] * 2):
        (batch,) = make_batches(data, tokenizer, model=model)
        assert sorted(tokenizer("sat")["input_ids"]) in [sorted(x[x >= 0].tolist()) for x in batch["labels"]]
    assert batch["labels"].shape == (2, 3)
    assert bt.attention_maps(model, [("the cat", "sat")], tokenizer=tokenizer).stacks["decoder"].shape[-1] == 3
    with pytest.raises(DataError, match="an encoder-decoder needs decoder_input_ids, or labels"):
        bt.attention_maps(model, "the cat", tokenizer=tokenizer)


def test_labels_of_every_kind(tokenizer: Any) -> None:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)

    def labels(given: Any, kind: Any = model) -> Any:
        return next(iter(make_batches((TEXTS, given), tokenizer, model=kind)))["labels"]

    assert labels([1, 0]).tolist() == [1, 0]
    assert labels([True, False]).dtype == torch.int64
    assert labels([0.5, 2]).dtype == torch.float32
    assert labels(["good", "bad"]).tolist() == [1, 0]
    assert labels([[0, 1], [1, 1]]).dtype == torch.float32
    with pytest.raises(DataError, match="'fine' is no class of the model, which has 'bad', 'good'"):
        labels(["good", "fine"])
    with pytest.raises(DataError, match="a number for each label"):
        labels([[0, 1], [1]])
    rows = [{"input_ids": [5, 6, 7], "labels": [1, 0, 1]}, {"input_ids": [5], "labels": [1]}]
    tagger = transformers.BertForTokenClassification(config)
    (batch,) = make_batches(rows, tokenizer, model=tagger)
    assert batch["labels"].tolist() == [[1, 0, 1], [1, -100, -100]]
    with pytest.raises(DataError, match="has 3 tokens and 1 label. Align them first"):
        make_batches([("sat", [1])], tokenizer, model=tagger)


def test_a_tokenizer_without_its_files_is_named() -> None:
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=empty_tokenizer(), eos_token="<|end|>")
    with pytest.raises(DataError, match=r"knows 1 token, .*loaded from a folder without the files"):
        make_batches(["a cat"], bare)


def empty_tokenizer() -> Any:
    """What transformers makes of a folder without the files of a tokenizer."""
    from tokenizers import Tokenizer, models

    return Tokenizer(models.BPE())


def test_a_column_without_a_text_is_named() -> None:
    with pytest.raises(DataError, match="example 0 .* the column 'text' must hold a text, got None"):
        make_batches([{"text": None, "label": 1}], wordpiece_tokenizer())
