"""Every accumulator says when there is nothing to compute from: a mean of nothing is no number."""

import inspect

import pytest
import torch

import bertology.code_structure
import bertology.syntax  # noqa: F401
from bertology import Accumulator, accumulate, dissect, prune_heads, pruning_curve
from bertology.errors import BertologyError, DataError
from bertology.metrics import GenerationMetric
from helpers.generation import bart
from helpers.zoo import BY_NAME, batch

MADE = {
    "ScoreAccumulator": lambda kind: kind("accuracy"),
    "GradientsAccumulator": lambda kind: kind({"low": [3]}),
    "DistancesAccumulator": lambda kind: kind(0.01),
    "_IntegratedAccumulator": lambda kind: kind(2),
    "DependencyAccumulator": lambda kind: kind(["dep"]),
    "TypesAccumulator": lambda kind: kind(["name"]),
    "CatAccumulator": lambda kind: kind([]),
    "RelationAccumulator": lambda kind: kind([]),
    "GenerationAccumulator": lambda kind: kind(GenerationMetric(lambda ours, theirs: 1.0)),
    "PositionAccumulator": lambda kind: kind([]),
    "VariantAccumulator": lambda kind: kind(lambda anatomy: torch.ones(2, *anatomy.present.shape), "accuracy"),
    "PartAccumulator": lambda kind: kind("mlp", "accuracy"),
    "EdgeAccumulator": lambda kind: kind({"low": [3]}),
}


def kinds(base=Accumulator):
    for kind in base.__subclasses__():
        if kind.__module__.startswith("bertology."):
            yield from [] if inspect.isabstract(kind) else [kind]
            yield from kinds(kind)


def made(kind):
    return MADE.get(kind.__name__, lambda kind: kind())(kind)


ALL = sorted(set(kinds()), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_no_batches_at_all(kind):
    model = bart() if kind.__name__ == "GenerationAccumulator" else BY_NAME["bert"].build()
    with pytest.raises(DataError):
        made(kind).zero(dissect(model)).compute()
    with pytest.raises(DataError, match="no batches"):
        accumulate(model, [], made(kind))
    with pytest.raises(DataError, match="no batches"):
        accumulate(model, iter(()), made(kind))


OF_TOKENS = ("Entropy", "Patterns", "Repeats", "Distances", "Gradients", "Means")


@pytest.mark.parametrize("name", OF_TOKENS)
def test_a_mask_without_any_token(name):
    kind = next(kind for kind in ALL if kind.__name__ == f"{name}Accumulator")
    inputs = batch()
    inputs["attention_mask"] = torch.zeros_like(inputs["attention_mask"])
    with pytest.raises(BertologyError):
        accumulate(BY_NAME["bert"].build(), inputs, made(kind))


@pytest.mark.parametrize("name", OF_TOKENS[:4])
def test_a_model_without_heads_still_has_a_result(name):
    kind = next(kind for kind in ALL if kind.__name__ == f"{name}Accumulator")
    model = BY_NAME["bert"].build()
    prune_heads(model, {0: [0, 1, 2, 3], 1: [0, 1, 2, 3]})
    accumulate(model, batch(), made(kind))


def test_a_generator_is_read_once():
    with pytest.raises(DataError, match="goes over the batches several times: pass a list or a DataLoader"):
        pruning_curve(BY_NAME["bert"].build(), (batch() for _ in range(2)), metric="accuracy")
