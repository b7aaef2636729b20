"""The norms of what arrives at each query from each key."""

import numpy as np
import pytest
import torch
import transformers

from bertology import attention_maps, attention_patterns, dissect, head_outputs, prune_heads, tap
from bertology.errors import DataError, UnknownAnatomy
from bertology.tap import output_weights
from helpers.zoo import BY_NAME, PAD, V4, batch, each_alone
from oracles import carried

# oracle: numpy loops over eager maps, hidden states and weights


def norms_of(model, inputs, **options):
    parts = {}
    read = lambda site, x, rows: parts.setdefault(site.row, []).append(x)  # noqa: E731
    with tap(model, "norms", read=read, **options), torch.no_grad():
        model(**inputs)
    return {row: torch.cat(some, 2) for row, some in parts.items()}


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equals_loops_over_maps_and_weights(name, attention):
    inputs = batch(labels=False)
    eager = BY_NAME[name].build(attention="eager").base_model
    expected = carried.arriving(eager, name, inputs)
    model = BY_NAME[name].build(attention=attention).base_model
    found = norms_of(model, inputs)
    tolerance = 1e-6 if name == "llama" else 1e-12
    real = inputs["attention_mask"].bool().numpy()
    for row, x in found.items():
        norms = np.linalg.norm(expected[row], axis=-1)
        for b in range(3):
            np.testing.assert_allclose(x[b, :, real[b]], norms[b][:, real[b]], rtol=tolerance, atol=tolerance)
    # the sum over keys is what the head adds
    outputs = head_outputs(model, inputs).values
    for site in dissect(model).sites:
        added = torch.einsum("bthd,hdm->bhtm", outputs[site.row], output_weights(site)).numpy()
        sums = expected[site.row].sum(-2)
        np.testing.assert_allclose(
            added.swapaxes(1, 2)[real], sums.swapaxes(1, 2)[real], rtol=tolerance, atol=tolerance
        )
    spoiled = np.linalg.norm(expected[0] * 1.001, axis=-1)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(found[0][0], spoiled[0], rtol=tolerance)


def test_one_key_brings_all_that_the_head_adds(family):
    """With one token the norm is that of what the head writes: a closed form for every family."""
    model, inputs = family.build(), batch((1, 1), labels=False)
    found, outputs = norms_of(model, inputs), head_outputs(model, inputs).values
    for site in dissect(model).sites:
        added = torch.einsum("bthd,hdm->bhm", outputs[site.row], output_weights(site)).norm(dim=-1)
        torch.testing.assert_close(found[site.row][:, :, 0, 0], added)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_blocks_give_the_same(name):
    model, inputs = BY_NAME[name].build(), batch(labels=False)
    whole, blocks = norms_of(model, inputs), norms_of(model, inputs, rows=2)
    for row, x in whole.items():
        torch.testing.assert_close(blocks[row], x)


def test_shares_sum_to_one_and_causal_stays_causal(family):
    model, inputs = family.build(), batch((7, 7), labels=False)
    found = attention_maps(model, inputs, weighting="norm")
    assert found.weighting == "norm"
    torch.testing.assert_close(found.values.sum(-1), torch.ones_like(found.values[..., 0]))
    if family.causal:
        assert not found.values.triu(1).any()


def test_padding_and_batching_change_nothing(family):
    model = family.build()
    many, alone = (attention_patterns(model, x, weighting="norm") for x in (batch(), each_alone(batch())))
    assert many.weighting == "norm"
    for kind in ("previous", "self", "first", "distance", "confidence"):
        torch.testing.assert_close(getattr(many, kind), getattr(alone, kind), rtol=1e-6, atol=1e-6)


def test_left_padding():
    model = BY_NAME["llama"].build()
    left, right = (attention_patterns(model, batch(side=side), weighting="norm") for side in ("left", "right"))
    torch.testing.assert_close(left.self, right.self, atol=1e-6, rtol=0)
    torch.testing.assert_close(left.distance, right.distance, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["bert", "gpt2", "distilbert"])
