import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertology import (
    Head,
    Result,
    attention_maps,
    dissect,
    drop_blocks,
    gated,
    head_outputs,
    load_pruned,
    prune_heads,
    prune_neurons,
    save_pruned,
)
from bertology.errors import HeadError, PruningError
from bertology.measures.random_weights import randomized
from helpers.pruning import SOME, gates_for, heads_for, logits, seq2seq
from helpers.zoo import BY_NAME, FAMILIES, V4, batch


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "heads", [SOME, {0: [0, 1, 2, 3]}, {0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}], ids=["some", "layer", "all"]
)
def test_pruned_equals_gated(family, implementation, heads):
    model, inputs, heads = family.build(attention=implementation), batch(), heads_for(family, heads)
    with gated(model, gates_for(heads)):
        expected = logits(model, inputs)
    whole = logits(model, inputs)
    pruned = prune_heads(model, heads)
    found = logits(model, inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if family.name == "llama" else 1e-13)
    assert not torch.allclose(found, whole)
    assert pruned.parameters_after == sum(p.numel() for p in model.parameters()) < pruned.parameters_before
    assert [(h.layer, h.head) for h in pruned.heads] == [(layer, h) for layer, some in heads.items() for h in some]


def test_the_comparison_can_fail():
    family, inputs = BY_NAME["bert"], batch()
    model = family.build()
    with gated(model, gates_for({0: [1]})):
        expected = logits(model, inputs)
    prune_heads(model, {0: [2]})
    assert not torch.allclose(logits(model, inputs), expected)


@settings(max_examples=20)
@given(
    st.sets(st.tuples(st.integers(0, 1), st.integers(0, 3))),
    st.sampled_from(["bert", "gpt", "gpt2", "distilbert", "electra"]),
)
def test_any_heads_at_once_or_in_two_steps(places, name):
    inputs, places = batch(), sorted(places)
    model = BY_NAME[name].build()
    other = copy.deepcopy(model)
    gates = torch.ones(2, 4)
    for layer, head in places:
        gates[layer, head] = 0
    with gated(model, gates):
        expected = logits(model, inputs)
    prune_heads(model, places)
    torch.testing.assert_close(logits(model, inputs), expected)
    prune_heads(other, places[::2])
    prune_heads(other, [Head(*place) for place in places[1::2]])  # the numbers are still the old ones
    torch.testing.assert_close(logits(other, inputs), expected)
    assert torch.equal(dissect(model).present, gates > 0)


def test_a_head_takes_its_weights_along():
    model = BY_NAME["bert"].build()
    pruned = prune_heads(model, {0: [3]})
    hidden, dim = 16, 4
    assert pruned.parameters_before - pruned.parameters_after == 3 * hidden * dim + 3 * dim + dim * hidden
    assert str(pruned).startswith("1 head pruned, ")
    layer = model.bert.encoder.layer[0].attention
    assert layer.self.query.weight.shape == (12, 16)
    assert (layer.self.query.out_features, layer.output.dense.in_features) == (12, 12)


def test_grouped_keys_go_with_their_group():
    model = BY_NAME["llama"].build()
    before = model.model.layers[0].self_attn.k_proj.weight.shape
    prune_heads(model, {0: [2, 3], 1: [0, 2]})  # a whole group; one head of each group
    assert (before, model.model.layers[0].self_attn.k_proj.weight.shape) == ((8, 16), (4, 16))
    assert model.model.layers[1].self_attn.k_proj.weight.shape == (8, 16)
    assert [layer.self_attn.num_key_value_groups for layer in model.model.layers] == [2, 1]


