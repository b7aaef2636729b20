"""Measures of gradients in one pass share its backward pass, and find what each finds alone."""

from unittest import mock

import pytest
import torch

from bertology import (
    EntropyAccumulator,
    GradientsAccumulator,
    ImportanceAccumulator,
    NeuronImportanceAccumulator,
    accumulate,
    attention_gradients,
    head_importance,
    neuron_importance,
)
from bertology.streaming.loss_gradients import take_gradients
from helpers.zoo import BY_NAME, batch

FIRST = {"first": [7]}


def other_loss(outputs, inputs):
    return outputs.logits.square().mean(-1)


def backward_passes(model, *measures):
    """How many backward passes a pass over one batch takes, and the results."""
    with mock.patch("bertology.streaming.loss_gradients.take_gradients", wraps=take_gradients) as taken:
        found = accumulate(model, batch(), *measures)
    return taken.call_count, found


# oracle: each measure alone
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_heads_neurons_and_maps_share_one_backward_pass(name):
    model = BY_NAME[name].build("classifier")
    alone = (
        head_importance(model, batch()),
        neuron_importance(model, batch()),
        attention_gradients(model, batch(), tokens=FIRST),
    )
    passes, found = backward_passes(
        model, ImportanceAccumulator(), EntropyAccumulator(), NeuronImportanceAccumulator(), GradientsAccumulator(FIRST)
    )
    assert passes == 1
    torch.testing.assert_close(found[0].scores, alone[0].scores, rtol=1e-9, atol=0)
    torch.testing.assert_close(found[2].scores, alone[1].scores, rtol=1e-9, atol=0, equal_nan=True)
    torch.testing.assert_close(found[3].values, alone[2].values, rtol=1e-9, atol=1e-15, equal_nan=True)


def test_other_losses_have_backward_passes_of_their_own():
    model = BY_NAME["bert"].build("classifier")
    alone = head_importance(model, batch()).scores, head_importance(model, batch(), loss=other_loss).scores
    passes, found = backward_passes(
        model, ImportanceAccumulator(), ImportanceAccumulator(other_loss), ImportanceAccumulator()
    )
    assert passes == 2
    assert not torch.allclose(*alone), "the losses matter"
    for one, expected in zip(found, (alone[0], alone[1], alone[0]), strict=True):
        torch.testing.assert_close(one.scores, expected, rtol=1e-9, atol=0)


def test_an_update_of_ones_own_is_called():
    seen = []

    class Own(ImportanceAccumulator):
        def update(self, inputs, outputs):
            seen.append(outputs.logits.shape)
            super().update(inputs, outputs)

    model = BY_NAME["bert"].build("classifier")
    passes, found = backward_passes(model, ImportanceAccumulator(), Own())
    assert passes == 2
    assert len(seen) == 1
    assert torch.equal(found[0].scores, found[1].scores)
