import pytest
import torch

from bertology import NeuronImportance, Result, dissect_mlps, gated, neuron_importance, prune_neurons
from bertology.errors import DataError, ShapeError
from helpers.pruning import logits
from helpers.zoo import BY_NAME, batch, each_alone


def columns(site):
    """[neuron, hidden]: the columns of the down projection, a view."""
    weight = site.place.weight
    return weight if type(site.place).__name__ == "Conv1D" else weight.T


def by_differences(model, inputs, row, neuron, step):
    """Oracle: E_x |(L(ξ = 1 + ε) - L(ξ = 1 - ε)) / 2ε|, by scaling a column of the down projection."""
    site, total = dissect_mlps(model).sites[row], 0.0
    for example in each_alone(inputs):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                kept = columns(site)[neuron].clone()
                columns(site)[neuron] *= 1 + sign * step
                values.append(model(**example).loss.item())
                columns(site)[neuron] = kept
        total += abs(values[0] - values[1]) / (2 * step)
    return total / len(inputs["labels"])


# oracle: central differences in the columns of the down projection
def test_equals_central_differences(family):
    if family.name == "albert":
        pytest.skip("its one MLP serves all layers")
    model, inputs = family.build(), batch()
    found = neuron_importance(model, inputs)
    loose = family.name == "llama"  # its norms are in float32
    for row, neuron in [(0, 0), (1, 5), (1, 23)]:
        expected = by_differences(model, inputs, row, neuron, 1e-3 if loose else 1e-5)
        assert found.scores[row, neuron].item() == pytest.approx(expected, rel=1e-6, abs=2e-4 if loose else 0)
    assert found.examples == 3


def test_the_comparison_can_fail():
    model, inputs = BY_NAME["bert"].build(), batch()
    spoiled = neuron_importance(model, inputs).signed.abs()  # the absolute value after the mean
    rows = [(0, n) for n in range(6)]
    expected = torch.tensor([by_differences(model, inputs, *place, 1e-5) for place in rows])
    assert not torch.allclose(spoiled[0, :6].float(), expected, rtol=1e-3)


def test_a_gate_is_a_column(family):
    model, inputs = family.build(), batch()
    mlps = dissect_mlps(model)
    gates = torch.rand(2, mlps.neurons, dtype=torch.float64)
    if family.name == "albert":
        gates[1] = gates[0]
    with gated(model, neurons=gates):
        ours = logits(model, inputs)
    with torch.no_grad():
        for site in mlps.sites[: 1 if family.name == "albert" else 2]:
            columns(site).mul_(gates[site.row, :, None])
    torch.testing.assert_close(ours, logits(model, inputs), rtol=0, atol=1e-6 if family.name == "llama" else 1e-12)


def test_gates_of_heads_and_neurons_together_and_by_example():
    model, inputs = BY_NAME["gpt2"].build(), batch()
    heads, neurons = torch.rand(2, 4).double(), torch.ones(2, 3, 64).double()
    neurons[:, 1] = 0
    with gated(model, heads):
        one = logits(model, inputs)
    with gated(model, heads, neurons=neurons):
        both = logits(model, inputs)
    torch.testing.assert_close(both[[0, 2]], one[[0, 2]])
    assert (both[1] - one[1]).abs().max() > 1e-3
    with pytest.raises(ShapeError, match="gated needs gates"), gated(model):
        pass
    with pytest.raises(ShapeError, match=r"neurons must be \[layer, neuron\] = \[2, 64\], got \[2, 4\]"):
        gated(model, neurons=heads).__enter__()


def test_a_batch_is_its_examples():
    model, inputs = BY_NAME["llama"].build(), batch((7, 4, 5, 2))
    many = neuron_importance(model, inputs)
    alone = neuron_importance(model, each_alone(inputs))
    torch.testing.assert_close(many.scores, alone.scores, rtol=1e-5, atol=1e-8)


def test_ranking_saving_and_pruned_neurons(tmp_path):
    model, inputs = BY_NAME["bert"].build(), batch()
    prune_neurons(model, {0: [3, 4], 1: range(24)})
    found = neuron_importance(model, inputs)
    assert found.scores[0, [3, 4]].isnan().all()
    assert found.scores[1].isnan().all()
    ranking = found.ranking()
    assert len(ranking) == 22
    assert found.scores[0, ranking[0].neuron] == found.scores[0][~found.scores[0].isnan()].min()
    found.save(tmp_path / "n")
    assert isinstance(Result.load(tmp_path / "n"), NeuronImportance)
    assert Result.load(tmp_path / "n") == found
    prune_neurons(model, {0: [n for n in range(24) if n not in (3, 4)]})
    with pytest.raises(DataError, match="every neuron of this model was pruned"):
        neuron_importance(model, inputs)
