import dataclasses
import re
import shutil

import pytest
import torch

import bertology as b
from bertology.edge_probing import store_folder as folders
from bertology.edge_probing.encoding import encode
from bertology.errors import DataError
from helpers.edge_encoding import EXACT, bert, never
from helpers.edges import NAMES, NOUNS, tokenizer_for
from helpers.trees import byte_tokenizer, wordpiece_tokenizer
from helpers.zoo import BY_NAME, V4
from laws.laws import Broken, raising_at

FILES = ("meta.json", "targets.npz", "vectors.bin", "checks.bin")


def bytes_of(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


# The folder


def test_a_second_call_runs_nothing(family, monkeypatch, tmp_path):
    model, tokenizer = family.build(), tokenizer_for(family)
    first = encode(model, tokenizer, NOUNS, tmp_path / "store")
    before = bytes_of(tmp_path / "store")
    for module in model.modules():
        monkeypatch.setattr(module, "forward", never)
    again = encode(model, tokenizer, NOUNS, tmp_path / "store", batch_size=3)
    assert torch.equal(first.batch(range(5)).vectors, again.batch(range(5)).vectors)
    assert bytes_of(tmp_path / "store") == before
    assert str(again) == str(first)


@pytest.mark.parametrize("lexical", ["word", "embeddings"])
def test_a_pass_that_was_cut_off_goes_on(family, lexical, tmp_path):
    model, tokenizer = family.build(), tokenizer_for(family)
    given = (model, tokenizer, NOUNS)
    options = {"batch_size": 2, "lexical": lexical}
    encode(*given, tmp_path / "whole", **options)
    block = b.dissect(model).stacks[0].blocks[-1]
    # ALBERT runs one module in all layers. The sizes take a pass of their own.
    per_pass = 2 if family.name == "albert" else 1
    for done in (0, 1, 2):
        folder = tmp_path / str(done)
        with raising_at(block, (1 + done) * per_pass), pytest.raises(Broken):
            encode(*given, folder, **options)
        assert len((folder / "checks.bin").read_bytes()) == 4 * 2 * done
        with pytest.raises(
            DataError, match=f"was interrupted, with {2 * done} of 5 records done: call encode.. as before"
        ):
            b_open(folder)
        runs = Counting(block)
        with runs:
            encode(*given, folder, **options)
        assert runs.count == (3 - done) * per_pass
        assert bytes_of(folder) == bytes_of(tmp_path / "whole")


def b_open(folder):
    from bertology.edge_probing.store import Store

    return Store.open(folder)


class Counting:
    """Counts a module's calls."""

    def __init__(self, module):
        self.module, self.count = module, 0

    def __enter__(self):
        self.hook = self.module.register_forward_hook(self._seen)

    def _seen(self, *_):
        self.count += 1

    def __exit__(self, *_):
        self.hook.remove()


def test_going_on_with_other_batches_and_half_written_vectors(tmp_path):
    model, tokenizer = bert(), wordpiece_tokenizer()
    whole = encode(model, tokenizer, NOUNS, tmp_path / "whole", **EXACT)
    folder = tmp_path / "cut"
    with raising_at(model.bert.encoder.layer[1], 2), pytest.raises(Broken):
        encode(model, tokenizer, NOUNS, folder, batch_size=3, **EXACT)
    with open(folder / "vectors.bin", "ab") as file:  # as if it was cut off between vectors and checksums
        file.write(b"\1" * 7777)
    store = encode(model, tokenizer, NOUNS, folder, batch_size=2, **EXACT)
    torch.testing.assert_close(store.batch(range(5)).vectors, whole.batch(range(5)).vectors, atol=1e-6, rtol=0)


def test_a_process_that_was_killed_leaves_what_it_had_done(tmp_path, monkeypatch):
    """Nothing is closed then, and what was not handed to the system is gone."""
    model, tokenizer, opened = bert(), wordpiece_tokenizer(), []
    close = folders.Appending.__exit__
    monkeypatch.setattr(folders.Appending, "__exit__", lambda self, *_: opened.append(self))
    with raising_at(model.bert.encoder.layer[1], 3), pytest.raises(Broken):
        encode(model, tokenizer, NOUNS, tmp_path / "store", batch_size=2)
    assert len((tmp_path / "store" / "checks.bin").read_bytes()) == 4 * 4
    assert len((tmp_path / "store" / "vectors.bin").read_bytes()) == (1 + 4 + 3 + 4) * 3 * 16 * 2
    close(opened[0])


def test_a_folder_that_was_only_begun(tmp_path):
    model, tokenizer = bert(), wordpiece_tokenizer()
    encode(model, tokenizer, NOUNS, tmp_path / "store")
    before = bytes_of(tmp_path / "store")
    (tmp_path / "store" / "meta.json").unlink()
    encode(model, tokenizer, NOUNS, tmp_path / "store")
    assert bytes_of(tmp_path / "store") == before


def other_words(task):
    first = dataclasses.replace(task.records[0], words=("a", *task.records[0].words[1:]))
    return dataclasses.replace(task, records=(first, *task.records[1:]))


def other_span(task):
    target = dataclasses.replace(task.records[0].targets[0], span1=(0, 1))
    first = dataclasses.replace(task.records[0], targets=(target, *task.records[0].targets[1:]))
    return dataclasses.replace(task, records=(first, *task.records[1:]))


OTHERS = {
    "the model's weights. Name another folder, or remove this one": lambda g: g | {"model": bert(seed=1)},
    "the model's weights.": lambda g: g | {"model": bert().float()},
    "model ('BertModel' there, 'DistilBertModel' here), the model's weights.": lambda g: g | {"model": BY_NAME["distilbert"].build()},
    "the model's hidden_act ('gelu' there, 'relu' here).": lambda g: g | {"model": bert(hidden_act="relu")},
    "the tokenizer.": lambda g: g | {"tokenizer": lowered()},
    "the data. ": lambda g: g | {"task": other_words(NOUNS)},
    "the data.": lambda g: g | {"task": other_span(NOUNS)},
    "the data. Name": lambda g: g | {"task": NOUNS[:4]},
    "the labels, the labels that count.": lambda g: g | {"task": dataclasses.replace(NOUNS, labels=NOUNS.labels[::-1])},
    "the labels that count.": lambda g: g | {"task": dataclasses.replace(NOUNS, counted=("NN",))},
    "lexical ('word' there, 'embeddings' here).": lambda g: g | {"lexical": "embeddings"},
    "dtype ('float16' there, 'float32' here).": lambda g: g | {"dtype": torch.float32},
    "max_length (32 there, 12 here).": lambda g: g | {"max_length": 12},
}  # fmt: skip


def lowered():
    from tokenizers import normalizers

    tokenizer = wordpiece_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


@pytest.mark.parametrize("message", OTHERS)
def test_vectors_of_something_else_are_refused(message, tmp_path):
    given = {"model": bert(), "tokenizer": wordpiece_tokenizer(), "task": NOUNS, "path": tmp_path / "store"}
    encode(**given)
    before = bytes_of(tmp_path / "store")
    with pytest.raises(
        DataError, match=re.escape("store holds vectors of another model, task or setting. What differs: " + message)
    ):
        encode(**OTHERS[message](given))
    assert bytes_of(tmp_path / "store") == before


def test_settings_inside_settings_are_compared(tmp_path):
    """The same weights with other positions: no weight tells."""
    models = [BY_NAME["llama"].build() for _ in range(2)]
    given = {"tokenizer": byte_tokenizer(**NAMES), "task": NOUNS, "path": tmp_path / "store"}
    encode(models[0].model, **given)
    name = "rope_theta"
    if not V4:
        name = "rope_parameters.rope_theta"
        models[1].config.rope_parameters["rope_theta"] = 99.0
    else:
        models[1].config.rope_theta = 99.0
    with pytest.raises(DataError, match=rf"the model's {name} .10000.0 there, 99.0 here."):
        encode(models[1].model, **given)


def test_what_changes_no_vector_is_not_compared(tmp_path):
    """Dropout, names, another task head around the same model."""
    tokenizer = wordpiece_tokenizer()
    encode(bert(), tokenizer, NOUNS, tmp_path / "store")
    renamed = dataclasses.replace(NOUNS, name="others")
    same = bert(hidden_dropout_prob=0.5).train()
    assert encode(same, tokenizer, renamed, tmp_path / "store").name == "nouns"
    assert encode(same.bert, tokenizer, NOUNS, tmp_path / "store").records == 5


def test_folders_that_cannot_be_used(tmp_path):
    model, tokenizer = bert(), wordpiece_tokenizer()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="full holds other files .thesis.tex.: name an empty folder, or a new one"):
        encode(model, tokenizer, NOUNS, tmp_path / "full")
    for path in (tmp_path / "file", tmp_path / "nowhere" / "store"):
        with pytest.raises(DataError, match="wanted a folder, or the name of a new one in a folder that exists; got"):
            encode(model, tokenizer, NOUNS, path)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert encode(model, tokenizer, NOUNS, str(tmp_path / "empty")).path == tmp_path / "empty"


def test_a_full_disk_is_told_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(DataError, match=r"the vectors take 0.0 GB, .*store has room for 0.0 GB"):
        encode(bert(), wordpiece_tokenizer(), NOUNS, tmp_path / "store")
