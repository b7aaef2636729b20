"""MLPs are found in every family, by the names and sizes of their layers; what is no MLP, or is a mixture, is not."""

import pytest
import torch
import transformers
from torch import nn

from bertology import Neuron, dissect_mlps, prune_neurons
from bertology.anatomy.mlp_names import MLP_NAMES, MlpNames
from bertology.anatomy.mlps import fits
from bertology.errors import BertologyError, NeuronError, UnknownAnatomy
from helpers.pruning import seq2seq
from helpers.zoo import BY_NAME


def mixtral():
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, num_local_experts=2,
        )
    )  # fmt: skip


def test_each_family_has_an_mlp_a_layer(family):
    mlps = dissect_mlps(family.build())
    assert (mlps.layers, mlps.neurons) == (2, 64 if family.name.startswith("gpt") else 24)
    assert mlps.labels == ("0", "1")
    assert not mlps.unmeasured
    assert mlps.present.all()


def test_the_layers_of_a_gated_mlp():
    site = dissect_mlps(BY_NAME["llama"].build()).sites[1]
    names = {module: name for name, module in site.attention.named_modules()}
    assert [names[part] for part in (site.query, site.value, site.place)] == ["gate_proj", "up_proj", "down_proj"]
    assert site.path == "model.layers.1.mlp.down_proj"


def test_encoder_decoders_have_both():
    assert dissect_mlps(seq2seq("bart")).labels == ("encoder.0", "encoder.1", "decoder.0", "decoder.1")
    assert dissect_mlps(seq2seq("t5")).neurons == 24


def test_a_shared_mlp_has_a_row_for_each_layer():
    sites = dissect_mlps(BY_NAME["albert"].build()).sites
    assert sites[0].place is sites[1].place
    assert [site.call for site in sites] == [0, 1]


def test_mixtures_are_refused_and_say_why():
    with pytest.raises(UnknownAnatomy, match="no MLPs found.*is a mixture of experts, in which the token chooses"):
        dissect_mlps(mixtral())
    config = transformers.Qwen2MoeConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, moe_intermediate_size=8, num_hidden_layers=2,
        shared_expert_intermediate_size=8, num_attention_heads=4, num_key_value_heads=2, num_experts=2, mlp_only_layers=[1],
    )  # fmt: skip
    mlps = dissect_mlps(transformers.Qwen2MoeForCausalLM(config))
    assert mlps.labels == ("1",)
    assert list(mlps.unmeasured) == ["model.layers.0.mlp"]
    assert "mixture of experts" in repr(mlps)


def test_names_alone_are_not_enough():
    names = MlpNames("up", "down")
    holder = nn.ModuleDict({"up": nn.Linear(4, 6), "down": nn.Linear(6, 4)})
    assert fits(holder, names)
    holder["up"] = nn.Linear(4, 5)
    assert not fits(holder, names)
    assert not fits(holder, MlpNames("up", "gone"))
    assert len(set(MLP_NAMES)) == len(MLP_NAMES)


NEURONS = [{0: [1, 2]}, [(0, 1), (0, 2)], [Neuron(0, 2), "L0N1"], {0: torch.tensor([2, 1])}]


@pytest.mark.parametrize("neurons", NEURONS)
def test_neurons_however_given(neurons):
    assert dissect_mlps(BY_NAME["bert"].build()).resolve(neurons) == [(0, 1), (0, 2)]


@pytest.mark.parametrize(
    ("neurons", "told"),
    [
        ({0: [24]}, "neuron 24 of layer 0 is out of range: its neurons are 0 to 23"),
        ({2: [0]}, "layer 2 is out of range: this model's MLPs are 0 to 1"),
        (["L0H1"], "neurons must be"),
        ("L0N1", "neurons must be"),
        ([(0, True)], "neurons must be"),
        ([(0, 1.0)], "neurons must be"),
        ({0: "12"}, "neurons must be"),
        ([(0, 1, 2)], "neurons must be"),
        ([Neuron(7, 0)], "neuron L7N0 is not in this model"),
        ([3], "neurons must be"),
    ],
)
def test_what_is_no_neuron(neurons, told):
    with pytest.raises(NeuronError, match=told):
        dissect_mlps(BY_NAME["bert"].build()).resolve(neurons)


def test_a_neuron_of_several_stacks_must_say_which():
    mlps = dissect_mlps(seq2seq("bart"))
    assert mlps.resolve(["DL1N3"]) == [(3, 3)]
    with pytest.raises(NeuronError, match="in several stacks; say which"):
        mlps.resolve(["L1N3"])
    assert str(Neuron(1, 3, "decoder")) == "DL1N3"


def test_a_pruned_neuron_is_gone():
    model = BY_NAME["gpt2"].build()
    prune_neurons(model, {1: [5]})
    mlps = dissect_mlps(model)
    assert (int(mlps.present.sum()), mlps.neurons) == (127, 64)
    with pytest.raises(NeuronError, match="neuron L1N5 was pruned before; of layer 1 63 neurons are left"):
        prune_neurons(model, ["L1N5"])


def test_a_down_projection_of_another_size_is_an_error():
    model = BY_NAME["gpt2"].build()
    prune_neurons(model, {1: [5]})
    model.transformer.h[1].mlp.c_proj.pruned_neurons = {5, 6}
    with pytest.raises(BertologyError, match="has 63 neurons, but of 64 neurons 2 are said to be pruned"):
        dissect_mlps(model)
