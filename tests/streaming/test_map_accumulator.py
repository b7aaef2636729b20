"""Measures of attention maps share one reading of each map, whatever they ask for."""

import doctest
import sys
import types
from dataclasses import dataclass

import pytest
import torch
import transformers

import bertology.streaming.map_accumulator
from bertology import (
    Accumulator,
    DistancesAccumulator,
    EntropyAccumulator,
    GradientsAccumulator,
    MapAccumulator,
    PatternsAccumulator,
    RepeatsAccumulator,
    Result,
    accumulate,
    prune_heads,
    stat,
    tap,
)
from bertology.errors import BertologyError
from bertology.tap.map_reader import Reading
from helpers.zoo import BY_NAME, batch
from laws.laws import Broken, snapshot

READERS = {
    "patterns": lambda: PatternsAccumulator(tokens={"low": list(range(12))}, average="example"),
    "repeats": RepeatsAccumulator,
    "distances": lambda: DistancesAccumulator(0.01),
}


@dataclass(frozen=True, eq=False, repr=False)
class Sums(Result):
    total: torch.Tensor
    labels: tuple[str, ...]


class ToFirst(MapAccumulator):
    """The sum of the attention to the first key, and the blocks that it was given."""

    total = stat("layer head")

    def __init__(self, rows=None):
        self.rows, self.seen = rows, []

    def read(self, site, weights, rows, real):
        self.seen.append((site.label, weights.shape[2], rows, real, weights.requires_grad))
        self.total[site.row, list(site.kept)] += weights[..., 0].masked_fill(~real[:, None], 0).sum((0, 2))

    def compute(self):
        return Sums(self.total, self.anatomy.labels)


class Whole(ToFirst):
    whole = True


class OfText(ToFirst):
    text_only = True


class ByWatching(Accumulator):
    """The same sums by a tap of its own."""

    total = stat("layer head")

    def watch(self, batch):
        real = batch["attention_mask"].bool()

        def read(site, x, rows):
            self.total[site.row, list(site.kept)] += x[..., 0].masked_fill(~real[:, None, rows], 0).sum((0, 2))

        return tap(self.anatomy, "attention", read=read)

    def update(self, batch, outputs):
        self.updated = True

    def compute(self):
        assert self.updated
        return Sums(self.total, self.anatomy.labels)


def check_same_bits(a, b):
    for name, x in vars(a).items():
        if isinstance(x, torch.Tensor):
            torch.testing.assert_close(x, getattr(b, name), rtol=0, atol=0, equal_nan=True)


def count(monkeypatch, owner, name):
    """The calls of a function from now on."""
    function, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(args)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


# DistilBERT of transformers 4 takes no positions.
@pytest.mark.filterwarnings("ignore:padding before the text changes:UserWarning")
@pytest.mark.parametrize("name", BY_NAME)
def test_measures_in_one_pass_share_each_map_and_are_each_alone(name, monkeypatch):
    model, batches = BY_NAME[name].build(), [batch(), batch((3, 6), side="left")]
    apart = [accumulate(model, batches, make())[0] for make in READERS.values()]
    given = count(monkeypatch, Reading, "give")
    together = accumulate(model, batches, *(make() for make in READERS.values()))
    assert len(given) == 2 * len(batches)  # one for each layer
    for a, b in zip(together, apart, strict=True):
        check_same_bits(a, b)


def test_the_model_computes_each_map_once(monkeypatch):
    model, batches = BY_NAME["llama"].build(), [batch(), batch((3, 6))]
    modeling = transformers.models.llama.modeling_llama
    calls = count(monkeypatch, modeling, "eager_attention_forward")
    taps = count(monkeypatch, bertology.streaming.map_accumulator, "tap")
    accumulate(model, batches, *(make() for make in READERS.values()))
    assert (len(calls), len(taps)) == (4, 2)
    apart = count(monkeypatch, bertology.streaming.map_accumulator, "tap_entropies")
    accumulate(model, batches, *(make() for make in READERS.values()), EntropyAccumulator())
    assert (len(calls), len(taps), len(apart)) == (8, 4, 2)  # entropies have a tap of their own, which computes no map


# Llama is on transformers' attention interface, which gives blocks of rows, in both versions; GPT in none.
@pytest.mark.parametrize("name", ["llama", "gpt"])
def test_blocks_are_as_small_as_any_measure_asks_and_whole_if_one_asks(name):
    model = BY_NAME[name].build()
    some = [ToFirst(3), ToFirst(2), ToFirst()]
    accumulate(model, batch(), *some)
    sizes = [size for _, size, *_ in some[0].seen]
    assert sizes == ([2, 2, 2, 1] * 2 if name == "llama" else [7, 7])
    assert some[0].seen[0][2] == slice(0, sizes[0])
    assert all([seen[:3] for seen in one.seen] == [seen[:3] for seen in some[0].seen] for one in some)
    whole = [ToFirst(2), Whole()]
    accumulate(model, batch(), *whole)
    assert [seen[1] for seen in whole[0].seen] == [7, 7]


