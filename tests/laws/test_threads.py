"""Taps in threads and in generators, which end in any order: the model stays as it was."""

from __future__ import annotations

import copy
import gc
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from threading import Barrier
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor, nn

from bertology.anatomy.modules import each_module
from bertology.errors import BertologyError
from bertology.tap import uncached
from bertology.tap.listed import take_as_listed
from bertology.tap.torch_attention import hold_off_fast_path
from helpers.zoo import BY_NAME, batch
from laws.laws import Broken
from laws.taps import (
    CONTEXTS,
    EVERY,
    KINDS,
    MEASURES,
    Measure,
    check_close,
    check_same,
    each_family,
    everything,
    half_training,
    inside,
    logits,
    texts,
)


@pytest.fixture
def busy_threads() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_two_threads(models: list[Any], given: dict[str, Any], measures: dict[str, Measure], times: int) -> None:
    """Measure both models at once, again and again; each time they must come out as alone."""
    alone = [{kind: run(model, given) for kind, run in measures.items()} for model in models]
    before = [everything(model) for model in models]
    start = Barrier(len(models))

    def work(model: Any, expected: dict[str, Any]) -> None:
        start.wait(timeout=10)
        for _ in range(times):
            for kind, run in measures.items():
                check_close(run(model, given), expected[kind])

    with ThreadPoolExecutor(len(models)) as pool:
        for done in [pool.submit(work, *pair) for pair in zip(models, alone, strict=True)]:
            done.result()
    for was, model in zip(before, models, strict=True):
        check_same(was, everything(model))


@each_family
@pytest.mark.usefixtures("busy_threads")
def test_two_threads_with_two_models(name):
    models = [EVERY[name].build(seed=seed) for seed in (0, 1)]
    for model in models:
        half_training(model)
    in_two_threads(models, texts(name), MEASURES, 2)


@each_family
@pytest.mark.usefixtures("busy_threads")
def test_two_threads_read_two_models_of_one_class(name):
    models = [EVERY[name].build(seed=seed) for seed in (0, 1)]
    in_two_threads(models, texts(name), {kind: KINDS[kind] for kind in ("attention_entropy", "heads", "gated")}, 4)


@pytest.mark.usefixtures("busy_threads")
def test_two_threads_with_models_of_one_config():
    # `type(model)(config)` keeps the config that it is given, so one tap may end while another still needs the switch.
    first = BY_NAME["llama"].build()
    second = type(first)(first.config).double().eval()
    in_two_threads([first, second], batch(), {"attention_entropy": MEASURES["attention_entropy"]}, 30)


def test_the_cache_of_a_config_is_off_for_as_long_as_one_of_its_models_needs_that():
    first = BY_NAME["llama"].build()
    first.config.use_cache = True
    second = type(first)(first.config)
    one, other = ExitStack(), ExitStack()
    one.enter_context(uncached(first))
    other.enter_context(uncached(second))
    one.close()
    assert first.config.use_cache is False
    other.close()
    assert first.config.use_cache is True


def test_the_fast_path_of_torch_is_on_again_after_taps_in_two_threads(monkeypatch):
    """It is one switch for the whole process: a tap may open while another one is just turning it off."""
    turn, start = torch.backends.mha.set_fastpath_enabled, Barrier(2, timeout=30)

    def slowly(on: bool) -> None:
        turn(on)
        time.sleep(0.05)

    def tapped() -> bool:
        start.wait()
        with ExitStack() as undo:
            hold_off_fast_path([attention], undo)
            start.wait()
            return torch.backends.mha.get_fastpath_enabled()

    attention = nn.MultiheadAttention(4, 2)
    monkeypatch.setattr(torch.backends.mha, "set_fastpath_enabled", slowly)
    with ThreadPoolExecutor(2) as pool:
        assert [one.result() for one in [pool.submit(tapped) for _ in range(2)]] == [False, False]
    try:
        assert torch.backends.mha.get_fastpath_enabled()
    finally:
        turn(True)


def in_a_thread(run: Any) -> Any:
    with ThreadPoolExecutor(1, thread_name_prefix="other") as pool:
        return pool.submit(run).result()


