"""Files that are written all or nothing: full disks, killed processes and two writers."""

import errno
import os
import subprocess
import sys
import warnings

import pytest
import torch

import bertology as b
from bertology import edge_probing
from bertology.errors import DataError
from bertology.results.complete_file import complete_file, locked
from bertology.streaming import checkpoint as checkpoints
from helpers.edge_sources import InMemory
from helpers.good_inputs import GoodInputs
from helpers.zoo import BY_NAME, batch, each_alone

TEXTS = each_alone(batch((7, 4, 5)))
FAULTS = [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT]


def broken(fault):
    def write(*_args, **_more):
        raise OSError(fault, os.strerror(fault))

    return write


@pytest.fixture(params=[(name, fault) for name in ("os.replace", "save_file") for fault in FAULTS])
def no_room(request, monkeypatch):
    """Nothing can be written; every batch is one after which a checkpoint is due."""
    name, fault = request.param
    monkeypatch.setattr(checkpoints, "EVERY_SECONDS", 0.0)
    if name == "os.replace":
        monkeypatch.setattr(os, "replace", broken(fault))
    else:
        monkeypatch.setattr("bertology.results.files.save_file", broken(fault))
    return os.strerror(fault)


def test_a_pass_goes_on_where_its_checkpoint_cannot_be_written(no_room, tmp_path):
    model = BY_NAME["bert"].build()
    with pytest.warns(UserWarning, match=r"checkpoint .*file cannot be written: .*The work goes on") as told:
        (found,) = b.accumulate(model, TEXTS, b.EntropyAccumulator(), checkpoint=tmp_path / "file")
    assert len([one for one in told if "checkpoint" in str(one.message)]) == 1
    assert no_room in str(told[0].message)
    assert found == b.attention_entropy(model, TEXTS)
    assert not list(tmp_path.iterdir())


def test_a_training_goes_on_where_its_checkpoint_cannot_be_written(no_room, tmp_path):
    x = GoodInputs(tmp_path / "other")
    wanted = edge_probing.train_probes(x.source, x.other, edge_probing.cumulative_probes(x.source, (0,)), x.settings)
    with pytest.warns(UserWarning, match="The work goes on"):
        found = edge_probing.train_probes(
            x.source, x.other, edge_probing.cumulative_probes(x.source, (0,)), x.settings, checkpoint=tmp_path / "file"
        )
    assert torch.equal(found.probes.weights, wanted.probes.weights)
    assert isinstance(x.source, InMemory)
    assert not list(tmp_path.iterdir())


def test_the_sums_of_a_shard_are_refused_before_anything_is_measured(monkeypatch, tmp_path):
    model, calls = BY_NAME["bert"].build(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr("pathlib.Path.write_bytes", broken(errno.ENOSPC))
    with pytest.raises(DataError, match=r"cannot be written .*No space left.*make room on the disk"):
        b.accumulate(model, TEXTS, b.EntropyAccumulator(), shard=(0, 1), save=tmp_path)
    assert not calls


def test_results_are_written_whole_or_not_at_all(monkeypatch, tmp_path):
    found = b.attention_entropy(BY_NAME["bert"].build(), TEXTS)
    found.save(tmp_path / "file")
    before = (tmp_path / "file").read_bytes()
    monkeypatch.setattr(os, "replace", broken(errno.ENOSPC))
    with pytest.raises(DataError, match="file cannot be written .*make room on the disk"):
        found.save(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == before


def test_two_calls_cannot_share_a_checkpoint(tmp_path):
    path = tmp_path / "file"
    with locked(path):
        with pytest.raises(
            DataError, match="file is being written by another process, or by another call in this one: wait until"
        ):
            b.accumulate(BY_NAME["bert"].build(), TEXTS, b.EntropyAccumulator(), checkpoint=path)
        with locked(tmp_path / "other"):
            pass
    b.accumulate(BY_NAME["bert"].build(), TEXTS, b.EntropyAccumulator(), checkpoint=path)
    assert not list(tmp_path.iterdir())


def test_no_lock_where_there_can_be_none(monkeypatch):
    with locked("/no/such/folder/file"), locked("/proc/file"), locked(None), locked("\0"):
        pass
    monkeypatch.setattr("bertology.results.complete_file.fcntl", None)
    with locked("file"), locked("file"):
        pass


def test_what_a_killed_process_has_left_is_removed_and_its_lock_is_gone(tmp_path):
    path = tmp_path / "file"
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from bertology.results.complete_file import complete_file, locked\npath = Path(sys.argv[1])\n"
        "with locked(path), complete_file(path) as part:\n    part.write_text('half')\n    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=200).returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    other = tmp_path / ".file.elsewhere-1-0.part"
    mine = tmp_path / f".file.host-{os.getpid()}-999.part"
    other.write_text("of another machine")
    mine.write_text("of this process")
    with locked(path), complete_file(path) as part:
        part.write_text("whole")
    assert {one.name for one in tmp_path.iterdir()} == {"file", other.name, mine.name}
    assert path.read_text() == "whole"


def test_a_checkpoint_that_cannot_be_removed_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr("pathlib.Path.unlink", broken(errno.EROFS))
    with pytest.warns(UserWarning, match="Remove it by hand: the work is complete"):
        b.accumulate(BY_NAME["bert"].build(), TEXTS, b.EntropyAccumulator(), checkpoint=tmp_path / "file")


def test_a_store_on_a_full_disk(monkeypatch, tmp_path):
    x = GoodInputs(tmp_path)
    monkeypatch.setattr(os, "replace", broken(errno.ENOSPC))
    with pytest.raises(DataError, match=r"cannot be written .*make room on the disk"):
        edge_probing.encode(x.reader, x.tokenizer, x.task, tmp_path / "store")
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = edge_probing.encode(x.reader, x.tokenizer, x.task, tmp_path / "store")
    assert store.records == 8
