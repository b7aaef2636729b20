"""The shares of all heads add up to what they do together, and are what a slow integral gives."""

import pytest
import torch

from bertology import Result, dissect, gated, integrated_importance, prune_heads
from bertology.errors import DataError
from helpers.ablation import losses, several
from helpers.zoo import BY_NAME, FAMILIES, batch, each_alone
from oracles.heads import projections, scaled

# oracle: central differences of output weights that are scaled


# DistilBERT of transformers 4 takes no positions.
@pytest.mark.filterwarnings("ignore:padding (before|changes):UserWarning")
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_the_shares_add_up(family):
    model = family.build()
    for norm in model.modules():
        if hasattr(norm, "variance_epsilon"):
            # Behind Llama's norms without a mean the loss is as steep as this is small where all gates are near 0.
            norm.variance_epsilon = 0.1
    found = integrated_importance(model, several(), steps=40)
    assert found.base_loss == pytest.approx(losses(model, several()).mean().item())
    with gated(model, torch.zeros(2, 4)):
        assert found.none_loss == pytest.approx(losses(model, several()).mean().item())
    assert abs(found.remainder) < 0.02 * found.absolute.sum()
    few = integrated_importance(model, several(), steps=1)
    assert abs(few.remainder) > abs(found.remainder)


def test_equals_differences_of_weights():
    model, one, steps, step = BY_NAME["gpt2"].build(), batch(), 3, 1e-5
    found = integrated_importance(model, one, steps=steps)
    total = torch.zeros(2, 4, 3, dtype=torch.float64)
    places = projections(model)
    for point in range(steps):
        alpha = (point + 0.5) / steps
        weights = [x.detach().clone() for x, _, _ in places]
        with torch.no_grad():
            for (weight, _, _), kept in zip(places, weights, strict=True):
                weight.copy_(alpha * kept)
            for row, (weight, heads, axis) in enumerate(places):
                for head in range(heads):
                    ends = []
                    for gate in (alpha + step, alpha - step):
                        with scaled(weight, axis, heads, head, gate / alpha):
                            ends.append(torch.cat([losses(model, x) for x in each_alone(one)]))
                    total[row, head] += (ends[0] - ends[1]) / (2 * step) / steps
            for (weight, _, _), kept in zip(places, weights, strict=True):
                weight.copy_(kept)
    torch.testing.assert_close(found.scores, -total.mean(-1), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found.absolute, total.abs().mean(-1), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found.stderr, total.std(-1) / 3**0.5, rtol=1e-5, atol=1e-8)
    assert not torch.allclose(found.scores, -total.mean(-1).flip(1), rtol=1e-3)


def test_pruned_heads_batches_and_files(tmp_path):
    model = BY_NAME["bert"].build()
    prune_heads(model, {0: [1, 2]})
    found = integrated_importance(model, batch(), steps=3)
    assert found.scores.isnan().equal(~dissect(model).present)
    alone = integrated_importance(model, each_alone(batch()), steps=3)
    torch.testing.assert_close(alone.scores, found.scores, equal_nan=True)
    found.save(tmp_path / "integrated.safetensors")
    assert Result.load(tmp_path / "integrated.safetensors") == found
    found.plot()
    with pytest.raises(DataError, match="steps must be 1 or more, got 0"):
        integrated_importance(model, batch(), steps=0)
