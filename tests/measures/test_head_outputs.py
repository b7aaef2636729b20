import pytest
import torch

from bertology import dissect, head_outputs
from bertology.errors import DataError, LossError
from helpers.zoo import BY_NAME, batch, each_alone

# oracle: the output projection of each layer, whose result is the sum over heads.


def test_the_projection_of_the_heads_is_what_the_projection_returns(family):
    """Σ_h W_o^h head_h + b, summed head by head, is the output of the projection."""
    model, inputs = family.build(), batch()
    outputs, returned = head_outputs(model, inputs), []
    sites = dissect(model).sites
    hooks = [p.register_forward_hook(lambda m, a, o: returned.append(o)) for p in {s.projection for s in sites}]
    with torch.no_grad():
        model(**{k: v for k, v in inputs.items() if k != "labels"})
    for hook in hooks:
        hook.remove()
    assert outputs.values.shape == (2, 3, 7, 4, 4)
    sums = []
    for row, site in enumerate(sites):
        weight = site.projection.weight if family.name in ("gpt", "gpt2") else site.projection.weight.T
        bias = site.projection.bias if site.projection.bias is not None else 0
        sums.append(sum(outputs.values[row, :, :, h] @ weight[4 * h : 4 * h + 4] for h in range(4)) + bias)
    if family.name == "albert":
        torch.testing.assert_close(sums, returned)
    else:
        for total in sums:
            assert any(torch.allclose(total, r) for r in returned)


def test_gradients_equal_central_differences():
    model, inputs = BY_NAME["bert"].build(), batch((4, 3))
    outputs = head_outputs(model, inputs, loss="auto")
    site = dissect(model).sites[0]
    for b, t, h, d in ((0, 1, 2, 3), (1, 0, 0, 0), (1, 2, 3, 1)):
        values = []
        for step in (1e-5, -1e-5):

            def nudge(module, args, step=step):
                x = args[0].clone()
                x[b, t, 4 * h + d] += step
                return (x,)

            hook = site.projection.register_forward_pre_hook(nudge)
            with torch.no_grad():
                logits = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits
            hook.remove()
            values.append(torch.nn.functional.cross_entropy(logits, inputs["labels"], reduction="sum").item())
        expected = (values[0] - values[1]) / 2e-5
        assert outputs.gradients[0, b, t, h, d].item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_padding_gets_no_gradient_and_a_batch_is_its_examples(family):
    model, inputs = family.build(), batch()
    many = head_outputs(model, inputs, loss="auto")
    assert many.gradients[:, ~many.mask].abs().max() == 0
    for row, one in enumerate(each_alone(inputs)):
        n = one["input_ids"].shape[1]
        alone = head_outputs(model, one, loss="auto")
        torch.testing.assert_close(many.values[:, row, :n], alone.values[:, 0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(many.gradients[:, row, :n], alone.gradients[:, 0], rtol=1e-5, atol=1e-6)


def test_frozen_models_have_gradients_too():
    model, inputs = BY_NAME["gpt2"].build(), batch()
    expected = head_outputs(model, inputs, loss="auto").gradients
    model.requires_grad_(False)
    torch.testing.assert_close(head_outputs(model, inputs, loss="auto").gradients, expected)


def test_a_loss_of_ones_own():
    model, inputs = BY_NAME["bert"].build(), batch()
    twice = head_outputs(
        model, inputs, loss=lambda o, b: 2 * torch.nn.functional.cross_entropy(o.logits, b["labels"], reduction="none")
    )
    torch.testing.assert_close(twice.gradients, 2 * head_outputs(model, inputs, loss="auto").gradients)


def test_errors():
    model = BY_NAME["bert"].build()
    with pytest.raises(DataError, match=r"no gradients were captured: call head_outputs\(..., loss='auto'\)"):
        _ = head_outputs(model, batch()).gradients
    with pytest.raises(LossError, match="needs labels in every batch"):
        head_outputs(model, batch(labels=False), loss="auto")
    with pytest.raises(DataError, match="loss must be None, 'auto' or a function of .outputs, batch., got 'nll'"):
        head_outputs(model, batch(), loss="nll")
