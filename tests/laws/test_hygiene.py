"""Whatever breaks, wherever it breaks: the model stays as it was."""

from __future__ import annotations

import gc
import importlib
import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bertology as b
from bertology import dissect, tap
from bertology.tap.map_reader import Reading
from bertology.tap.private_api import set_hook
from helpers.zoo import BY_NAME, batch
from laws.laws import Broken, raising_at
from laws.taps import (
    EVERY,
    KINDS,
    MEASURES,
    PLACES,
    TAPS,
    all_at_once,
    check_close,
    check_same,
    each_family,
    everything,
    gates,
    half_training,
    logits,
    note,
    reading,
    texts,
    whole,
)


class Countdown:
    """Raises at its n-th call, counted from 0, and never again."""

    def __init__(self, n: int) -> None:
        self.left = n

    @property
    def raised(self) -> bool:
        return self.left < 0

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == -1:
                raise Broken
            return function(*args, **kwargs)

        return counted


REGISTER = {name: getattr(nn.Module, name) for name in ("register_forward_pre_hook", "register_forward_hook")}
PRIVATE = importlib.import_module(set_hook.__module__)


@contextmanager
def a_call_that_raises(n: int) -> Iterator[Countdown]:
    """The n-th call of any hook, or of any reader of attention, raises."""
    countdown = Countdown(n)

    def counted(register: Callable[..., Any], module: nn.Module, hook: Callable[..., Any], **kwargs: Any) -> Any:
        return register(module, countdown.before(hook), **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for name, register in REGISTER.items():
            patch.setattr(nn.Module, name, lambda *a, register=register, **k: counted(register, *a, **k))
        patch.setattr(PRIVATE, "set_hook", lambda held, number, hook: set_hook(held, number, countdown.before(hook)))
        patch.setattr(Reading, "give", countdown.before(Reading.give))
        yield countdown


@contextmanager
def a_registration_that_raises(n: int) -> Iterator[Countdown]:
    """The n-th registration of a hook raises."""
    countdown = Countdown(n)
    with pytest.MonkeyPatch.context() as patch:
        for name, register in REGISTER.items():
            patch.setattr(nn.Module, name, countdown.before(register))
        patch.setattr(PRIVATE, "set_hook", countdown.before(set_hook))
        yield countdown


def check_whenever_it_raises(model: Any, run: Callable[[], Any], trouble: Any, after: Callable[[], Any]) -> int:
    """Raise at the first, second, third ... occasion until there is none left; returns how many there were."""
    before = everything(model)
    for n in itertools.count():
        with trouble(n) as countdown:
            try:
                run()
            except Broken:
                assert countdown.raised
            else:
                assert not countdown.raised, "what was raised was swallowed"
        check_same(before, everything(model))
        if not countdown.raised:
            return n
        after()
    raise AssertionError("there is always a last occasion")


def subject(name: str, kind: str) -> tuple[Any, Callable[[], Any]]:
    """A model, half of it in training mode where a measure must cope with that, and what runs the measure on it."""
    model, given = EVERY[name].build(), texts(name)
    if kind not in TAPS:
        half_training(model)
    return model, lambda: KINDS[kind](model, given)


@each_family
@pytest.mark.parametrize("kind", [*TAPS, *MEASURES])
def test_whichever_hook_raises_nothing_is_left(name, kind):
    model, run = subject(name, kind)
    expected = run()
    calls = check_whenever_it_raises(model, run, a_call_that_raises, lambda: check_close(run(), expected))
    assert calls >= (1 if kind in ("inputs", "last") else 4)


@each_family
@pytest.mark.parametrize("kind", [*PLACES, "all at once"])
def test_whichever_registration_raises_nothing_is_left(name, kind):
    registrations = check_whenever_it_raises(*subject(name, kind), a_registration_that_raises, lambda: None)
    assert registrations >= (1 if kind in ("inputs", "last") else 4)


@each_family
def test_whichever_module_raises_nothing_is_left(name):
    model, given = EVERY[name].build(), texts(name)
    calls = {module: calls_of(module, model, given) for module in model.modules()}
    expected = all_at_once(EVERY[name].build(), given)
    half_training(model)
    before = everything(model)
    for module, many in calls.items():
        for call in range(many):
            with pytest.raises(Broken), raising_at(module, call):
                all_at_once(model, given)
            check_same(before, everything(model))
    check_close(all_at_once(model, given), expected)
    assert sum(calls.values()) > 20


def calls_of(module: nn.Module, model: Any, given: dict[str, Any]) -> int:
    """How often a module is called in one forward pass."""
    many = 1000
    watched = raising_at(module, many)
    with watched:
        logits(model, given)
    return many - watched.left


def test_the_laws_can_fail():
    model = BY_NAME["bert"].build()

    def careless() -> None:
        first = model.register_forward_hook(lambda *_: None)
        second = model.register_forward_hook(lambda *_: None)
        logits(model, batch())
        first.remove()
        second.remove()

    for trouble in (a_call_that_raises, a_registration_that_raises):
        with pytest.raises(AssertionError, match="hooks is not as it was"):
            check_whenever_it_raises(model, careless, trouble, lambda: None)

    def swallowing() -> None:
        with suppress(Broken):
            b.attention_entropy(model, batch())

    with pytest.raises(AssertionError, match="what was raised was swallowed"):
        check_whenever_it_raises(model, swallowing, a_call_that_raises, lambda: None)
    before = everything(model)
    with torch.device("cpu"), pytest.raises(AssertionError, match="function modes is not as it was"):
        check_same(before, everything(model))


@each_family
@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
def test_a_tap_goes_on_after_a_pass_that_broke(name, error):
    """Whoever catches the error inside the `with` and runs the model again sees what a fresh tap sees."""
    model, given = EVERY[name].build(), texts(name)
    for place in PLACES:
        fresh, seen = reading(place)(model, given), {}
        with tap(dissect(model), place, read=partial(note, seen)):
            break_off(model, given, error)
            seen.clear()
            check_close({"logits": logits(model, given)} | whole(seen), fresh)


def break_off(model: Any, given: dict[str, Any], error: type[BaseException]) -> None:
    """Run the model up to the last projection, and no further."""

    def stop(*_: Any) -> None:
        raise error

    broken = dissect(model).sites[-1].projection
    broken.forward = stop
    with pytest.raises(error):
        logits(model, given)
    del broken.forward


def test_what_is_in_the_model_can_be_run_after_a_pass_that_broke():
    # Not so after a KeyboardInterrupt, which torch tells no hook about: a module that is run by itself then is refused
    # until the whole model was run again.
    model, given, seen = BY_NAME["albert"].build(), batch(labels=False), []
    with tap(dissect(model), "heads", read=lambda site, x: seen.append(site.label)):
        break_off(model, given, Broken)
        seen.clear()
        model.albert(**given)
    assert seen == ["encoder.0", "encoder.1"]


@pytest.mark.parametrize("name", ["gpt", "gpt2", "t5"])
def test_a_measure_that_raised_keeps_no_model_alive(name):
    model = EVERY[name].build()
    gone = weakref.ref(model)
    with pytest.raises(Broken), raising_at(dissect(model).sites[-1].projection):
        all_at_once(model, texts(name))
    del model
    gc.collect()
    assert gone() is None


@each_family
@pytest.mark.parametrize("kind", ["attention_entropy", "head_importance"])
def test_batches_that_raise_leave_nothing(name, kind):
    model, given = EVERY[name].build(), texts(name)
    expected = MEASURES[kind](EVERY[name].build(), given)
    half_training(model)
    before = everything(model)
    for n in range(3):

        def broken() -> Iterator[dict[str, Any]]:
            with b.gated(model, gates(model)):
                for _ in range(n):
                    yield given
                raise Broken

        with pytest.raises(Broken):
            MEASURES[kind](model, broken())
        check_same(before, everything(model))
    check_close(MEASURES[kind](model, given), expected)


@each_family
def test_batches_whose_consumer_stops_are_closed(name):
    """A tap that the batches hold open is closed with them: when the error that stopped the measure is forgotten."""
    model, given = EVERY[name].build(), texts(name)
    half_training(model)
    before, closed, batches = everything(model), [], itertools.count()

    def held() -> Iterator[dict[str, Any]]:
        try:
            with tap(dissect(model), "heads", read=lambda *_: None):
                yield from itertools.repeat(given)
        finally:
            closed.append(True)

    def loss(outputs: Any, text: dict[str, Any]) -> Tensor:
        if next(batches) == 1:
            raise Broken
        return outputs.logits.flatten(1).sum(1)

    with suppress(Broken):
        b.head_importance(model, held(), loss=loss)
    gc.collect(0)
    assert closed
    check_same(before, everything(model))
