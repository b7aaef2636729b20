"""Taps in taps, and readers that run models: every reader sees what it sees alone."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from functools import cache, partial
from typing import Any

import pytest
from torch import Tensor

import bertology as b
from bertology import dissect, tap
from bertology.errors import UnknownAnatomy
from helpers.zoo import BY_NAME
from laws.taps import (
    CONTEXTS,
    EVERY,
    MAPS,
    MEASURES,
    PLACES,
    Measure,
    check_close,
    check_same,
    each_family,
    everything,
    gates,
    inside,
    logits,
    note,
    reading,
    texts,
    whole,
)


@each_family
@pytest.mark.parametrize("outer", PLACES)
def test_nested_readers_see_what_each_sees_alone(name, outer):
    model, given = EVERY[name].build(), texts(name)
    alone = {place: reading(place)(model, given) for place in PLACES}
    for inner in PLACES:
        both = {}, {}
        with (
            tap(dissect(model), outer, read=partial(note, both[0])),
            tap(dissect(model), inner, read=partial(note, both[1])),
        ):
            out = logits(model, given)
        for place, seen in zip((outer, inner), both, strict=True):
            check_close({"logits": out} | whole(seen), alone[place])


@each_family
def test_readers_of_different_blocks_see_the_same_map(name):
    model, given = EVERY[name].build(), texts(name)
    alone = reading("attention")(model, given)
    for sizes in [(1, 3), (3, 1), (2, None), (None, 2)]:
        both = {}, {}
        with ExitStack() as taps:
            for rows, seen in zip(sizes, both, strict=True):
                taps.enter_context(tap(dissect(model), "attention", read=partial(note, seen), rows=rows))
            out = logits(model, given)
        for seen in both:
            check_close({"logits": out} | whole(seen), alone)


@each_family
@pytest.mark.parametrize("order", list(itertools.permutations((*MAPS, "gated"))))
def test_attention_inside_entropy_inside_gates_in_any_order(name, order):
    model, given = EVERY[name].build(), texts(name)
    seen = {place: {} for place in MAPS}
    with ExitStack() as taps:
        for thing in order:
            taps.enter_context(
                CONTEXTS["gated"](model)
                if thing == "gated"
                else tap(dissect(model), thing, read=partial(note, seen[thing]))
            )
        out = logits(model, given)
    for place in MAPS:
        with CONTEXTS["gated"](model):
            check_close({"logits": out} | whole(seen[place]), reading(place)(model, given))
    with pytest.raises(AssertionError):
        check_close({"logits": out} | whole(seen[place]), reading(place)(model, given))


@each_family
def test_gates_in_gates_multiply(name):
    model, given = EVERY[name].build(), texts(name)
    one, two = gates(model, 1), gates(model, 2)
    for outer, inner in ((one, two), (two, one)):
        with b.gated(model, outer), b.gated(model, inner):
            nested = logits(model, given)
        check_close(nested, inside(lambda m: b.gated(m, one * two))(model, given))
        with pytest.raises(AssertionError):
            check_close(nested, inside(lambda m: b.gated(m, one))(model, given))


@pytest.mark.parametrize("name", BY_NAME)
def test_a_nested_reader_may_take_a_softmax(name):
    # Where softmaxes are watched (gpt; in transformers 4 all but gpt2 and llama) the outer reader is called while the
    # inner tap still watches the attention module.
    model, given = BY_NAME[name].build(), texts(name)
    seen: dict[str, list[Tensor]] = {}
    with (
        tap(dissect(model), "attention", read=lambda site, x, rows: x.softmax(-1)),
        tap(dissect(model), "attention", read=partial(note, seen)),
    ):
        out = logits(model, given)
    check_close({"logits": out} | whole(seen), reading("attention")(model, given))


# Readers that run models.


ALL_MEASURES: dict[str, Measure] = {"logits": logits} | MEASURES


@cache
def other_model(name: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A model for readers to measure, its text, and what every measure gives alone."""
    other, given = BY_NAME[name].build(seed=7), texts(name)
    return other, given, {kind: run(other, given) for kind, run in ALL_MEASURES.items()}


@each_family
@pytest.mark.parametrize("place", PLACES)
def test_a_reader_may_measure_another_model(name, place):
    """Each call of the reader takes four measures of two other models, one on each route to attention, in turn."""
    model, given = EVERY[name].build(), texts(name)
    others = [other_model(inner) for inner in ("bert", "gpt")]
    before = [everything(one) for one in (model, *(other for other, *_ in others))]
    runs, seen = itertools.cycle(itertools.product(ALL_MEASURES, others)), {}

    def read(*what: Any) -> None:
        for kind, (other, text, alone) in itertools.islice(runs, 4):
            check_close(ALL_MEASURES[kind](other, text), alone[kind])
        note(seen, *what)

    with tap(dissect(model), place, read=read):
        out = logits(model, given)
    check_close({"logits": out} | whole(seen), reading(place)(model, given))
    for was, one in zip(before, (model, *(other for other, *_ in others)), strict=True):
        check_same(was, everything(one))


@pytest.mark.parametrize("name", BY_NAME)
def test_a_reader_of_heads_may_run_another_model_while_maps_are_read(name):
    # Where softmaxes are watched (gpt; in transformers 4 also distilbert and albert) heads are read inside the attention
    # module that is being watched.
    model, given = BY_NAME[name].build(), texts(name)
    other, text, alone = other_model("bert")
    seen: dict[str, list[Tensor]] = {}
    with (
        tap(dissect(model), "attention", read=partial(note, seen)),
        tap(dissect(model), "heads", read=lambda *_: check_close(logits(other, text), alone["logits"])),
    ):
        out = logits(model, given)
    check_close({"logits": out} | whole(seen), reading("attention")(model, given))


@each_family
@pytest.mark.parametrize("place", PLACES)
def test_a_reader_that_runs_its_own_model_sees_the_same_or_is_told(name, place):
    """The calls of one pass inside another cannot be told apart: what is not certain raises, and nothing is left."""
    model, given = EVERY[name].build(), texts(name)
    alone, told = reading(place)(model, given), 0
    before = everything(model)
    for n in range(3):
        seen: dict[str, list[Tensor]] = {}
        calls, busy = itertools.count(), []

        def read(*what: Any) -> None:
            if busy:
                return
            note(seen, *what)
            if next(calls) == n:
                busy.append(True)
                check_close(logits(model, given), alone["logits"])
                busy.clear()

        try:
            with tap(dissect(model), place, read=read):
                out = logits(model, given)
            check_close({"logits": out} | whole(seen), alone)
        except UnknownAnatomy:
            told += 1
        check_same(before, everything(model))
    assert told == 0 if place in ("inputs", "last") else told > 0
