import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bertology.edge_probing.optimizer import AMSGrad
from bertology.edge_probing.probes import Probes, cumulative, pool
from bertology.edge_probing.random_draws import DROPOUT, generator
from bertology.edge_probing.span_batches import EdgeBatch
from bertology.edge_probing.train import loss_of
from bertology.errors import DataError, ShapeError
from helpers.edge_sources import InMemory, random_source
from oracles import edge_probes as oracles

pytestmark = pytest.mark.any_transformers


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance, rtol=0)


def some_probes(source, width=6, seed=5, **options):
    """Cumulative probes in float64, all weights at random."""
    layers = cumulative(source.layers)
    probes = Probes(layers, source.hidden, len(source.labels), source.sides, width=width, **options).double()
    with torch.no_grad():
        probes.weights.normal_(0, 0.6, generator=torch.Generator().manual_seed(seed))
    return probes


def one(probes, place):
    """The weights of one probe, on their own."""
    return {name: x[place].detach().clone() for name, x in probes.parts().items()}


def tokens_of(batch):
    """[target][side]: the vectors of the tokens in the spans."""
    found = []
    for target in range(batch.count):
        rows = [tokens[of == target] for tokens, of in zip(batch.tokens, batch.targets, strict=True)]
        found.append([list(batch.vectors.double()[some]) for some in rows])
    return found


def twin(probes, place, batch):
    layers = probes.layers[place].nonzero().flatten().tolist()
    weights = one(probes, place)
    return torch.stack([oracles.logits(weights, layers, spans) for spans in tokens_of(batch)])


# Against the equations


@pytest.mark.parametrize("sides", [1, 2])
def test_logits_equal_loops_over_the_equations(sides):
    source = random_source(sides=sides)
    probes, batch = some_probes(source).eval(), source.batch(range(source.records))
    found = probes(batch)
    expected = torch.stack([twin(probes, place, batch) for place in range(3)])
    close(found, expected)
    close(probes.float()(batch), expected, 1e-5)
    expected[1, 2, 0] += 1e-4
    with pytest.raises(AssertionError):
        close(found, expected)


@pytest.mark.parametrize("sides", [1, 2])
def test_gradients_equal_those_of_the_loops(sides):
    source = random_source(sides=sides)
    probes, batch = some_probes(source).eval(), source.batch(range(source.records))
    (found,) = torch.autograd.grad(loss_of(probes(batch), batch.gold).sum(), probes.weights)
    for place in range(3):
        weights = {name: x.requires_grad_() for name, x in one(probes, place).items()}
        layers = probes.layers[place].nonzero().flatten().tolist()
        each = [oracles.logits(weights, layers, spans) for spans in tokens_of(batch)]
        grads = torch.autograd.grad(oracles.loss(each, batch.gold), list(weights.values()))
        expected = torch.cat([x.flatten() for x in grads])
        close(found[place], expected)
        assert expected.abs().max() > 1e-3
        expected[0] += 1e-4
        with pytest.raises(AssertionError):
            close(found[place], expected)


def test_dropout_equals_the_loops_and_is_one_for_both_sides_of_a_token():
    source = random_source(records=3, seed=2)
    probes, batch = some_probes(source, dropout=0.4, input_dropout=0.3).train(), source.batch(range(3))
    assert not torch.equal(batch.tokens[0].unique(), batch.tokens[1].unique())  # not every token is in both
    assert int(batch.tokens[0].unique()[-1]) >= len(batch.tokens[0].unique())
    probes.step = 7
    draw = generator(0, DROPOUT, 7)
    of_rows = (torch.rand(len(batch.vectors), 8, generator=draw) >= 0.3).double() / 0.7
    of_inner = (torch.rand(batch.count, 6, generator=draw) >= 0.4).double() / 0.6
    expected = []
    for place in range(3):
        weights, layers = one(probes, place), list(range(place + 1))
        for target, spans in enumerate(tokens_of(batch)):
            rows = [tokens[of == target] for tokens, of in zip(batch.tokens, batch.targets, strict=True)]
            expected.append(oracles.logits(weights, layers, spans, [list(of_rows[r]) for r in rows], of_inner[target]))
    expected = torch.stack(expected).view(3, batch.count, -1)
    close(probes(batch), expected)
    assert probes.step == 8
    with pytest.raises(AssertionError):
        close(probes(batch), expected)  # the next step drops others
    close(probes.eval()(batch), torch.stack([twin(probes, place, batch) for place in range(3)]))


