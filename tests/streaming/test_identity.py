"""What tells one function, model or value from another."""

import functools
import re

import pytest
import torch
from torch import nn

from bertology import EntropyAccumulator, ImportanceAccumulator, ScoreAccumulator
from bertology.errors import DataError
from bertology.streaming.identity import identity, weights_checksum, weights_digest
from helpers.zoo import BY_NAME

FACTOR = 2.0


def scaled(factor):
    return lambda x, batch=None: x * factor


def with_default(factor):
    def call(x, factor=factor):
        return x * factor

    return call


def by_global():
    return lambda x, batch=None: x * FACTOR


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return x * self.factor

    def method(self, x):
        return x * self.factor


def linear(factor):
    module = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        module.weight.fill_(factor)
    return module


MADE = {
    "a closure": scaled,
    "a default": with_default,
    "a partial": lambda factor: functools.partial(torch.mul, other=factor),
    "an object": Scaled,
    "a method": lambda factor: Scaled(factor).method,
    "a function in a function": lambda factor: lambda x: scaled(factor)(x),
    "a tensor in a closure": lambda factor: scaled(torch.tensor([1.0, factor])),
    "a list of functions": lambda factor: [scaled(1.0), scaled(factor)],
    "a loss module": lambda factor: nn.CrossEntropyLoss(label_smoothing=factor / 10),
    "weights of a module": lambda factor: linear(factor),
    "a pattern": lambda factor: {"of": {factor, 1.0}},
}


@pytest.mark.parametrize("name", MADE)
def test_values_that_differ_in_what_they_hold_differ(name):
    make = MADE[name]
    assert identity(make(2.0)) == identity(make(2.0))
    assert identity(make(2.0)) != identity(make(3.0))


def test_functions_differ_by_their_code_and_name():
    found = {identity(call) for call in (lambda x: x + 1, lambda x: x + 2, lambda x: x - 1, torch.sum, torch.mean, len)}
    assert len(found) == 6
    assert identity(torch.nn.functional.cross_entropy) != identity(torch.nn.functional.nll_loss)


def test_globals_that_a_function_reads_count(monkeypatch):
    before = identity(by_global())
    assert identity(by_global()) == before
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert identity(by_global()) != before
    assert identity(scaled(2.0)) == identity(scaled(2.0))


def test_a_value_that_holds_itself_has_an_identity():
    own = []
    own.append(own)
    assert identity(own) == identity(own)


def test_what_cannot_be_identified_is_refused(tmp_path):
    with (
        (tmp_path / "file").open("w") as file,
        pytest.raises(DataError, match="cannot be told from others of its kind"),
    ):
        identity(scaled(file))
    with pytest.raises(DataError, match="cannot be told from others"):
        ImportanceAccumulator(loss=scaled(re.finditer("a", "a"))).settings()


def test_measures_differ_by_options_and_by_code():
    class Twice(EntropyAccumulator):
        def update(self, batch, outputs):
            self.total *= 2

    first = Twice

    class Twice(EntropyAccumulator):
        def update(self, batch, outputs):
            self.total *= 3

    class Optioned(EntropyAccumulator):
        def __init__(self, option):
            super().__init__()

    made = [first(), Twice(), EntropyAccumulator(), EntropyAccumulator(average="example"), Optioned(1), Optioned(2)]
    made += [ScoreAccumulator("accuracy"), ScoreAccumulator("f1"), ScoreAccumulator(lambda logits, labels: 1.0)]
    made += [ImportanceAccumulator(), ImportanceAccumulator(loss=scaled(1)), ImportanceAccumulator(loss=scaled(2))]
    assert len({one.described() for one in made}) == len(made)
    assert first().described() == first().described()


@pytest.mark.parametrize("digest", [weights_digest, weights_checksum])
def test_every_element_of_every_weight_counts(digest):
    model = BY_NAME["bert"].build()
    seen = {digest(model)}
    for parameter in list(model.parameters())[3::9]:
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        seen.add(digest(model))
        with torch.no_grad():
            parameter.neg_()
        seen.add(digest(model))
    assert len(seen) == 1 + 2 * len(list(model.parameters())[3::9])
    before = digest(model)
    model.train().requires_grad_(False).register_forward_hook(lambda *_: None)
    assert digest(model) == before


@pytest.mark.filterwarnings("ignore")
def test_quantized_weights_count():
    from torch.ao.quantization import quantize_dynamic

    torch.manual_seed(0)
    first, second = (quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}) for _ in range(2))
    assert weights_digest(first) != weights_digest(second)
    assert weights_digest(first) == weights_digest(first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.bool])
def test_checksums_take_weights_of_all_types(dtype):
    module = nn.Module()
    for name, shape in (("matrix", (4, 9)), ("scalar", ()), ("empty", (0, 3)), ("thin", (6, 1)), ("cube", (2, 3, 4))):
        module.register_buffer(name, torch.zeros(shape).to(dtype))
    seen = {weights_checksum(module)}
    for name in ("matrix", "scalar", "thin", "cube"):
        getattr(module, name).view(-1)[-1] = 1
        seen.add(weights_checksum(module))
    rows = module.matrix.clone()
    module.matrix.copy_(rows[[3, 1, 2, 0]])
    assert weights_checksum(module) not in seen
    assert len(seen) == 5
    assert len({weights_checksum(module), weights_digest(module)}) == 2


def test_a_function_that_is_in_a_set_that_it_reads_is_identified():
    def made(value):
        known = set()

        def call():
            return value, known

        known.add(call)
        return call

    assert identity(made(1)) == identity(made(1)) != identity(made(2))
