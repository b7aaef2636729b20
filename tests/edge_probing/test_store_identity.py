"""Stores of parts are joined, and a store takes other labels, without another pass of the model."""

from itertools import pairwise

import pytest
import torch

from bertology.edge_probing import EdgeTask, Record, Store, Target, control_tasks, encode, shuffled_labels
from bertology.errors import DataError
from helpers.edge_encoding import EXACT, bert, never, rewritten
from helpers.edges import NOUNS, PAIRS
from helpers.trees import wordpiece_tokenizer


def encoded(task, path, **options):
    return encode(bert(), wordpiece_tokenizer(), task, path, **{**EXACT, **options})


def same(one, other):
    every = range(one.records)
    mine, theirs = one.batch(every), other.batch(every)
    assert one.records == other.records
    assert torch.equal(mine.vectors, theirs.vectors)
    assert torch.equal(mine.gold, theirs.gold)
    assert all(map(torch.equal, (*mine.tokens, *mine.targets), (*theirs.tokens, *theirs.targets)))
    assert all(map(torch.equal, one.source, other.source))
    assert (one.labels, one.counted, one.lost, one.name) == (other.labels, other.counted, other.lost, other.name)


@pytest.mark.parametrize("task", [NOUNS, PAIRS], ids=["one span", "two spans"])
@pytest.mark.parametrize("make", [lambda task: control_tasks(task, seed=2)[0], shuffled_labels])
def test_other_labels_are_those_of_a_pass_of_their_own(task, make, tmp_path):
    other = make(task)
    view = encoded(task, tmp_path / "true").with_labels(other)
    own = encoded(other, tmp_path / "other")
    same(view, own)
    assert view.digest() == own.digest()
    assert view.digest() != Store.open(tmp_path / "true").digest()


def test_other_labels_leave_the_store_as_it_was(tmp_path):
    store = encoded(NOUNS, tmp_path / "store")
    before = store.digest()
    gold = store.gold(range(store.targets))
    store.with_labels(shuffled_labels(NOUNS, seed=5))
    assert store.digest() == before == Store.open(tmp_path / "store").digest()
    assert torch.equal(store.gold(range(store.targets)), gold)


def test_targets_that_were_lost_stay_lost(tmp_path):
    store = encoded(NOUNS, tmp_path / "short", max_length=6)
    assert store.lost
    other = shuffled_labels(NOUNS, seed=1)
    same(store.with_labels(other), encoded(other, tmp_path / "other", max_length=6))


def moved(task):
    first, *rest = task.records
    return EdgeTask.of(
        "moved", [Record(first.words, (Target((0, 1), ("NN",)), *first.targets[1:])), *rest], labels=task.labels
    )


@pytest.mark.parametrize(
    "other", [NOUNS[:4], moved(NOUNS), PAIRS, NOUNS[::-1]], ids=["fewer", "moved", "pairs", "turned"]
)
def test_labels_of_other_words_or_spans_are_refused(other, tmp_path):
    store = encoded(NOUNS, tmp_path / "store")
    with pytest.raises(DataError, match="wanted the same records and spans, with other labels"):
        store.with_labels(other)


@pytest.mark.parametrize(
    ("cuts", "options"),
    [
        ((2,), {}),
        ((1, 3, 4), {}),
        ((2, 4), {"max_length": 6, "lexical": "embeddings", "batch_size": 2}),
    ],
)
def test_joined_parts_are_the_whole(cuts, options, tmp_path, monkeypatch):
    edges = (0, *cuts, len(NOUNS))
    parts = [encoded(NOUNS[start:end], tmp_path / f"{start}", **options) for start, end in pairwise(edges)]
    joined = Store.join([parts[0], *(part.path for part in parts[1:])], tmp_path / "joined")
    same(joined, encoded(NOUNS, tmp_path / "whole", **options))
    joined.check()
    other = shuffled_labels(NOUNS)
    same(joined.with_labels(other), encoded(other, tmp_path / "other", **options))
    model, tokenizer = bert(), wordpiece_tokenizer()
    for module in model.modules():
        monkeypatch.setattr(module, "forward", never)
    again = encode(model, tokenizer, NOUNS, tmp_path / "joined", **{**EXACT, **options})
    same(again, joined)


def test_stores_that_were_joined_can_be_joined(tmp_path):
    parts = [encoded(NOUNS[at : at + 1], tmp_path / str(at)) for at in range(5)]
    first, last = Store.join(parts[:2], tmp_path / "first"), Store.join(parts[2:], tmp_path / "last")
    same(Store.join([first, last], tmp_path / "joined"), encoded(NOUNS, tmp_path / "whole"))


def test_a_join_that_was_interrupted_can_be_called_again(tmp_path):
    parts = [encoded(NOUNS[:2], tmp_path / "0"), encoded(NOUNS[2:], tmp_path / "1")]
    (tmp_path / "joined").mkdir()
    (tmp_path / "joined" / "vectors.bin").write_bytes(b"some")
    (tmp_path / "joined" / "vectors.bin.part").write_bytes(b"some")
    same(Store.join(parts, tmp_path / "joined"), encoded(NOUNS, tmp_path / "whole"))


def relabelled(path):
    return encoded(EdgeTask.of("nouns", NOUNS[2:].records, labels=["NN", "NP", "VB"]), path)


REFUSED = {
    "two or more stores to join, got 1": lambda one, path: [one],
    "is given twice": lambda one, path: [one, one.path],
    "What differs: the labels": lambda one, path: [one, relabelled(path)],
    "What differs: dtype": lambda one, path: [one, encoded(NOUNS[2:], path, dtype=torch.float16)],
    "What differs: the model's weights": lambda one, path: [
        one,
        encode(bert(seed=9), wordpiece_tokenizer(), NOUNS[2:], path, **EXACT),
    ],
    "holds no encoded task": lambda one, path: [one, path],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_no_part_is_refused(message, tmp_path):
    one = encoded(NOUNS[:2], tmp_path / "one")
    with pytest.raises(DataError, match=message):
        Store.join(REFUSED[message](one, tmp_path / "two"), tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_damaged_parts_and_folders_in_use_are_refused(tmp_path):
    parts = [encoded(NOUNS[:2], tmp_path / "one"), encoded(NOUNS[2:], tmp_path / "two")]
    with pytest.raises(DataError, match="holds a store already"):
        Store.join(parts, tmp_path / "one")
    content = bytearray((tmp_path / "two" / "vectors.bin").read_bytes())
    content[9] ^= 1
    (tmp_path / "two" / "vectors.bin").write_bytes(content)
    with pytest.raises(DataError, match="two is damaged"):
        Store.join([tmp_path / "one", tmp_path / "two"], tmp_path / "joined")


def test_stores_of_earlier_versions_say_what_they_lack(tmp_path):
    parts = [encoded(NOUNS[:2], tmp_path / "one"), encoded(NOUNS[2:], tmp_path / "two")]
    whole = parts[1].digest()
    rewritten(tmp_path / "two", lambda about: about.pop("parts"))
    old = Store.open(tmp_path / "two")
    assert old.digest() != whole
    old.check()
    with pytest.raises(DataError, match="two was made by an earlier version"):
        old.with_labels(shuffled_labels(NOUNS[2:]))
    with pytest.raises(DataError, match="two was made by an earlier version"):
        Store.join([parts[0], old], tmp_path / "joined")
    # The same call still opens it.
    assert encoded(NOUNS[2:], tmp_path / "two").digest() == old.digest()
