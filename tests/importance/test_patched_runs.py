"""What patched runs must give, whatever the model: nothing from itself, and everything from all of a layer."""

# oracle: the model with the other input, and the same model with linear layers alone

import pytest
import torch
from torch import nn

from bertology import (
    LayerPatching,
    activation_patching,
    attribution_patching,
)
from bertology.metrics import logit_difference
from helpers.patching import EQUAL, difference, one, places, two
from helpers.zoo import BY_NAME, FAMILIES
from oracles import patching as oracle


def test_a_patch_from_the_same_input_changes_nothing():
    model, (clean, corrupted) = BY_NAME["bert"].build(), two()
    corrupted["input_ids"][1] = clean["input_ids"][1]
    for parts in ("heads", "attentions", "blocks"):
        for function in (activation_patching, attribution_patching):
            found = function(model, clean, corrupted, metric=logit_difference(1, 0), parts=parts)
            torch.testing.assert_close(found.patched[..., 1], found.corrupted[1].expand(found.patched.shape[:-1]))
            assert not torch.allclose(found.patched[..., 0], found.corrupted[0].expand(found.patched.shape[:-1]))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_all_positions_of_a_block_carry_everything(family):
    model, (clean, corrupted) = family.build("lm"), two()
    metric = logit_difference(9, 8, position=-1)
    found = activation_patching(model, clean, corrupted, metric=metric, parts="blocks", by_token=False)
    assert found.labels == ("0", "1", "2")
    torch.testing.assert_close(found.patched, found.clean.expand(3, 3), **EQUAL)
    torch.testing.assert_close(found.effect, torch.ones(3).double(), **EQUAL)
    assert type(found) is LayerPatching


def test_integrated_gradients_are_complete():
    model, (clean, corrupted) = BY_NAME["gpt2"].build("lm"), two((5, 4))
    metric = logit_difference(9, 8)
    errors = []
    for steps in (0, 8, 64):
        found = attribution_patching(model, clean, corrupted, metric=metric, parts="blocks", steps=steps)
        errors.append((found.patched[0] - found.clean).abs().max().item())
    assert errors[2] < 0.02 * abs(found.gap)
    assert errors[2] < errors[1] / 4 < errors[0]


def linear_after_the_last_attention():
    """A GPT-2 whose logits are linear in the heads of its last layer."""
    model = BY_NAME["gpt2"].build("lm")
    model.transformer.ln_f = nn.Identity()
    with torch.no_grad():
        model.transformer.h[-1].mlp.c_proj.weight.zero_()
    return model


@pytest.mark.parametrize("steps", [0, 3])
def test_the_estimate_is_exact_where_the_rest_is_linear(steps):
    model, (clean, corrupted) = linear_after_the_last_attention(), two()
    metric = logit_difference(9, 8)
    ran = activation_patching(model, clean, corrupted, metric=metric)
    near = attribution_patching(model, clean, corrupted, metric=metric, steps=steps)
    torch.testing.assert_close(near.patched[-1], ran.patched[-1], **EQUAL)
    assert not torch.allclose(near.patched[0], ran.patched[0], rtol=1e-4)
    # Linear parts add up: all heads of the layer together are the sum of its heads.
    whole = activation_patching(model, clean, corrupted, metric=metric, parts="attentions")
    torch.testing.assert_close(whole.effect[-1], ran.effect[-1].sum(), **EQUAL)


def test_an_attention_is_all_its_heads_at_once():
    model, (clean, corrupted) = BY_NAME["bert"].build(), two()
    metric = logit_difference(1, 0)
    found = activation_patching(model, clean, corrupted, metric=metric, parts="attentions", by_token=False)
    place, _ = places(model)[1]
    for row in range(3):
        # With one head that is as wide as the layer.
        expected = oracle.patched(model, [(place, 1)], one(corrupted, row), one(clean, row), difference)
        torch.testing.assert_close(found.patched[1, row], expected[0, 0], **EQUAL)
    heads = attribution_patching(model, clean, corrupted, metric=metric)
    whole = attribution_patching(model, clean, corrupted, metric=metric, parts="attentions")
    torch.testing.assert_close(heads.effect.sum(1), whole.effect, **EQUAL)
