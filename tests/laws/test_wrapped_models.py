"""Models in other hands: adapters, compilation, half precision, device maps, images and speech."""

import os
import subprocess
import sys

import pytest
import torch
import transformers

import bertology as b
from bertology.metrics import GenerationMetric
from helpers.generation import bart, texts
from helpers.small_models import VIT
from helpers.zoo import BY_NAME, V4, batch
from oracles import heads as oracles


def measured(model, inputs):
    """What each primitive says of a model."""
    return {
        "hidden": b.hidden_states(model, inputs).values,
        "maps": b.attention_maps(model, inputs).values,
        "outputs": b.head_outputs(model, inputs).values,
        "importance": b.head_importance(model, inputs, loss=lambda out, _: out[0].square().flatten(1).sum(1)).scores,
        "entropy": b.attention_entropy(model, inputs).mean,
        "previous": b.attention_patterns(model, inputs).previous,
    }


def same(ours, theirs, **tolerance):
    for name, x in theirs.items():
        torch.testing.assert_close(ours[name], x, msg=lambda told, name=name: f"{name}: {told}", **tolerance)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's own
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_adapters_on_the_projections(name):
    from peft import LoraConfig, get_peft_model

    targets = {"bert": ["query", "value", "attention.output.dense"], "gpt2": ["c_attn", "attn.c_proj"]}
    model = BY_NAME[name].build()
    before = measured(model, batch(labels=False))
    config = LoraConfig(
        r=2, target_modules=targets.get(name, ["q_proj", "o_proj"]), fan_in_fan_out=name == "gpt2", lora_dropout=0.0
    )
    adapted = get_peft_model(model, config).double().eval()
    assert b.dissect(adapted).labels == ("0", "1")
    same(measured(adapted, batch(labels=False)), before)  # a new adapter adds nothing
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.5)
    b.check_anatomy(adapted, batch())
    changed = measured(adapted, batch(labels=False))
    assert (changed["importance"] - before["importance"]).abs().max() > 1e-3
    with b.ablated(adapted, {1: [2]}):
        silent = adapted(**batch(labels=False)).logits
    with pytest.raises(b.BertologyError, match="got peft.tuners.lora.layer.Linear; merge adapters"):
        b.prune_heads(adapted, {0: [0, 1]})
    # Merged into the weights, the adapter gives the same model, where the head's columns can be set to 0.
    merged = adapted.merge_and_unload()
    same(measured(merged, batch(labels=False)), changed, atol=1e-9, rtol=0)
    weight, heads, axis = oracles.projections(merged)[1]
    with torch.no_grad(), oracles.scaled(weight, axis, heads, 2, 0.0):
        torch.testing.assert_close(silent, merged(**batch(labels=False)).logits)


def with_prompts(model, kind, task):
    """The model with prompts of three learned tokens."""
    import peft

    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, getattr(peft, kind)(num_virtual_tokens=3, task_type=task)).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 3)
    return adapted


@pytest.mark.filterwarnings("ignore")  # peft's own, and those of transformers of what peft calls
def test_what_is_generated_with_learned_prompts():
    inputs, written = texts()[1], []
    bare, options = bart(), {"max_new_tokens": 5, "do_sample": False, "min_new_tokens": 5}
    adapted = with_prompts(bart(), "PromptTuningConfig", "SEQ_2_SEQ_LM")
    given = {name: x for name, x in inputs.items() if name != "labels"}
    expected = adapted.generate(**given, **options)[:, 1:]
    assert not torch.equal(expected, bare.generate(**given, **options)[:, 1:])
    metric = GenerationMetric(
        lambda generated, references: float(len(written.append(generated) or generated)), **options
    )
    b.score(adapted, inputs, metric=metric)
    assert written[0] == expected.tolist()
    fresh = with_prompts(bart(), "PromptTuningConfig", "SEQ_2_SEQ_LM")
    b.score(fresh, inputs, metric=metric)
    assert "prepare_inputs_for_generation" not in vars(fresh.base_model), "which peft's generate leaves"


