import dataclasses

import pytest
import torch

from bertology import Head, attention_entropy, attention_patterns, dissect, prune_heads
from bertology.errors import DataError
from bertology.measures.behaviours import head_behaviours
from helpers.zoo import BY_NAME, batch
from oracles import views as oracles


def measured(name="bert", **config):
    model = BY_NAME[name].build(**config)
    prune_heads(model, {0: [1]})
    tokens = {"low": list(range(15)), "high": list(range(25, 40))}
    return attention_patterns(model, batch(), tokens=tokens), attention_entropy(model, batch())


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_equals_loops_over_heads(name):
    patterns, entropy = measured(name)
    settings = {"threshold": 0.2, "to_class": 0.3, "broad": 0.9}
    found = head_behaviours(patterns, entropy, **settings)
    assert list(found) == ["next", "previous", "to low", "to high", "to first", "broad"]
    expected = oracles.behaviours(patterns, entropy, **settings)

    def check(expected):
        assert {k: {(h.layer, h.head) for h in v} for k, v in found.items() if v} == expected

    check(expected)
    assert len(expected) > 3
    with pytest.raises(AssertionError):
        check(oracles.behaviours(patterns, entropy, **{**settings, "to_class": 0.4}))


def test_the_papers_thresholds():
    patterns, entropy = measured()
    shape = patterns.first.shape
    planted = dataclasses.replace(
        patterns,
        previous=torch.tensor([[0.5, 0, 0, 0], [0.51, 0, 0, 0]]),
        next=torch.zeros(shape),
        first=torch.full(shape, 0.55),
        to=torch.tensor([0.61, 0.59, 0.0]).expand(*shape, 3),
    )
    broad = dataclasses.replace(entropy, mean=torch.tensor([[0, 0, 0, 3.81], [0, 0, 0, 3.79]]))
    found = head_behaviours(planted, broad)
    assert found["previous"] == [Head(1, 0)]
    assert found["broad"] == [Head(0, 3)]
    assert len(found["to low"]) == 8  # Head(1, 0) is there as well: a head stands under each of its names
    assert found["next"] == found["to high"] == found["to first"] == []


def test_gone_heads_have_no_name():
    patterns, entropy = measured()
    everything = head_behaviours(patterns, entropy, threshold=-1, to_class=-1, broad=-1)
    assert all(len(heads) == 7 and Head(0, 1) not in heads for heads in everything.values())
    assert "broad" not in head_behaviours(patterns)


def test_uniform_attention_is_broad():
    model = BY_NAME["bert"].build(max_position_embeddings=64)
    for site in dissect(model).sites:
        torch.nn.init.zeros_(site.query.weight), torch.nn.init.zeros_(site.query.bias)
    # ln 45 = 3.807: the shortest text on which a head can be broad.
    for length, many in ((44, 0), (45, 8)):
        inputs = batch((length,))
        found = head_behaviours(attention_patterns(model, inputs), attention_entropy(model, inputs))
        assert {name: len(heads) for name, heads in found.items()} == {
            "next": 0, "previous": 0, "to first": 0, "broad": many,
        }  # fmt: skip


def test_both_must_be_of_one_model():
    patterns, _ = measured()
    other = attention_entropy(BY_NAME["bert"].build(num_hidden_layers=3), batch())
    with pytest.raises(DataError, match=r"patterns of \[2, 4\] layers and heads, entropy of \[3, 4\]"):
        head_behaviours(patterns, other)
