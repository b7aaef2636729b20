import pytest
import torch

from bertology.corpora.documents import Document, Mention
from bertology.corpora.words import align
from bertology.syntax.antecedents import antecedent_baselines, picks_of, questions
from bertology.syntax.coreference import coreference_heads
from helpers.coreference_documents import CAT, RANDOM
from helpers.trees import wordpiece_tokenizer
from helpers.zoo import BY_NAME
from oracles import coreference as oracles


def test_questions_of_the_cat():
    mat, other = questions(CAT)[1], questions(CAT)[0]
    assert [(q.mention.head, sorted(q.antecedents), sorted(q.places)) for q in questions(CAT)] == [
        (8, [1], [1, 5]), (12, [5], [1, 5, 8]),
    ]  # fmt: skip
    assert sorted(questions(CAT, "words")[0].places) == [0, 1, 2, 3, 4, 5, 6]
    assert (other.chance, mat.chance) == (1 / 2, 1 / 3)
    assert picks_of(CAT, other) == (5, 1, 1)  # the nearest; the same head; the same words
    assert picks_of(CAT, mat) == (8, None, 8)  # no "stars" before; a pronoun that is on no list may be anything


def spoken(*mentions, tags=None):
    words = ("Queens", "met", "Alice", "and", "Bill", "and", "a", "queen", "and", "she", "said", "they", "saw", "Her")
    return Document(words, mentions, tags=tags)


def test_the_four_sieves():
    queens, alice = Mention(0, 1, 0, 1, "nominal"), Mention(2, 3, 2, 2, "proper")
    queen, she = Mention(6, 8, 7, 3, "nominal"), Mention(9, 10, 9, 3, "pronoun")
    they, her = Mention(11, 12, 11, 1, "pronoun"), Mention(13, 14, 13, 3, "pronoun")
    document = spoken(queens, alice, queen, she, they, her)
    picked = {q.mention.head: picks_of(document, q) for q in questions(document)}
    # Nearest, head match, rules: "she" agrees with the queen; "they" with the plural; "Her" with "she", not "they".
    assert picked == {9: (7, None, 7), 11: (9, None, 0), 13: (11, None, 9)}
    tagged = ("NNP", "VBD", "NNP", "CC", "NNP", "CC", "DT", "NN", "CC", "PRP", "VBD", "PRP", "VBD", "PRP")
    document = spoken(queens, alice, queen, she, they, her, tags=tagged)
    assert picks_of(document, questions(document)[1])[2] == 9  # by its tag "Queens" is singular: any will do
    found = antecedent_baselines([document])
    assert found.mentions.tolist() == [3, 0, 0]
    assert found.right.tolist() == [[1, 0, 2], [0, 0, 0], [0, 0, 0]]
    assert found.accuracy[0].tolist() == pytest.approx([1 / 3, 0, 2 / 3])
    assert found.accuracy[1].isnan().all()


def test_earlier_sieves_come_before_nearer_mentions():
    words = ("the", "cat", "'s", "mat", "a", "cat", "the", "cat", "stars", "The", "cat")
    far, near, stars = Mention(0, 3, 1, 1, "nominal"), Mention(4, 6, 5, 1, "nominal"), Mention(8, 9, 8, 2, "nominal")
    asked = Mention(9, 11, 10, 1, "nominal")
    document = Document(words, (far, near, stars, asked))
    last = questions(document)[-1]
    assert picks_of(document, last) == (8, 5, 1)  # the same words, without the 's, are farther away


def test_baselines_equal_loops():
    documents = oracles.random_documents(200, 5, ["she", "they", "cats", "Bill", "cat", "his", "bus", "it", "I", "you"])
    for document in documents:
        expected = oracles.asked(document, "mentions")
        found = questions(document)
        assert [(q.mention, set(q.places), set(q.antecedents)) for q in found] == [(m, p, r) for m, _, p, r in expected]
        for question, (mention, others, _, _) in zip(found, expected, strict=True):
            assert list(picks_of(document, question)) == oracles.baseline_picks(document, mention, others)


def test_baselines_score_the_mentions_that_were_aligned():
    batches = align(wordpiece_tokenizer(), RANDOM, max_length=9, batch_size=3)
    assert batches.skipped
    found = coreference_heads(BY_NAME["bert"].build(), batches)
    baselines = antecedent_baselines(batches)
    assert torch.equal(baselines.mentions, found.mentions)
    assert torch.equal(baselines.right, found.baseline_right)
    torch.testing.assert_close(baselines.chance * baselines.mentions, found.chance)
    assert found.skipped == len(batches.skipped)
    assert antecedent_baselines(RANDOM).mentions.sum() > baselines.mentions.sum()
