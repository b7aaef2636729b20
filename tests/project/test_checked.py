"""`checked`: arguments are compared with the types of a signature before a function runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bertology import EntropyAccumulator, hidden_states
from bertology.errors import DataError, UnknownAnatomy, checked, readable, writable

pytestmark = pytest.mark.any_transformers

RAN: list[Any] = []


@checked
def function(
    count: int = 1,
    *,
    share: float | None = None,
    words: Sequence[str] = (),
    pair: tuple[int, int] = (0, 1),
    table: Mapping[str, float] | None = None,
    call: Callable[..., Any] = print,
    path: str | Path = "here",
    way: Literal["up", "down"] = "up",
    x: Tensor | None = None,
    any_of_it: Any = None,
    flag: bool = False,
    several: Iterable[str] = (),
    seed: int = 0,
    device: str = "cpu",
) -> NotInstalled:  # type: ignore[name-defined] # noqa: F821
    """Takes one of each."""
    RAN.append(count)


@pytest.mark.parametrize(
    "arguments",
    [
        {"count": 3}, {"count": np.int64(3)}, {"count": torch.tensor(3)}, {"share": 1}, {"share": np.float32(0.5)},
        {"words": ["a", "b"]}, {"words": ()}, {"pair": [1, 2]}, {"table": {"a": 1.5, "b": 2}}, {"call": int},
        {"path": Path("there")}, {"way": "left"}, {"x": torch.ones(2)}, {"any_of_it": object()}, {"flag": np.True_},
        {"several": iter("ab")}, {"several": ["a"]}, {"seed": 2**63 - 1}, {"device": "meta"},
    ],
)  # fmt: skip
def test_what_fits_runs(arguments: dict[str, Any]) -> None:
    RAN.clear()
    function(**arguments)
    assert len(RAN) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"count": True}, r"^function: count must be a whole number, got True \(bool\)"),
        ({"count": 1.0}, r"a whole number, got 1.0 \(float\)"),
        ({"count": torch.tensor(1.0)}, r"a whole number, got a tensor \[\] of float32"),
        ({"share": "half"}, r"share must be a number or None, got 'half' \(str\)"),
        ({"share": float("nan")}, "share must be a number, got nan"),
        ({"words": "word"}, r"words must be a list of strings, got 'word' \(str\)"),
        ({"words": ["a", 3]}, r"a list of strings, got list with 3 \(int\) in it"),
        ({"words": None}, "a list of strings, got None"),
        ({"pair": (1, 2, 3)}, r"pair must be a tuple \(a whole number, a whole number\), got tuple"),
        ({"table": {"a": "b"}}, r"a mapping from strings to numbers or None, got dict with 'b' \(str\) in it"),
        ({"table": {1: 1.0}}, r"got dict with 1 \(int\) in it"),
        ({"call": "print"}, "call must be a function, got 'print'"),
        ({"path": 3}, r"path must be a string or a path, got 3 \(int\)"),
        ({"way": None}, "way must be 'up' or 'down', got None"),
        ({"x": [1.0]}, "x must be a tensor or None, got list"),
        ({"x": Tensor}, "got the class Tensor itself"),
        ({"flag": "no"}, r"flag must be True or False, got 'no' \(str\)"),
        ({"several": "ab"}, "several must be an iterable of strings, got 'ab'"),
        ({"several": ["a", 3]}, "an iterable of strings, got list"),
        ({"seed": -1}, "a seed must be 0 or more, got -1"),
        ({"seed": 2**63}, "a seed must be below 2"),
        ({"device": "gpu"}, "device must be one of torch, such as 'cpu' or 'cuda', got 'gpu'"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_function_runs(arguments: dict[str, Any], words: str) -> None:
    RAN.clear()
    with pytest.raises(DataError, match=words):
        function(**arguments)
    assert RAN == []


def test_models_have_an_error_of_their_own() -> None:
    @checked
    def measure(model: nn.Module) -> None: ...

    measure(nn.Linear(2, 2))
    for given, words in ((nn.Linear, "the class Linear itself"), ("bert", "str 'bert'"), (None, "None")):
        with pytest.raises(UnknownAnatomy, match=f"^.*measure.model.: wanted a model, .* returns, got {words}$"):
            measure(given)  # type: ignore[arg-type]


def test_classes_methods_and_contexts_are_checked_when_they_are_called() -> None:
    @checked
    @dataclass(frozen=True)
    class Text:
        words: tuple[str, ...]

        @checked
        def first(self, count: int) -> tuple[str, ...]:
            return self.words[:count]

    with pytest.raises(DataError, match="Text: words must be a list of strings, got 'word'"):
        Text("word")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"Text\.first: count must be a whole number, got None"):
        Text(("a",)).first(None)  # type: ignore[arg-type]
    assert Text(("a", "b")).first(1) == ("a",)

    @contextmanager
    @checked
    def opened(count: int) -> Iterator[int]:
        yield count

    with pytest.raises(DataError, match="count must be"):
        opened("one")  # type: ignore[arg-type]
    with opened(1) as one:
        assert one == 1


def test_what_is_decorated_says_what_it_was() -> None:
    assert function.__name__ == "function"
    assert function.__doc__ == "Takes one of each."
    assert list(signature(function).parameters)[:2] == ["count", "share"]


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"\xff\xfe")
    for path, words in ((tmp_path / "no", "does not exist"), (tmp_path, "is a folder"), (damaged, "no text in UTF-8")):
        with pytest.raises(DataError, match=words), readable(path):
            path.read_text(encoding="utf-8")
    with pytest.raises(DataError, match="cannot be written .* a folder that exists"), writable(tmp_path / "no" / "a"):
        (tmp_path / "no" / "a").write_text("")


def test_arguments_that_want_a_name() -> None:
    @checked
    def one(model: int, *, field: str = "", ax: Any = None) -> None: ...

    class Maps:
        @checked
        def plot(self, head: Any = None, /, *, ax: Any = None) -> None: ...

    with pytest.raises(DataError, match=r"one takes 1 argument without a name \(model\), got 2: .* field=, ax=$"):
        one(1, "a")  # type: ignore[misc]
    with pytest.raises(DataError, match=r"Maps.plot takes .* got 2: a layer and a head are a pair, \(2, 9\)$"):
        Maps().plot(2, 9)  # type: ignore[misc]
    one(1)
    Maps().plot(2)


def test_arguments_of_another_name() -> None:
    @checked
    def one(model: int, *, samples: Any = None, seed: int = 0) -> None: ...

    @checked
    def none() -> None: ...

    with pytest.raises(
        DataError, match=r"unexpected argument 'sample': it takes model, .* seed\. Did you mean 'samples'\?$"
    ):
        one(1, sample=1)  # type: ignore[call-arg]
    with pytest.raises(DataError, match=r"none got an unexpected argument 'x': it takes none$"):
        none(x=1)  # type: ignore[call-arg]
    for name, takes in (("layers", "capture, capture_generation, layer_similarity"), ("shard", "accumulate")):
        with pytest.raises(
            DataError, match=rf"hidden_states got .* it takes model, inputs, .*; '{name}' is an argument of {takes}$"
        ):
            hidden_states(nn.Linear(1, 1), {}, **{name: 1})
    with pytest.raises(
        DataError, match="unexpected argument 'merge': it takes model, samples, seed$"
    ):  # of many functions
        one(1, merge=1)  # type: ignore[call-arg]
    with pytest.raises(DataError, match="EntropyAccumulator got an unexpected argument 'averages': .* mean 'average'"):
        EntropyAccumulator(averages="example")  # type: ignore[call-arg]


@checked
def measured(loss: Callable[[Any, Any], Any] | str | None = None, *, of: Callable[..., Any] | None = None) -> str:
    """Takes functions."""
    return "ran"


def test_functions_of_another_number_of_arguments() -> None:
    def with_options(outputs: Any, batch: Any, scale: float = 1.0, *, other: int = 2) -> None: ...

    def three(outputs: Any, batch: Any, more: Any) -> None: ...

    def named(outputs: Any, batch: Any, *, scale: float) -> None: ...

    @functools.wraps(three)
    def wrapping(outputs: Any, batch: Any) -> None: ...

    for fits in (with_options, wrapping, lambda *rest: rest, lambda outputs, *rest: rest, max, "auto", None, dict):
        assert measured(fits) == "ran"
    assert measured(of=lambda: 1) == "ran", "of which it is not said"
    for other, shown in ((three, r"three\(outputs"), (named, r"named\("), (lambda outputs: 1, r"<lambda>\(outputs\)")):
        with pytest.raises(
            DataError, match=rf"measured: loss is called with 2 arguments, which {shown}.* does not take"
        ):
            measured(other)


@checked
def counted(size: int, layers: Sequence[int] = (), /) -> tuple[int, Sequence[int]]:
    """Takes whole numbers."""
    return size, layers


def test_errors_say_what_came_and_not_what_was_made_of_it() -> None:
    assert counted(torch.tensor(3), torch.tensor([1, 2])) == (3, [1, 2])  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"size must be a whole number, got a tensor \[1\] of int64"):
        counted(torch.tensor([3]))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"layers must be a list of whole numbers, got a tensor \[1, 2\] of int64"):
        counted(3, torch.tensor([[1, 2]]))  # type: ignore[arg-type]
