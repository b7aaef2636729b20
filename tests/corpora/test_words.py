import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertology import attention_entropy, attention_maps, score
from bertology.corpora.words import WordMaps
from bertology.errors import DataError
from bertology.syntax import Aligned, Sentence, Skip, Treebank, align, dependency_heads, word_attention
from helpers.trees import CATS, WORDS, byte_tokenizer, sentence, wordpiece_tokenizer
from helpers.zoo import BY_NAME
from oracles import clark as oracles


def test_words_of_wordpieces():
    batches = align(wordpiece_tokenizer(), CATS, batch_size=2)
    found = {one.source.name: one for batch in batches for one in batch["annotations"]}
    assert len(batches) == 2
    assert found["second"].word_of == (-1, 0, 0, 1, 1, -1)
    assert found["second"].groups == (0, 1, 1, 2, 2, 3)
    assert found["second"].word_groups == [1, 2]
    assert found["second"].ends == (0, 3)
    assert found["fourth"].word_of[:3] == (-1, 0, -1)
    assert set(found["fourth"].word_of[3:]) <= {-2}
    for batch in batches:
        for one, mask in zip(batch["annotations"], batch["attention_mask"].tolist(), strict=True):
            assert [word != -2 for word in one.word_of] == [bool(real) for real in mask]
    assert str(batches) == "4 examples in 2 batches"


def test_words_of_a_byte_level_tokenizer_without_padding_token():
    batches = align(byte_tokenizer(), CATS, batch_size=4)
    one = next(a for a in next(iter(batches))["annotations"] if a.source.name == "first")
    tokens = ["th", "e", "Ġc", "at", "Ġs", "at", "Ġ", "o", "n", "Ġ", "a", "Ġm", "at"]
    assert one.word_of[: len(tokens)] == (0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5)
    assert one.ends == (None, None)


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9))
def test_every_token_belongs_to_the_word_that_it_spells(words):
    for tokenizer in (wordpiece_tokenizer(), byte_tokenizer()):
        batch = next(iter(align(tokenizer, [Sentence(tuple(words), (0,) * len(words), ("dep",) * len(words))])))
        tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
        spelt = [""] * len(words)
        for token, word in zip(tokens, batch["annotations"][0].word_of, strict=True):
            if word >= 0:
                spelt[word] += token.removeprefix("##").removeprefix("Ġ")
        assert spelt == words


def test_a_bare_blank_counts_to_the_word_behind_it():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.Unigram([("▁", -2.0), ("a", -1.0), ("b", -1.0), ("?", -9.0)], unk_id=3))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    batch = next(iter(align(PreTrainedTokenizerFast(tokenizer_object=made), [sentence("ab ba", [2, 0])])))
    assert batch["annotations"][0].word_of == (0, 0, 0, 1, 1, 1)


def test_what_does_not_fit_or_align_is_left_out_and_listed():
    long = sentence(" ".join(["cat"] * 40), [0] * 40, name="long")
    nothing = Sentence(("cat", "\u200b"), (0, 1), ("root", "dep"), "nothing")
    batches = align(wordpiece_tokenizer(), [*CATS, long, nothing])
    assert [(skip.name, skip.reason) for skip in batches.skipped] == [
        ("long", "longer than 32 tokens"),
        ("nothing", "a word has no token"),
    ]
    assert str(batches) == "4 examples in 1 batch; 1 skipped: longer than 32 tokens; 1 skipped: a word has no token"
    assert [s.name for s in align(wordpiece_tokenizer(), CATS, max_length=7).skipped] == ["first", "third"]
    with pytest.raises(DataError, match="none of 1 text can be used: longer than 32 tokens"):
        align(wordpiece_tokenizer(), [long])


def test_a_token_over_two_words_is_no_alignment():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"new york": 0, "city": 1, "[UNK]": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split("|", "removed")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
    with pytest.raises(DataError, match="a token spans several words"):
        align(tokenizer, [sentence("new york", [2, 0])])


def test_any_language(minilm):
    """The tokenizer strips accents and splits ideographs; a word keeps its tokens all the same."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    words = ("Überraschung", "日本語", "naïve", "Ελλάδα", "नमस्ते", "\N{GRINNING FACE}", "e\u0301te\u0301")
    batch = next(iter(align(tokenizer, [Sentence(words, (0,) + (1,) * 6, ("dep",) * 7)])))
    tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    told = [[t for t, w in zip(tokens, batch["annotations"][0].word_of, strict=True) if w == word] for word in range(7)]
    assert told == [tokenizer.tokenize(word) for word in words]


def test_slow_tokenizers_are_refused():
    with pytest.raises(
        DataError, match="object is a slow tokenizer, which does not return the characters of its tokens"
    ):
        align(object(), CATS)


@pytest.mark.parametrize("rows", ["mean", "first", "max"])
def test_equals_loops(family, rows):
    model, batch = family.build(), next(iter(align(wordpiece_tokenizer(), CATS)))
    maps = attention_maps(model, {k: v for k, v in batch.items() if k != "token_type_ids" or family.name == "bert"})
    for layer in maps.values:
        found = word_attention(layer, batch["annotations"], rows=rows)
        for example, one in enumerate(batch["annotations"]):
            torch.testing.assert_close(found[example].sum(-1), torch.ones(4, max(one.groups) + 1, dtype=torch.float64))
            for head in range(4):
                expected = torch.tensor(oracles.word_map(layer[example, head], list(one.groups), rows))
                torch.testing.assert_close(found[example][head], expected.double())
                expected[0, 0] += 1e-3
                with pytest.raises(AssertionError):
                    torch.testing.assert_close(found[example][head], expected.double())


def test_closed_form_and_no_split_words():
    """METHODS: A_word = M A S, and without split words A itself; the mean is not the first token's row."""
    torch.manual_seed(0)
    x = torch.rand(1, 2, 4, 4, dtype=torch.float64)
    x = x / x.sum(-1, keepdim=True)
    same = word_attention(x, [Aligned(None, (-1, 0, 1, -1))])[0]
    torch.testing.assert_close(same, x[0])
    s = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    m = torch.diag(1 / s.sum(0)) @ s.T
    split = [Aligned(None, (-1, 0, 0, -1))]
    torch.testing.assert_close(word_attention(x, split)[0], m @ x[0] @ s)
    assert not torch.allclose(word_attention(x, split)[0], word_attention(x, split, rows="first")[0])


