"""Mistakes of users: every bad input ends in an error of this library that says what was wanted and what came."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import bertology.code_structure
import bertology.syntax
from bertology.errors import BertologyError, DataError
from helpers.bad_inputs import ROWS, Row
from helpers.good_inputs import GoodInputs, good_arguments, good_arguments_of
from helpers.public import public_functions
from helpers.trees import CATS
from helpers.zoo import BY_NAME

# They declare parts of classes; their rows are in the table by hand.
OTHERS = {"axes", "stat"}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> GoodInputs:
    return GoodInputs(tmp_path_factory.mktemp("good"))


def refused(call: Callable[[], Any], error: type[BertologyError], words: tuple[str, ...]) -> str:
    """The message of the error that a call raises; anything else fails, with what came."""
    came: Any
    try:
        came = call()
    except Exception as found:
        came = found
    assert isinstance(came, error), f"came {came!r}, wanted {error.__name__}"
    message = str(came)
    missing = [word for word in words if word not in message]
    assert not missing, f"the message lacks {missing}: {message}"
    assert len(message) > 20, f"the message says too little: {message}"
    return message


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_bad_input_is_refused_in_words(row: Row, good: GoodInputs) -> None:
    refused(lambda: row.call(good), row.error, row.words)


def run(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    made = function(**arguments)
    if hasattr(made, "__enter__"):
        with made:
            return made
    return made


# These messages say what the argument is for.
IN_OTHER_WORDS = {"tokenizer", "language"}


class NoType:
    """An object of no type that any function takes."""


PARAMETERS = [
    (name, parameter)
    for _, name, function in public_functions()
    if name not in OTHERS
    for parameter in inspect.signature(function).parameters.values()
    if parameter.kind is not parameter.VAR_POSITIONAL
]


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS, ids=[f"{name}({one.name})" for name, one in PARAMETERS])
def test_an_argument_of_no_type_is_refused_by_its_name(
    name: str, parameter: inspect.Parameter, good: GoodInputs
) -> None:
    functions = {found: function for _, found, function in public_functions()}
    arguments = {**good_arguments_of(name, good), parameter.name: NoType()}
    message = refused(lambda: run(functions[name], arguments), BertologyError, ("NoType",))
    assert parameter.name in message or parameter.name in IN_OTHER_WORDS


def test_every_public_function_has_good_arguments(good: GoodInputs) -> None:
    assert {name for _, name, _ in public_functions()} - OTHERS == set(good_arguments(good))


def test_there_are_many_rows_each_with_a_name_of_its_own() -> None:
    assert len(ROWS) >= 250
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_table_can_fail(good: GoodInputs) -> None:
    with pytest.raises(AssertionError, match="came 1, wanted BertologyError"):
        refused(lambda: 1, BertologyError, ())
    with pytest.raises(AssertionError, match="came IndexError"):
        refused(lambda: next(raising(IndexError("too far"))), BertologyError, ())
    with pytest.raises(AssertionError, match="the message lacks"):
        refused(lambda: next(raising(BertologyError("wanted a model, got None"))), BertologyError, ("got 3",))


def raising(error: Exception) -> Any:
    raise error
    yield


def test_data_that_was_not_aligned_is_named() -> None:
    """The sentences of a treebank, or trees of code, in the place of batches of them."""
    model = BY_NAME["bert"].build()
    code = [bertology.code_structure.parse_code("x = 1", "python")]
    for measure in (bertology.code_structure.relation_heads, bertology.code_structure.leaf_types):
        with pytest.raises(DataError, match="make them with bertology.code_structure.align_code"):
            measure(model, code)
    with pytest.raises(DataError, match=r"make them with bertology.syntax.align"):
        bertology.syntax.dependency_heads(model, CATS)
