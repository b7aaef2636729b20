import numpy as np
import pytest
import torch

from bertology import (
    GradientsAccumulator,
    PatternsAccumulator,
    accumulate,
    attention_entropy,
    attention_maps,
    attention_patterns,
    dissect,
)
from bertology.data.token_classes import TokenClasses
from bertology.errors import DataError
from helpers.zoo import BY_NAME, PAD, V4, batch, each_alone
from oracles import clark as oracles

CLASSES = {"low": list(range(3, 12)), "even": lambda batch: batch["input_ids"] % 2 == 0}


def members(inputs):
    ids = inputs["input_ids"]
    low, even = ids < 12, ids % 2 == 0
    return {"low": low, "even": even, "other": ~(low | even)}


def check(found, expected, name):
    for field in ("to", "within", "from_rest"):
        got = getattr(found, field)[..., found.classes.index(name)]
        torch.testing.assert_close(got, expected[field], atol=1e-9, rtol=0, equal_nan=True)


@pytest.mark.parametrize("average", ["query", "example"])
def test_equals_loops_over_the_maps(family, average):
    model, inputs = family.build(), batch((9, 4, 6))
    maps = attention_maps(model, inputs)
    found = attention_patterns(model, inputs, tokens=CLASSES, average=average)
    blocks = attention_patterns(model, inputs, tokens=CLASSES, average=average, rows=2)
    assert found.classes == ("low", "even", "other")
    for name, member in members(inputs).items():
        expected = oracles.class_attention(maps.values, maps.mask, member, average)
        check(found, expected, name)
        check(blocks, expected, name)
        expected["within"][0, 0] += 1e-6
        with pytest.raises(AssertionError):
            check(found, expected, name)


def test_the_mean_of_examples_is_the_mean_of_their_own_results(family):
    model, inputs = family.build(), batch((9, 4, 6))
    each = [attention_patterns(model, one, tokens=CLASSES) for one in each_alone(inputs)]
    found = attention_patterns(model, inputs, tokens=CLASSES, average="example")
    for name in ("previous", "confidence", "distance", "to", "sink"):
        mean = torch.stack([getattr(one, name) for one in each]).mean(0)
        torch.testing.assert_close(getattr(found, name), mean, atol=1e-6, rtol=0)
    entropies = torch.stack([attention_entropy(model, one).mean for one in each_alone(inputs)]).mean(0)
    torch.testing.assert_close(attention_entropy(model, inputs, average="example").mean, entropies, atol=1e-6, rtol=0)


def test_classes_that_share_out_all_tokens_share_out_all_attention(family):
    found = attention_patterns(family.build(), batch(), tokens={"low": list(range(12))})
    torch.testing.assert_close(found.to.sum(-1), torch.ones(2, 4, dtype=torch.float64), atol=1e-6, rtol=0)


def test_padding_and_its_side_do_not_matter():
    model = BY_NAME["llama"].build()
    left, right = (attention_patterns(model, batch(side=side), tokens=CLASSES) for side in ("left", "right"))
    padding = attention_patterns(model, batch(), tokens={"padding": [PAD]})
    for field in ("to", "within", "from_rest", "sink"):
        torch.testing.assert_close(getattr(left, field), getattr(right, field), atol=1e-6, rtol=0, equal_nan=True)
    assert padding.attention_to("padding").max() == 0
    assert padding.attention_to("padding", queries="same").isnan().all()


def test_closed_forms_of_uniform_attention():
    """METHODS: of a uniform head, #[SEP]/n goes to [SEP], whoever looks."""
    model, n = BY_NAME["bert"].build(), 8
    for site in dissect(model).sites:
        torch.nn.init.zeros_(site.query.weight), torch.nn.init.zeros_(site.query.bias)
    inputs = {"input_ids": torch.tensor([[2, 5, 6, 3, 8, 9, 10, 3]])}
    found = attention_patterns(model, inputs, tokens={"separator": 3}, average="example")
    for queries in ("all", "same", "rest"):
        torch.testing.assert_close(
            found.attention_to("separator", queries=queries), torch.full((2, 4), 2 / n, dtype=torch.float64)
        )


