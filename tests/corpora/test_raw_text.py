"""Sentences are read as they are written, by tokenizers that cut at blanks, at bytes and at neither."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bertology.corpora.raw_text import joined_text, spans_in_text
from bertology.errors import DataError
from bertology.syntax import Sentence, align, read_conllu

# (form, words of the form, whether a blank follows): oddities of Universal Dependencies, one or more each.
ENGLISH = [("don't", ["do", "n't"], True), ("can", ["can"], False), ("not", ["not"], False), (".", ["."], False)]
FRENCH = [("du", ["de", "le"], True), ("pain", ["pain"], False)]
CHINESE = [("我", ["我"], False), ("喜欢", ["喜欢"], False), ("猫", ["猫"], False), ("。", ["。"], False)]
THAI = [("แมว", ["แมว"], False), ("กิน", ["กิน"], False), ("ปลา", ["ปลา"], False)]
JAPANESE = [("猫", ["猫"], False), ("が", ["が"], False), ("鳴いた", ["鳴い", "た"], False)]
NUMBERS = [("10 000", ["10 000"], True), ("10\u00a0000", ["10\u00a0000"], True), ("1/2", ["1/2"], False)]
EMOJI = [("👩‍🔬", ["👩‍🔬"], False), ("👍🏽", ["👍🏽"], True), ("e\u0301te\u0301", ["e\u0301te\u0301"], False)]
HEBREW = [("בבית", ["ב", "בית"], True), ("_", ["_"], False), ("...", ["..."], False)]
SENTENCES = [ENGLISH, CHINESE, THAI, JAPANESE, NUMBERS, EMOJI, HEBREW]
CHARACTERS = sorted({c for one in [*SENTENCES, FRENCH] for form, _, _ in one for c in form if c != " "})


def bytes_of_text():
    vocab = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab={**vocab, "do": 256, "don": 257}, merges=[("d", "o"), ("do", "n")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def pieces_of_text(more=()):
    # Pieces that end inside a word of the tree, such as "don" of "do" and "n't", and one of two words: "can" "not".
    pieces = [(c, -5.0) for c in CHARACTERS] + [
        ("▁", -2.0),
        ("▁don", -1.0),
        ("cann", -1.0),
        ("喜欢", -1.0),
        *more,
        ("?", -9.0),
    ]
    made = Tokenizer(models.Unigram(list(dict(pieces).items()), unk_id=len(dict(pieces)) - 1))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def words_of_text():
    characters = {c: 3 + number for number, c in enumerate(CHARACTERS)}
    more = {f"##{c}": 500 + number for number, c in enumerate(CHARACTERS)}
    made = Tokenizer(models.WordPiece({"[UNK]": 0, **characters, **more, "don": 900}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


TOKENIZERS = [bytes_of_text, pieces_of_text, words_of_text]


def written(tokens):
    text = joined_text([(form, blank) for form, _, blank in tokens])
    words = tuple(word for _, some, _ in tokens for word in some)
    spans = spans_in_text(text, [(form, some) for form, some, _ in tokens])
    return Sentence(words, (0,) * len(words), ("dep",) * len(words), "one", text, spans)


def majority(sentence, start, end):
    """The slow twin: the word with most characters of a token, by counting."""
    shares = [len(set(range(start, end)) & set(range(*span))) for span in sentence.spans]
    return shares.index(max(shares)) if any(shares) else None


@pytest.mark.parametrize("make", TOKENIZERS)
@given(tokens=st.lists(st.sampled_from([token for one in SENTENCES for token in one]), min_size=1, max_size=6))
def test_tokens_belong_to_the_word_that_has_most_of_their_characters(make, tokens):
    sentence, tokenizer = written(tokens), make()
    offsets = tokenizer(sentence.text, return_offsets_mapping=True)["offset_mapping"]
    wanted = [majority(sentence, *span) for span in offsets]
    after = [next((w for w, span in enumerate(sentence.spans) if span[1] > start), None) for start, _ in offsets]
    wanted = tuple(later if one is None else one for one, later in zip(wanted, after, strict=True))
    if set(wanted) != set(range(len(sentence.words))):
        with pytest.raises(DataError, match="a word has no token"):
            align(tokenizer, [sentence], raw_text=True)
        return
    batch = next(iter(align(tokenizer, [sentence], raw_text=True)))
    assert batch["input_ids"][0].tolist() == tokenizer(sentence.text)["input_ids"]
    assert batch["annotations"][0].word_of == wanted


def test_the_model_reads_what_is_written():
    tokenizer = pieces_of_text()
    found, plain = (next(iter(align(tokenizer, [written(ENGLISH)], raw_text=raw))) for raw in (True, False))
    pieces = ["▁don", "'", "t", "▁", "cann", "o", "t", "."]
    assert tokenizer.convert_ids_to_tokens(found["input_ids"][0]) == pieces
    # "don" has two characters of "do" and one of "n't", "cann" three of "can"; the blank is part of the next word.
    assert found["annotations"][0].word_of == (0, 1, 1, 2, 2, 3, 3, 4)
    assert tokenizer.convert_ids_to_tokens(plain["input_ids"][0])[:5] == ["▁", "d", "o", "▁", "n"]


def test_a_token_may_belong_to_the_later_of_its_words():
    tokenizer = pieces_of_text([("annot", -0.5)])
    found = next(iter(align(tokenizer, [written(ENGLISH[1:])], raw_text=True)))
    assert tokenizer.convert_ids_to_tokens(found["input_ids"][0]) == ["▁", "c", "annot", "."]
    assert found["annotations"][0].word_of == (0, 0, 1, 2)


@pytest.mark.parametrize("make", TOKENIZERS)
def test_two_words_of_the_same_characters_leave_the_sentence_out(make):
    found = align(make(), [written(FRENCH[1:]), written(FRENCH)], raw_text=True)
    assert [(skip.name, skip.reason) for skip in found.skipped] == [("one", "a word has no token")]


@pytest.mark.parametrize(
    ("text", "tokens", "wanted"),
    [
        ("Go  home", [("Go", ["Go"]), ("home", ["home"])], ((0, 2), (4, 8))),
        ("\u00a0Go\u3000", [("Go", ["Go"])], ((1, 3),)),
        ("du pain", [("du", ["de", "le"]), ("pain", ["pain"])], ((0, 2), (0, 2), (3, 7))),
        ("can't", [("can't", ["ca", "n't"])], ((0, 2), (2, 5))),
        ("Go home", [("Go", ["Go"])], None),
        ("Go", [("Go", ["Go"]), ("home", ["home"])], None),
        ("Go", [("go", ["go"])], None),
        ("Go", [("", []), ("Go", ["Go"])], None),
    ],
)
def test_where_words_are_in_a_text(text, tokens, wanted):
    assert spans_in_text(text, tokens) == wanted


def test_sources_without_text_are_refused():
    with pytest.raises(DataError, match=r"Sentence 'bare' has none: use raw_text=False"):
        align(bytes_of_text(), [Sentence(("Birds",), (0,), ("root",), "bare")], raw_text=True)


@pytest.mark.parametrize("spans", [((0, 2), (3, 5)), ((0, 0),), ((1, 9),), ((-1, 2),)])
def test_spans_that_are_not_those_of_the_words_are_refused(spans):
    with pytest.raises(DataError, match="sentence 'odd'.*spans"):
        Sentence(("Birds",), (0,), ("root",), "odd", "Birds", spans)


CONLLU = """# sent_id = a
# text = I don't  know "it".
1\tI\t_\tX\t_\t_\t4\tdep\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\tSpacesAfter=\\s\\s
2\tdo\t_\tX\t_\t_\t4\tdep\t_\t_
3\tn't\t_\tX\t_\t_\t4\tdep\t_\t_
3.1\tempty\t_\tX\t_\t_\t4\tdep\t_\t_
4\tknow\t_\tX\t_\t_\t0\troot\t_\t_
5\t"\t_\tX\t_\t_\t4\tdep\t_\tSpaceAfter=No
6\tit\t_\tX\t_\t_\t4\tdep\t_\tLang=en|SpaceAfter=No
7\t"\t_\tX\t_\t_\t4\tdep\t_\tSpaceAfter=No
8\t.\t_\tX\t_\t_\t4\tdep\t_\t_

