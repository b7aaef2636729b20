"""The loop over heads that ablation is compared with."""

import pytest
import torch
import transformers as t

from bertology import (
    dissect,
    gated,
    head_ablation,
    score,
)
from bertology.data.batches import without_labels
from bertology.data.losses import example_losses, find_loss
from helpers.zoo import BY_NAME, batch

EQUAL = {"rtol": 1e-12, "atol": 1e-12}


def several(side="right", kind="classifier"):
    """Batches of unequal sizes."""
    made = [batch((7, 4, 5), side=side), batch((3, 6), seed=5, side=side), batch((5,), seed=6, side=side)]
    if kind == "lm":
        for one in made:
            one["labels"] = one["input_ids"].masked_fill(one["attention_mask"] == 0, -100)
    return made


def off(anatomy, row, head):
    gates = torch.ones(anatomy.layers, anatomy.heads)
    gates[row, head] = 0
    return gates


def rest(model, kept):
    """All heads but these, as pairs."""
    return [tuple(place) for place in dissect(model).present.nonzero().tolist() if tuple(place) not in kept]


def losses(model, batches, loss=None):
    loss, found = loss or find_loss(model), []
    for one in [batches] if isinstance(batches, dict) else batches:
        with torch.no_grad():
            found.append(example_losses(loss, model(**without_labels(model, one)), one))
    return torch.cat(found).double()


def check(model, batches, metric="inverse_loss", **options):
    """Compare with the loop: one gate closed, the losses, the score."""
    found = head_ablation(model, batches, metric=metric, **options)
    anatomy, loss = dissect(model), options.get("loss")
    base = losses(model, batches, loss)
    torch.testing.assert_close(found.base_losses, base, **EQUAL)
    assert found.base == pytest.approx(score(model, batches, metric=metric, loss=loss).value, rel=1e-12)
    assert found.base_loss == pytest.approx(base.mean().item(), rel=1e-12)
    for row, head in anatomy.present.nonzero().tolist():
        with gated(model, off(anatomy, row, head)):
            expected = losses(model, batches, loss)
            value = score(model, batches, metric=metric, loss=loss).value
        torch.testing.assert_close(found.losses[row, head], expected, **EQUAL)
        assert found.loss_change[row, head].item() == pytest.approx((expected - base).mean().item(), abs=1e-12)
        assert found.change[row, head].item() == pytest.approx(value - found.base, abs=1e-12)
    assert found.change.isnan().equal(~anatomy.present)
    assert found.examples == len(base)
    return found


def bert(head, **config):
    torch.manual_seed(0)
    settings = BY_NAME["bert"].config()
    for name, value in config.items():
        setattr(settings, name, value)
    model = getattr(t, f"BertFor{head}")(settings).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model