def test_sink_is_the_share_of_examples_above_the_threshold(family):
    model, inputs = family.build(), batch((9, 4, 6))
    firsts = torch.stack([attention_patterns(model, one).first for one in each_alone(inputs)])
    for threshold in (0.1, 0.3, 0.5):
        found = attention_patterns(model, inputs, sink_threshold=threshold)
        torch.testing.assert_close(found.sink, (firsts > threshold).double().mean(0))
    assert found.classes == ()
    assert found.to.shape == (2, 4, 0)


def test_entropy_of_the_first_token(family):
    for side in ("right", "left") if family.name == "llama" else ("right",):
        model, inputs = family.build(), batch(side=side)
        maps = attention_maps(model, inputs)
        firsts = maps.mask.int().argmax(1)
        weights = torch.stack([maps.values[:, b, :, first] for b, first in enumerate(firsts.tolist())])
        expected = torch.special.entr(weights).sum(-1).mean(0)
        for rows in (None, 1, 3):
            torch.testing.assert_close(attention_entropy(model, inputs, rows=rows).first, expected, atol=1e-9, rtol=0)


def test_strings_stand_for_all_tokens_that_read_so(minilm):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    classes = TokenClasses({"separator": "[SEP]", "punctuation": [".", ","]}, tokenizer)
    assert classes._ids["separator"].tolist() == [102]
    assert set(tokenizer.convert_ids_to_tokens(classes._ids["punctuation"].tolist())) == {".", ","}


def test_a_string_is_found_with_and_without_a_blank_before_it():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.BPE(vocab={".": 0, "Ġ.": 1, "Ġ": 2, "a": 3}, merges=[("Ġ", ".")]))
    plain.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain)
    assert TokenClasses({"stop": "."}, tokenizer)._ids["stop"].tolist() == [0, 1]


def test_encoder_decoders_know_their_decoder_s_tokens_when_given():
    import transformers

    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4)
    model = transformers.T5ForConditionalGeneration(config)
    inputs = {**batch(labels=False), "decoder_input_ids": torch.tensor([[5, 30]] * 3)}
    found = attention_patterns(model, inputs, tokens={"low": list(range(12))}).attention_to("low")
    assert not found[:2].isnan().any()
    assert found[2].isnan().all()
    assert (found[1] > 0.4).all()  # the first query sees the one low token only
    by_function = attention_patterns(model, inputs, tokens={"even": CLASSES["even"]}).attention_to("even")
    assert by_function[1:].isnan().all()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"a": "x"}, "class 'a' is given as strings: pass tokenizer= as well"),
        ({"other": [1]}, "the name 'other' is taken: it is the class of all tokens in none of the other classes"),
        ({"a": []}, "class 'a' must be token ids, strings or a function of the batch"),
        ({"a": [1, "x"]}, "class 'a' must be token ids, strings or a function of the batch"),
        ({"a": [True]}, "class 'a' must be token ids"),
        ({"a": 2.5}, r"class 'a' must be token ids.*, got 2.5: such as tokens=\{'a': \['.', ','\]\}"),
        ({"a": None}, "class 'a' must be token ids.*, got None"),
        (
            ["."],
            r"from the name of each class to its tokens, got \['.'\]: give the class a name, as in tokens=\{'my class'",
        ),
        (".", "give the class a name, as in tokens={'my class': '.'}"),
        ([], "from the name of each class to its tokens"),
        ({7: [5]}, r"the name of a class of tokens must be a string, got 7 \(int\)"),
        (
            {"a": lambda batch: batch["input_ids"]},
            r"must return a bool tensor \[batch, token\], got torch.int64 \[3, 7\]",
        ),
        (
            {"a": lambda batch: torch.ones(1, 7, dtype=bool)},
            r"must return one value per token, got \[1, 7\] for input_ids \[3, 7\]",
        ),
    ],
)
def test_classes_that_are_none(tokens, message):
    with pytest.raises(DataError, match=message):
        attention_patterns(BY_NAME["bert"].build(), batch(), tokens=tokens)