1-2\tdu\t_\t_\t_\t_\t_\t_\t_\t_
1\tde\t_\tX\t_\t_\t0\troot\t_\t_
2\tle\t_\tX\t_\t_\t1\tdep\t_\tSpaceAfter=No
3\t10 000\t_\tX\t_\t_\t1\tdep\t_\tSpaceAfter=No
4\t猫\t_\tX\t_\t_\t1\tdep\t_\t_

# text = This is of another sentence
1\tBirds\t_\tX\t_\t_\t0\troot\t_\t_
"""


def test_the_text_of_a_treebank(tmp_path):
    (tmp_path / "some.conllu").write_text(CONLLU, encoding="utf-8")
    first, second, third = read_conllu(tmp_path / "some.conllu")
    assert first.text == 'I don\'t  know "it".'
    assert [first.text[start:end] for start, end in first.spans] == ["I", "do", "n't", "know", '"', "it", '"', "."]
    assert second.text == "du 10 000猫"
    assert [second.text[start:end] for start, end in second.spans] == ["du", "du", "10 000", "猫"]
    assert (third.text, third.spans) == ("", ())
    assert first == Sentence(first.words, first.heads, first.relations, "a")


@pytest.mark.parametrize("numbers", ["2-9", "2-2"])
def test_multiword_tokens_of_words_that_are_not_there(tmp_path, numbers):
    """They are no words, so that the tree can be read; the text is not known."""
    (tmp_path / "some.conllu").write_text(CONLLU.replace("2-3\tdon't", f"{numbers}\tdon't"), encoding="utf-8")
    first = read_conllu(tmp_path / "some.conllu")[0]
    assert first.words == ("I", "do", "n't", "know", '"', "it", '"', ".")
    assert (first.text, first.spans) == ("", ())


def test_every_sentence_of_a_real_treebank_has_its_text(shared):
    treebank = read_conllu(shared / "ud" / "en_ewt-ud-dev.conllu")
    assert all(sentence.spans for sentence in treebank)
    split = [s for s in treebank if any(a[1] == b[0] for a, b in pairwise(s.spans))]
    assert len(split) > 1000  # words without a blank between them
    for sentence in treebank:
        for word, (start, end) in zip(sentence.words, sentence.spans, strict=True):
            assert word == sentence.text[start:end] or "'" in sentence.text, sentence