def test_one_head_of_each_group_equals_gated():
    model, inputs = BY_NAME["llama"].build(), batch()
    with gated(model, gates_for({0: [1, 2]})):
        expected = logits(model, inputs)
    prune_heads(model, {0: [1, 2]})
    torch.testing.assert_close(logits(model, inputs), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("heads", [{0: [0, 1]}, {0: [0, 1, 2, 3], 1: [2, 3]}], ids=["some", "layer"])
def test_generation_with_a_cache(name, heads):
    model, ids = BY_NAME[name].build("lm"), torch.randint(3, 40, (2, 5))
    options = {
        "max_new_tokens": 8,
        "do_sample": False,
        "eos_token_id": 39,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(ids),
    }
    with gated(model, gates_for(heads)):
        expected = model.generate(ids, use_cache=True, **options)
        assert torch.equal(expected, model.generate(ids, use_cache=False, **options))
    prune_heads(model, heads)
    assert torch.equal(model.generate(ids, use_cache=True, **options), expected)
    assert expected.shape == (2, 13)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name != "albert"], ids=lambda f: f.name)
def test_pruned_models_still_learn(family):
    model, inputs = family.build(), batch()
    prune_heads(model, heads_for(family, SOME))
    model.train()
    model(**inputs).loss.backward()
    assert all(p.grad is not None for site in dissect(model).sites for p in site.projection.parameters())


def test_frozen_weights_stay_frozen():
    model = BY_NAME["bert"].build()
    model.bert.encoder.layer[0].attention.self.query.weight.requires_grad_(False)
    prune_heads(model, SOME)
    attention = model.bert.encoder.layer[0].attention.self
    assert [attention.query.weight.requires_grad, attention.key.weight.requires_grad] == [False, True]


def test_heads_keep_their_numbers():
    model, inputs = BY_NAME["gpt2"].build(), batch()
    whole = head_outputs(model, inputs).values
    prune_heads(model, {0: [0, 2]})
    left = head_outputs(model, inputs).values
    torch.testing.assert_close(left[0, :, :, [1, 3]], whole[0, :, :, [1, 3]])
    assert left[0, :, :, [0, 2]].isnan().all()


def untouched(model, heads, error, message):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(error, match=message):
        prune_heads(model, heads)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not getattr(model.config, "pruned_heads", None)


def test_errors_leave_the_model_as_it_was():
    untouched(BY_NAME["bert"].build(), {0: [1], 5: [0]}, HeadError, "layer 5 is out of range")
    untouched(
        BY_NAME["bert"].build(), {0: [1], 1: [4]}, HeadError, "head 4 of layer 1 is out of range: its heads are 0 to 3"
    )
    untouched(
        BY_NAME["albert"].build(), {0: [1]}, PruningError,
        r"layers encoder.0, encoder.1 share their heads: prune the same in all of them \(encoder.0: \[1\], encoder.1: \[\]\)",
    )  # fmt: skip
    untouched(
        BY_NAME["llama"].build(), {0: [0, 1], 1: [3]}, PruningError,
        r"heads of decoder.1 share keys in groups \(\[0, 1\]; \[2, 3\]\): prune whole groups",
    )  # fmt: skip
    odd = BY_NAME["bert"].build()
    odd.bert.encoder.layer[0].attention.self.sinks = torch.nn.Parameter(torch.zeros(5))
    untouched(
        odd,
        {0: [1]},
        PruningError,
        "heads of encoder.0 cannot be cut out: .* 5 elements, which cannot be divided among 4 heads",
    )


