import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertology.edge_probing.encoding import encode
from bertology.edge_probing.span_batches import EdgeBatch
from bertology.edge_probing.store import Store
from bertology.edge_probing.store_folder import Layout, ranges
from bertology.errors import DataError
from helpers.edge_encoding import rewritten
from helpers.edges import NOUNS, PAIRS
from helpers.trees import wordpiece_tokenizer
from helpers.zoo import BY_NAME


@pytest.fixture
def folder(tmp_path):
    encode(BY_NAME["bert"].build(), wordpiece_tokenizer(), NOUNS, tmp_path / "store", batch_size=2)
    return tmp_path / "store"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "store"
    return encode(BY_NAME["bert"].build(), wordpiece_tokenizer(), PAIRS, path, batch_size=1, dtype=torch.float32)


def by_loops(store, records):
    """The batch of some records, put together target by target from the batches of each record alone."""
    vectors, tokens, targets, gold, count, rows = [], [[], []], [[], []], [], 0, 0
    for record in records:
        one = store.batch([record])
        for side in range(store.sides):
            for token, target in zip(one.tokens[side].tolist(), one.targets[side].tolist(), strict=True):
                tokens[side].append(rows + token)
                targets[side].append(count + target)
        vectors += list(one.vectors)
        gold += list(one.gold)
        count, rows = count + one.count, rows + len(one.vectors)
    sides = range(store.sides)
    whole = [tuple(torch.tensor(x[side], dtype=torch.int64) for side in sides) for x in (tokens, targets)]
    return EdgeBatch(torch.stack(vectors), *whole, torch.stack(gold))


def check_same(found, expected):
    for x, y in zip((found.vectors, found.gold), (expected.vectors, expected.gold), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)
    for x, y in zip(found.tokens + found.targets, expected.tokens + expected.targets, strict=True):
        torch.testing.assert_close(x, y)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_batches_are_their_records_in_any_order(pairs, records):
    found = pairs.batch(torch.tensor(records)).check()
    check_same(found, by_loops(pairs, records))
    spoiled = by_loops(pairs, records)
    spoiled.tokens[1][0] += 1
    with pytest.raises(AssertionError):
        check_same(found, spoiled)


def test_a_batch_by_hand(pairs):
    """the mat sat on the mat: sat with the mat, sat with on the mat, sat with itself."""
    batch = pairs.batch(range(2, 3))
    assert batch.vectors.shape == (6, 3, 16)
    assert [x.tolist() for x in batch.tokens] == [[2, 2, 2], [0, 1, 3, 4, 5, 2]]
    assert [x.tolist() for x in batch.targets] == [[0, 1, 2], [0, 0, 1, 1, 1, 2]]
    assert batch.gold.tolist() == [[0, 1], [1, 0], [0, 0]]
    assert (batch.vectors.dtype, batch.gold.dtype) == (torch.float32, torch.float32)
    assert pairs.gold(torch.tensor([5, 3])).tolist() == [[False, False], [False, True]]
    assert pairs.target_record.tolist() == [0, 0, 1, 2, 2, 2]


def test_no_records_make_an_empty_batch(pairs):
    batch = pairs.batch(range(0))
    assert (batch.count, len(batch.vectors), batch.gold.shape) == (0, 0, (0, 2))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([0, 3], "records are numbered from 0 to 2, got 0 to 3"),
        (torch.tensor([-1]), "records are numbered from 0 to 2, got -1 to -1"),
        (torch.tensor([[0]]), r"wanted the indices of records, \[record\], got \[1, 1\] of int64"),
        (torch.tensor([0.0]), r"wanted the indices of records, \[record\], got \[1\] of float32"),
        (torch.tensor([True]), r"wanted the indices of records, \[record\], got \[1\] of bool"),
    ],
)
def test_records_that_are_not_there(pairs, records, message):
    with pytest.raises(DataError, match=message):
        pairs.batch(records)
    with pytest.raises(DataError, match="targets are numbered from 0 to 5, got 6 to 6"):
        pairs.gold([6])