def test_a_trained_probe_equals_torch_on_it_alone():
    source = random_source(records=4)
    probes = some_probes(source, dropout=0, input_dropout=0)
    layers, start = probes.layers, [one(probes, place) for place in range(3)]
    batches = [source.batch(range(2)), source.batch(range(2, 4))] * 3
    optimizer, clip, lrs = AMSGrad(probes.weights.detach()), 0.2, [0.1, 0.03, 0.1]
    norms = []
    for batch in batches:
        (gradient,) = torch.autograd.grad(loss_of(probes(batch), batch.gold).sum(), probes.weights)
        norms.append(gradient.norm(dim=1))
        optimizer.step(probes.weights.detach(), gradient, lrs, clip)
    assert (torch.stack(norms) > clip).any()
    told = [(tokens_of(batch), batch.gold) for batch in batches]
    for place in range(3):
        read = layers[place].nonzero().flatten().tolist()
        expected = oracles.train_alone(start[place], read, told, lrs[place], clip)
        for name, x in one(probes, place).items():
            close(x, expected[name], 1e-9)
        other = oracles.train_alone(start[place], read, told, 0.05, clip)
        with pytest.raises(AssertionError):
            close(one(probes, place)["inner"], other["inner"], 1e-9)


# Mixing (METHODS A5)


def test_probes_begin_with_a_uniform_mix_of_their_layers():
    probes = Probes(cumulative(4), 8, 2, 1)
    for place in range(4):
        close(probes.mix[place], torch.tensor([1 / (place + 1)] * (place + 1) + [0.0] * (3 - place)))
    assert probes.gamma.tolist() == [1.0] * 4


@given(shift=st.floats(-20, 20))
@settings(max_examples=20)
def test_the_mix_does_not_change_if_a_number_is_added(shift):
    probes = some_probes(random_source())
    before = probes.mix
    with torch.no_grad():
        probes.parts()["mix"].add_(shift)
    close(probes.mix, before, 1e-9)
    close(probes.mix.sum(1), torch.ones(3))


def test_layers_above_do_not_matter_and_layers_that_are_alike_give_gamma_times_one():
    source = random_source()
    probes, batch = some_probes(source).eval(), source.batch(range(6))
    logits = probes(batch)
    changed = batch.vectors.clone()
    changed[:, 2] = 100.0
    other = probes(EdgeBatch(changed, batch.tokens, batch.targets, batch.gold))
    assert torch.equal(other[:2], logits[:2])
    assert not torch.allclose(other[2], logits[2])
    # All layers alike: the mix is γ·h, whatever the weights of the mix; and so is that of layer 0 alone.
    alike = EdgeBatch(batch.vectors[:, :1].expand(-1, 3, -1), batch.tokens, batch.targets, batch.gold)
    with torch.no_grad():
        probes.weights.copy_(probes.weights[:1].expand(3, -1))
        probes.parts()["mix"].copy_(torch.randn(3, 3))
    close(probes(alike)[1:], probes(alike)[:1].expand(2, -1, -1), 1e-9)
    close(probes(alike)[:1], probes(batch)[:1], 1e-9)


# Pooling (METHODS A5)


def test_the_pooled_vector_of_one_token_is_that_token():
    e = torch.randn(2, 5, 3)
    tokens = torch.tensor([4, 0, 4])
    found = pool(e, torch.randn(2, 5) * 50, tokens, torch.arange(3), 3)
    assert torch.equal(found, e[:, tokens])


