"""What each head adds to the model's answer."""

import copy

import pytest
import torch
import transformers

from bertology import gated, head_attribution, head_outputs, hidden_states, prune_heads
from bertology.errors import DataError, UnknownAnatomy
from helpers.towers import random_weights
from helpers.zoo import BY_NAME, PAD, V4, batch
from oracles import lens as oracles

# oracle: the formulas with the weights of each family


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_attribution_equals_its_formula_and_sums_to_the_logit(name):
    model, inputs = BY_NAME[name].build("lm"), batch((5,), labels=False)
    found = head_attribution(model, inputs)
    state = hidden_states(model, inputs, tie_last_hidden_states=False).values[-1]
    token = int(model(**inputs).logits[0, -1].argmax())
    expected = oracles.linear(model, name, inputs, state, 4, token)
    torch.testing.assert_close(found.values[:, 0], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.together, found.values.sum((0, 2)))
    torch.testing.assert_close(found.total, model(**inputs).logits[:, -1].amax(-1))
    torch.testing.assert_close(found.remainder + found.values.sum((0, 2)), found.total)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found.values[:, 0], expected.flip(1), rtol=1e-6, atol=1e-6)


def test_attribution_of_a_classifier_goes_through_its_pooler():
    model, inputs = BY_NAME["bert"].build(), batch((6,), labels=False)
    found = head_attribution(model, inputs)
    label = int(model(**inputs).logits[0].argmax())
    torch.testing.assert_close(found.values[:, 0], oracles.of_bert(model, inputs, label))


@pytest.mark.parametrize("name", ["bert", "gpt2", "albert", "llama"])
def test_padding_changes_nothing(name):
    model = BY_NAME[name].build("lm")
    found = head_attribution(model, batch((7, 4), labels=False))
    alone = head_attribution(model, {k: v[1:, :4] for k, v in batch((7, 4), labels=False).items()})
    torch.testing.assert_close(found.values[:, 1], alone.values[:, 0], atol=1e-6, rtol=0)
    if name == "llama":
        left = head_attribution(model, batch((7, 4), labels=False, side="left"))
        torch.testing.assert_close(found.values, left.values, atol=1e-6, rtol=0)


def test_a_difference_of_logits_is_a_difference_of_attributions():
    model, inputs = BY_NAME["gpt2"].build("lm"), batch((5, 5), labels=False)
    one, other, both = (
        head_attribution(model, inputs, of=of).values
        for of in (
            lambda outputs, batch: outputs.logits[:, -1, 7],
            lambda outputs, batch: outputs.logits[:, -1, 8],
            lambda outputs, batch: outputs.logits[:, -1, 7] - outputs.logits[:, -1, 8],
        )
    )
    torch.testing.assert_close(one - other, both)


def test_pruned_heads_add_nothing():
    model, inputs = BY_NAME["gpt2"].build("lm"), batch((5,), labels=False)
    prune_heads(model, {0: [1]})
    found = head_attribution(model, inputs)
    assert found.values[0, 0].isnan().tolist() == [False, True, False, False]
    torch.testing.assert_close(found.together, found.values.nansum((0, 2)))


@pytest.mark.parametrize("kind", ["gemma2", "gptj", "mixtral", "granite", "qwen3", "phi"])
def test_more_decoders_sum_to_the_logit(kind):
    """Norms behind attention, parallel MLPs, experts, factors of the residual stream, norms of queries."""
    small = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
    more = {
        "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 4, "rotary_dim": 2},
        "gemma2": {"head_dim": 4, "num_key_value_heads": 2, "final_logit_softcapping": None},
        "mixtral": {"num_key_value_heads": 2, "num_local_experts": 3},
        "granite": {"num_key_value_heads": 2, "residual_multiplier": 0.5},
        "qwen3": {"num_key_value_heads": 2, "head_dim": 4},
    }.get(kind, {})
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**small, "intermediate_size": 24, **more})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    found = head_attribution(model, batch((6, 5), labels=False))
    assert found.values.abs().max() > 1e-7
    torch.testing.assert_close(found.together, found.values.sum((0, 2)), atol=1e-5, rtol=1e-3)