def test_opened_again_without_the_model(folder):
    store = Store.open(str(folder))
    assert (store.name, store.layers, store.hidden, store.sides, store.lexical) == ("nouns", 3, 16, 1, "word")
    assert (store.records, store.targets, store.tokens) == (5, 12, 18)
    assert (store.labels, store.counted, store.lost) == (NOUNS.labels, NOUNS.counted, {})
    assert store.batch(range(5)).check().count == 12
    store.check()


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def more(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b"1234")


def gone(name):
    return lambda folder: (folder / name).unlink()


def replaced(name, old, new):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes().replace(old, new))


DAMAGED = {
    "meta.json cannot be read .*Remove the folder and encode the task again": cut("meta.json", 40),
    "meta.json cannot be read": lambda folder: (folder / "meta.json").write_text("[]"),
    "meta.json was changed": replaced("meta.json", b'"hidden": 16', b'"hidden": 61'),
    "targets.npz was changed or is incomplete": cut("targets.npz", -1),
    "targets.npz was changed": replaced("targets.npz", b"\x01\x00\x00\x00\x02\x00\x00\x00", b"\x01\x00\x00\x00\x03\x00\x00\x00"),
    "targets.npz cannot be read": gone("targets.npz"),
    "vectors.bin has 1727 bytes, wanted 1728": cut("vectors.bin", -1),
    "vectors.bin has 1732 bytes, wanted 1728": more("vectors.bin"),
    "vectors.bin is not there": gone("vectors.bin"),
    "checks.bin cannot be read": gone("checks.bin"),
    "checks.bin has 6 records, the task 5": more("checks.bin"),
}  # fmt: skip


@pytest.mark.parametrize("message", DAMAGED)
def test_damaged_folders_are_refused(message, folder):
    DAMAGED[message](folder)
    left = {file.name for file in folder.iterdir()}
    for again in (Store.open, lambda path: encode(BY_NAME["bert"].build(), wordpiece_tokenizer(), NOUNS, path)):
        with pytest.raises(DataError, match=f"store is damaged: {message}"):
            again(folder)
    assert {file.name for file in folder.iterdir()} == left


@pytest.mark.parametrize("place", [0, 700, 1727])
def test_changed_vectors_are_found_when_they_are_read(place, folder):
    whole = Store.open(folder)
    expected = [whole.batch([record]).vectors for record in range(5)]
    content = bytearray((folder / "vectors.bin").read_bytes())
    content[place] ^= 4
    (folder / "vectors.bin").write_bytes(content)
    store = Store.open(folder)
    with pytest.raises(DataError, match=r"store is damaged: the vectors of record \d are not those that were written"):
        store.check()
    read = []
    for record in range(5):
        try:
            read.append(torch.equal(store.batch([record]).vectors, expected[record]))
        except DataError:
            read.append(None)
    assert sorted(map(str, read)) == ["None", "True", "True", "True", "True"]


def test_vectors_that_shrink_while_the_store_is_open(folder):
    store = Store.open(folder)
    cut("vectors.bin", 100)(folder)
    with pytest.raises(DataError, match="store is damaged: vectors.bin cannot be read"):
        store.batch([0])


def test_folders_that_are_no_stores(folder, tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="holds no encoded task: wanted a folder that encode.. made"):
            Store.open(path)
    rewritten(folder, lambda about: about.update(format=2))
    with pytest.raises(
        DataError, match="is of format 2, this version reads 1: encode the task again, in another folder"
    ):
        Store.open(folder)


def test_targets_of_another_task_are_refused_when_going_on(folder):
    """As if someone had exchanged the arrays of a pass that was interrupted."""
    cut("checks.bin", 8)(folder)
    content = Layout.from_bytes((folder / "targets.npz").read_bytes())
    content.labels[0] = 3
    (folder / "targets.npz").write_bytes(content.to_bytes())
    rewritten(folder, lambda about: about.update(targets_check=zlib.crc32(content.to_bytes())))
    with pytest.raises(DataError, match="store is damaged: its targets are not those of this task"):
        encode(BY_NAME["bert"].build(), wordpiece_tokenizer(), NOUNS, folder)


