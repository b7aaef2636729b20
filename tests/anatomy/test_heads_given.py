"""What is taken for a head, and what is not."""

import numpy
import pytest
import torch

from bertology import Head, ablated, dissect, gated, prune_heads
from bertology.errors import BertologyError, HeadError, ShapeError
from helpers.small_models import small_t5
from helpers.zoo import BY_NAME

GOOD = {
    "pairs": [(0, 1), (1, 3)],
    "lists": [[0, 1], [1, 3]],
    "a mapping": {0: [1], 1: (3,)},
    "a generator": ((row, head) for row, head in [(0, 1), (1, 3)]),
    "a tensor": torch.tensor([[0, 1], [1, 3]]),
    "an array": numpy.array([[0, 1], [1, 3]]),
    "Heads": [Head(0, 1), Head(1, 3)],
    "names": ["L0H1", "L1H3"],
    "both": ["L0H1", (1, 3)],
    "arrays in a mapping": {numpy.int64(0): numpy.array([1]), 1: torch.tensor([3])},
}
BAD = [
    [(0, 1, 2)],
    [(0,)],
    [(0.5, 1)],
    [(0, 1.0)],
    [(True, False)],
    [("0", "1")],
    ["01"],
    ["L0"],
    ["QL0H1"],
    [{0, 1}],
    [{0: 1}],
    [None],
    [5],
    "L0H1",
    5,
    None,
    {0: "12"},
    {0: 1},
    {0: [0.5]},
    {0: [True]},
    {0: [None]},
    {"0": [1]},
    {0.0: [1]},
    {True: [1]},
    {0: {1: 2}},
    torch.tensor([[0.0, 1.0]]),
    torch.tensor([[True, False]]),
    numpy.array([[0.0, 1.0]]),
    b"12",
]


@pytest.mark.parametrize("heads", GOOD.values(), ids=GOOD)
def test_heads_may_be_given_in_each_of_these_forms(heads):
    assert dissect(BY_NAME["bert"].build()).resolve(heads) == [(0, 1), (1, 3)]


@pytest.mark.parametrize("heads", BAD, ids=repr)
def test_anything_else_is_refused_before_anything_is_changed(heads):
    model = BY_NAME["bert"].build()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(BertologyError, match="heads must be"):
        prune_heads(model, heads)
    with pytest.raises(BertologyError, match="heads must be"), ablated(model, heads):
        pass
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_the_printed_name_of_every_head_is_taken():
    anatomy = dissect(small_t5())
    for row, label in enumerate(anatomy.labels):
        stack, layer = label.split(".")
        assert anatomy.resolve([str(Head(int(layer), 1, stack))]) == [(row, 1)]


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        (torch.full((2, 4), 1 + 1j), "real numbers, got a tensor of complex64"),
        (torch.full((2, 4), float("inf")), "finite numbers, got inf"),
        ([[1, 1, 1, float("-inf")]] * 2, "finite numbers, got -inf"),
        ([["1"] * 4] * 2, "must be numbers"),
        (None, "gates"),
        ([[1, 1], [1]], "must be numbers"),
        ({0: 1}, "must be numbers"),
    ],
)
def test_gates_are_finite_real_numbers(gates, message):
    model = BY_NAME["bert"].build()
    with pytest.raises(ShapeError, match=message), gated(model, gates):
        pass


@pytest.mark.parametrize("value", [float("inf"), 1j, True])
def test_replacements_are_finite_real_numbers(value):
    with (
        pytest.raises(ShapeError, match="replace must hold"),
        ablated(BY_NAME["bert"].build(), [(0, 1)], replace=torch.full((2, 4, 4), value)),
    ):
        pass


@pytest.mark.parametrize("numbers", [(0, True), ("0", 1), (0, 1.5), (None, 0), (0, 1, 2)], ids=repr)
def test_a_head_that_is_not_made_of_whole_numbers(numbers):
    with pytest.raises(HeadError, match="of a Head must be"):
        Head(*numbers)


def test_a_head_made_of_the_numbers_of_numpy_and_torch():
    assert [str(Head(numpy.int64(1), torch.tensor(2)))] == ["L1H2"]