@pytest.mark.parametrize("rows", [0, -1, True, 1.5, "all"])
def test_rows_are_checked_whoever_else_reads(rows):
    with pytest.raises(BertologyError, match="how many query rows come at a time"):
        accumulate(BY_NAME["bert"].build(), batch(), ToFirst(2), ToFirst(rows))


@pytest.mark.parametrize("side", ["left", "right"])
def test_real_queries_are_those_of_the_mask(side):
    inputs, measure = batch(side=side), ToFirst(3)
    accumulate(BY_NAME["llama"].build(), inputs, measure)
    assert len(measure.seen) == 6
    for _, _, rows, real, _ in measure.seen:
        assert torch.equal(real, inputs["attention_mask"].bool()[:, rows])


def test_only_measures_that_take_gradients_get_the_graph():
    class InGraph(ToFirst):
        needs_gradient = True

        def read(self, site, weights, rows, real):
            super().read(site, weights.detach().requires_grad_(weights.requires_grad), rows, real)
            self.total.detach_()

    alone, beside, inside = ToFirst(), ToFirst(), InGraph()
    model = BY_NAME["bert"].build()
    accumulate(model, batch(), alone)
    accumulate(model, batch(), beside, inside, GradientsAccumulator({"low": [3]}))
    assert [seen[-1] for measure in (alone, beside, inside) for seen in measure.seen] == [False] * 4 + [True] * 2


def test_measures_of_the_text_see_only_its_maps():
    torch.manual_seed(0)
    size = {f"{stack}_{name}": n for stack in ("encoder", "decoder") for name, n in
            (("layers", 2), ("attention_heads", 4), ("ffn_dim", 24))}  # fmt: skip
    model = transformers.BartModel(transformers.BartConfig(vocab_size=40, d_model=16, **size)).double().eval()
    inputs = batch(labels=False)  # without arguments for the decoder
    measure = OfText()
    accumulate(model, inputs, measure)
    assert [seen[0] for seen in measure.seen] == ["encoder.0", "encoder.1"]
    every, measure = ToFirst(), OfText()
    accumulate(model, inputs | {"decoder_input_ids": inputs["input_ids"]}, every, measure)
    assert len(every.seen) == 6
    assert len(measure.seen) == 2


def test_taps_of_ones_own_work_beside():
    model, batches = BY_NAME["bert"].build(), [batch(), batch((3, 6))]
    prune_heads(model, {0: [1]})
    reading, watching, patterns = accumulate(model, batches, ToFirst(), ByWatching(), PatternsAccumulator())
    check_same_bits(reading, watching)
    check_same_bits(watching, accumulate(model, batches, ByWatching())[0])
    check_same_bits(patterns, accumulate(model, batches, PatternsAccumulator())[0])


def test_watch_can_be_extended():
    class Counting(ToFirst):
        watched = 0

        def watch(self, batch):
            self.watched += 1
            return super().watch(batch)

    model, measure = BY_NAME["bert"].build(), Counting()
    found = accumulate(model, [batch(), batch()], measure, ToFirst())
    check_same_bits(*found)
    assert measure.watched == 2


@pytest.mark.parametrize("name", ["bert", "gpt"])
@pytest.mark.parametrize("hook", ["start_batch", "read", "update", "end_batch"])
def test_a_measure_that_raises_leaves_the_model_as_it_was(name, hook):
    class Careless(ToFirst):
        pass

    def fail(*_):
        raise Broken

    setattr(Careless, hook, fail)
    model = BY_NAME[name].build()
    before, expected = snapshot(model), accumulate(model, batch(), ToFirst())[0]
    with pytest.raises(Broken):
        accumulate(model, batch(), ToFirst(), Careless(), EntropyAccumulator())
    after = snapshot(model)
    for key in ("hooks", "configs", "training", "attention functions"):
        assert before[key] == after[key]
    check_same_bits(accumulate(model, batch(), ToFirst())[0], expected)


def test_a_measure_without_read_is_told_so():
    class Forgetful(MapAccumulator):
        def compute(self):
            return None

    with pytest.raises(TypeError, match="Forgetful.*read"):
        Forgetful()


def test_the_example_of_a_measure_plots(monkeypatch):
    """The example runs as a module, as when a reader copies it into a file."""
    module = types.ModuleType("a_file_of_mine")
    vars(module).update({name: getattr(bertology, name) for name in bertology.__all__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for one in doctest.DocTestParser().get_examples(MapAccumulator.__doc__):
        exec(compile(one.source, module.__name__, "exec", dont_inherit=True), vars(module))
    (axes, _) = module.found.plot().axes
    assert axes.get_title().startswith("To first: total")
    assert module.found["L1H3"] == module.found.total[1, 3]
    assert module.found.to_frame().columns.tolist() == ["layer", "head", "total"]
