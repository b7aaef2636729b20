import pytest
import torch
import transformers

from bertology import neuron_activations, prune_neurons, tap
from bertology.errors import DataError, ShapeError
from helpers.pruning import seq2seq
from helpers.zoo import BY_NAME, batch


def inputs_of(model, module, inputs):
    """Oracle: what a hook of ours sees at the input of a layer."""
    seen = []
    hook = module.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    with torch.no_grad():
        model(**{name: x for name, x in inputs.items() if name != "labels"})
    hook.remove()
    return seen[0]


# oracle: a hook at the down projection
@pytest.mark.parametrize(
    ("name", "path"), [("bert", "bert.encoder.layer.1.output.dense"), ("llama", "model.layers.1.mlp.down_proj")]
)
def test_equals_a_hook(name, path):
    model, inputs = BY_NAME[name].build(), batch()
    found = neuron_activations(model, inputs)
    assert torch.equal(found.values[1], inputs_of(model, model.get_submodule(path), inputs))
    assert not torch.equal(found.values[0], found.values[1])
    assert torch.equal(found.mask, inputs["attention_mask"].bool())


def test_a_gated_neuron_is_the_product_of_its_layers():
    model, inputs = BY_NAME["llama"].build(), batch()
    mlp = model.model.layers[0].mlp
    x = inputs_of(model, mlp, inputs)
    expected = torch.nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x)
    torch.testing.assert_close(neuron_activations(model, inputs).values[0], expected)


def test_opt_has_all_tokens_in_one_row():
    config = transformers.OPTConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, ffn_dim=24, num_attention_heads=4, pad_token_id=0,
        max_position_embeddings=32, word_embed_proj_dim=16,
    )  # fmt: skip
    model, inputs = transformers.OPTModel(config).eval(), batch(labels=False)
    assert neuron_activations(model, inputs).values.shape == (2, 3, 7, 24)


def test_stacks_and_pruned_neurons():
    model, ids = seq2seq("t5"), torch.randint(3, 40, (2, 5))
    prune_neurons(model, ["EL1N2"])
    found = neuron_activations(model, {"input_ids": ids, "decoder_input_ids": ids[:, :3]})
    assert {name: list(x.shape) for name, x in found.stacks.items()} == {
        "encoder": [2, 2, 5, 24],
        "decoder": [2, 2, 3, 24],
    }
    assert found.stack("encoder").values[1, :, :, 2].isnan().all()
    with pytest.raises(DataError, match="several stacks"):
        _ = found.values


def test_taps_read_and_edit_neurons_and_mlps():
    model, inputs = BY_NAME["gpt2"].build(), batch(labels=False)
    seen = []
    with torch.no_grad():
        with tap(model, "mlp", read=lambda site, x: seen.append((str(site), list(x.shape)))):
            whole = model(**inputs).logits
        with tap(model, "neurons", edit=lambda site, x: x * 0):
            silent = model(**inputs).logits
        with tap(model, "mlp", edit=lambda site, x: site.projection.bias.expand_as(x)):
            bias = model(**inputs).logits
    assert seen == [("decoder.0", [3, 7, 16]), ("decoder.1", [3, 7, 16])]
    torch.testing.assert_close(silent, bias)
    assert not torch.allclose(silent, whole)
    with pytest.raises(ShapeError, match="neurons of decoder.0"), tap(model, "neurons", edit=lambda s, x: x[..., :3]):
        model(**inputs)
    with pytest.raises(ShapeError, match="MLP of decoder.0"), tap(model, "mlp", edit=lambda s, x: x[..., :3]):
        model(**inputs)
