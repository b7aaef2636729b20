import copy

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from bertology import Result, dissect, gated, load_pruned, prune_heads, prune_neurons, save_pruned
from bertology.errors import BertologyError, DataError, PruningError
from helpers.pruning import logits, seq2seq
from helpers.zoo import BY_NAME, batch


def gates_off(many, neurons):
    gates = torch.ones(2, many)
    for row, some in neurons.items():
        gates[row, list(some)] = 0
    return gates


def neurons_for(family, neurons):
    return dict.fromkeys(range(2), neurons[0]) if family.name == "albert" else neurons


# oracle: the gated model, and one whose weights were cut by hand
@pytest.mark.parametrize("neurons", [{0: [1, 2, 7], 1: [0]}, {0: range(24)}, {0: range(24), 1: range(24)}])
def test_pruned_equals_gated_and_comes_back(family, neurons, tmp_path):
    model, inputs = family.build(), batch()
    many = 64 if family.name.startswith("gpt") else 24
    neurons = neurons_for(family, neurons)
    with gated(model, neurons=gates_off(many, neurons)):
        expected = logits(model, inputs)
    whole = logits(model, inputs)
    pruned = prune_neurons(model, neurons)
    torch.testing.assert_close(logits(model, inputs), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(expected, whole)
    assert pruned.parameters_after == sum(p.numel() for p in model.parameters()) < pruned.parameters_before
    save_pruned(model, tmp_path)
    again = load_pruned(tmp_path, dtype=torch.float64)
    assert type(again) is type(model)
    torch.testing.assert_close(logits(again, inputs), expected, rtol=0, atol=1e-12)
    assert again.config.pruned_neurons == model.config.pruned_neurons


def test_by_hand():
    model, inputs = BY_NAME["llama"].build(), batch()
    other, kept = copy.deepcopy(model), [n for n in range(24) if n not in (2, 9)]
    prune_neurons(model, {1: [2, 9]})
    mlp = other.model.layers[1].mlp
    for name, axis in [("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)]:
        layer = getattr(mlp, name)
        layer.weight = torch.nn.Parameter(layer.weight.detach().index_select(axis, torch.tensor(kept)))
    assert torch.equal(logits(model, inputs), logits(other, inputs))
    assert model.model.layers[1].mlp.down_proj.in_features == 22
    prune_neurons(other, {0: [1]})
    assert not torch.allclose(logits(model, inputs), logits(other, inputs))


def test_a_fused_projection_loses_both_rows(tmp_path):
    config = transformers.Phi3Config(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(3)
    model, inputs = transformers.Phi3ForCausalLM(config).double().eval(), batch()
    with gated(model, neurons=gates_off(24, {0: [3, 4], 1: [20]})):
        expected = logits(model, inputs)
    prune_neurons(model, {0: [3, 4], 1: [20]})
    assert model.model.layers[0].mlp.gate_up_proj.weight.shape == (44, 16)
    torch.testing.assert_close(logits(model, inputs), expected, rtol=0, atol=1e-10)
    save_pruned(model, tmp_path)
    torch.testing.assert_close(logits(load_pruned(tmp_path, dtype=torch.float64), inputs), expected, rtol=0, atol=1e-10)


@settings(max_examples=8)
@given(st.sets(st.tuples(st.integers(0, 1), st.integers(0, 23))), st.sampled_from(["bert", "gpt2", "llama"]))
def test_at_once_or_in_two_steps(places, name):
    inputs, places = batch(), sorted(places)
    model = BY_NAME[name].build()
    other = copy.deepcopy(model)
    prune_neurons(model, places)
    prune_neurons(other, places[::2])
    prune_neurons(other, places[1::2])
    torch.testing.assert_close(logits(model, inputs), logits(other, inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_decoders_with_heads_too(name, tmp_path):
    model, ids = seq2seq(name), torch.randint(3, 40, (2, 5))
    inputs = {"input_ids": ids, "decoder_input_ids": ids}
    prune_heads(model, ["EL0H1", "DL1H2"])
    gates = torch.ones(4, 24)
    gates[0, 3] = gates[3, 5] = 0
    with gated(model, neurons=gates), torch.no_grad():
        expected = model(**inputs).logits
    pruned = prune_neurons(model, ["EL0N3", "DL1N5"])
    assert [str(one) for one in pruned.neurons] == ["EL0N3", "DL1N5"]
    assert model.config.pruned_neurons == {"decoder.1": [5], "encoder.0": [3]}
    save_pruned(model, tmp_path)
    again = load_pruned(tmp_path, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, expected, rtol=0, atol=1e-12)
    assert torch.equal(dissect(again).present, dissect(model).present)


def test_generation_with_a_cache():
    model, ids = BY_NAME["gpt2"].build("lm"), torch.randint(3, 40, (2, 5))
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 39, "pad_token_id": 0}
    with gated(model, neurons=gates_off(64, {0: range(30)})):
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    prune_neurons(model, {0: range(30)})
    assert torch.equal(model.generate(ids, attention_mask=torch.ones_like(ids), **options), expected)


def test_pruned_models_still_learn():
    model, inputs = BY_NAME["llama"].build(), batch()
    prune_neurons(model, {0: range(10)})
    model.train()
    model(**inputs).loss.backward()
    assert model.model.layers[0].mlp.down_proj.weight.grad.shape == (16, 14)


def test_the_result_saves_and_prints(tmp_path):
    pruned = prune_neurons(BY_NAME["bert"].build(), {0: [1, 2]})
    assert str(pruned) == "2 neurons pruned, 5,442 parameters before, 5,376 after (1.2% fewer)"
    pruned.save(tmp_path / "p")
    assert Result.load(tmp_path / "p") == pruned


def unchanged(model, call, error, told):
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(error, match=told):
        call()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not getattr(model.config, "pruned_neurons", None)


def test_what_cannot_be_cut():
    model = BY_NAME["albert"].build()
    unchanged(model, lambda: prune_neurons(model, {0: [1]}), PruningError, "share their MLP: prune the same neurons")
    model = BY_NAME["bert"].build()
    torch.nn.utils.parametrizations.weight_norm(model.bert.encoder.layer[1].output.dense)
    unchanged(
        model,
        lambda: prune_neurons(model, {0: [1], 1: [2]}),
        PruningError,
        "the neurons of encoder.1 cannot be cut out: a weight of .* is computed from others",
    )
    model = BY_NAME["llama"].build()
    model.model.layers[0].mlp.extra = torch.nn.Linear(3, 3)
    unchanged(model, lambda: prune_neurons(model, {0: [1]}), PruningError, "not known what 'extra'")
    model.model.layers[0].mlp.extra = None
    model.model.layers[0].mlp.ffn_layernorm = torch.nn.LayerNorm(24)
    unchanged(model, lambda: prune_neurons(model, {0: [1]}), PruningError, "ffn_layernorm is a norm over all of them")


@pytest.mark.parametrize(
    ("said", "told"),
    [({"9": [1]}, "neurons of layer '9' were pruned"), ({"0": "1"}, "its pruned_neurons must be"), ([1], "must be"),
     ({"0": [1, 2]}, "is .* in the file")],
)  # fmt: skip
def test_folders_that_do_not_fit(said, told, tmp_path):
    import json

    model = BY_NAME["bert"].build()
    prune_neurons(model, {0: [1]})
    save_pruned(model, tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pruned_neurons": said}))
    with pytest.raises(BertologyError, match=told) as raised:
        load_pruned(tmp_path)
    assert isinstance(raised.value, DataError)
