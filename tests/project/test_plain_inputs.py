"""Numbers and containers that are not of Python's own types are taken like those that are."""

from __future__ import annotations

import collections
import functools
import types
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F

import bertology as bt
from helpers.good_inputs import GoodInputs


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> GoodInputs:
    return GoodInputs(tmp_path_factory.mktemp("good"))


class Stream:
    """An iterable that has nothing but `__iter__`."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


BATCHES: dict[str, Callable[[Any], Any]] = {
    "UserDict": collections.UserDict,
    "BatchEncoding": transformers.BatchEncoding,
    "proxy": types.MappingProxyType,
    "chain": collections.ChainMap,
    "tuple": lambda batch: (batch, batch),
    "generator": lambda batch: (one for one in [batch]),
    "stream": lambda batch: Stream([batch]),
    "values": lambda batch: {"a": batch}.values(),
    "deque": lambda batch: collections.deque([batch]),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_of_any_mapping_or_iterable(kind: str, good: GoodInputs) -> None:
    found = bt.head_importance(good.model, BATCHES[kind](good.batch))
    torch.testing.assert_close(found.scores, good.importance.scores)


@pytest.mark.parametrize("amount", [np.int64(2), np.int32(2), torch.tensor(2), 0.25, np.float32(0.25), np.float64(0.25),
                                    torch.tensor(0.25), Fraction(1, 4)], ids=repr)  # fmt: skip
def test_an_amount_of_any_type_of_number(amount: Any, good: GoodInputs) -> None:
    found = bt.pruning_curve(good.model, good.batch, metric="accuracy", amount=amount)
    assert found.heads_left.tolist() == [8, 6, 4, 2, 0]


def test_other_options_of_any_type_of_number(good: GoodInputs, tmp_path: Path) -> None:
    options = {"threshold": torch.tensor(0.75), "keep": np.int64(1), "amount": 2, "metric": "accuracy"}
    found = bt.pruning_curve(good.model, good.batch, **options)  # type: ignore[arg-type]
    assert found.threshold == 0.75
    found.save(tmp_path / "curve")
    assert bt.Result.load(tmp_path / "curve").threshold == 0.75  # type: ignore[attr-defined]
    series = bt.importance_through_training([(np.int64(3), good.model), (torch.tensor(5), good.model)], good.batch)
    assert series.steps.tolist() == [3, 5]


@pytest.mark.parametrize("of", [np.int64, np.uint8, torch.tensor], ids=["int64", "uint8", "tensor"])
def test_whole_numbers_and_lists_of_any_type(of: Any, good: GoodInputs, tmp_path: Path) -> None:
    layers = of([2, 0]) if of is torch.tensor else np.array([2, 0], of)
    expected = bt.layer_similarity(good.model, good.batch, layers=[2, 0], seed=3)
    for these in (layers, [of(2), of(0)], (of(2), 0)):
        found = bt.layer_similarity(good.model, good.batch, layers=these, seed=of(3))
        assert found.allclose(expected)
        assert found.labels == expected.labels == ("2", "0")
        kept = bt.capture(good.model, good.batch, hidden=True, layers=these, positions=layers).hidden
        assert kept.labels == ("0", "2")
        assert kept.values.shape[2] == 2
    drawn = bt.repeated_tokens(layers, length=of(2), examples=of(3), seed=of(5))["input_ids"]
    assert torch.equal(drawn, bt.repeated_tokens([2, 0], length=2, examples=3, seed=5)["input_ids"])
    curve = bt.pruning_curve(good.model, good.batch, metric="accuracy", by="random", seed=of(1))
    curve.save(tmp_path / "curve")
    assert bt.Result.load(tmp_path / "curve").allclose(curve)
    with bt.ablated(good.model, [(0, 1)], replace="resample", seed=of(4)):
        ours = good.model(**good.batch).logits
    with bt.ablated(good.model, [(0, 1)], replace="resample", seed=4):
        torch.testing.assert_close(ours, good.model(**good.batch).logits)


def test_a_loss_that_is_any_callable(good: GoodInputs) -> None:
    def loss(outputs: Any, batch: Any, scale: float) -> Any:
        return scale * F.cross_entropy(outputs.logits, batch["labels"], reduction="none")

    found = bt.head_importance(good.model, good.batch, loss=functools.partial(loss, scale=3.0))
    torch.testing.assert_close(found.scores, 3 * good.importance.scores)