def test_equal_scores_give_the_mean():
    e = torch.randn(2, 5, 3)
    found = pool(e, torch.full((2, 5), 3.0), torch.tensor([0, 1, 2, 1, 2]), torch.tensor([0, 0, 0, 1, 1]), 2)
    close(found, torch.stack([e[:, :3].mean(1), e[:, 1:3].mean(1)], 1))


def test_tokens_outside_of_the_spans_have_no_gradient():
    e, z = torch.randn(2, 5, 3, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    pool(e, z, torch.tensor([1, 2, 3]), torch.tensor([0, 0, 1]), 2).square().sum().backward()
    assert (e.grad[:, [0, 4]] == 0).all()
    assert (e.grad[:, 1:4] != 0).all()
    assert (z.grad[:, [0, 4]] == 0).all()


def test_high_scores_do_not_overflow():
    e, z = torch.randn(1, 3, 2), torch.tensor([[1e4, 1e4, -1e4]])
    found = pool(e, z, torch.tensor([0, 1, 2]), torch.tensor([0, 0, 0]), 1)
    close(found[:, 0], e[:, :2].mean(1))


@given(seed=st.integers(0, 1000), shift=st.floats(-50, 50))
@settings(max_examples=25)
def test_the_pooled_vector_equals_loops(seed, shift):
    batch = random_source(seed=seed, sides=1).batch(range(6))
    draw = torch.Generator().manual_seed(seed)
    e = torch.randn(2, len(batch.vectors), 3, generator=draw, dtype=torch.float64)
    v = torch.randn(2, 3, 1, generator=draw, dtype=torch.float64)
    found = pool(e, (e @ v)[:, :, 0] + shift, batch.tokens[0], batch.targets[0], batch.count)
    for place in range(2):
        for target in range(batch.count):
            some = batch.tokens[0][batch.targets[0] == target]
            expected = oracles.pooled(list(e[place, some]), v[place, :, 0], torch.tensor(0.0))
            close(found[place, target], expected, 1e-9)


def test_a_convolution_of_one_word_is_the_projection():
    probes = some_probes(random_source(sides=1))
    weights, conv, x = one(probes, 0), nn.Conv1d(8, 6, 1).double(), torch.randn(8, 5).double()
    with torch.no_grad():
        conv.weight.copy_(weights["project1"].T[:, :, None])
        conv.bias.copy_(weights["project_bias1"])
    close(conv(x).T, x.T @ weights["project1"] + weights["project_bias1"], 1e-12)


# The loss


@pytest.mark.parametrize("labels", [1, 2, 49])
def test_the_loss_of_zeros_is_ln_2(labels):
    found = loss_of(torch.zeros(3, 5, labels), (torch.rand(5, labels) < 0.5).float())
    close(found, torch.full((3,), math.log(2)))


def test_the_loss_equals_loops():
    logits, gold = torch.randn(2, 5, 3) * 4, (torch.rand(5, 3) < 0.5).float()
    close(loss_of(logits, gold), torch.stack([oracles.loss(list(each), gold) for each in logits]), 1e-5)


# Seeds


def test_weights_begin_as_those_of_torch():
    probes = Probes(cumulative(1), 300, 40, 2, width=50)
    linear, parts = nn.Linear(300, 50), one(probes, 0)
    bound = 1 / math.sqrt(300)
    for mine, its in ((parts["project2"], linear.weight), (parts["project_bias1"], linear.bias)):
        assert mine.abs().max() <= bound
        assert its.abs().max() <= bound
    close(parts["project2"].std(), linear.weight.std(), 1e-3)
    assert parts["attend1"].abs().max() <= 1 / math.sqrt(50)
    assert parts["attend_bias1"].abs().max() <= 1 / math.sqrt(50)
    assert parts["inner"].abs().max() <= 1 / math.sqrt(100)
    assert 0.1 < parts["outer"].abs().max() <= 1 / math.sqrt(50)
    assert (parts["scale"] == 1).all()
    assert (parts["shift"] == 0).all()


def test_a_probe_begins_and_drops_alike_alone_and_in_company():
    source = random_source()
    batch = source.batch(range(6))
    many = Probes(cumulative(3).repeat(2, 1), 8, 4, 2, seeds=[3, 3, 3, 8, 8, 8], width=6).double().train()
    logits = many(batch)
    for place in range(6):
        alone = Probes(many.layers[[place]], 8, 4, 2, seeds=many.seeds[place], width=6).double().train()
        assert torch.equal(alone.weights[0], many.weights[place])
        close(alone(batch)[0], logits[place], 1e-12)
        chosen = many.select([place])
        chosen.step = 0
        assert chosen.training
        close(chosen(batch)[0], logits[place], 1e-12)
    assert not torch.equal(many.weights[0], many.weights[3])
    assert not torch.allclose(logits[0], logits[3])


def test_torchs_own_random_state_stays():
    before = torch.get_rng_state()
    probes, source = Probes(cumulative(3), 8, 4, 2, width=6).train(), random_source()
    probes(source.batch(range(2)))
    assert torch.equal(torch.get_rng_state(), before)


# What is wrong with it?


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"layers": torch.ones(2, 3)}, ShapeError, r"layers must be \[probe, layer\] bool, got \[2, 3\] torch.float32"),
        ({"layers": torch.tensor([[True], [False]])}, DataError, "probe 1 reads no layer"),
        ({"sides": 3}, DataError, "sides 1 or 2, got 8, 4, 256 and 3"),
        ({"hidden": 0}, DataError, "must be 1 or more"),
        ({"dropout": 1.0}, DataError, "from 0 to less than 1, got 1.0 and 0.2"),
        ({"seeds": [1, 2]}, ShapeError, "one for each of 3 probes, got 2"),
        ({"seeds": -1}, DataError, "a seed must be 0 or more, got -1"),
    ],
)
def test_probes_that_cannot_be(change, error, said):
    with pytest.raises(error, match=said):
        Probes(**{"layers": cumulative(3), "hidden": 8, "labels": 4, "sides": 2, **change})


