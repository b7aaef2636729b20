"""Models, pictures and folders of results that are written all or nothing."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bertology as b
from bertology.errors import DataError
from bertology.results.complete_file import complete_folder, locked, try_to_write, write_text
from helpers.pruning import logits
from helpers.zoo import BY_NAME, batch, each_alone

FAULTS = [errno.ENOSPC, errno.EROFS, errno.EACCES]
WRITERS = {"save_pruned": b.save_pruned, "save_plain": b.save_plain}


def broken(fault, keep=()):
    """`os.replace` that fails, but for files of these names."""
    real = os.replace

    def write(source, target):
        if Path(target).name not in keep:
            raise OSError(fault, os.strerror(fault))
        real(source, target)

    return write


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", WRITERS)
def test_a_model_that_cannot_be_written_leaves_the_one_before(monkeypatch, tmp_path, name, fault):
    model = BY_NAME["bert"].build()
    WRITERS[name](model, tmp_path / "m")
    before = content(tmp_path)

    def half(self, folder, **_more):
        (Path(folder) / "config.json").write_text("{")
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", half)
    with pytest.raises(DataError, match=rf"m cannot be written .*{os.strerror(fault)}"):
        WRITERS[name](model, tmp_path / "m")
    assert content(tmp_path) == before
    with pytest.raises(DataError, match="n cannot be written"):
        WRITERS[name](model, tmp_path / "n")
    assert content(tmp_path) == before


def test_files_of_two_models_are_never_taken_for_one(monkeypatch, tmp_path):
    model = BY_NAME["bert"].build()
    b.prune_heads(model, {0: [1]})
    b.save_pruned(model, tmp_path)
    other = BY_NAME["bert"].build()
    b.prune_heads(other, {0: [2]})  # of the same sizes
    monkeypatch.setattr(os, "replace", broken(errno.ENOSPC, keep=["model.safetensors"]))
    with pytest.raises(DataError, match="make room on the disk"):
        b.save_pruned(other, tmp_path)
    monkeypatch.undo()
    with pytest.raises(DataError, match="no model at"):
        b.load_pruned(tmp_path)
    b.save_pruned(other, tmp_path)
    again = b.load_pruned(tmp_path, dtype=torch.float64)
    assert torch.equal(logits(again, batch()), logits(other, batch()))


def test_a_model_is_written_over_the_files_that_it_came_from(tmp_path):
    model = BY_NAME["gpt2"].build()
    b.prune_heads(model, {0: [1]})
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    (tmp_path / "notes.txt").write_text("of the user")
    again = b.load_pruned(tmp_path, dtype=torch.float64)
    b.save_pruned(again, tmp_path)
    assert torch.equal(logits(again, batch()), logits(model, batch()))
    assert torch.equal(logits(b.load_pruned(tmp_path, dtype=torch.float64), batch()), logits(model, batch()))
    # Weights in several files, which are no longer of this model, are gone.
    assert {path.name for path in tmp_path.iterdir()} <= {
        "config.json", "generation_config.json", "model.safetensors", "notes.txt"
    }  # fmt: skip


def test_a_killed_writer_leaves_no_model_and_its_files_are_removed(tmp_path):
    code = (
        "import os, re, sys\nfrom pathlib import Path\nfrom bertology.results.complete_file import complete_folder, locked\n"
        "path = Path(sys.argv[1])\nwith locked(path), complete_folder(path, 'last', re.compile('old.*')) as part:\n"
        "    (part / 'last').write_text('half')\n    os.kill(os.getpid(), 9)\n"
    )
    folder = tmp_path / "m"
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False, timeout=200).returncode == -9
    assert [path.is_dir() for path in folder.iterdir()] == [True]
    (folder / "old1").write_text("")
    with locked(folder), complete_folder(folder, "last", re.compile("old.*")) as part:
        (part / "inner").mkdir()
        for name in ("last", "first", "inner/file"):
            (part / name).write_text("whole")
    assert {str(path) for path in content(folder)} == {"last", "first", "inner/file"}
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_two_processes_cannot_write_one_model(tmp_path):
    model = BY_NAME["bert"].build()
    with locked(tmp_path / "m"), pytest.raises(DataError, match="m is being written by another process"):
        b.save_pruned(model, tmp_path / "m")
    b.save_pruned(model, tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_folder_has_one_lock_by_whatever_name(monkeypatch, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "one")
    with locked(tmp_path / "link"), pytest.raises(DataError, match="another process"), locked(tmp_path / "one"):
        pass
    monkeypatch.chdir(tmp_path / "one")
    with locked("."):
        with pytest.raises(DataError, match="another process"), locked(tmp_path / "one"):
            pass
        # The folder beside it, which is called "." from inside as well, is another one.
        monkeypatch.chdir(tmp_path / "two")
        with locked("."):
            pass


@pytest.mark.parametrize("name", ["a.png", "a.SVG", "a.pdf", "a", "a.b.png"])
def test_a_picture_is_written_whole_or_not_at_all(monkeypatch, tmp_path, name):
    pytest.importorskip("matplotlib")
    found = b.attention_entropy(BY_NAME["bert"].build(), each_alone(batch((7, 4))))
    found.plot(path=tmp_path / name)
    before = content(tmp_path)
    assert [str(path) for path in before] == [name if "." in name else f"{name}.png"]
    monkeypatch.setattr(os, "replace", broken(errno.ENOSPC))
    with pytest.raises(DataError, match=r"a.* cannot be written .*make room on the disk"):
        found.plot(path=tmp_path / name)
    assert content(tmp_path) == before
    with pytest.raises(DataError, match="docx"):
        found.plot(path=tmp_path / "a.docx")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_written_is_told_before_the_work(monkeypatch, tmp_path, fault):
    def write(*_args):
        raise OSError(fault, os.strerror(fault))

    try_to_write(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(DataError, match=rf"cannot be written .*{os.strerror(fault)}"):
        try_to_write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_text_is_written_whole_or_not_at_all(monkeypatch, tmp_path):
    path = tmp_path / "report.md"
    write_text(path, "ä\nb\n")
    assert path.read_bytes() == "ä\nb\n".encode()
    monkeypatch.setattr(os, "replace", broken(errno.EROFS))
    with pytest.raises(DataError, match=r"report.md cannot be written .*in a folder that you can write to"):
        write_text(path, "other")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("report.md", "ä\nb\n".encode())]


@pytest.mark.parametrize("name", WRITERS)
def test_only_weights_of_an_earlier_save_are_removed(tmp_path, name):
    earlier = ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    others = ["model.fp16.safetensors", "model_average.safetensors", "model.safetensors.bak", "model-a.safetensors"]
    (tmp_path / "m").mkdir()
    for file in (*earlier, *others):
        (tmp_path / "m" / file).write_text("x")
    WRITERS[name](BY_NAME["bert"].build(), tmp_path / "m")
    left = {path.name for path in (tmp_path / "m").iterdir()}
    assert left >= {*others, "model.safetensors", "config.json"}
    assert not left & {*earlier}
