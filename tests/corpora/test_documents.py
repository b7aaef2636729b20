from collections import Counter

import pytest

from bertology.corpora.documents import Document, Documents, Mention, pieces
from bertology.corpora.words import align
from bertology.errors import DataError
from helpers.coreference_files import spans
from helpers.trees import wordpiece_tokenizer
from oracles import coreference as oracles


def test_what_is_no_mention_and_no_document():
    for fields, message in (
        ((2, 2, 2, 1, "proper"), "a mention must end after its start, got start 2 and end 2"),
        ((1, 3, 3, 1, "proper"), "the head of a mention must be one of its words, from 1 to 2, got 3"),
        ((1, 3, 1, 1, "verb"), "the kind of a mention must be one of pronoun, proper, nominal, got 'verb'"),
    ):
        with pytest.raises(DataError, match=message):
            Mention(*fields)
    words, mention = ("the", "cat"), Mention(0, 2, 1, 1, "nominal")
    for options, message in (
        ({"words": ()}, "document 'x' has no words"),
        ({"words": ("cat",)}, "document 'x' has 1 word, but a mention goes from word 0 to 2"),
        ({"mentions": (mention, mention)}, r"document 'x' has the mention of the words \(0, 2\) twice"),
        ({"tags": ("DT",)}, "document 'x' has 2 words and 1 tag: wanted one per word"),
        (
            {"sentences": (1,)},
            r"document 'x': the starts of sentences must increase from 0 and be less than 2, got \(1,\)",
        ),
        (
            {"sentences": (0, 2)},
            r"document 'x': the starts of sentences must increase from 0 and be less than 2, got \(0, 2\)",
        ),
        ({"sentences": (0, 1, 1)}, "the starts of sentences must increase from 0"),
        ({"targets": (1,)}, "document 'x' has 1 mention, counted from 0: there is no mention 1"),
    ):
        with pytest.raises(DataError, match=message):
            Document(**{"words": words, "mentions": (mention,), "name": "x", **options})


def texts(documents):
    return [" ".join(document.words) for document in documents]


CATS = Document(
    ("the", "cat", "sat", "on", "a", "mat", "and", "the", "cat", "purred", "under", "the", "stars"),
    (Mention(0, 2, 1, 1, "nominal"), Mention(4, 6, 5, 2, "nominal"), Mention(5, 8, 7, 3, "nominal"),
     Mention(7, 9, 8, 1, "nominal"), Mention(11, 13, 12, 2, "pronoun")),
    "cats", tags=tuple("abcdefghijklm"), sentences=(0, 3, 6, 10), targets=(1, 4),
)  # fmt: skip


def test_pieces_end_with_sentences():
    found = pieces(wordpiece_tokenizer(), [CATS], max_length=9)  # seven words, or fewer where words are split
    assert texts(found) == ["the cat sat on a mat", "and the cat purred", "under the stars"]
    assert [piece.sentences for piece in found] == [(0, 3), (0,), (0,)]
    assert found[1].tags == tuple("ghij")
    assert found[1].name == "cats [6:10]"
    assert [spans(piece) for piece in found] == [[("the cat", 1), ("a mat", 2)], [("the cat", 1)], [("the stars", 2)]]
    assert [piece.targets for piece in found] == [(1,), (), (0,)]
    assert (found.cut_through, found.beyond, found.mentions) == (1, 0, 4)
    assert str(found) == "3 documents, 4 mentions; 1 mention cut through"


def test_pieces_end_with_words():
    found = pieces(wordpiece_tokenizer(), [CATS], max_length=9, at="word")
    assert texts(found) == ["the cat sat on a mat and", "the cat purred under the", "stars"]
    assert [piece.sentences for piece in found] == [(0, 3, 6), (0, 3), (0,)]
    assert found.cut_through == 2
    assert [len(p.mentions) for p in found] == [2, 1, 0]


def test_first_pieces():
    found = pieces(wordpiece_tokenizer(), [CATS, CATS], max_length=9, first_only=True)
    assert texts(found) == ["the cat sat on a mat"] * 2
    assert (found.cut_through, found.beyond, found.mentions) == (2, 4, 4)
    assert "4 mentions after the first piece" in str(found)


def test_what_fits_stays_as_it_is():
    found = pieces(wordpiece_tokenizer(), [CATS], max_length=30)
    assert found[0] is CATS
    again = pieces(wordpiece_tokenizer(), pieces(wordpiece_tokenizer(), [CATS], max_length=9), max_length=30)
    assert again.cut_through == 1  # what was lost before is still told


@pytest.mark.parametrize("at", ["sentence", "word"])
@pytest.mark.parametrize("length", [4, 5, 7, 12])
def test_nothing_is_lost_without_a_word(at, length):
    documents = oracles.random_documents(40, 3)
    found = pieces(wordpiece_tokenizer(), documents, max_length=length, at=at)
    assert sum(len(d.words) for d in found) == sum(len(d.words) for d in documents)
    assert sum(len(d.mentions) for d in documents) == found.mentions + found.cut_through
    assert found.cut_through > 0
    assert not align(wordpiece_tokenizer(), list(found), max_length=length).skipped
    whole = Counter(span for d in documents for span in spans(d))
    assert not Counter(span for d in found for span in spans(d)) - whole
    heads = {(d.words[m.head], m.cluster, m.kind) for d in documents for m in d.mentions}
    assert {(d.words[m.head], m.cluster, m.kind) for d in found for m in d.mentions} <= heads


def test_words_longer_than_a_piece_are_told():
    found = pieces(wordpiece_tokenizer(), [CATS], max_length=3)
    assert [(s.name, s.reason) for s in found.skipped] == [
        (f"cats, word {n}", "a word is longer than a piece") for n in (9, 10, 12)
    ]
    assert len(found) == 10
    assert found.cut_through == 5
    with pytest.raises(DataError, match="max_length=2 has room only for special tokens: pass a larger one"):
        pieces(wordpiece_tokenizer(), [CATS], max_length=2)
    with pytest.raises(DataError, match="at must be 'sentence' or 'word', got 'line'"):
        pieces(wordpiece_tokenizer(), [CATS], at="line")


def test_documents_are_a_sequence():
    some = Documents((CATS, CATS))
    assert some[1] is CATS
    assert isinstance(some[:1], Documents)
    assert len(some[:1]) == 1
    assert str(some) == "2 documents, 10 mentions"