@pytest.mark.parametrize("tokens", [["."], {"a": 2.5}, {7: [5]}, {"a": "x"}])
def test_accumulators_refuse_them_at_once(tokens):
    for kind in (PatternsAccumulator, GradientsAccumulator):
        with pytest.raises(DataError, match="class"):
            kind(tokens=tokens)


def test_ids_of_numpy():
    model, inputs = BY_NAME["gpt2"].build(), batch()
    wanted = attention_patterns(model, inputs, tokens={"some": [5, 7]})
    for ids in (np.array([5, 7]), [np.int64(5), np.int32(7)], torch.tensor([5, 7])):
        assert attention_patterns(model, inputs, tokens={"some": ids}) == wanted


def test_other_errors(minilm):
    from transformers import AutoTokenizer

    model = BY_NAME["bert"].build()
    with pytest.raises(DataError, match="'xyzzyx' is not a token of this tokenizer"):
        attention_patterns(model, batch(), tokens={"a": "xyzzyx"}, tokenizer=AutoTokenizer.from_pretrained(minilm))
    with pytest.raises(DataError, match="average must be 'query' or 'example'"):
        attention_patterns(model, batch(), average="mean")
    with pytest.raises(DataError, match="no token class 'b': there are a, other"):
        attention_patterns(model, batch(), tokens={"a": [3]}).attention_to("b")
    with pytest.raises(DataError, match="queries must be one of 'all', 'same', 'rest'"):
        attention_patterns(model, batch(), tokens={"a": [3]}).attention_to("a", queries="some")
    embeds = {"inputs_embeds": torch.randn(1, 3, 16, dtype=torch.float64)}
    with pytest.raises(DataError, match="the batch has no input_ids: pass a function of the batch"):
        attention_patterns(model, embeds, tokens={"a": [3]})
    found = attention_patterns(model, embeds, tokens={"a": lambda batch: torch.tensor([[True, False, False]])})
    torch.testing.assert_close(found.attention_to("a"), found.first)


def test_long_inputs_padded_by_the_model_itself():
    import transformers

    if V4:
        pytest.skip("Longformer of transformers 4 needs other settings")
    config = transformers.LongformerConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        attention_window=4, max_position_embeddings=40, pad_token_id=1,
    )  # fmt: skip
    model = transformers.LongformerModel(config).eval()
    found = attention_patterns(model, batch((7, 4, 5), labels=False), tokens={"low": list(range(12))})
    torch.testing.assert_close(found.to.sum(-1), torch.ones(2, 4, dtype=torch.float64), atol=1e-5, rtol=0)


def test_a_checkpoint_of_other_classes_is_refused():
    one, other = PatternsAccumulator(tokens={"a": [3]}), PatternsAccumulator(tokens={"a": [4]})
    assert one.settings() != other.settings()


def test_merging_halves_and_saving(tmp_path):
    model, one, two = BY_NAME["bert"].build(), batch(), batch((3, 6))
    whole = accumulate(model, [one, two], PatternsAccumulator(tokens=CLASSES))[0]
    first, second = (PatternsAccumulator(tokens=CLASSES) for _ in range(2))
    accumulate(model, one, first), accumulate(model, two, second)
    torch.testing.assert_close(first.merge(second.state()).compute().within, whole.within)
    whole.save(tmp_path / "patterns")
    back = type(whole).load(tmp_path / "patterns")
    assert back.classes == whole.classes
    assert torch.equal(back.from_rest, whole.from_rest)
