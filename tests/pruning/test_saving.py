import json

import pytest
import torch
import transformers

from bertology import dissect, load_pruned, prune_heads, save_pruned
from bertology.errors import DataError
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
