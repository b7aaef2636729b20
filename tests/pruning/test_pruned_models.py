"""What can be done with a pruned model? It trains, is exported and writes as any other."""

import copy

import pytest
import torch
import transformers

from bertology import dissect, gated, head_importance, prune_heads
from helpers.pruning import SOME, gates_for, heads_for, logits, seq2seq
from helpers.zoo import BY_NAME, FAMILIES, batch

LAYER = {0: [0, 1, 2, 3]}


def wanting(model):
    """The names of the parameters that get no gradient, or only zeros."""
    return {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()}


def test_gradients_reach_all_weights_and_a_step_lowers_the_loss(family):
    whole, inputs = family.build(), batch()
    pruned = copy.deepcopy(whole)
    prune_heads(pruned, heads_for(family, {0: [1], 1: [2]}))  # in Llama a group a layer, not all of one
    for model in (whole, pruned):
        model(**inputs).loss.backward()
    # What gets none was not needed before either: the pad token's embedding, a key's bias under the softmax.
    assert wanting(pruned) == wanting(whole)
    before = pruned(**inputs).loss
    optimizer = torch.optim.SGD(pruned.parameters(), lr=1e-5)
    optimizer.step()
    assert pruned(**inputs).loss < before


def test_training_equals_that_of_the_gated_model(family):
    """Several steps of the pruned model are those of the whole model behind the same gates."""
    whole, inputs, heads = family.build(), batch(), heads_for(family, SOME)
    pruned = copy.deepcopy(whole)
    prune_heads(pruned, heads)
    for model in (whole, pruned):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            if model is whole:
                with gated(model, gates_for(heads)):
                    model(**inputs).loss.backward()
            else:
                model(**inputs).loss.backward()
            optimizer.step()
    with gated(whole, gates_for(heads)):
        expected = logits(whole, inputs)
    tolerance = 1e-5 if family.name == "llama" else 1e-10
    torch.testing.assert_close(logits(pruned, inputs), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name != "albert"], ids=lambda f: f.name)
def test_a_layer_without_heads_learns_none(family):
    model, inputs = family.build(), batch()
    prune_heads(model, LAYER)
    site = dissect(model).sites[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    assert not site.projection.weight.any()
    assert head_importance(model, inputs).scores[0].isnan().all()


@pytest.mark.filterwarnings("ignore")  # of torch.export's own
@pytest.mark.parametrize("heads", [None, SOME, LAYER], ids=["whole", "some", "layer"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_is_exported_as_the_whole_model_is(name, heads):
    family, inputs = BY_NAME[name], batch(labels=False)
    model = family.build()
    prune_heads(model, heads_for(family, heads or {}))
    if family.causal:
        inputs["use_cache"] = False
    program = torch.export.export(model, (), kwargs=inputs, strict=False)
    other = {**inputs, **batch(labels=False, seed=9)}
    torch.testing.assert_close(program.module()(**other).logits, logits(model, other))


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True}], ids=["beams", "sampled"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
def test_writes_what_the_gated_model_writes(name, options):
    model = seq2seq(name) if name in ("t5", "bart") else BY_NAME[name].build("lm")
    anatomy, inputs = dissect(model), batch((5, 5), labels=False)
    gates = torch.ones(anatomy.layers, anatomy.heads)
    gates[:, [0, 1]] = 0

    def write():
        torch.manual_seed(3)
        return model.generate(**inputs, max_new_tokens=6, pad_token_id=0, eos_token_id=39, **options)

    whole = write()
    with gated(model, gates):
        expected = write()
    prune_heads(model, [(row, head) for row, head in (gates == 0).nonzero().tolist()])
    assert torch.equal(write(), expected)
    assert not torch.equal(whole, expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("multi_query", [True, False])
def test_falcon_adds_its_bias_for_each_head_to_the_mask(multi_query, attention):
    torch.manual_seed(0)
    config = transformers.FalconConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True, multi_query=multi_query
    )
    config._attn_implementation = attention
    model = transformers.FalconForCausalLM(config).eval()
    inputs = {"input_ids": torch.randint(3, 40, (2, 7)), "attention_mask": torch.ones(2, 7).long()}
    inputs["attention_mask"][1, 5:] = 0
    gates = torch.ones(2, 4)
    gates[0, 1] = gates[1, 2] = gates[1, 3] = 0
    with torch.no_grad():
        with gated(model, gates):
            expected = model(**inputs).logits
        prune_heads(model, {0: [1], 1: [3]})
        prune_heads(model, {1: [2]})
        torch.testing.assert_close(model(**inputs).logits, expected)
