"""Shares are disjoint, come to the whole, and can be read as often as the data."""

import pytest
import torch
from torch.utils.data import DataLoader

from bertology import own_share
from bertology.errors import DataError
from bertology.streaming import own_share as module

pytestmark = pytest.mark.any_transformers


@pytest.fixture(params=[1, 2, 5])
def many(request, monkeypatch):
    monkeypatch.setattr(module, "processes", lambda: request.param)
    return request.param


def shares(make, many, monkeypatch):
    found = []
    for place in range(many):
        monkeypatch.setattr(module, "process", lambda place=place: place)
        found.append(own_share(make()))
    return found


@pytest.mark.parametrize("count", [0, 1, 3, 10])
@pytest.mark.parametrize("make", [list, tuple, lambda x: DataLoader(x, batch_size=None), iter], ids=str)
def test_shares_come_to_the_whole(many, monkeypatch, count, make):
    found = shares(lambda: make(range(count)), many, monkeypatch)
    parts = [[int(x) for x in share] for share in found]
    assert sorted(x for part in parts for x in part) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if make is iter:
        assert not any(hasattr(share, "__len__") for share in found)
    else:
        assert [len(share) for share in found] == [len(part) for part in parts]
        assert [[int(x) for x in share] for share in found] == parts


@pytest.mark.parametrize(
    ("one", "message"), [({"input_ids": torch.ones(1, 2)}, "got one batch"), ("a text", "items must be an iterable")]
)
def test_one_alone_is_refused(one, message):
    with pytest.raises(DataError, match=message):
        own_share(one)


def test_aligned_batches_are_refused():
    class Aligned(list):
        skipped = ()

    with pytest.raises(DataError, match=r"call align\(tokenizer, own_share\(sentences\)\)"):
        own_share(Aligned())
