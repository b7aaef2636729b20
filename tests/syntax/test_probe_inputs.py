import itertools
import math

import pytest
import torch

from bertology import attention_maps
from bertology.errors import DataError, ShapeError
from bertology.syntax import align, word_attention
from bertology.syntax.probe_inputs import MapReader, StaticVectors, embedding_vectors, read_vectors
from helpers.syntax_probes import close, spoiled
from helpers.trees import CATS, batches_for, wordpiece_tokenizer
from helpers.zoo import BY_NAME
from oracles import syntax_probes as oracles

# What is seen


def test_maps_are_those_of_words_and_ends(family):
    model, batches = family.build(), batches_for(family, batch_size=3)
    reader = MapReader(model, batches.batches[0], "mean")
    assert reader.places == list(itertools.product(range(2), range(4)))
    for batch in batches:
        arguments = {name: x for name, x in batch.items() if name != "annotations"}
        layers = [word_attention(x, batch["annotations"]) for x in attention_maps(model, arguments).values]
        for example, (found, one) in enumerate(zip(reader(batch), batch["annotations"], strict=True)):
            groups = torch.cat([layer[example] for layer in layers])
            expected = oracles.word_frame(one.word_groups, groups, *one.ends)
            close(found, expected)
            assert found.dtype == torch.float32
            assert not found.requires_grad
            words = len(one.source.words)
            assert found.shape == (8, words + 2, words + 2)
            expected[0, 1, 1] += 1e-3
            with pytest.raises(AssertionError):
                close(found, expected)


def test_no_gradient_reaches_the_attention():
    """METHODS C5."""
    model, batches = BY_NAME["bert"].build(), align(wordpiece_tokenizer(), CATS)
    reader = MapReader(model, batches.batches[0], "mean")
    with torch.enable_grad():
        found = reader(batches.batches[0])
    assert all(x.grad_fn is None and not x.requires_grad for x in found)


# Vectors


def written(tmp_path, text):
    (tmp_path / "vectors.txt").write_text(text, encoding="utf-8")
    return tmp_path / "vectors.txt"


def test_tabs_part_a_word_from_its_vector(tmp_path):
    found = read_vectors(written(tmp_path, "cat\t1\t2\nmat\t3 4\n10\u00a0000 5 6\n"))
    close(found.look_up(["cat", "mat", "10\u00a0000"]), torch.tensor([[1.0, 2], [3, 4], [5, 6]]))


@pytest.mark.parametrize("first", ["", "3 2\n"])
@pytest.mark.parametrize("last", ["", " "])
def test_both_formats_are_read(tmp_path, first, last):
    found = read_vectors(written(tmp_path, f"{first}Cat 1 -2.5{last}\nmat 3e-1 4{last}\n. . 5 6{last}\n"))
    assert found.dim == 2
    assert len(found) == 3
    assert "CAT" in found
    assert ". ." in found
    close(found.look_up(["cAT", "mat", "dog"]), torch.tensor([[1, -2.5], [0.3, 4], [0, 0]]))
    kept = read_vectors(tmp_path / "vectors.txt", words=["CAT", "dog"])
    assert len(kept) == 1
    close(kept.look_up(["cat"]), torch.tensor([[1, -2.5]]))
    cased = read_vectors(tmp_path / "vectors.txt", lower=False)
    close(cased.look_up(["cat", "Cat"]), torch.tensor([[0, 0], [1, -2.5]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat 1 2\nmat 3\n", r"vectors.txt, line 2: .* must be a word and 2 numbers, got 2 fields: 'mat'"),
        ("cat 1 2\nmat 3 4 5\n", r"vectors.txt, line 2: .* must be a word and 2 numbers, got 4 fields"),
        ("cat 1 2\nmat 3 x\n", r"vectors.txt, line 2: .* must be a word and 2 numbers: could not convert"),
        ("cat\n", r"vectors.txt, line 1: .* must be a word and some numbers"),
        ("2 2\ncat 1 2\n", r"announces 2 words, but it has 1: it is incomplete"),
        ("", "has vectors for none of its words"),
    ],
)
def test_files_that_hold_no_vectors(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_vectors(written(tmp_path, text))


def test_static_vectors():
    found = StaticVectors(["Cat", "cat", "mat"], torch.tensor([[1.0], [2.0], [3.0]]))
    assert found.look_up(["CAT", "mat", "none"]).tolist() == [[1], [3], [0]]  # of one that comes twice, the first
    batches = align(wordpiece_tokenizer(), CATS)
    [batch] = batches
    for x, one in zip(found.of(batch), batch["annotations"], strict=True):
        assert x.tolist() == [[{"cat": 1, "mat": 3}.get(word, 0)] for word in one.source.words]
    with pytest.raises(ShapeError, match=r"the vectors of 2 words must be \[word, dim\] = \[2, any\], got \[3, 2\]"):
        StaticVectors(["cat", "mat"], torch.zeros(3, 2))
    with pytest.raises(ShapeError, match=r"got \[2, 0\]"):
        StaticVectors(["cat", "mat"], torch.zeros(2, 0))
    with pytest.raises(ShapeError, match="word vectors must be finite"):
        StaticVectors(["cat"], torch.tensor([[math.nan]]))


def test_embeddings_are_the_mean_over_a_words_tokens(family):
    model, batches = family.build(), batches_for(family, batch_size=3)
    vectors, table = embedding_vectors(model), model.get_input_embeddings().weight
    for batch in batches:
        for x, ids, one in zip(vectors.of(batch), batch["input_ids"].tolist(), batch["annotations"], strict=True):
            expected = [oracles.mean_embedding(table, ids, one.word_of, w) for w in range(len(one.source.words))]
            close(x, torch.stack(expected))
            assert x.shape[1] == vectors.dim == table.shape[1]
            assert not x.requires_grad
    spoiled(x, torch.stack(expected).detach())
    with pytest.raises(DataError, match="Linear has no table of token embeddings: pass StaticVectors"):
        embedding_vectors(torch.nn.Linear(2, 2))
