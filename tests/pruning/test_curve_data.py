"""A curve is of one data set: data that changes between passes is refused."""

import warnings

import pytest
import torch

from bertology import pruning_curve
from bertology.errors import DataError
from helpers.zoo import BY_NAME, batch


def rows(data, order):
    return [{name: x[i : i + 1] for name, x in data.items()} for i in order]


class Passes:
    """Batches that are another list in every pass."""

    def __init__(self, make):
        self.make, self.passes = make, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.make(self.passes))


def curve(batches, **options):
    return pruning_curve(BY_NAME["bert"].build(), batches, **{"metric": "accuracy", "amount": 4} | options)


def test_fewer_examples_are_refused():
    with pytest.raises(DataError, match="3 examples, then 2"):
        curve(Passes(lambda number: rows(batch(), range(3 if number == 1 else 2))))


def test_another_order_and_other_padding_are_the_same_data():
    def make(number):
        return rows(batch(), (0, 1, 2) if number % 2 else (2, 0, 1)) if number != 2 else [batch()]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shuffled = curve(Passes(make), by="random")
    torch.testing.assert_close(shuffled.scores, curve([batch()], by="random").scores)


@pytest.mark.parametrize("keep", [1.5, True, -1, "1"])
def test_heads_to_keep_are_whole(keep):
    with pytest.raises(DataError, match="keep"):
        curve(batch(), keep=keep)


@pytest.mark.parametrize(("name", "value"), [("amount", float("nan")), ("amount", "all"), ("threshold", True)])
def test_shares_are_numbers(name, value):
    with pytest.raises(DataError, match=name):
        curve(batch(), **{name: value})


def test_a_curve_that_never_falls_says_that_no_head_is_left():
    model = BY_NAME["bert"].build()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([3.0, 0.0]))
    inputs = batch() | {"labels": torch.zeros(3, dtype=torch.long)}
    whole = pruning_curve(model, inputs, metric="accuracy")
    with pytest.warns(UserWarning, match="all 8 heads are silent, and none is left: .*keep=1"):
        assert len(whole.heads_off(threshold=0.95, keep=0)) == 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(pruning_curve(model, inputs, metric="accuracy", keep=1).heads_off()) == 6
