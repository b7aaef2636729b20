import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertology import attention_maps
from bertology.code_structure import AlignedCode, Snippets, align_code, parse_code, read_code
from bertology.errors import DataError
from bertology.syntax import Skip
from helpers.trees import wordpiece_tokenizer
from helpers.zoo import BY_NAME
from oracles import code as oracles

LANGUAGES = ["go", "java", "javascript", "python"]
LINES = [
    "def f(x, y):\n    return x[y](f)  # näh",
    'naïve = "數 é e\u0301 😀"',
    "數 = f(naïve, (x + 1))",
    "if x:\n        y()\n        z = ''",
]


@functools.cache
def byte_tokenizer(special=False):
    """As GPT-2's, or RoBERTa's: trained on a few lines, so that some of its tokens reach over several leaves."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    made.train_from_iterator(["return self.x[y](f):\n        x()\n        y(f(x))"] * 9, trainer)
    if not special:
        return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=256)
    made.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="session")
def uncased(minilm):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm)


def check_against_characters(tokenizer, tree, kind):
    one = align_code(tokenizer, [tree], max_length=100_000).examples[0]
    leaf_of, across = oracles.leaves_of_tokens(tokenizer, tree, kind)
    assert list(one.leaf_of) == leaf_of
    assert one.across == across
    return one


@pytest.mark.shared
@pytest.mark.parametrize("language", LANGUAGES)
def test_equal_to_following_characters_on_real_functions(shared, uncased, language):
    across = 0
    for tree in read_code(shared / "code" / f"{language}.jsonl")[3::30]:
        check_against_characters(uncased, tree, "wordpieces")
        for special in (False, True):
            across += check_against_characters(byte_tokenizer(special), tree, "bytes").across
    assert across > 0


@given(lines=st.lists(st.sampled_from(LINES), min_size=1, max_size=4))
@settings(max_examples=25)
def test_equal_to_following_characters_on_any_text(uncased, lines):
    tree = parse_code("\n".join(lines), "python")
    for special in (False, True):
        check_against_characters(byte_tokenizer(special), tree, "bytes")
    check_against_characters(uncased, tree, "wordpieces")


def test_the_twin_sees_a_shift(uncased):
    tree = parse_code(LINES[1], "python")
    shifted = AlignedCode(tree, tuple(leaf + 1 for leaf in align_code(uncased, [tree]).examples[0].leaf_of))
    assert list(shifted.leaf_of) != oracles.leaves_of_tokens(uncased, tree, "wordpieces")[0]


def test_wordpieces(uncased):
    """Upper case, accents, a comment, and an identifier that is part of another (METHODS D4.3: no substring search)."""
    tree = parse_code("data = A + á  # data", "python")
    batches = align_code(uncased, [tree])
    one = batches.examples[0]
    assert tree.texts == ("data", "=", "A", "+", "á")
    tokens = uncased.convert_ids_to_tokens(next(iter(batches))["input_ids"][0])
    assert tokens == ["[CLS]", "data", "=", "a", "+", "a", "#", "data", "[SEP]"]
    assert one.leaf_of == (-1, 0, 1, 2, 3, 4, -3, -3, -1)
    assert one.covered == (0, 1, 2, 3, 4)
    assert batches.counts == {"tokens": 9, "special": 2, "outside": 2, "across": 0, "leaves": 5, "bare": 0}


def test_special_tokens_in_the_text_are_text(uncased):
    """Code that quotes [SEP] becomes a token [SEP], which is none of those around the text."""
    tree = parse_code("x = '[SEP]'; y[SEP]", "python")
    batches = align_code(uncased, [tree])
    tokens = uncased.convert_ids_to_tokens(next(iter(batches))["input_ids"][0])
    assert tokens.count("[SEP]") == 3
    assert batches.counts["special"] == 2
    assert batches.counts["across"] == 1  # the brackets and the name of y[SEP] are leaves of their own


def test_leaves_without_tokens_are_counted(uncased):
    tree = parse_code('f(" ")', "javascript")
    batches = align_code(uncased, [tree])
    assert batches.examples[0].covered == (0, 1, 2, 4, 5)
    assert batches.counts["bare"] == 1
    assert str(batches) == (
        "1 example in 1 batch; 7 tokens, of them 2 special, 0 in no leaf, 0 over several leaves; "
        "6 leaves, of them 1 without a token"
    )


def test_blanks_and_tokens_over_several_leaves():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"f": 0, "()": 1, " ": 2, ";\n": 3, ' "': 4, "a b": 5, '"': 6, "=": 7}))
    made.pre_tokenizer = pre_tokenizers.Split(__import__("tokenizers").Regex(r'\(\)|;\n| "|a b|.'), "isolated")
    tree = parse_code('f =f();\nf = "a b"', "python")
    one = align_code(PreTrainedTokenizerFast(tokenizer_object=made), [tree]).examples[0]
    #                        f   " " = f  () ;\n f   " " = ' "' a b "
    assert tree.texts == ("f", "=", "f", "(", ")", ";", "f", "=", '"', "a b", '"')
    assert one.leaf_of == (0, -3, 1, 2, 3, 5, 6, -3, 7, 8, 9, 10)
    assert one.across == 1


def test_batches_are_padded_and_a_model_takes_them():
    trees = [parse_code(code, "python", name=code) for code in ("x = f(x)", "x", "x = 1")]
    batches = align_code(byte_tokenizer(), trees, batch_size=2)
    assert len(batches) == 2
    assert [one.tree.name for one in batches.examples] == ["x", "x = 1", "x = f(x)"]
    first = next(iter(batches))
    for one, mask in zip(first["annotations"], first["attention_mask"].tolist(), strict=True):
        assert [leaf != -2 for leaf in one.leaf_of] == [bool(real) for real in mask]
    assert first["annotations"][0].leaf_of == (0, *[-2] * (first["input_ids"].shape[1] - 1))
    assert batches.counts["tokens"] == sum(int(batch["attention_mask"].sum()) for batch in batches)
    small = {**first, "input_ids": first["input_ids"] % 40}
    maps = attention_maps(BY_NAME["gpt2"].build(), {k: x for k, x in small.items() if k != "token_type_ids"})
    assert torch.stack(list(maps.values)).shape[-1] == len(first["annotations"][0].leaf_of)


def test_what_is_too_long_is_left_out_and_counted():
    trees = [parse_code(f"{'a = ' * n}1", "python", name=f"{n}") for n in (1, 40, 60)]
    snippets = Snippets(tuple(trees), (Skip("empty", "no code"),))
    batches = align_code(byte_tokenizer(), snippets, max_length=20)
    assert batches.skipped == (
        Skip("empty", "no code"),
        Skip("40", "longer than 20 tokens"),
        Skip("60", "longer than 20 tokens"),
    )
    assert str(batches).endswith("; 1 skipped: no code; 2 skipped: longer than 20 tokens")
    assert not align_code(byte_tokenizer(), trees).skipped  # by the tokenizer's own limit
    longest = max(len(one.leaf_of) for one in align_code(byte_tokenizer(), trees).examples)
    assert not align_code(byte_tokenizer(), trees, max_length=longest).skipped
    assert len(align_code(byte_tokenizer(), trees, max_length=longest - 1).skipped) == 1
    with pytest.raises(DataError, match="none of 3 pieces of code can be used: longer than 1 token, no code"):
        align_code(byte_tokenizer(), snippets, max_length=1)


def test_code_without_tokens_is_left_out(uncased):
    batches = align_code(uncased, [parse_code("x", "python"), parse_code("'\u200b'", "python")])
    assert not batches.skipped
    with pytest.raises(DataError, match="can be used: no leaf has a token"):
        align_code(wordpiece_without_quotes(), [parse_code("x", "python", name="lone")])


def wordpiece_without_quotes():
    """A tokenizer whose normalizer drops the letter x."""
    from tokenizers import normalizers

    tokenizer = wordpiece_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    return tokenizer


def test_arguments(uncased):
    tree = parse_code("x", "python")
    with pytest.raises(
        DataError, match="object is a slow tokenizer, which does not return the characters of its tokens"
    ):
        align_code(object(), [tree])
    with pytest.raises(DataError, match="batch_size must be 1 or more, got 0"):
        align_code(uncased, [tree], batch_size=0)
    with pytest.raises(DataError, match="none of 0 pieces of code can be used$"):
        align_code(uncased, [])


@pytest.mark.parametrize("given", [parse_code("x = 1", "python"), ["x = 1"]])
def test_what_is_no_list_of_trees_is_refused(given):
    with pytest.raises(DataError, match="trees must be a list of trees from parse_code, or snippets from read_code"):
        align_code(None, given)
