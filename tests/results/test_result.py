import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import bertology.code_structure  # noqa: F401  whose results are loaded
from bertology import (
    AttentionEntropy,
    HeadImportance,
    Result,
    attention_entropy,
    attention_maps,
    head_importance,
    head_outputs,
    hidden_states,
    prune_heads,
    pruning_curve,
    score,
)
from bertology.errors import DataError
from bertology.results.views import rounded, table
from helpers.zoo import BY_NAME, batch


def make():
    model, inputs = BY_NAME["bert"].build(), batch()
    return [
        head_importance(model, inputs),
        attention_entropy(model, inputs),
        score(model, inputs, metric="accuracy"),
        pruning_curve(model, inputs, metric="accuracy", amount=4),
        hidden_states(model, inputs),
        attention_maps(model, inputs),
        head_outputs(model, inputs),
        head_outputs(model, inputs, loss="auto"),
        prune_heads(model, {0: [1]}),
    ]


@pytest.mark.parametrize("number", range(9))
def test_comes_back_from_a_file(tmp_path, number):
    result = make()[number]
    result.save(tmp_path / "r.safetensors")
    again = Result.load(tmp_path / "r.safetensors")
    assert type(again) is type(result)
    for name, value in vars(result).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(again, name), value)
        elif isinstance(value, dict):
            assert getattr(again, name).keys() == value.keys()
            assert all(torch.equal(getattr(again, name)[key], x) for key, x in value.items())
        else:
            assert getattr(again, name) == value
    assert repr(again) == repr(result)
    assert str(again) == str(result)


def test_another_kind_is_refused(tmp_path):
    make()[1].save(tmp_path / "r")
    with pytest.raises(DataError, match="wanted a HeadImportance in .*r, found AttentionEntropy"):
        HeadImportance.load(tmp_path / "r")
    assert isinstance(AttentionEntropy.load(tmp_path / "r"), AttentionEntropy)
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "s")
    with pytest.raises(DataError, match="wanted a Result in .*s, found no result of this library"):
        Result.load(tmp_path / "s")


def test_printing():
    values = torch.tensor([[0.5, float("nan")], [1.25, 2.0]])
    entropy = AttentionEntropy(values, values, torch.tensor([3, 3]), ("0", "1"))
    table = "      0  1\n0   0.5   \n1  1.25  2"
    assert str(entropy) == (
        f"AttentionEntropy\nmean [layer, head]:\n{table}\nfirst [layer, head]: 0.5 to 2\nqueries [layer]: [2] int64"
    )
    assert repr(entropy) == "AttentionEntropy(mean=[2, 2], first=[2, 2], queries=[2])"


def test_what_is_rounded_to_zero_has_no_minus():
    assert "-0\n" not in table(torch.tensor([[-0.0], [-0.5]]), ("0", "1"))
    wide = table(torch.tensor([[-0.001234, 0.51234, -0.016789] * 8]), ("0",))  # two decimals, to fit
    assert ("0.00" in wide, "-0.00" in wide, "-0.02" in wide) == (True, False, True)
    assert rounded(float("nan"), "+.1f") == "+nan"
    assert [rounded(x, "+.1%") for x in (-1e-6, -0.5, 0.0)] == ["+0.0%", "-50.0%", "+0.0%"]


def test_one_stack():
    ones = torch.arange(6.0).reshape(3, 2)
    entropy = AttentionEntropy(ones, ones, torch.tensor([1, 2, 3]), ("encoder.0", "decoder.0", "cross.0"))
    cut = entropy.stack("decoder")
    assert (cut.labels, cut.mean.tolist(), cut.queries.tolist()) == (("decoder.0",), [[2, 3]], [2])
    with pytest.raises(DataError, match="no stack 'middle' in this result: it has cross, decoder, encoder"):
        entropy.stack("middle")


SAVED = Path(__file__).parent / "saved"  # written before fields declared their axes


@pytest.mark.parametrize("file", sorted(SAVED.iterdir()), ids=lambda file: file.stem)
def test_files_of_before_still_load(tmp_path, file):
    result = Result.load(file)
    assert type(result).__name__ == file.stem
    result.save(tmp_path / "again")
    with safe_open(file, "pt") as old, safe_open(tmp_path / "again", "pt") as new:
        checksum = new.metadata()["checksum"]  # which files of before do not have
        assert new.metadata() == old.metadata() | {"checksum": checksum}
        assert sorted(new.keys()) == sorted(old.keys())
        assert all(torch.equal(new.get_tensor(name), old.get_tensor(name)) for name in old.keys())  # noqa: SIM118


def test_one_stack_of_saved_results():
    means = Result.load(SAVED / "HeadMeans.safetensors")
    assert torch.equal(means.stack("decoder").tokens, means.tokens[1:2])
    found = Result.load(SAVED / "CatComparison.safetensors")
    cut = found.stack("cross")
    assert (cut.labels, cut.types, cut.kinds) == (("cross.0",), found.types[2:], found.kinds)
    assert torch.equal(cut.head_matched, found.head_matched[:, 2:])


def test_tables_name_their_axes():
    shown = str(Result.load(SAVED / "AttentionGradients.safetensors"))
    assert "pairs [layer, class]:\n" in shown
    assert "values [layer, head, class]: [3, 2, 2] float64" in shown


def test_a_result_of_a_suite_that_is_not_imported_is_explained():
    code = f"from bertology import Result; Result.load({str(SAVED / 'CatComparison.safetensors')!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "found CatComparison: if it is one of bertology.syntax, bertology.edge_probing or" in run.stderr
    assert "import that first" in run.stderr
