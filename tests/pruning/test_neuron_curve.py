import pytest
import torch

from bertology import dissect_mlps, gated, neuron_curve, neuron_importance, prune_heads, prune_neurons, score
from bertology.errors import DataError
from bertology.pruning.neuron_curve import neuron_magnitudes
from helpers.zoo import BY_NAME, batch


# oracle: each step once more, by gates that are made by hand from the ranking
def test_every_step_is_the_gated_model():
    model, inputs = BY_NAME["bert"].build(), batch()
    curve = neuron_curve(model, inputs, metric="inverse_loss", amount=0.25)
    ranking = neuron_importance(model, inputs).ranking()
    assert curve.parameters_left.tolist() == [1584, 1188, 792, 396, 0]  # 48 neurons of 33 parameters
    for step in range(5):
        gates = torch.ones(2, 24)
        for one in ranking[: 12 * step]:
            gates[one.layer, one.neuron] = 0
        with gated(model, neurons=gates):
            expected = score(model, inputs, metric="inverse_loss").value
        assert curve.scores[step].item() == pytest.approx(expected, rel=1e-12)
    assert curve.scores.unique().numel() == 5


def test_heads_and_neurons_together_can_be_cut(family):
    if family.name in ("albert", "llama"):
        pytest.skip("their heads or layers go together")
    model, inputs = family.build(), batch()
    curve = neuron_curve(model, inputs, metric="inverse_loss", kinds="both", amount=0.3, by="random", seed=4)
    step, threshold = curve.last_step(1e-6), 1e-6
    assert step == len(curve.scores) - 1
    assert curve.seed == 4
    assert (curve.heads_gone <= step).sum() == 8
    curve = neuron_curve(model, inputs, metric="inverse_loss", kinds="both", amount=0.3, keep=1)
    heads, neurons = curve.heads_off(threshold), curve.neurons_off(threshold)
    prune_heads(model, heads)
    prune_neurons(model, neurons)
    assert score(model, inputs, metric="inverse_loss").value == pytest.approx(curve.scores[-1].item(), rel=1e-9)
    assert all(len(some) == 3 for some in heads.values())


def test_what_a_parameter_costs_decides():
    model, inputs = BY_NAME["gpt2"].build(), batch()
    curve = neuron_curve(model, inputs, metric="inverse_loss", kinds="both", by="magnitude", amount=0.5)
    assert curve.parameters_left[0] == 128 * 33 + 8 * (16 * 4 * 4 + 12)
    assert curve.parameters_left[-1] == 0


def test_magnitudes_of_neurons(family):
    mlps = dissect_mlps(family.build())
    found = neuron_magnitudes(mlps)
    for row, neuron in [(0, 0), (1, 23)]:
        site, total = mlps.sites[row], 0.0
        for layer in {site.query, site.value, site.place}:
            turned = type(layer).__name__ == "Conv1D"
            inputs_last = layer.weight.T if turned else layer.weight
            part = inputs_last[:, neuron] if layer is site.place else inputs_last[neuron]
            total += part.square().sum().item()
        assert found[row, neuron].item() == pytest.approx(total**0.5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"by": "size"}, "by is"),
        ({"kinds": "heads"}, "kinds is 'neurons' or 'both'"),
        ({"amount": 0}, "amount is a share"),
        ({"amount": 2}, "amount is a share"),
        ({"keep": -1}, "keep is a number"),
        ({"by": "random", "importance": [batch()]}, "importance= is for"),
    ],
)
def test_options_that_make_no_sense(options, told):
    with pytest.raises(DataError, match=told):
        neuron_curve(BY_NAME["bert"].build(), batch(), metric="accuracy", **options)


def test_it_draws_and_saves(tmp_path):
    pytest.importorskip("matplotlib")
    curve = neuron_curve(BY_NAME["bert"].build(), batch(), metric="accuracy", amount=0.5)
    curve.plot(path=tmp_path / "curve.png")
    curve.save(tmp_path / "curve")
    assert type(curve).load(tmp_path / "curve") == curve
    with pytest.raises(DataError, match="no part for one stack"):
        curve.stack("encoder")
