"""Attention cut between classes of tokens."""

import pytest
import torch

from bertology import Result, edge_ablation
from bertology.errors import DataError
from helpers.zoo import BY_NAME, V4, batch

# oracle: a loop over eager models whose attention mask is added by hand


def losses(model, inputs, cut):
    """The losses of BERT with a mask [batch, query, key] added in all layers."""
    seen = ~cut & inputs["attention_mask"][:, None].bool()
    if V4:
        with torch.no_grad():
            out = model(input_ids=inputs["input_ids"], attention_mask=seen.long())
        return torch.nn.functional.cross_entropy(out.logits, inputs["labels"], reduction="none")
    added = torch.zeros(cut.shape, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        out = model(input_ids=inputs["input_ids"], attention_mask=added[:, None])
    return torch.nn.functional.cross_entropy(out.logits, inputs["labels"], reduction="none")


def test_equals_a_loop_with_the_mask_added():
    model, inputs = BY_NAME["bert"].build(attention="eager"), batch((6, 5, 6))
    low = inputs["input_ids"] < 15
    found = edge_ablation(BY_NAME["bert"].build(), inputs, tokens={"low": lambda batch: batch["input_ids"] < 15})
    base = losses(model, inputs, torch.zeros(3, 6, 6, dtype=torch.bool))
    assert found.base_loss == pytest.approx(base.mean().item())
    for i, query in enumerate((low, ~low)):
        for j, key in enumerate((low, ~low)):
            cut = query[:, :, None] & key[:, None] & ~torch.eye(6, dtype=torch.bool)
            apart = losses(model, inputs, cut) - base
            torch.testing.assert_close(found.whole[i, j], apart.mean(), atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(found.stderr[i, j], apart.std() / 3**0.5, atol=1e-6, rtol=1e-6)
    assert found.effect("low", "other") == found.whole[0, 1]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found.whole, found.whole.T)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_layers_batches_and_a_class_that_is_not_there(name, tmp_path):
    model, inputs = BY_NAME[name].build(), batch((6, 5))
    found = edge_ablation(model, inputs, tokens={"none": [39], "low": list(range(3, 15))}, by_layer=True)
    assert found.change.shape == (2, 3, 3)
    assert found.classes == ("none", "low", "other")
    assert found.whole[0].abs().max() < 1e-6 or 39 in inputs["input_ids"]
    found.save(tmp_path / "result")
    assert Result.load(tmp_path / "result") == found


def test_errors_say_what_to_do():
    with pytest.raises(DataError, match="wanted at least one token class"):
        edge_ablation(BY_NAME["bert"].build(), batch(), tokens={})
    embeds = {"inputs_embeds": torch.randn(2, 4, 16, dtype=torch.float64), "labels": torch.tensor([0, 1])}
    with pytest.raises(DataError, match="no input_ids"):
        edge_ablation(BY_NAME["bert"].build(), embeds, tokens={"low": [3]})