def test_pruning_a_pruned_head():
    model = BY_NAME["bert"].build()
    prune_heads(model, {0: [1]})
    with pytest.raises(HeadError, match=r"head L0H1 was pruned before; of layer 0 the heads \[0, 2, 3\] are left"):
        prune_heads(model, {0: [0, 1]})
    assert dissect(model).sites[0].kept == (0, 2, 3)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_decoders(name, tmp_path):
    model, heads = seq2seq(name), {0: [1], 1: [0, 3], 2: [2], 3: [0, 1, 2, 3], 4: [3], 5: [1, 2]}
    inputs = batch(labels=False)
    whole = {**inputs, "decoder_input_ids": torch.tensor([[0, 5, 6], [0, 7, 8], [0, 9, 4]])}
    gates = torch.ones(6, 4)
    for row, some in heads.items():
        gates[row, some] = 0
    written = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with torch.no_grad():
        with gated(model, gates):
            masked, told = model(**whole).logits, model.generate(**inputs, **written)
        pruned = prune_heads(model, {row: heads[row] for row in (0, 2, 3)})
        prune_heads(model, {1: [0], 4: [3], 5: [1]})
        prune_heads(model, {1: [3], 5: [2]})  # a layer that was pruned before
        assert [str(head) for head in pruned.heads][:2] == ["EL0H1", "DL0H2"]
        torch.testing.assert_close(model(**whole).logits, masked, atol=1e-12, rtol=0)
        again = model.generate(**inputs, **written)
        assert torch.equal(again.sequences, told.sequences)
        torch.testing.assert_close(torch.stack(again.logits), torch.stack(told.logits), atol=1e-12, rtol=0)
        save_pruned(model, tmp_path)
        torch.testing.assert_close(
            load_pruned(tmp_path, dtype=torch.float64)(**whole).logits, masked, atol=1e-12, rtol=0
        )
        twin = copy.deepcopy(model)
        torch.testing.assert_close(twin(**whole).logits, masked, atol=1e-12, rtol=0)
    assert model.config.pruned_heads_by_label["decoder.1"] == [0, 1, 2, 3]
    assert attention_maps(model, whole).stacks["cross"][1, :, [1, 2]].isnan().all()


@pytest.mark.skipif(not V4, reason="transformers 5 prunes nothing itself")
def test_what_transformers_pruned_itself_of_t5_stays_as_it_is():
    model = seq2seq("t5")
    attention = model.encoder.block[0].layer[0].SelfAttention
    attention.prune_heads([1])
    assert dissect(model).sites[0].kept == (0, 2, 3)
    with pytest.raises(
        PruningError, match="transformers pruned it before, and divides its position bias among the heads itself"
    ):
        prune_heads(model, {0: [2]})
    assert attention.pruned_heads == {1}


def test_the_result_is_kept(tmp_path):
    pruned = prune_heads(BY_NAME["bert"].build(), {1: [3, 0]})
    pruned.save(tmp_path / "pruned.safetensors")
    again = Result.load(tmp_path / "pruned.safetensors")
    assert again.heads == pruned.heads == (Head(1, 0), Head(1, 3))
    assert again.parameters_after == pruned.parameters_after


def test_wrapped_models():
    model, inputs = BY_NAME["bert"].build(), batch()
    expected = logits(BY_NAME["bert"].build(), inputs)
    prune_heads(torch.nn.Sequential(model), {0: [1]})
    assert model.config.pruned_heads == {0: [1]}
    assert not torch.allclose(logits(model, inputs), expected)
    bare = torch.nn.ModuleDict({"encoder": torch.nn.ModuleDict({"layer": model.bert.encoder.layer})})
    for module in bare.modules():
        if hasattr(module, "config"):
            del module.config
    with pytest.raises(PruningError, match="the model has no config in which to write down what was pruned"):
        prune_heads(bare, {1: [1]})


def test_no_heads_is_no_change():
    model = BY_NAME["bert"].build()
    pruned = prune_heads(model, {})
    assert pruned.heads == ()
    assert pruned.parameters_before == pruned.parameters_after


def trained(model, inputs):
    model.train()
    model(**inputs).loss.backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize(
    "change",
    [
        lambda model, folder: prune_heads(model, {0: [1]}),
        lambda model, folder: prune_neurons(model, {0: [1]}),
        lambda model, folder: drop_blocks(model, [1]),
        lambda model, folder: loaded(model, folder),
        lambda model, folder: randomized(model),
    ],
    ids=["heads", "neurons", "blocks", "files", "random weights"],
)
def test_what_is_made_in_inference_mode_can_be_trained(change, tmp_path):
    model, inputs = BY_NAME["bert"].build().float(), batch()
    with torch.inference_mode():
        found = change(model, tmp_path)
    model = found if isinstance(found, torch.nn.Module) else model
    assert any(gradient.abs().sum() > 0 for gradient in trained(model, inputs) if gradient is not None)


def loaded(model, folder):
    prune_heads(model, {0: [1]})
    save_pruned(model, folder)
    return load_pruned(folder)
