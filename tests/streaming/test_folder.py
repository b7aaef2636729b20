"""Tensors that are appended to files, and mapped into memory."""

from contextlib import contextmanager

import pytest
import torch

from bertology.errors import DataError
from bertology.streaming.folder import Record, TensorFiles, ValueFolder, is_whole, joined, mapped

pytestmark = pytest.mark.any_transformers
KINDS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool]


def tensor(kind, *shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    return x > 0 if kind == torch.bool else x.to(kind)


def test_tensors_of_all_types_come_back(tmp_path):
    tensors = [tensor(kind, *shape) for kind in KINDS for shape in ((3,), (2, 5), (0, 4), (1, 2, 3))]
    with TensorFiles(tmp_path) as files:
        records = [files.append("x.bin", x) for x in tensors]
        early = mapped(tmp_path / "x.bin", records[1])  # while the file is open
    assert torch.equal(early, tensors[1])
    for record, x in zip(records, tensors, strict=True):
        found = mapped(tmp_path / "x.bin", record)
        assert (found.dtype, found.shape) == (x.dtype, x.shape)
        assert torch.equal(found, x)
        assert record.start % x.element_size() == 0
        assert is_whole(tmp_path / "x.bin", record)


def test_writing_to_a_tensor_changes_no_file(tmp_path):
    with TensorFiles(tmp_path) as files:
        record = files.append("x.bin", torch.ones(3))
    mapped(tmp_path / "x.bin", record).zero_()
    assert mapped(tmp_path / "x.bin", record).tolist() == [1, 1, 1]


def test_tensors_side_by_side_are_one(tmp_path):
    layers = [torch.randn(2, 3) for _ in range(3)]
    with TensorFiles(tmp_path) as files:
        records = [files.append("x.bin", x) for x in layers]
        other = files.append("x.bin", torch.randn(3, 2))
    whole = joined(records)
    assert torch.equal(mapped(tmp_path / "x.bin", whole), torch.stack(layers))
    assert is_whole(tmp_path / "x.bin", whole)
    assert joined([records[0], records[2]]) is None
    assert joined([records[2], other]) is None
    content = bytearray((tmp_path / "x.bin").read_bytes())
    content[30] ^= 1
    (tmp_path / "x.bin").write_bytes(content)
    assert not is_whole(tmp_path / "x.bin", whole)
    assert is_whole(tmp_path / "x.bin", records[0])


def test_a_file_goes_on_after_what_is_wanted(tmp_path):
    with TensorFiles(tmp_path) as files:
        first = files.append("x.bin", torch.ones(3))
        files.append("x.bin", torch.ones(5))
    with TensorFiles(tmp_path) as files:
        files.open("x.bin", first.end)
        again = files.append("x.bin", torch.zeros(2))
    assert again == Record(12, (2,), "float32", again.checks)
    assert (tmp_path / "x.bin").stat().st_size == 20


def test_a_full_disk_is_told(tmp_path):
    with TensorFiles(tmp_path) as files:
        file = files.open("x.bin")
        files._files["x.bin"] = Full()
        with pytest.raises(DataError, match=r"x.bin cannot be written .*No space left.* make room"):
            files.append("x.bin", torch.ones(3))
        files._files["x.bin"] = file


@contextmanager
def files_of_at_most(size):
    """A disk that is nearly full, as it looks to this process."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_a_part_is_told_and_what_was_whole_stays(tmp_path):
    def add(many, start=0):
        with TensorFiles(tmp_path) as files:
            files.open("x.bin", start)
            return files.append("x.bin", torch.ones(many))

    first = add(100)
    with files_of_at_most(500), pytest.raises(DataError, match="x.bin cannot be written"):
        add(200, first.end)
    again = add(200, first.end)
    assert is_whole(tmp_path / "x.bin", first)
    assert is_whole(tmp_path / "x.bin", again)
    assert (tmp_path / "x.bin").stat().st_size == 1200


class Full:
    def tell(self):
        return 0

    def write(self, content):
        raise OSError(28, "No space left on device")


class Folder(ValueFolder):
    format, holds, maker, again = 7, "values", "make()", "make them again"


def test_a_folder_says_what_is_wrong(tmp_path):
    folder = Folder(tmp_path)
    assert not folder.is_begun()
    folder.write_about({"a": [1, 2]})
    assert folder.is_begun()
    assert folder.about() == {"a": [1, 2], "format": 7}
    (tmp_path / "meta.json").write_text((tmp_path / "meta.json").read_text().replace("2", "3"))
    with pytest.raises(DataError, match=r"meta.json was changed. Remove the folder and make them again"):
        folder.about()
    with pytest.raises(DataError, match=r"holds no values: wanted a folder that make\(\) made"):
        Folder(tmp_path / "nowhere").about()
