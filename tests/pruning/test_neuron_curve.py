import copy

import pytest
import torch

from bertology import (
    dissect_mlps,
    gated,
    neuron_curve,
    neuron_importance,
    prune_heads,
    prune_neurons,
    pruning_curve,
    score,
)
from bertology.errors import DataError, UnknownAnatomy
from bertology.pruning.curve import first_below
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


def check_like(adapted, merged, inputs):
    """Whether a curve of heads and neurons in one order is that of the merged model."""
    for options in ({"by": "random"}, {"by": "importance"}):
        found, expected = (
            neuron_curve(one, inputs, metric="inverse_loss", kinds="both", amount=0.3, **options)
            for one in (adapted, merged)
        )
        assert found.parameters_left.tolist() == expected.parameters_left.tolist()
        assert torch.equal(found.neurons_gone, expected.neurons_gone)
        assert torch.equal(found.heads_gone.nan_to_num(), expected.heads_gone.nan_to_num())


@pytest.mark.filterwarnings("ignore")  # peft's own
@pytest.mark.parametrize(("name", "names"), [("bert", "query value dense"), ("gpt2", "c_attn c_proj c_fc")])
def test_adapters_cost_nothing_and_have_no_magnitude(name, names):
    import peft

    config = peft.LoraConfig(r=2, target_modules=names.split(), fan_in_fan_out=name == "gpt2", lora_dropout=0.0)
    adapted = peft.get_peft_model(BY_NAME[name].build(), config).double().eval()
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.5)
    check_like(adapted, copy.deepcopy(adapted).merge_and_unload(), batch())
    with pytest.raises(
        UnknownAnatomy, match="own of each neuron of .*got peft.tuners.lora.layer.Linear; merge adapters"
    ):
        neuron_curve(adapted, batch(), metric="accuracy", by="magnitude")


@pytest.mark.filterwarnings("ignore:.*quantiz")
@pytest.mark.parametrize("name", ["bert", "llama"])  # Llama's layers have no biases
def test_packed_weights_cost_what_they_did(name):
    model, inputs = BY_NAME[name].build().float(), batch()
    packed = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    found, expected = (
        neuron_curve(one, inputs, metric="accuracy", kinds="both", by="random") for one in (packed, model)
    )
    assert found.parameters_left.tolist() == expected.parameters_left.tolist()
    assert len(found.scores) == 11
    with pytest.raises(UnknownAnatomy, match="own of each neuron of .*0: only Linear"):
        neuron_magnitudes(dissect_mlps(packed))


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


def minus_loss(logits, labels):
    return -torch.nn.functional.cross_entropy(logits, labels).item()


def test_a_share_of_a_score_below_0_is_refused():
    model, inputs = BY_NAME["bert"].build(), batch()
    neurons = neuron_curve(model, inputs, metric=minus_loss, amount=0.5)
    heads = pruning_curve(model, inputs, metric=minus_loss, amount=0.5)
    told = 'threshold is a share of the whole model\'s score, which must be above 0, got -.*such as "inverse_loss"'
    for choose in (neurons.last_step, neurons.neurons_off, neurons.heads_off, heads.mask, heads.heads_off):
        for threshold in (0.9, 0):
            with pytest.raises(DataError, match=told):
                choose(threshold)
    with pytest.raises(DataError, match=told):
        pruning_curve(model, inputs, metric=minus_loss, threshold=0.9)
    assert heads.heads_off() == heads.heads_off(keep=1), "without a threshold it is the last step"


def test_a_score_that_is_no_number_is_below_any_share():
    scores = torch.tensor([0.8, 0.7, float("nan"), 0.7])
    assert [first_below(scores, share) for share in (0, 0.5, 0.9)] == [2, 2, 1]
    assert first_below(torch.zeros(3), 0) is None
    for scores in (torch.zeros(3), torch.tensor([float("nan"), 1])):
        with pytest.raises(DataError, match="must be above 0, got (0|nan)"):
            first_below(scores, 0.5)


def test_it_says_on_how_many_examples():
    curve = neuron_curve(BY_NAME["gpt2"].build(), [batch(), batch((4, 5))], metric="accuracy", amount=0.5)
    assert curve.n_examples == 5
    assert str(curve).startswith("NeuronCurve of GPT2ForSequenceClassification, 5 examples")


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
