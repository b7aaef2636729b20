"""Inside `torch.inference_mode()` every measure gives what it gives outside, those of gradients too."""

import pytest
import torch

import bertology as b
from bertology.metrics import logit_difference
from helpers.zoo import BY_NAME, batch


def others(inputs):
    """Texts of the same lengths."""
    return inputs | {"input_ids": (inputs["input_ids"] + inputs["attention_mask"]).clamp_max(39)}


CALLS = {
    "hidden_states": b.hidden_states,
    "attention_maps": b.attention_maps,
    "head_outputs": lambda model, inputs: b.head_outputs(model, inputs, loss="auto"),
    "capture": lambda model, inputs: b.capture(model, inputs, heads=True, loss="auto").heads,
    "neuron_activations": b.neuron_activations,
    "attention_entropy": b.attention_entropy,
    "attention_gradients": lambda model, inputs: b.attention_gradients(model, inputs, tokens={"low": [3]}),
    "attention_relevance": b.attention_relevance,
    "attention_rollout": b.attention_rollout,
    "mixing_ratio": b.mixing_ratio,
    "head_importance": b.head_importance,
    "neuron_importance": b.neuron_importance,
    "integrated_importance": lambda model, inputs: b.integrated_importance(model, inputs, steps=2),
    "head_ablation": lambda model, inputs: b.head_ablation(model, inputs, metric="inverse_loss"),
    "fit_gates": lambda model, inputs: b.fit_gates(model, inputs, steps=2),
    "logit_lens": b.logit_lens,
    "head_attribution": b.head_attribution,
    "attribution_patching": lambda model, inputs: b.attribution_patching(
        model, inputs, others(inputs), metric=logit_difference(1, 0)
    ),
    "layer_similarity": b.layer_similarity,
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_a_measure_is_the_same_in_inference_mode(call):
    model, inputs = BY_NAME["bert"].build(), batch()
    expected = CALLS[call](model, inputs)
    with torch.inference_mode():
        inputs = batch()  # a graph cannot hold it as it is
        found = CALLS[call](model, inputs)
    assert found.allclose(expected, rtol=1e-9, atol=1e-9)
