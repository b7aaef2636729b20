"""Names and folders that the system does not even look at: too long, with a null byte, in a folder that is closed."""

import io
import os
import warnings

import pytest

import bertology as b
from bertology import edge_probing
from bertology.errors import DataError
from bertology.results.complete_file import complete_file
from helpers.edges import NOUNS
from helpers.trees import wordpiece_tokenizer
from helpers.zoo import BY_NAME, batch, each_alone

TEXTS = each_alone(batch((7, 4)))
WORKS = {
    "accumulate, shard": lambda x, p: b.accumulate(x, TEXTS, b.EntropyAccumulator(), shard=(0, 1), save=p),
    "merge_shards": lambda _, p: b.merge_shards(p),
    "capture": lambda x, p: b.capture(x, TEXTS, hidden=True, save=p),
    "Captures.open": lambda _, p: b.Captures.open(p),
    "encode": lambda x, p: edge_probing.encode(x, wordpiece_tokenizer(), NOUNS, p),
    "Store.open": lambda _, p: edge_probing.Store.open(p),
    "save": lambda x, p: b.attention_entropy(x, TEXTS).save(p),
    "load": lambda _, p: b.Result.load(p),
    "save_pruned": lambda x, p: b.save_pruned(x, p),
    "save_plain": lambda x, p: b.save_plain(x, p),
    "load_pruned": lambda _, p: b.load_pruned(p),
    "write_edges": lambda _, p: edge_probing.write_edges(NOUNS, p),
    "read_edges": lambda _, p: edge_probing.read_edges(p),
}
GOES_ON = {
    "accumulate": lambda x, p: b.accumulate(x, TEXTS, b.EntropyAccumulator(), checkpoint=p),
    "fit_gates": lambda x, p: b.fit_gates(x, TEXTS, steps=2, checkpoint=p),
}


@pytest.fixture(params=["too long", "a null byte", "closed"])
def place(request, tmp_path):
    """A path at which nothing can be."""
    if request.param != "closed":
        yield tmp_path / {"too long": "n" * 300, "a null byte": "nu\0ll"}[request.param]
        return
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0)
    root = os.name == "posix" and os.geteuid() == 0
    if root:  # who may enter every folder
        os.seteuid(65534)
    yield tmp_path / "closed" / "x"
    if root:
        os.seteuid(0)
    (tmp_path / "closed").chmod(0o700)


@pytest.mark.parametrize("name", WORKS)
def test_a_place_where_nothing_can_be_is_told(place, name):
    with pytest.raises(DataError, match=r"nnnn|nu\\?.*ll|closed"):
        WORKS[name](BY_NAME["bert"].build(), place)


@pytest.mark.parametrize("name", GOES_ON)
def test_a_checkpoint_there_is_refused_or_warned_of(place, name):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            GOES_ON[name](BY_NAME["bert"].build(), place)
        except DataError as error:
            told = [error]
    assert any("checkpoint" in str(one.message if hasattr(one, "message") else one) for one in told)


def test_a_closed_folder_of_values_is_told(tmp_path):
    if os.name != "posix":
        pytest.skip("folders are closed in other ways")
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0)
    root = os.geteuid() == 0
    if root:
        tmp_path.chmod(0o755)
        os.seteuid(65534)
    try:
        with pytest.raises(DataError, match="closed"):
            b.capture(BY_NAME["bert"].build(), TEXTS, hidden=True, save=folder)
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)


def test_what_is_no_ordinary_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes with names here")
    os.mkfifo(pipe)
    with complete_file(pipe) as part:
        assert part == pipe
    assert not pipe.is_file()
    assert pipe.exists()


@pytest.mark.parametrize("path", [5, io.BytesIO(), ""])
def test_a_picture_is_written_to_a_file_with_a_name(path):
    found = b.attention_entropy(BY_NAME["bert"].build(), batch())
    with pytest.raises(DataError, match="path must be (a string or a path|the name of a file)"):
        found.plot(path=path)
