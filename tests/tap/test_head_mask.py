"""Gates are what `head_mask` was in transformers 4.57 (run under `nox -s tests-4.57`)."""

import pytest
import torch

from bertology import attention_entropy, gated, head_importance
from helpers.zoo import FAMILIES, V4, batch, each_alone

pytestmark = pytest.mark.skipif(not V4, reason="transformers 5 has no head_mask")
MASKABLE = [family for family in FAMILIES if family.name != "llama"]  # Llama never had the argument


def run(model, inputs, mask):
    return model(**inputs, head_mask=mask)


def old_mask(family, gates):
    """4.57's ALBERT reads row 0 in every layer."""
    return gates if family.name != "albert" else gates[:1].expand(gates.shape)


@pytest.mark.parametrize("family", MASKABLE, ids=lambda f: f.name)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_logits_equal_head_mask(family, implementation):
    eager, model, inputs = family.build(attention="eager"), family.build(attention=implementation), batch()
    masks = [torch.rand(2, 4, dtype=torch.float64)]
    for place in range(8):
        masks.append(torch.ones(2, 4, dtype=torch.float64))
        masks[-1].view(-1)[place] = 0
    with torch.no_grad():
        plain = eager(**inputs).logits
        for mask in masks:
            gates = old_mask(family, mask)
            expected = run(eager, inputs, gates).logits
            with gated(model, gates):
                torch.testing.assert_close(model(**inputs).logits, expected)
            if not torch.equal(gates, torch.ones_like(gates)):
                assert not torch.allclose(expected, plain)


@pytest.mark.parametrize("family", MASKABLE, ids=lambda f: f.name)
def test_importance_equals_the_gradients_of_head_mask(family):
    eager, model, inputs = family.build(attention="eager"), family.build(), batch()
    total = torch.zeros(2, 4, dtype=torch.float64)
    for one in each_alone(inputs):
        mask = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(run(eager, one, mask).loss, mask)
        total += gradient.abs() / 3
    found = head_importance(model, inputs)
    if family.name == "albert":
        # Row 0 serves all layers there: its gradient is the sum of the calls' own.
        each = [head_importance(model, one).signed.sum(0).abs() for one in each_alone(inputs)]
        torch.testing.assert_close(torch.stack(each).mean(0), total[0])
    else:
        torch.testing.assert_close(found.scores, total)


def test_the_comparison_can_fail():
    family, inputs = FAMILIES[0], batch()
    mask = torch.ones(2, 4, dtype=torch.float64)
    mask[0, 1] = 0
    other = mask.flip(-1)
    with torch.no_grad():
        expected = run(family.build(attention="eager"), inputs, mask).logits
        model = family.build()
        with gated(model, other), pytest.raises(AssertionError):
            torch.testing.assert_close(model(**inputs).logits, expected)


def test_entropy_equals_the_old_scripts_sum():
    family, inputs = FAMILIES[0], batch()
    with torch.no_grad():
        maps = family.build(attention="eager")(**inputs, output_attentions=True).attentions
    mask, total = inputs["attention_mask"].double(), torch.zeros(2, 4, dtype=torch.float64)
    for layer, p in enumerate(maps):
        h = -(p * p.log()).nan_to_num().sum(-1)
        total[layer] = torch.einsum("bhq,bq->h", h, mask) / mask.sum()
    torch.testing.assert_close(attention_entropy(family.build(), inputs).mean, total)