def test_half_precision_is_summed_in_single():
    """Slip C4.6: maps kept in half precision lose 2e-4 of a row."""
    x = torch.full((1, 1, 64, 64), 1 / 64, dtype=torch.bfloat16)
    assert word_attention(x, [Aligned(None, (0,) * 32 + (1,) * 32)])[0].dtype == torch.float32


def test_what_the_rows_of_padding_hold_does_not_matter():
    x = torch.rand(1, 1, 4, 4)
    x[:, :, 3] = float("nan")
    aligned = [Aligned(None, (-1, 0, 1, -2))]
    torch.testing.assert_close(word_attention(x, aligned)[0], x[0, :, :3, :3])
    x[:, :, 2] = float("nan")
    with pytest.raises(DataError, match="attention weights are not finite"):
        word_attention(x, aligned)


@pytest.mark.parametrize("rows", ["mean", "first", "max"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_between_words_alone(rows, dtype):
    """Without special tokens, wherever they are, and 0 behind the words of a shorter text; prepared again for each layer."""
    aligned = [Aligned(None, (-1, 0, 0, 1, -1, 2, 2, -1)), Aligned(None, (0, -1, 1, 1, -2, -2, -2, -2))]
    words = WordMaps(aligned, rows)
    for heads in (3, 2):
        x = torch.rand(2, heads, 8, 8).to(dtype)
        x[1, :, 4:] = float("nan")
        found = words.between_words(x)
        assert found.shape == (2, heads, 3, 3)
        whole = word_attention(x, aligned, rows=rows)
        for one, own, groups in zip(aligned, whole, words.between_groups(x), strict=True):
            torch.testing.assert_close(own, groups)
            at, many = one.word_groups, len(one.word_groups)
            row = aligned.index(one)
            torch.testing.assert_close(found[row, :, :many, :many], own[:, at][:, :, at])
            assert not found[row, :, many:].any()
            assert not found[row, :, :, many:].any()
    x[0, 0, 4, 4] = float("inf")  # also between special tokens
    with pytest.raises(DataError, match="not finite"):
        words.between_words(x)


@pytest.mark.parametrize("rows", ["mean", "first", "max"])
def test_maps_without_heads_and_texts_without_words(rows):
    """They have attention between no words, and change nothing in the texts beside them."""
    aligned = [Aligned(None, (-1, -1, -2)), Aligned(None, (-2, -2, -2)), Aligned(None, (0, 0, 1))]
    x = torch.rand(3, 2, 3, 3)
    assert [list(one.shape) for one in word_attention(x, aligned, rows=rows)] == [[2, 2, 2], [2, 0, 0], [2, 2, 2]]
    assert [list(one.shape) for one in word_attention(x[:, :0], aligned, rows=rows)] == [
        [0, 2, 2],
        [0, 0, 0],
        [0, 2, 2],
    ]
    found = WordMaps(aligned, rows).between_words(x)
    assert not found[:2].any()
    torch.testing.assert_close(found[2], word_attention(x[2:], aligned[2:], rows=rows)[0])
    for heads in (2, 0):
        assert WordMaps(aligned[:1], rows).between_words(x[:1, :heads]).shape == (1, heads, 0, 0)


def test_what_was_left_out_in_reading_stays_listed():
    broken = Treebank(tuple(CATS), (Skip("five", "no tree"),))
    assert align(wordpiece_tokenizer(), broken, max_length=7).skipped[0] == Skip("five", "no tree")
    assert dependency_heads(BY_NAME["bert"].build(), align(wordpiece_tokenizer(), broken)).skipped == 1


def test_errors_of_maps():
    with pytest.raises(DataError, match="batch_size must be 1 or more, got 0"):
        align(wordpiece_tokenizer(), CATS, batch_size=0)
    with pytest.raises(DataError, match="over the 2 tokens of 1 example, got maps of 2 examples, 3 queries and 3 keys"):
        word_attention(torch.rand(2, 1, 3, 3), [Aligned(None, (0, 1))])
    with pytest.raises(DataError, match="rows must be 'mean', 'first' or 'max', got 'last'"):
        word_attention(torch.rand(1, 1, 2, 2), [Aligned(None, (0, 1))], rows="last")


def test_annotations_do_not_reach_the_model_and_are_checked():
    model, batches = BY_NAME["bert"].build(), align(wordpiece_tokenizer(), CATS)
    assert attention_entropy(model, batches).queries.tolist() == [sum(b["attention_mask"].sum() for b in batches)] * 2
    labelled = [{**batch, "labels": torch.zeros(len(batch["annotations"]), dtype=torch.long)} for batch in batches]
    assert score(model, labelled, metric="accuracy").examples == 4
    with pytest.raises(DataError, match="annotations must have one entry per example, got 1 entry for 4 examples"):
        attention_entropy(model, {**next(iter(batches)), "annotations": [None]})