@pytest.mark.filterwarnings("ignore")
def test_generation_captures_with_learned_prompts():
    ids = torch.tensor([[5, 6, 7, 8], [9, 5, 3, 4]])
    prompts, options = {"input_ids": ids, "attention_mask": ids.sign()}, {"max_new_tokens": 4, "do_sample": False}
    adapted = with_prompts(BY_NAME["gpt2"].build("lm").float(), "PrefixTuningConfig", "CAUSAL_LM")
    before = list(map(set, map(vars, adapted.modules())))
    found = b.capture_generation(adapted, prompts, hidden=True, **options)
    assert list(map(set, map(vars, adapted.modules()))) == before, "peft's generate leaves attributes"
    assert torch.equal(found.sequences, adapted.generate(**prompts, **options))
    with pytest.raises(
        b.BertologyError, match="PrefixEncoder around the model has keys and values for all of its heads"
    ):
        b.prune_heads(adapted, {0: [1]})
    # Learned tokens before the text have positions of their own, which are no tokens of the sequences.
    adapted = with_prompts(BY_NAME["gpt2"].build("lm").float(), "PromptTuningConfig", "CAUSAL_LM")
    for kind in ("hidden", "maps", "heads"):
        with pytest.raises(b.BertologyError, match="does not generate one token in each pass"):
            b.capture_generation(adapted, prompts, **{kind: True}, **options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt", "gpt2"])
def test_compiled_models(name):
    model = BY_NAME[name].build()
    expected = measured(model, batch(labels=False))
    bare = model(**batch(labels=False)).logits
    gates = torch.ones(2, 4)
    gates[1, 2] = 0
    with b.gated(model, gates):
        silent = model(**batch(labels=False)).logits
    compiled = torch.compile(model, backend="eager")
    compiled(**batch(labels=False))
    same(measured(compiled, batch(labels=False)), expected, atol=1e-12, rtol=0)
    with b.gated(compiled, gates):
        torch.testing.assert_close(compiled(**batch(labels=False)).logits, silent)
    torch.testing.assert_close(compiled(**batch(labels=False)).logits, bare)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_half_precision(name, dtype, tolerance):
    model = BY_NAME[name].build()
    # Weights that both types hold exactly: only the arithmetic differs.
    whole = model.to(dtype).double()
    expected = measured(whole, batch(labels=False))
    half = measured(whole.to(dtype), batch(labels=False))
    for key, x in half.items():
        scale = expected[key].abs().max().clamp_min(1)
        assert not x.isnan().any()
        assert (x.double() - expected[key]).abs().max() / scale < tolerance, key
    assert half["entropy"].dtype == half["importance"].dtype == torch.float64


def test_device_map(tmp_path):
    model = BY_NAME["bert"].build("lm")
    expected = measured(model, batch(labels=False))
    model.save_pretrained(tmp_path)
    placed = transformers.BertForMaskedLM.from_pretrained(
        tmp_path, device_map={"": "cpu"}, dtype=torch.float64, attn_implementation="sdpa"
    )
    same(measured(placed, batch(labels=False)), expected)
    b.prune_heads(placed, {0: [1, 2]})
    b.save_pruned(placed, tmp_path / "pruned")
    again = b.load_pruned(tmp_path / "pruned", dtype=torch.float64)
    torch.testing.assert_close(again(**batch(labels=False)).logits, placed(**batch(labels=False)).logits)


def test_offloaded_weights():
    """accelerate brings the weights of each layer for its forward pass alone."""
    from accelerate import cpu_offload

    model = BY_NAME["bert"].build("lm")
    inputs = batch(labels=False)
    entropy, maps = b.attention_entropy(model, inputs).mean, b.attention_maps(model, inputs).values
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    torch.testing.assert_close(b.attention_entropy(model, inputs).mean, entropy)
    torch.testing.assert_close(b.attention_maps(model, inputs).values, maps)


def test_images():
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
    inputs = {"pixel_values": torch.randn(3, 3, 8, 8, dtype=torch.float64), "labels": torch.tensor([0, 2, 1])}
    pixels = {"pixel_values": inputs["pixel_values"]}
    b.check_anatomy(model, inputs)
    told = model(**pixels, output_hidden_states=True)
    assert torch.equal(b.hidden_states(model, inputs).values, torch.stack(told.hidden_states))
    eager = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT, attn_implementation="eager")).double()
    eager.load_state_dict(model.state_dict())
    maps = torch.stack(eager.eval()(**pixels, output_attentions=True).attentions)
    ours = b.attention_maps(model, inputs)
    torch.testing.assert_close(ours.values, maps)
    assert ours.mask.all()
    assert list(ours.mask.shape) == [3, 5]  # four patches and a class token
    found = b.attention_entropy(model, inputs).mean
    torch.testing.assert_close(found, oracles.entropy(maps, ours.mask), atol=1e-9, rtol=0)
    assert (b.head_importance(model, inputs, loss=cross_entropy).scores > 0).all()
    gates = torch.ones(2, 4)
    gates[0, [1, 3]] = gates[1, 0] = 0
    with b.gated(model, gates):
        silent = model(**pixels).logits
    b.prune_heads(model, {0: [1, 3], 1: [0]})
    torch.testing.assert_close(model(**pixels).logits, silent)


