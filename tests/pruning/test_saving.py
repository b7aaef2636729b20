import contextlib
import json

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bertology import dissect, load_pruned, prune_heads, save_pruned
from bertology.errors import BertologyError, DataError
from bertology.results.model_files import has_right_checksum, write_checksum
from helpers.pruning import SOME, heads_for, logits
from helpers.zoo import BY_NAME, V4, batch


@pytest.mark.parametrize("heads", [SOME, {0: [0, 1, 2, 3]}], ids=["some", "layer"])
def test_comes_back_as_it_was(family, heads, tmp_path):
    model, inputs = family.build(), batch()
    prune_heads(model, heads_for(family, heads))
    expected = logits(model, inputs)
    save_pruned(model, tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors").is_file()
    again = load_pruned(tmp_path / "m", dtype=torch.float64)
    assert type(again) is type(model)
    assert not again.training
    assert torch.equal(logits(again, inputs), expected)
    assert torch.equal(dissect(again).present, dissect(model).present)
    # The heads that are left can go as well, and the file can be written again.
    left = [(r, h) for r, h in dissect(again).present.nonzero().tolist()]
    if left:
        prune_heads(again, left)
    save_pruned(again, tmp_path / "n")
    assert dissect(load_pruned(tmp_path / "n")).present.sum() == 0


def test_the_config_names_the_heads(tmp_path):
    model = BY_NAME["bert"].build()
    prune_heads(model, {0: [2]})
    prune_heads(model, {0: [1], 1: [3]})
    save_pruned(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["pruned_heads"] == {"0": [1, 2], "1": [3]}
    assert config["architectures"] == ["BertForSequenceClassification"]


def test_options(tmp_path):
    model = BY_NAME["gpt2"].build("lm")
    prune_heads(model, SOME)
    save_pruned(model, tmp_path)
    again = load_pruned(
        tmp_path, dtype=torch.float32, attn_implementation="eager", model_class=transformers.GPT2LMHeadModel
    )
    assert next(again.parameters()).dtype == torch.float32
    assert again.config._attn_implementation == "eager"
    inputs = batch(labels=False)
    with torch.no_grad():
        maps = again(**inputs, output_attentions=True).attentions
    assert [m.shape[1] for m in maps] == [2, 3]
    torch.testing.assert_close(logits(again, inputs), logits(model, inputs).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_keep_their_type(dtype, tmp_path):
    model, inputs = BY_NAME["bert"].build().to(dtype), batch()
    prune_heads(model, SOME)
    save_pruned(model, tmp_path)
    again = load_pruned(tmp_path)
    assert {x.dtype for x in again.parameters()} == {dtype}
    assert torch.equal(logits(again, inputs), logits(model, inputs))


def test_an_unpruned_model_loads_as_well(tmp_path):
    model, inputs = BY_NAME["distilbert"].build(), batch()
    save_pruned(model, tmp_path)
    assert torch.equal(logits(load_pruned(tmp_path, dtype=torch.float64), inputs), logits(model, inputs))


def test_errors(tmp_path):
    model = BY_NAME["bert"].build()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="save_pruned writes a folder, but .*file is a file: name another path"):
        save_pruned(model, tmp_path / "file")
    with pytest.raises(DataError, match=r"no model at .*nowhere: wanted a folder with a config.json"):
        load_pruned(tmp_path / "nowhere")
    model.config.save_pretrained(tmp_path / "bare")
    with pytest.raises(DataError, match=r"names no model class of transformers \(\[\]\): pass model_class="):
        load_pruned(tmp_path / "bare")


@pytest.mark.skipif(not V4, reason="transformers 5 has no prune_heads")
@pytest.mark.parametrize("name", ["bert", "gpt2", "distilbert"])
def test_transformers_4_reads_it_back(name, tmp_path):
    model, inputs = BY_NAME[name].build(), batch()
    prune_heads(model, SOME)
    save_pruned(model, tmp_path)
    native, info = type(model).from_pretrained(tmp_path, dtype=torch.float64, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert torch.equal(logits(native, inputs), logits(model, inputs))
    assert torch.equal(dissect(native).present, dissect(model).present)


@pytest.mark.skipif(not V4, reason="transformers 5 has no prune_heads")
@pytest.mark.parametrize("name", ["bert", "gpt2", "distilbert", "roberta", "electra"])
def test_prunes_as_transformers_4_does(name, tmp_path):
    # Its new layers are float32, whatever the old ones were.
    ours, theirs, inputs = BY_NAME[name].build().float(), BY_NAME[name].build().float(), batch()
    prune_heads(ours, SOME)
    theirs.prune_heads(SOME)
    assert torch.equal(logits(ours, inputs), logits(theirs, inputs))
    assert torch.equal(dissect(theirs).present, dissect(ours).present)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    theirs.save_pretrained(tmp_path)
    assert torch.equal(logits(load_pruned(tmp_path), inputs), logits(ours, inputs))


def rewrite(folder, **changed):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


BAD_CONFIGS = {
    "a list of heads for all layers": ({"pruned_heads": [1, 2]}, "its pruned_heads must be {layer: .heads.}, got"),
    "heads that are texts": ({"pruned_heads": {"0": ["1"]}}, "its pruned_heads must be"),
    "heads that are a number": ({"pruned_heads": {"1": 2}}, "its pruned_heads must be"),
    "heads of a label that are a number": (
        {"pruned_heads_by_label": {"encoder.0": 2}}, "its pruned_heads_by_label must be {layer: .heads.}, got"
    ),
    "a head twice": ({"pruned_heads": {"1": [2, 2]}}, "its pruned_heads must be"),
    "a layer that is a word": ({"pruned_heads": {"first": [2]}}, "its pruned_heads must be"),
    "a head below 0": ({"pruned_heads": {"0": [-1]}}, "its pruned_heads must be"),
    "a head that is not there": ({"pruned_heads": {"0": [7]}}, "head|0 to 3"),
    "a layer that is not there": ({"pruned_heads": {"5": [1]}}, "layer|5"),
    "labels that are not there": ({"pruned_heads_by_label": {"middle.0": [1]}}, "heads of 'middle.0' were pruned"),
    "other heads than in the file": ({"pruned_heads": {"0": [0, 2], "1": [3]}}, "is .* in the file, and .* by the config"),
    "a wider model": ({"intermediate_size": 48}, "is .* in the file, and .* by the config"),
    "a huge vocabulary": ({"vocab_size": 10**12}, "is .* in the file, and .* by the config"),
    "a width that is a text": ({"hidden_size": "16"}, "cannot be used"),
    "no class": ({"architectures": []}, "names no model class of transformers"),
    "a class that is a text": ({"architectures": "BertModel"}, "names no model class of transformers"),
    "a tokenizer": ({"architectures": ["BertTokenizer"]}, "names no model class of transformers"),
    "a config": ({"architectures": ["BertConfig"]}, "names no model class of transformers"),
    "a function": ({"architectures": ["set_seed"]}, "names no model class of transformers"),
    "the base of all models": ({"architectures": ["PreTrainedModel"]}, "names no model class of transformers"),
    "an auto class": ({"architectures": ["AutoModelForSequenceClassification"]}, "names no model class of transformers"),
    "a number": ({"architectures": [7]}, "names no model class of transformers"),
    "a model type that nobody knows": ({"model_type": None, "architectures": ["Nobody"]}, "names no model class"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_config_is_checked_before_the_model_is_built(tmp_path, name):
    model = BY_NAME["bert"].build()
    prune_heads(model, {0: [2], 1: [3]})
    save_pruned(model, tmp_path)
    changed, told = BAD_CONFIGS[name]
    rewrite(tmp_path, **changed)
    with pytest.raises(BertologyError, match=told):
        load_pruned(tmp_path)


def test_code_of_the_folder_is_never_run(tmp_path):
    save_pruned(BY_NAME["bert"].build(), tmp_path)
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\nclass OwnConfig: pass\n")
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.Own"}
    for changed in ({"model_type": "own"}, {"architectures": ["Own"]}, {}):
        rewrite(tmp_path, auto_map=auto_map, **changed)
        with contextlib.suppress(BertologyError):
            load_pruned(tmp_path)
        assert not (tmp_path / "ran").exists()


def test_damaged_files_are_named(tmp_path):
    save_pruned(BY_NAME["bert"].build(), tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, text = weights.read_bytes(), config.read_text()
    for content in (b"", whole[:100], whole[:-5], b"nothing" * 9):
        weights.write_bytes(content)
        with pytest.raises(
            DataError, match=f"the model in {tmp_path} cannot be used: model.safetensors cannot be read"
        ):
            load_pruned(tmp_path)
    weights.unlink()
    with pytest.raises(DataError, match=f"the model in {tmp_path} cannot be used"):
        load_pruned(tmp_path)
    weights.write_bytes(whole)
    for content in ("", "{", "[]", "7"):
        config.write_text(content)
        with pytest.raises(DataError, match=f"the model in {tmp_path} cannot be used: its config.json"):
            load_pruned(tmp_path)
    config.write_text(text)
    load_pruned(tmp_path)
    with pytest.raises(DataError, match="no model at .*config.json"):
        load_pruned(tmp_path / "config.json")
    for path in (None, 3):
        with pytest.raises(DataError, match=f"path must be a string or a path, got {path}"):
            load_pruned(path)


def test_a_changed_bit_of_the_weights_is_seen(tmp_path):
    model = BY_NAME["bert"].build()
    prune_heads(model, {0: [1]})
    save_pruned(model, tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    assert start % 8 == 0
    for place in (start, (start + len(whole)) // 2, len(whole) - 1):
        weights.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"model.safetensors is damaged: its weights are not those that were saved"):
            load_pruned(tmp_path)
    weights.write_bytes(whole)
    again = load_pruned(tmp_path)
    # oracle: safetensors itself
    assert safe_open(str(weights), framework="pt").metadata()["format"] == "pt"
    for name, x in load_file(str(weights)).items():
        assert torch.equal(x, model.state_dict()[name])
    with torch.no_grad():
        next(again.parameters()).add_(1)
    again.save_pretrained(tmp_path)  # transformers writes no checksum, and leaves none of other weights
    assert torch.equal(next(load_pruned(tmp_path).parameters()), next(again.parameters()))


@pytest.mark.skipif(not V4, reason="a model of transformers 4")
def test_a_model_that_is_built_in_float32_alone_says_how_it_can_be_loaded(tmp_path):
    config = transformers.NezhaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    model = transformers.NezhaModel(config).double()
    save_pruned(model, tmp_path)
    with pytest.raises(DataError, match=r"It is in float64: pass dtype=torch.float32, or save it again"):
        load_pruned(tmp_path)
    again = load_pruned(tmp_path, dtype=torch.float32).double()
    assert all(torch.equal(x, y) for x, y in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_checksum_can_be_written_twice(tmp_path, metadata):
    path = tmp_path / "model.safetensors"
    weights = {"weight": torch.arange(3.0), "gewähr": torch.zeros(0), "one": torch.tensor(1, dtype=torch.bfloat16)}
    save_file(weights, path, metadata=metadata)
    for _ in range(2):
        write_checksum(path)
        assert has_right_checksum(path)
    assert load_file(path)["weight"].tolist() == [0, 1, 2]
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert not has_right_checksum(path)


@pytest.mark.parametrize("given", ["BertModel", transformers.AutoModel, torch.nn.Linear, transformers.BertConfig, 3])
def test_a_model_class_is_a_model_class(tmp_path, given):
    save_pruned(BY_NAME["bert"].build(), tmp_path)
    with pytest.raises(DataError, match="model_class must be a model class of transformers such as BertModel, got"):
        load_pruned(tmp_path, model_class=given)
    with pytest.raises(DataError, match="cannot be used"):
        load_pruned(tmp_path, model_class=transformers.T5Model)
