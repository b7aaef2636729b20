"""The folder of saved captures; what is in it is tested with `capture`."""

import pytest
import torch

from bertology import Captures, capture
from bertology.errors import DataError
from bertology.measures.saved_captures import CaptureFolder, OnDisk, tensors_of
from bertology.results.complete_file import locked
from helpers.zoo import BY_NAME, batch

# oracle: the tensors that were given, stacked in memory.
ALL = {"hidden": True, "maps": True, "heads": True}


def built(name):
    return BY_NAME[name].build(attention="eager")


def begun(path):
    folder = CaptureFolder(path)
    folder.begin({"made_of": "this"})
    return folder


def test_layers_are_one_tensor_wherever_they_lie(tmp_path):
    folder, layers = begun(tmp_path), [torch.randn(2, 3) for _ in range(3)]
    with OnDisk(folder, []) as disk:
        kept = [disk.keep("hidden", "encoder", x) for x in layers[:2]]
        in_turn = disk.pile("hidden", "encoder", [*kept, layers[2]])  # the last one comes from elsewhere
        other = disk.pile("hidden", "decoder", [layers[1], layers[0][:1]])  # pooled: filled up with NaN
        disk.end_batch({"labels": {}}, {"hidden": {"encoder": torch.tensor([[True, False]])}})
        kept = [disk.keep("hidden", "encoder", x) for x in layers]
        replaced = disk.pile("hidden", "encoder", [kept[0], layers[0], kept[2]])
        disk.end_batch({"labels": {}}, {})
        disk.end(2)
    assert torch.equal(in_turn, torch.stack(layers))
    assert torch.equal(other[0], layers[1])
    assert torch.equal(other[1, :1], layers[0][:1])
    assert other[1, 1].isnan().all()
    assert torch.equal(replaced, torch.stack([layers[0], layers[0], layers[2]]))
    first, second, end = folder.lines()
    assert torch.equal(tensors_of(folder, first, "hidden")["encoder"], in_turn)
    assert tensors_of(folder, first, "masks of hidden")["encoder"].tolist() == [[True, False]]
    assert torch.equal(tensors_of(folder, second, "hidden")["encoder"], replaced)
    assert end == {"end": 2}


def test_what_was_not_finished_is_written_again(tmp_path):
    folder, x = begun(tmp_path), torch.randn(2, 3)
    with OnDisk(folder, []) as disk:
        disk.pile("hidden", "encoder", [x])
        disk.end_batch({"labels": {}}, {})
        disk.keep("hidden", "encoder", x + 1)
    with (tmp_path / "index.jsonl").open("ab") as file:
        file.write(b'{"line": {"lab')
    with OnDisk(folder, folder.lines()) as disk:
        assert torch.equal(disk.pile("hidden", "encoder", [x + 2])[0], x + 2)
        disk.end_batch({"labels": {}}, {})
    assert [
        torch.equal(tensors_of(folder, line, "hidden")["encoder"][0], x + n)
        for n, line in zip((0, 2), folder.lines(), strict=True)
    ]
    assert (tmp_path / "hidden.encoder.bin").stat().st_size == 2 * 6 * 4


def test_a_damaged_folder_is_refused(tmp_path):
    folder = tmp_path / "captures"
    capture(built("bert"), batch(), **ALL, save=folder)
    file = folder / "hidden.encoder.bin"
    content = bytearray(file.read_bytes())
    content[11] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"hidden.encoder.bin does not hold what was written"):
        Captures.open(folder).check()
    file.write_bytes(content[:-1])
    with pytest.raises(DataError, match="wanted"):
        _ = Captures.open(folder).hidden
    file.unlink()
    file.mkdir()
    with pytest.raises(DataError, match=r"hidden.encoder.bin is not there, or is no file"):
        _ = Captures.open(folder).hidden
    index = (folder / "index.jsonl").read_text()
    (folder / "index.jsonl").write_text(index.replace('"batch"', '"patch"'))
    with pytest.raises(DataError, match=r"line 0 of index.jsonl was changed"):
        Captures.open(folder)


def test_a_folder_that_another_process_writes_is_refused(tmp_path):
    model, folder = built("bert"), tmp_path / "captures"
    with locked(folder), pytest.raises(DataError, match="is being written by another process"):
        capture(model, batch(), hidden=True, save=folder)
    assert len(capture(model, batch(), hidden=True, save=folder)) == 1


def test_a_folder_that_cannot_be_made_is_refused():
    with pytest.raises(DataError, match="/proc/captures"):
        capture(built("bert"), batch(), hidden=True, save="/proc/captures")