def test_batches_that_do_not_fit():
    probes = Probes(cumulative(3), 8, 4, 2, width=6)
    with pytest.raises(ShapeError, match=r"\[\*, 3, 8\], with 2 sides, got \[\d+, 2, 8\] with 2"):
        probes(random_source(layers=2).batch(range(2)))
    with pytest.raises(ShapeError, match="with 2 sides, got .* with 1"):
        probes(random_source(sides=1).batch(range(2)))


def test_a_batch_is_checked():
    good = random_source(sides=1).batch(range(3))
    assert good.check() is good
    assert good.to("cpu").count == good.count
    v, (tokens,), (targets,), gold = good.vectors, good.tokens, good.targets, good.gold
    for batch, error, said in (
        (EdgeBatch(v[0], (tokens,), (targets,), gold), ShapeError, "vectors must be"),
        (EdgeBatch(v, (tokens,), (targets[1:],), gold), ShapeError, "side 0 must have the same shape"),
        (EdgeBatch(v, (tokens + len(v),), (targets,), gold), DataError, "side 0 names a token that is not among"),
        (EdgeBatch(v, (tokens,), (targets,), torch.cat([gold, gold[:1]])), DataError, "each with a token or more"),
        (EdgeBatch(v, (tokens,), (targets.flip(0),), gold), DataError, "in ascending order"),
    ):
        with pytest.raises(error, match=said):
            batch.check()


def test_the_tests_own_source_makes_batches_that_hold():
    source = random_source(seed=4)
    assert isinstance(source, InMemory)
    for records in (range(6), torch.tensor([4, 1])):
        batch = source.batch(records).check()
        assert batch.count == sum(len(source.spans[int(record)]) for record in records)