def test_arrays_that_are_none():
    with pytest.raises(DataError, match="it holds no arrays of targets"):
        Layout.from_bytes(b"nothing")


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4))))
def test_ranges(pairs):
    starts, lengths = (np.array(x, dtype=np.int64) for x in (zip(*pairs, strict=True) if pairs else ((), ())))
    expected = [number for start, many in pairs for number in range(start, start + many)]
    assert ranges(starts, starts + lengths).tolist() == expected


MEMORY = """
import resource, sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from helpers.edges import record
from helpers.trees import wordpiece_tokenizer
from helpers.zoo import BY_NAME
from bertology.edge_probing.encoding import encode
from bertology.edge_probing.tasks import EdgeTask
from bertology.edge_probing.store import Store

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

records, many = {records}, {targets} // {records}
words = ["the", "cat", "sat", "on", "a", "mat", "and", "purred", "under", "stars"]
one = [record(" ".join(words[i:] + words[:i]), *[("N" + str(k), k % 9, k % 9 + 1 + k // 10) for k in range(many)]) for i in range(10)]
task = EdgeTask.of("many", [one[i % 10] for i in range(records)])
model = BY_NAME["bert"].build({sizes}).float()
before = peak()
encode(model, wordpiece_tokenizer(), task, {path!r}, batch_size=256)
encoded = peak()
print(before, encoded)
"""

READ = """
import resource, sys, torch
from bertology.edge_probing.store import Store

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

before = peak()
store = Store.open({path!r})
opened = peak()
seen = 0
for batch in torch.randperm(store.records)[:{batches} * 32].split(32):
    seen += store.batch(batch).count
store.batch(range(32)), store.target_record
print(before, opened, peak(), store.targets, seen)
"""


def numbers_of(script, **values):
    code = script.format(tests=str(Path(__file__).parents[1]), **values)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_vectors(tmp_path):
    """200,000 targets and 100 MB of vectors: what stays in memory is a few dozen bytes a target."""
    path = str(tmp_path / "store")
    sizes = "hidden_size=128, num_hidden_layers=2, intermediate_size=16"
    before, encoded = numbers_of(MEMORY, records=10_000, targets=200_000, path=path, sizes=sizes)
    size = (tmp_path / "store" / "vectors.bin").stat().st_size
    assert size > 90e6
    assert encoded - before < 150  # MB, most of it the texts' tokens
    before, opened, read, targets, seen = numbers_of(READ, path=path, batches=300)
    assert (targets, seen) == (200_000, 300 * 640)
    assert opened - before < 30
    assert read - before < 50


def test_a_digest_tells_stores_apart_by_their_vectors_and_targets(tmp_path):
    def made(name, seed, task):
        return encode(BY_NAME["bert"].build(seed=seed), wordpiece_tokenizer(), task, tmp_path / name)

    one, same, other, fewer = (
        made("a", 0, NOUNS),
        made("b", 0, NOUNS),
        made("c", 1, NOUNS),
        made("d", 0, NOUNS.first(2)),
    )
    assert one.digest() == same.digest() == Store.open(one.path).digest()
    assert len({one.digest(), other.digest(), fewer.digest()}) == 3


def test_a_store_names_its_model_and_says_what_is_known_in_older_folders(tmp_path):
    model = BY_NAME["bert"].build()
    model.config.name_or_path = "/runs/sst2/model"
    store = encode(model, wordpiece_tokenizer(), NOUNS, tmp_path / "store")
    assert store.model_name == f"{type(model.base_model).__name__} (sst2)"
    model.config.name_or_path = "elsewhere"  # the same model: nothing is encoded again
    assert encode(model, wordpiece_tokenizer(), NOUNS, tmp_path / "store").model_name == store.model_name
    rewritten(store.path, lambda about: about.pop("model_name"))
    assert Store.open(store.path).model_name == type(model.base_model).__name__
