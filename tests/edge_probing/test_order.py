import math

import pytest
import torch

from bertology.edge_probing.layer_statistics import (
    layer_statistics,
)
from bertology.edge_probing.order import layer_table, order_agreement, order_of
from bertology.errors import DataError
from helpers.edge_layers import published

pytestmark = pytest.mark.any_transformers


@pytest.mark.shared
def test_the_order_of_the_paper(figures):
    found = published(figures)
    order = ["POS", "Consts", "Entities", "Deps", "SRL", "Relations", "Coref", "SPR"]
    assert order_of(found) == order
    table = layer_table(found).splitlines()
    assert table[0] == "| task | F1 at layer 0 | F1 at layer 24 | expected layer | K(Δ) | centre of gravity | K(s) |"
    assert table[2] == "| POS | 88.5 | 96.7 | 3.39 | 1.60 | 11.68 | 0.19 |"
    assert [line.split(" | ")[0].removeprefix("| ") for line in table[2:]] == order
    # METHODS A3, BERT-base.
    base = {"POS": 1.76, "Consts": 2.38, "Deps": 2.52, "Entities": 2.42, "SRL": 2.59, "Coref": 3.62, "SPR": 4.29}
    agreement = order_agreement(found, base | {"Relations": 4.16, "NLI": 8.0})
    assert agreement.tasks == tuple(order)
    assert agreement.left_out == ("NLI",)
    assert agreement.spearman == pytest.approx(1 - 6 * 2 / (8 * 63))  # Coref and Relations change places
    assert agreement.kendall == pytest.approx(26 / 28)
    assert agreement.p == pytest.approx(2 * 8 / math.factorial(8))  # 7 orders with one pair swapped, and the same one


def test_orders():
    steady, late = (layer_statistics(torch.tensor(f1)) for f1 in ([0.5, 0.7, 0.9], [0.5, 0.5, 0.9]))
    none = layer_statistics(torch.tensor([0.5, 0.5, 0.5]))
    assert order_of({"none": none, "late": late, "steady": steady, "paper": 1.7}) == ["steady", "paper", "late", "none"]
    assert order_of({}) == []
    agreement = order_agreement({"a": steady, "b": late, "c": none}, {"c": 1.0, "b": 3.0, "a": 4.0, "d": 2.0})
    assert (agreement.spearman, agreement.kendall) == (pytest.approx(-1), pytest.approx(-1))
    assert (agreement.tasks, agreement.left_out) == (("a", "b"), ("c", "d"))
    with pytest.raises(DataError, match="wanted two or more tasks with different expected layers, got in both: a;"):
        order_agreement({"a": steady, "c": none}, {"a": 1.0, "c": 2.0})
    with pytest.raises(
        DataError, match="wanted two or more tasks with different expected layers, got in both: a, b; left out: none"
    ):
        order_agreement({"a": steady, "b": steady}, {"a": 1.0, "b": 2.0})
    table = layer_table({"none": none, "late": late}).splitlines()
    assert table[2:] == [
        "| late | 50.0 | 90.0 | 2.00 | 1.00 |  |  |", "| none | 50.0 | 50.0 | undefined | undefined |  |  |"
    ]  # fmt: skip
    with pytest.raises(DataError, match="wanted tasks of models with the same number of layers, got a of 2, b of 1"):
        layer_table({"a": steady, "b": layer_statistics(torch.tensor([0.5, 0.9]))})
    with pytest.raises(DataError, match="wanted tasks of models with the same number of layers, got no tasks"):
        layer_table({})