def test_pruned_heads_are_left_out(name):
    model, inputs = BY_NAME[name].build(), batch(labels=False)
    whole = attention_maps(model, inputs, weighting="norm").values[0]
    prune_heads(model, {0: [1], 1: [2]})
    left = attention_maps(model, inputs, weighting="norm").values[0]
    assert left[:, 1].isnan().all()
    torch.testing.assert_close(left[:, [0, 2, 3]], whole[:, [0, 2, 3]])


def test_a_key_without_a_value_brings_nothing():
    model, inputs = BY_NAME["bert"].build(), batch((5,), labels=False)
    site = dissect(model).sites[0]
    with torch.no_grad():
        site.value.weight[:4] = 0
        site.value.bias[:4] = 0  # head 0 has no values at all
    found = attention_maps(model, inputs, weighting="norm").values[0, 0]
    assert not found[0].any()
    torch.testing.assert_close(found[1:].sum(-1), torch.ones_like(found[1:, :, 0]))


def test_encoder_decoders_with_cross_attention():
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(config).eval()
    inputs = {**batch(labels=False), "decoder_input_ids": torch.tensor([[5, 6]] * 3)}
    outputs, found = head_outputs(model, inputs), norms_of(model, inputs)
    maps = attention_maps(model, inputs)
    first = next(site for site in dissect(model).sites if site.stack == "decoder")
    # the first token of a decoder sees itself alone
    added = torch.einsum("bhd,hdm->bhm", outputs.stack("decoder").values[0][:, 0], output_weights(first)).norm(dim=-1)
    torch.testing.assert_close(found[first.row][:, :, 0, 0], added)
    assert (
        maps.stack("cross").values.shape == attention_maps(model, inputs, weighting="norm").stack("cross").values.shape
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("kind", ["mpnet", "deberta-v2", "gpt_neo", "bloom", "opt", "modernbert"])
def test_more_families_pass_the_check_of_their_sums(kind):
    if kind == "modernbert" and V4:
        pytest.skip("its own padding in transformers 4")
    small = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": PAD}
    more = {
        "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        "bloom": {"n_layer": 2, "n_head": 4},
        "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
        "modernbert": {
            "intermediate_size": 24,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    }.get(kind, {"intermediate_size": 24})
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **{**small, **more})).eval()
    found = attention_maps(model, batch((6, 6), labels=False), weighting="norm").values
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))


@pytest.mark.parametrize("name", ["bert", "gpt", "llama"])  # that of GPT projects its heads before its map is given
def test_heads_that_pass_on_something_else_are_refused(name):
    model, inputs = BY_NAME[name].build(), batch(labels=False)
    place = dissect(model).sites[1].place
    for factor in (1.5, float("nan")):
        hook = place.register_forward_pre_hook(lambda module, args, by=factor: (args[0] * by,))
        with pytest.raises(UnknownAnatomy, match="is not the weighted sum of the values"):
            attention_maps(model, inputs, weighting="norm")
        hook.remove()
    attention_maps(model, inputs, weighting="norm")


def test_norms_of_a_model_that_computes_nan_are_nan():
    model, inputs = BY_NAME["bert"].build(), batch((5,), labels=False)
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.self.value.bias[0] = torch.nan
    found = attention_maps(model, inputs, weighting="norm").values
    assert found[1, 0, 0].isnan().all()  # the first head of layer 1
    assert not found[0].isnan().any()


def test_attention_without_one_product_is_refused():
    config = transformers.XLNetConfig(vocab_size=40, d_model=16, n_layer=2, n_head=4, d_inner=24)
    with pytest.raises(UnknownAnatomy, match=r"not known"):
        attention_maps(transformers.XLNetModel(config).eval(), batch((6,), labels=False), weighting="norm")


def test_other_weightings_are_refused():
    with pytest.raises(DataError, match="weighting must be 'attention' or 'norm', got 'value'"):
        attention_patterns(BY_NAME["bert"].build(), batch(), weighting="value")
