import math

import pytest
import torch
import transformers

from bertology import dissect, prune_heads, pruning_curve
from bertology.errors import UnknownAnatomy
from bertology.pruning.rankings import head_magnitudes
from helpers.pruning import heads_for
from helpers.zoo import BY_NAME, batch


def slow_bert(layer, head):
    """sqrt(Σ w²) over the head's rows of query, key and value, and its columns of the output projection."""
    total, here = 0.0, range(4 * head, 4 * head + 4)
    for part in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value):
        total += sum(part.weight[i, j].item() ** 2 for i in here for j in range(16))
    weight = layer.attention.output.dense.weight
    return math.sqrt(total + sum(weight[i, j].item() ** 2 for i in range(16) for j in here))


def test_equals_the_slow_twin():
    model = BY_NAME["bert"].build()
    expected = torch.tensor([[slow_bert(layer, head) for head in range(4)] for layer in model.bert.encoder.layer])
    found = head_magnitudes(dissect(model))
    torch.testing.assert_close(found, expected.double())
    assert not torch.allclose(found, expected[:, [1, 0, 2, 3]].double())


def squares(model):
    """The sum of squares of all weights, each once; biases, norms and what else is a vector left out."""
    return sum(p.double().square().sum().item() for p in model.parameters() if p.dim() > 1)


@pytest.mark.parametrize("head", range(4))
def test_is_what_pruning_takes_away(family, head):
    model, heads = family.build(), heads_for(family, {0: [head]})
    places = [(layer, h) for layer, some in heads.items() for h in some]
    magnitudes, before = head_magnitudes(dissect(model)), squares(model)
    expected = sum(magnitudes[place].item() ** 2 for place in places)
    if family.name == "albert":
        expected /= 2  # both layers are one module
    if family.name == "llama":  # two heads share the rows of one key and one value, which were counted for each
        attention = model.model.layers[0].self_attn
        rows = slice(4 * (head // 2), 4 * (head // 2) + 4)
        expected -= (attention.k_proj.weight[rows].square().sum() + attention.v_proj.weight[rows].square().sum()).item()
    prune_heads(model, heads)
    assert before - squares(model) == pytest.approx(expected, rel=1e-9)


def test_three_stacks_and_pruned_heads():
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
    model = transformers.T5ForConditionalGeneration(config)
    whole = head_magnitudes(dissect(model))
    assert whole.shape == (6, 4)
    prune_heads(model, {0: [1], 5: range(4)})
    left = head_magnitudes(dissect(model))
    assert left[0].isnan().tolist() == [False, True, False, False]
    assert left[5].isnan().all()
    torch.testing.assert_close(left[0, [0, 2, 3]], whole[0, [0, 2, 3]])
    # The position bias is cut with the heads, and is no weight of theirs here.
    torch.testing.assert_close(left[1:5], whole[1:5])


def test_where_a_heads_weights_are_not_known():
    model = BY_NAME["bert"].build()
    model.bert.encoder.layer[1].attention.self.mystery = torch.nn.Linear(7, 7)
    with pytest.raises(
        UnknownAnatomy,
        match=r"it is not known which weights are the own of each head of encoder.1: it is not known what 'mystery' "
        r"\(Linear\) has to do with heads. Rank the heads by something else",
    ):
        pruning_curve(model, batch(), metric="accuracy", by="magnitude")
