"""Heads of results as people write them: their values, and the highest and lowest of them."""

import dataclasses
import math

import pytest
import torch

from bertology import (
    AttentionEntropy,
    Head,
    attention_maps,
    attention_patterns,
    head_importance,
    head_outputs,
    hidden_states,
    logit_lens,
    prune_heads,
    score,
)
from bertology.anatomy.sites import LayerLabels
from bertology.errors import DataError, HeadError
from helpers.results import of_syntax
from helpers.zoo import BY_NAME, batch


def entropy(values, labels=None):
    labels = labels or tuple(map(str, range(len(values))))
    return AttentionEntropy(values, values + 10, torch.arange(len(values)), labels)


VALUES = torch.tensor([[0.3, 0.9, 0.1], [0.5, float("nan"), 0.9], [0.2, 0.7, float("nan")]])


def test_one_head_by_its_name():
    result = entropy(VALUES)
    for head in ("L1H2", (1, 2), Head(1, 2), torch.tensor([1, 2])):
        assert result[head] == pytest.approx(0.9)
    assert result[1, 0] == 0.5
    assert math.isnan(result["L2H2"])


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ("L3H0", "head L3H0 is not in this result: its layers are 0, 1, 2"),
        ("L0H3", "head 3 is out of range: the layers of this result have the heads 0 to 2"),
        ((3, 0), "layer 3 is out of range: this result has the layers 0, 1, 2"),
        ((-1, 0), "layer -1 is out of range"),
        ("EL0H1", "head EL0H1 is not in this result"),
        ("head 3", "heads must be"),
        (2, r"one head is \[layer, head\], got \[2\]: all heads of a layer are .mean\[2\]"),
        (slice(2), "heads must be"),
    ],
)
def test_what_is_no_head_of_it(head, told):
    with pytest.raises(HeadError, match=told):
        entropy(VALUES)[head]


def test_stacks():
    result = entropy(VALUES, ("encoder.0", "decoder.0", "cross.0"))
    assert result["DL0H0"] == 0.5
    assert result["XL0H1"] == pytest.approx(0.7)
    assert [str(head) for head, _ in result.top(3)] == ["EL0H1", "DL0H2", "XL0H1"]
    with pytest.raises(HeadError, match="head L0H1 is in several stacks; say which: its layers are encoder.0"):
        result["L0H1"]
    alone = entropy(VALUES, LayerLabels(("0", "1", "2"), "encoder"))
    assert alone["EL1H0"] == alone["L1H0"] == 0.5
    with pytest.raises(HeadError, match="DL1H0 is not in this result"):
        alone["DL1H0"]


def test_top_and_bottom():
    result = entropy(VALUES)
    assert [(str(head), round(value, 3)) for head, value in result.top(3)] == [
        ("L0H1", 0.9),
        ("L1H2", 0.9),
        ("L2H1", 0.7),
    ]
    assert [str(head) for head, _ in result.bottom(2)] == ["L0H2", "L2H0"]
    assert len(result.top(100)) == 7
    assert repr(result.bottom(2)) == "[L0H2: 0.1, L2H0: 0.2]"
    assert result.top(1, field="first")[0].score == pytest.approx(10.9)
    assert len(entropy(torch.rand(2, 3)).top()) == len(entropy(torch.rand(2, 3)).bottom()) == 5
    for n in (0, -1, 1.5, True):
        with pytest.raises(DataError, match="n "):
            result.top(n)
    with pytest.raises(DataError, match=r"has no \[layer, head\] field 'queries': it has mean, first"):
        result.top(field="queries")
    integers = dataclasses.replace(result, mean=torch.tensor([[3, 1, 2]] * 3))
    assert [str(head) for head, _ in integers.bottom(2)] == ["L0H1", "L1H1"]


def test_results_without_one_value_for_a_head():
    dependencies = of_syntax(BY_NAME["bert"].build())[0]
    with pytest.raises(
        DataError, match=r"no \[layer, head\] field: its accuracy is \[relation, direction, layer, head\]"
    ):
        dependencies["L0H1"]
    lens = logit_lens(BY_NAME["gpt2"].build(), batch(labels=False))
    with pytest.raises(DataError, match=r"LogitLens has no \[layer, head\] field: it(s \w+ is| has) .*\[.*layer"):
        lens.top()
    with pytest.raises(DataError, match=r"Score has no \[layer, head\] field: it has no"):
        score(BY_NAME["bert"].build(), batch(), metric="accuracy").top()
    patterns = attention_patterns(BY_NAME["bert"].build(), batch())
    assert patterns["L1H1"] == patterns.previous[1, 1]
    assert patterns.top(1, field="sink")[0].score == patterns.sink.max()


def test_pruning_takes_what_results_return():
    model = BY_NAME["bert"].build()
    importance = head_importance(model, batch())
    lowest = importance.bottom(2)
    assert [head for head, _ in lowest] == importance.ranking()[:2]
    assert prune_heads(model, lowest).heads == tuple(sorted(head for head, _ in lowest))
    assert prune_heads(BY_NAME["bert"].build(), ["L1H3"]).heads == (Head(1, 3),)
    after = head_importance(model, batch())
    assert not {head for head, _ in lowest} & {head for head, _ in after.top(100)}
    assert len(after.bottom(100)) == 6


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        (attention_maps, r"its values is \[layer, batch, head, query, key\], and values\[0, :, 0, :, :\] is that of head 0"),
        (head_outputs, r"and values\[0, :, :, 0, :\] is that of head 0 of layer 0"),
        (hidden_states, r"its values is \[layer, batch, token, hidden\]$"),
    ],
)  # fmt: skip
def test_a_head_of_a_capture_is_a_part_of_its_tensor(capture, message):
    captured = capture(BY_NAME["bert"].build(), batch(labels=False))
    with pytest.raises(DataError, match=message):
        captured["L1H1"]
