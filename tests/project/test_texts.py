"""Every public function that takes batches also takes texts with a tokenizer, and says so without one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import bertology as bt
from bertology.errors import DataError
from helpers.good_inputs import GoodInputs, good_arguments_of
from helpers.public import public_functions, takes_a_model

# Their batches are annotated with words, mentions or code: only `align` and `align_code` make them.
ANNOTATED = ("bertology.syntax", "bertology.code_structure")
DATA = {"batches", "inputs", "choose_on"}
TEXTS = ["the cat", "the cat sat on a mat", "sat"]
FUNCTIONS = {
    name: function
    for module, name, function in public_functions()
    if DATA & set(inspect.signature(function).parameters)
    and takes_a_model(function)
    and not module.__name__.startswith(ANNOTATED)
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> GoodInputs:
    return GoodInputs(tmp_path_factory.mktemp("good"))


def arguments(good: GoodInputs, name: str, data: Any, **more: Any) -> dict[str, Any]:
    """The good arguments of a function with this data, and the model of the tokenizer."""
    model = good.bert("BertForSequenceClassification", vocab_size=len(good.tokenizer))
    given = {**good_arguments_of(name, good), **more}
    for key, x in list(given.items()):
        given[key] = model if x is good.model else [(0, model)] if key == "checkpoints" else x
    place = next(one for one in ("batches", "inputs") if one in inspect.signature(FUNCTIONS[name]).parameters)
    return {**given, place: data}


def flat(result: Any) -> list[Any]:
    """What a function returns, in a form that can be compared: a result, or several."""
    return [one for one in (result if isinstance(result, tuple) else (result,)) if isinstance(one, bt.Result)]


def measured(name: str, call: Callable[..., Any], given: dict[str, Any]) -> Any:
    extra = (bt.EntropyAccumulator(), bt.ImportanceAccumulator()) if name == "accumulate" else ()
    if extra:
        return call(given.pop("model"), given.pop("batches"), *extra, **given)
    return call(**given)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_texts_with_labels_give_what_their_batch_gives(name: str, good: GoodInputs) -> None:
    assert "tokenizer" in inspect.signature(FUNCTIONS[name]).parameters, f"{name} takes batches, but no texts"
    batch = {**good.tokenizer(TEXTS, return_tensors="pt", padding=True), "labels": torch.tensor([0, 1, 1])}
    of_batch = measured(name, FUNCTIONS[name], arguments(good, name, batch))
    for data in ((TEXTS, [0, 1, 1]), list(zip(TEXTS, [0, 1, 1], strict=True))):
        of_texts = measured(name, FUNCTIONS[name], arguments(good, name, data, tokenizer=good.tokenizer))
        assert len(flat(of_texts)) == len(flat(of_batch))
        if name != "compare_efficiency":  # it measures time
            for one, other in zip(flat(of_texts), flat(of_batch), strict=True):
                if name == "layer_similarity":  # its null depends on the order of texts in a batch
                    one = replace(one, null=other.null)
                assert one.allclose(other, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("data", ["the cat", ["the cat", "sat"], [("the cat", 1)]], ids=["text", "list", "pairs"])
def test_texts_without_a_tokenizer_are_refused_with_the_remedy(name: str, data: Any, good: GoodInputs) -> None:
    with pytest.raises(DataError, match="pass tokenizer="):
        measured(name, FUNCTIONS[name], arguments(good, name, data))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_texts_that_are_too_long_are_refused(name: str, good: GoodInputs) -> None:
    data = (["the cat", "the cat " * 40], [0, 1])  # 82 tokens, the model takes 64
    with pytest.raises(DataError, match="example 1, 'the cat .* has 82 tokens, and the limit is 64: .*truncation=True"):
        measured(name, FUNCTIONS[name], arguments(good, name, data, tokenizer=good.tokenizer))


def test_there_are_functions_to_test() -> None:
    assert {"attention_maps", "head_importance", "pruning_curve", "accumulate", "compare_efficiency"} <= set(FUNCTIONS)
    assert len(FUNCTIONS) >= 18