@pytest.mark.parametrize("kind", CONTEXTS)
def test_another_thread_is_refused_while_a_model_is_tapped(kind):
    model, given = BY_NAME["bert"].build(), texts("bert")
    before, alone = everything(model), inside(CONTEXTS[kind])(model, given)
    with CONTEXTS[kind](model):
        for other in (model, model.bert):  # a part has the same hooks
            with pytest.raises(BertologyError, match=r"measured or edited by another thread \(MainThread\).*own copy"):
                in_a_thread(lambda other=other: MEASURES["attention_entropy"](other, given))
            with pytest.raises(BertologyError, match="another thread"):
                in_a_thread(lambda other=other: inside(CONTEXTS[kind])(other, given))
        copied = copy.deepcopy(BY_NAME["bert"].build())
        in_a_thread(lambda: MEASURES["attention_entropy"](copied, given))
        check_close(logits(model, given), alone)
    check_same(before, everything(model))
    check_close(in_a_thread(lambda: inside(CONTEXTS[kind])(model, given)), alone)


@pytest.mark.usefixtures("busy_threads")
def test_threads_on_one_model_are_right_or_refused():
    model, given = BY_NAME["llama"].build(), texts("llama")
    half_training(model)
    before, run = everything(model), MEASURES["attention_entropy"]
    alone, start = run(model, given), Barrier(3)

    def work() -> int:
        start.wait(timeout=10)
        refused = 0
        for _ in range(10):
            try:
                check_close(run(model, given), alone)
            except BertologyError:
                refused += 1
        return refused

    with ThreadPoolExecutor(3) as pool:
        counts = [done.result() for done in [pool.submit(work) for _ in range(3)]]
    assert sum(counts) > 0
    check_same(before, everything(model))


def test_a_thread_that_ended_owns_nothing():
    model, given = BY_NAME["bert"].build(), texts("bert")
    kept = in_a_thread(lambda: [passes(model, given, "gated")])
    in_a_thread(lambda: next(kept[0]))
    MEASURES["attention_entropy"](model, given)
    kept[0].close()
    MEASURES["attention_entropy"](model, given)


# Generators.


def passes(model: Any, given: dict[str, Any], kind: str) -> Iterator[Tensor]:
    """Passes of a model, with a tap held open between them."""
    with CONTEXTS[kind](model):
        while True:
            yield logits(model, given)


@each_family
@pytest.mark.parametrize("kind", CONTEXTS)
def test_a_generator_that_is_abandoned_leaves_nothing(name, kind):
    model, given = EVERY[name].build(), texts(name)
    before = everything(model)
    for end in ("close", "throw", "forget"):
        abandoned = passes(model, given, kind)
        next(abandoned)
        next(abandoned)
        if end == "close":
            abandoned.close()
        elif end == "throw":
            with pytest.raises(Broken):
                abandoned.throw(Broken)
        del abandoned
        gc.collect(0)
        check_same(before, everything(model))


@pytest.mark.parametrize("name", ["llama", "gpt"])
@pytest.mark.parametrize("kind", CONTEXTS)
def test_generators_end_in_any_order(name, kind):
    # Llama's maps are read through a switch of its config, GPT's through a function mode: both pile up.
    model, given = BY_NAME[name].build(), texts(name)
    before = everything(model)
    with CONTEXTS[kind](model), CONTEXTS[kind](model):
        expected = logits(model, given)
    alone = inside(CONTEXTS[kind])(model, given)
    with closing(passes(model, given, kind)) as first, closing(passes(model, given, kind)) as second:
        next(first)
        check_close(next(second), expected)
        first.close()
        check_close(next(second), alone)
    check_same(before, everything(model))


@pytest.mark.usefixtures("busy_threads")
def test_models_that_threads_measured_are_free():
    models = [nn.Linear(1, 1) for _ in range(6)]

    def work(model: nn.Module) -> None:
        modules = each_module(model)
        for _ in range(3000):
            with ExitStack() as undo:
                take_as_listed(model, modules, undo)

    with ThreadPoolExecutor(len(models)) as pool:
        list(pool.map(work, models))
    left = [ref(model) for model in models]
    models.clear()
    gc.collect()
    assert [one() for one in left] == [None] * len(left)
