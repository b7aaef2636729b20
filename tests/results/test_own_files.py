"""Every loader of files that the library wrote: empty, cut, changed and foreign files are its own errors, by name."""

import inspect
import shutil

import pytest
import torch
from safetensors.torch import save_file

import bertology as b
from bertology import edge_probing
from bertology.errors import BertologyError
from bertology.streaming import checkpoint as checkpoints
from helpers.good_inputs import GoodInputs, good_arguments_of
from helpers.public import SUITES, public_functions

RESULTS = sorted({kind for kind in b.Result._kinds.values() if kind.__module__.startswith("bertology.")}, key=str)


@pytest.fixture(scope="module")
def x(tmp_path_factory):
    return GoodInputs(tmp_path_factory.mktemp("good"))


@pytest.fixture
def kept(monkeypatch):
    """Checkpoints are written at once, and stay as after a call that was interrupted."""
    monkeypatch.setattr(checkpoints, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints.Checkpoint, "remove", lambda _: None)


def with_checkpoint(name):
    function = next(f for _, one, f in public_functions() if one == name)

    def run(x, path):
        given = dict(good_arguments_of(name, x))
        if name == "accumulate":
            return function(x.model, x.batch, b.EntropyAccumulator(), checkpoint=path)
        if name == "train_probes":
            given["probes"] = edge_probing.cumulative_probes(x.source, (0,), x.settings)
        return function(**given, checkpoint=path)

    return run


def shards(x, path):
    b.accumulate(x.model, x.batch, b.EntropyAccumulator(), shard=(0, 1), save=path)


CHECKPOINTED = [name for _, name, f in public_functions() if "checkpoint" in inspect.signature(f).parameters]
# {loader: (what writes, what reads)}, of a file or a folder
LOADERS = {name: (with_checkpoint(name), with_checkpoint(name)) for name in CHECKPOINTED} | {
    "Result.load": (lambda x, path: x.entropy.save(path), lambda x, path: b.Result.load(path)),
    "merge_shards": (shards, lambda x, path: b.merge_shards(path)),
    "accumulate, save=": (shards, shards),
    "load_pruned": (lambda x, path: shutil.copytree(x.pruned, path), lambda x, path: b.load_pruned(path)),
    "Store.open": (
        lambda x, path: edge_probing.encode(x.reader, x.tokenizer, x.task, path),
        lambda x, path: edge_probing.Store.open(path).check(),
    ),
    "Captures.open": (
        lambda x, path: b.capture(x.model, x.batch, hidden=True, save=path),
        lambda x, path: b.Captures.open(path).check(),
    ),
}  # fmt: skip
# What is no file: a training that keeps its models, and texts in the formats of others (tests/corpora).
OTHERS = {"importance_through_training"}
FORMS = {
    "empty": lambda path, whole: path.write_bytes(b""),
    "foreign": lambda path, whole: save_file({"x": torch.ones(2)}, str(path)),
    "text": lambda path, whole: path.write_bytes(b'{"a": [1, 2]}'),
    "no text": lambda path, whole: path.write_bytes(bytes(range(256)) * 3),
    "cut": lambda path, whole: path.write_bytes(whole[: len(whole) // 2]),
    "longer": lambda path, whole: path.write_bytes(whole + b"0123"),
    "changed": lambda path, whole: path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 64]) + whole[-2:]),
    "a folder": lambda path, whole: (path.unlink(), path.mkdir()),
}


def test_every_loader_is_here():
    functions = {
        name
        for _, name, f in public_functions()
        if name.startswith(("load_", "merge_")) or {"checkpoint", "folder"} & inspect.signature(f).parameters.keys()
    }
    classes = {
        f"{kind.__name__}.{name}"
        for module in SUITES
        for kind in (getattr(module, name) for name in module.__all__)
        if inspect.isclass(kind) and kind not in RESULTS
        for name, method in inspect.getmembers(kind, inspect.ismethod)
        if name in ("load", "open", "read")
        and method.__func__ is not getattr(getattr(kind.__base__, name, 0), "__func__", 1)
    }
    assert functions | classes <= LOADERS.keys() | OTHERS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loader", LOADERS)
def test_what_cannot_be_loaded_is_named(loader, form, x, kept, tmp_path):
    write, read = LOADERS[loader]
    path = tmp_path / "work"
    write(x, path)
    # A file, a folder, or files whose names begin so: a checkpoint of each training.
    files = sorted(path.rglob("*")) if path.is_dir() else sorted(tmp_path.glob("work*"))
    assert files
    for file in files:
        whole = file.read_bytes()
        if not whole:
            continue
        FORMS[form](file, whole)
        if loader == "load_pruned" and form == "changed" and file.suffix == ".safetensors":
            continue  # the format has no checksum: other weights are those of another model
        if loader == "Captures.open" and form == "longer" and file.name != "meta.json":
            continue  # what a pass that was interrupted has left does not matter
        with pytest.raises(BertologyError) as told:
            read(x, path)
        assert str(path) in str(told.value), (file, told.value)
        if file.is_dir():
            file.rmdir()
        file.write_bytes(whole)


@pytest.mark.parametrize("kind", RESULTS, ids=lambda kind: kind.__name__)
def test_every_result_refuses_files_of_something_else(kind, tmp_path):
    path = tmp_path / "file"
    for form in ("empty", "foreign", "text", "no text", "a folder"):
        path.write_bytes(b"")
        FORMS[form](path, b"")
        with pytest.raises(BertologyError, match="file"):
            kind.load(path)
        if path.is_dir():
            path.rmdir()
