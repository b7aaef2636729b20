"""Files of results that are missing, damaged or of something else: every one is refused with its name."""

import json
import os
import struct
from dataclasses import fields

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import bertology.syntax  # noqa: F401
from bertology import HeadImportance, Result, attention_maps, head_importance, prune_heads, pruning_curve
from bertology.errors import DataError
from helpers.zoo import BY_NAME, batch


@pytest.fixture(scope="module")
def saved():
    """A result, and its file as {header} and data."""
    return head_importance(BY_NAME["gpt2"].build(), batch())


def parts(path):
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def write(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def without_checksum(header):
    del header["__metadata__"]["checksum"]  # as earlier versions wrote it


def with_fields(**changed):
    def change(header):
        without_checksum(header)
        fields = json.loads(header["__metadata__"]["fields"]) | changed
        header["__metadata__"]["fields"] = json.dumps({name: x for name, x in fields.items() if x != "gone"})

    return change


def of_tensor(name, **changed):
    def change(header):
        without_checksum(header)
        header[name] |= changed

    return change


DAMAGED = {
    "a label too many": (with_fields(labels=["0", "1", "2"]), "'labels' has 3 on the axis layer|has 2 on the axis layer"),
    "labels that are numbers": (with_fields(labels=[0, 1]), r"the field 'labels' is \(0, 1\), wanted tuple"),
    "labels that are a text": (with_fields(labels="01"), "the field 'labels' is '01'"),
    "no labels": (with_fields(labels="gone"), "the field 'labels' is missing"),
    "examples that are a text": (with_fields(examples="3"), "the field 'examples' is '3', wanted int"),
    "examples that are none": (with_fields(examples=None), "the field 'examples' is None, wanted int"),
    "a field that is not known": (with_fields(colour="red"), "HeadImportance has no field 'colour'"),
    "a number in the place of a tensor": (with_fields(scores=3), "the field 'scores' is 3, wanted Tensor"),
    "another shape": (of_tensor("scores", shape=[4, 2]), "on the axis layer"),
    "a shape of one axis": (of_tensor("scores", shape=[8]), r"the field 'scores' has the shape \[8\], wanted \[layer, head\]"),
    "a list of fields": (lambda header: header["__metadata__"].update(fields="[]"), "its fields have no names"),
    "fields that are cut": (lambda header: header["__metadata__"].update(fields='{"labels": ["0"'), "does not say what"),
    "another dtype": (lambda header: header["scores"].update(dtype="I64"), "does not hold what was written"),
    "exchanged tensors": (
        lambda header: header.update(scores=header["stderr"], stderr=header["scores"]), "does not hold what was written",
    ),
    "other examples": (
        lambda header: header["__metadata__"].update(fields=header["__metadata__"]["fields"].replace("3", "4")),
        "does not hold what was written",
    ),
    "the name of another kind": (lambda header: header["__metadata__"].update(result="AttentionEntropy"), "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused(saved, tmp_path, name):
    change, told = DAMAGED[name]
    path = tmp_path / "result"
    saved.save(path)
    header, data = parts(path)
    change(header)
    write(path, header, data)
    with pytest.raises(DataError, match=f"(?s){path}.*({told}).*Measure again, and save it again"):
        Result.load(path)


def test_a_file_as_earlier_versions_wrote_it_still_loads(saved, tmp_path):
    path = tmp_path / "result"
    saved.save(path)
    header, data = parts(path)
    without_checksum(header)
    write(path, header, data)
    assert str(Result.load(path)) == str(saved)


@pytest.mark.parametrize("bit", [0, 77, 130])
def test_one_flipped_bit_is_noticed(saved, tmp_path, bit):
    path = tmp_path / "result"
    saved.save(path)
    header, data = parts(path)
    changed = bytearray(data)
    changed[bit] ^= 4
    write(path, header, bytes(changed))
    with pytest.raises(DataError, match=f"{path} is damaged"):
        Result.load(path)


def test_an_element_out_of_a_large_tensor_is_saved(tmp_path):
    """It keeps the stride of the tensor that it was cut out of, which is no stride of bytes."""
    scores = torch.as_strided(torch.arange(20, dtype=torch.float64), (1, 1), (7, 9), 3)
    found = HeadImportance(**{**vars(head_importance(BY_NAME["gpt2"].build(), batch())), "scores": scores})
    cut = {f.name: getattr(found, f.name) for f in fields(found)}
    cut = {name: x[:1, :1] if isinstance(x, torch.Tensor) and x.dim() == 2 else x for name, x in cut.items()}
    one = HeadImportance(**{**cut, "scores": scores, "labels": ("0",)})
    one.save(tmp_path / "one")
    assert HeadImportance.load(tmp_path / "one").scores.tolist() == [[3.0]]


def test_other_files_are_refused(saved, tmp_path):
    path = tmp_path / "result"
    saved.save(path)
    content = path.read_bytes()
    for length in (0, 1, 7, 8, 20, 200, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=f"{path} is no file of a result, or is damaged"):
            Result.load(path)
    np.save(tmp_path / "array.npy", np.ones(3))
    torch.save({"x": 1}, tmp_path / "model.pt")
    for name in ("array.npy", "model.pt"):
        with pytest.raises(DataError, match=f"{name} is no file of a result"):
            Result.load(tmp_path / name)
    save_file({"x": torch.ones(1)}, tmp_path / "weights", metadata={"format": "pt"})
    with pytest.raises(DataError, match="wanted a HeadImportance in .*weights, found no result of this library"):
        HeadImportance.load(tmp_path / "weights")
    for missing in (tmp_path, tmp_path / "nowhere", tmp_path / "no" / "where"):
        with pytest.raises(DataError, match=f"no result at {missing}: wanted a file that Result.save wrote"):
            Result.load(missing)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("x.csv", r"let it end in .safetensors, or call to_frame\(\).to_csv"),
        ("X.TSV", r"to_frame\(\).to_csv"),
        ("a/x.parquet", r"to_frame\(\).to_csv"),
        ("x.json", r"json.dumps\(result.to_dict\(\)\)"),
        ("x.npy", "numpy.save"),
        ("x.png", "plot"),
        ("x.pkl", "let it end in .safetensors$"),
    ],
)
def test_a_name_of_another_format_is_refused(saved, tmp_path, name, advice):
    with pytest.raises(DataError, match=f"a result is saved as a safetensors file, got the name .*: .*{advice}"):
        saved.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["result", "bert-base-1.5", "2024.result", "x.safetensors", ".hidden"])
def test_other_names_are_as_they_were(saved, tmp_path, name):
    saved.save(tmp_path / name)
    assert Result.load(tmp_path / name) == saved


@pytest.mark.parametrize("path", [None, 3, "", b"name", ["a"]])
def test_a_path_is_a_name(saved, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for call in (saved.save, Result.load):
        with pytest.raises(DataError, match="path must be (the name of a file|a string or a path)"):
            call(path)
    assert os.listdir(tmp_path) == []


def test_a_result_goes_into_a_folder_that_exists(saved, tmp_path):
    for path in (tmp_path, tmp_path / "no" / "where"):
        with pytest.raises(DataError, match=f"saved to a file in a folder that exists, got {path}"):
            saved.save(path)


def test_results_of_all_kinds_of_fields_come_back(tmp_path):
    model, inputs = BY_NAME["bert"].build(), batch()
    path = tmp_path / "result"
    by_loss = pruning_curve(model, inputs, metric="inverse_loss", amount=4)
    for result in (attention_maps(model, inputs), by_loss, prune_heads(model, {0: [1], 1: [2]})):
        result.save(path)
        assert str(Result.load(path)) == str(result)