def cross_entropy(outputs, batch):
    return torch.nn.functional.cross_entropy(outputs.logits, batch["labels"], reduction="none")


def test_image_classifiers_have_a_loss():
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)).eval()
    inputs = {"pixel_values": torch.randn(3, 3, 8, 8), "labels": torch.tensor([0, 2, 1])}
    own, ours = b.head_importance(model, inputs, loss=cross_entropy), b.head_importance(model, inputs)
    torch.testing.assert_close(own.scores, ours.scores)


def whisper(**more):
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=40, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, num_mel_bins=8, max_source_positions=10,
        max_target_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3, **more,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
    return model


def test_speech():
    model, eager = whisper(), whisper(attn_implementation="eager")
    inputs = {
        "input_features": torch.randn(3, 8, 20, dtype=torch.float64),
        "decoder_input_ids": torch.tensor([[3, 5, 6], [3, 7, 8], [3, 9, 4]]),
    }
    anatomy = b.dissect(model)
    assert anatomy.labels == ("encoder.0", "encoder.1", "decoder.0", "decoder.1", "cross.0", "cross.1")
    b.check_anatomy(anatomy, inputs)
    told = eager(**inputs, output_attentions=True, output_hidden_states=True)
    maps, states = b.attention_maps(model, inputs), b.hidden_states(model, inputs)
    for stack, theirs in (
        ("encoder", told.encoder_attentions), ("decoder", told.decoder_attentions), ("cross", told.cross_attentions)
    ):  # fmt: skip
        torch.testing.assert_close(maps.stacks[stack], torch.stack(theirs))
        assert maps.masks[stack].all()
    torch.testing.assert_close(states.stacks["encoder"], torch.stack(told.encoder_hidden_states))
    torch.testing.assert_close(states.stacks["decoder"], torch.stack(told.decoder_hidden_states))
    entropy = b.attention_entropy(model, inputs)
    assert not entropy.mean.isnan().any()
    assert entropy.queries.tolist() == [30, 30, 9, 9, 9, 9]
    labelled = {**inputs, "labels": torch.tensor([[5, 6, 2], [7, 8, 2], [9, 4, 2]])}
    assert (b.head_importance(model, labelled).scores > 0).all()
    gates = torch.ones(6, 4)
    gates[0, 1] = gates[3, 2] = gates[4, 0] = 0
    with b.gated(model, gates):
        silent = model(**inputs).logits
    b.prune_heads(model, {0: [1], 3: [2], 4: [0]})
    torch.testing.assert_close(model(**inputs).logits, silent)


@pytest.mark.slow
@pytest.mark.skipif(V4, reason="flex attention of transformers 4 has no CPU path for these models")
def test_flex_attention():
    """The maps of a model under flex attention, whose kernel shows none, are those of its eager attention."""
    code = """
import torch, transformers, bertology as b
config = transformers.BertConfig(vocab_size=40, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, attn_implementation="flex_attention")
model = transformers.BertModel(config).eval()
ids = torch.randint(3, 40, (2, 9))
flex = b.attention_maps(model, {"input_ids": ids}).values
model.set_attn_implementation("eager")
torch.testing.assert_close(flex, torch.stack(model(ids, output_attentions=True).attentions))
print("same")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, check=True)
    assert run.stdout.strip() == "same"