def test_a_norm_of_weights_is_none_of_the_residual_stream():
    config = transformers.Wav2Vec2Config(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, conv_dim=(8, 8),
        conv_stride=(4, 2), conv_kernel=(5, 3), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        num_feat_extract_layers=2, classifier_proj_size=8,
    )  # fmt: skip
    model = transformers.Wav2Vec2ForSequenceClassification(config).eval()
    found = head_attribution(model, {"input_values": torch.randn(2, 200)})
    torch.testing.assert_close(found.together, found.values.sum((0, 2)), atol=1e-4, rtol=0)


# oracle: the same weights in float64
@pytest.mark.parametrize("kind", ["classifier", "lm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_the_heads_of_whole_precision(family, kind, dtype):
    half, inputs = family.build(kind).to(dtype), batch(labels=False)

    def number(outputs, batch):
        return outputs.logits.flatten(1)[:, 5 if kind == "lm" else 0]

    found = head_attribution(half, inputs, of=number)
    expected = head_attribution(copy.deepcopy(half).double(), inputs, of=number)
    size = float(expected.values.abs().max())
    for name in ("values", "together", "total"):
        apart = (getattr(found, name).double() - getattr(expected, name)).abs().max()
        assert apart < (0.15 if dtype == torch.bfloat16 else 0.03) * size


def test_norms_over_another_axis_are_refused():
    config = transformers.SqueezeBertConfig(
        vocab_size=40,
        hidden_size=16,
        embedding_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
    )
    with pytest.raises(UnknownAnatomy, match="a SqueezeBertLayerNorm does not scale its input"):
        head_attribution(transformers.SqueezeBertForSequenceClassification(config).eval(), batch(labels=False))


def test_heads_that_write_into_a_bottleneck_are_refused():
    """What they add passes a layer that is held, so that all of them seemed to add nothing."""
    config = transformers.MobileBertConfig(
        vocab_size=40, hidden_size=32, embedding_size=16, num_hidden_layers=2, intermediate_size=24,
        intra_bottleneck_size=16, true_hidden_size=16, num_feedforward_networks=2, normalization_type="layer_norm",
    )  # fmt: skip
    model = transformers.MobileBertForSequenceClassification(config).eval()
    with pytest.raises(UnknownAnatomy, match="direct path of MobileBert.* passes other layers first, such as a bottl"):
        head_attribution(model, batch(labels=False))
    plain = BY_NAME["gpt2"].build("lm")
    assert not head_attribution(plain, batch(labels=False), of=lambda outputs, batch: torch.ones(3)).values.any()
    with gated(plain, torch.zeros(2, 4)):
        assert not head_attribution(plain, batch(labels=False)).values.any()
    with torch.no_grad():
        for block in plain.transformer.h:
            block.attn.c_proj.weight.zero_()
    assert not head_attribution(plain, batch(labels=False)).values.any()
    prune_heads(plain, {0: range(4), 1: range(4)})
    assert head_attribution(plain, batch(labels=False)).values.isnan().all()


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_heads_add_nothing_to_the_logit_of_a_token_without_an_embedding(name):
    """Where embeddings are tied, the logit of padding may be a bias, and what the model answers."""
    model, inputs = BY_NAME[name].build("lm"), batch((5, 4), labels=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[PAD] = 0
    found = head_attribution(model, inputs, of=lambda outputs, batch: outputs.logits[:, 1, PAD])
    assert not found.values.any()
    assert not found.together.any()


def test_nothing_adds_up_to_a_number_that_is_not_finite():
    """Values of NaN would be taken for pruned heads."""

    def number(outputs, batch):
        return outputs.logits[:, 0, 3] / torch.tensor([1.0, 0.0, 1.0])

    with pytest.raises(DataError, match=r"the number of example 1 is (-inf|inf), .* what of= makes of them"):
        head_attribution(BY_NAME["gpt2"].build("lm"), batch(labels=False), of=number)


@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_layers_in_int8_pass_no_gradient_and_have_values():
    model, inputs = BY_NAME["bert"].build().float(), batch((6,), labels=False)
    exact = head_attribution(model, inputs).values
    quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    apart = (head_attribution(quantized, inputs).values - exact).abs().max()
    assert apart < 0.1 * exact.abs().max()


@pytest.mark.filterwarnings("ignore")  # peft's own
@pytest.mark.parametrize("kind", ["LoraConfig", "LoHaConfig", "LoKrConfig", "VeraConfig", "FourierFTConfig"])
def test_adapters_are_held_as_what_they_are_merged_into(kind):
    """Some compute with weights of modules that they do not call."""
    import peft

    size = {"n_frequency": 20} if kind == "FourierFTConfig" else {"r": 2}
    config = getattr(peft, kind)(target_modules=["query", "value", "dense"], **size)
    adapted = peft.get_peft_model(BY_NAME["bert"].build(), config).double().eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    inputs = batch(labels=False)
    found = head_attribution(adapted, inputs).values
    torch.testing.assert_close(found, head_attribution(adapted.merge_and_unload(), inputs).values, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_an_mlp_in_torchscript_is_held():
    model, inputs = BY_NAME["gpt2"].build("lm"), batch((6,), labels=False)
    exact = head_attribution(model, inputs).values
    model.transformer.h[1].mlp = torch.jit.trace(model.transformer.h[1].mlp, torch.randn(1, 6, 16).double())
    torch.testing.assert_close(head_attribution(model, inputs).values, exact)


def test_one_layer_whose_heads_pass_another_matrix_first_is_refused():
    model, inputs = BY_NAME["gpt2"].build("lm"), batch((5,), labels=False)
    attention = model.transformer.h[0].attn
    plain, attention.resid_dropout = attention.resid_dropout, torch.nn.Linear(16, 16, bias=False).double()
    with pytest.raises(UnknownAnatomy, match=r"what the heads of decoder.0 add passes other layers first"):
        head_attribution(model, inputs)
    attention.resid_dropout = plain
    with torch.no_grad():
        attention.c_proj.weight.zero_()
    values = head_attribution(model, inputs).values
    assert not values[0].any()
    assert values[1].any()


def test_weights_of_inference_mode_are_told():
    with torch.inference_mode():
        model = BY_NAME["gpt2"].build("lm")
    with pytest.raises(UnknownAnatomy, match="made in torch.inference_mode"):
        head_attribution(model, {"input_ids": torch.tensor([[3, 4, 5]])})


@pytest.mark.skipif(V4, reason="its layers have other names")
def test_a_norm_with_a_gate_beside_its_input_scales_as_it_did():
    """In a hybrid model the norm of the linear attention cannot run without its gate."""
    torch.manual_seed(0)
    config = transformers.Qwen3NextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, layer_types=["full_attention", "linear_attention"], linear_num_value_heads=4,
        linear_num_key_heads=2, linear_key_head_dim=4, linear_value_head_dim=4, mlp_only_layers=[0, 1],
    )  # fmt: skip
    model, inputs = random_weights(transformers.Qwen3NextForCausalLM(config)), {"input_ids": torch.tensor([[5, 6, 7]])}
    norm, weight = model.model.norm, model.model.layers[0].self_attn.o_proj.weight
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)
        token = int(outputs.logits[0, -1].argmax())
        before = []
        hook = norm.register_forward_pre_hook(lambda module, args: before.append(args[0][0, -1]))
        model(**inputs)
        hook.remove()
        factor = norm(before[0]) / before[0] * model.lm_head.weight[token]
        heads = head_outputs(model, inputs).values[0, 0, -1]
        expected = [factor @ (weight[:, 8 * head : 8 * head + 8] @ heads[head]) for head in range(4)]
    found = head_attribution(model, inputs)
    torch.testing.assert_close(found.mean[0], torch.stack(expected), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.together, found.values.sum((0, 2)), atol=1e-5, rtol=1e-4)
