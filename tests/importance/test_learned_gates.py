"""Learned gates are what a loop of plain hooks and Adam gives, and do what the penalty says."""

import pytest
import torch

from bertology import LearnedGates, Result, dissect, fit_gates, gated, prune_heads, pruning_curve, score
from bertology.data.losses import example_losses, find_loss
from bertology.errors import DataError
from helpers.ablation import losses, several
from helpers.patching import places
from helpers.pruning import seq2seq
from helpers.zoo import BY_NAME, FAMILIES, batch
from laws.laws import check_leaves_model_alone
from oracles import gates as oracle


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_equals_the_loop(name, sign):
    model, one = BY_NAME[name].build(), batch()
    found = fit_gates(model, one, method="soft", steps=4, penalty=0.1, lr=0.2)
    inputs = {key: x for key, x in one.items() if key != "labels"}
    expected = oracle.trained(
        lambda: example_losses(find_loss(model), model(**inputs), one).mean(), places(model), 2.0, sign, 0.1, 4, 0.2
    )
    gates = found.gates if sign > 0 else found.rewarded
    torch.testing.assert_close(gates, expected.sigmoid().double(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(gates, expected.flip(1).sigmoid().double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name in ("bert", "albert", "llama")], ids=lambda f: f.name)
def test_a_large_penalty_closes_all_and_none_opens_what_helps(family):
    model = family.build()
    closed = fit_gates(model, several(), penalty=9, steps=50, lr=0.2)
    assert (closed.gates == 0).all()
    assert closed.open_heads() == []
    assert len(closed.closed_heads()) == 8
    free = fit_gates(model, batch(), penalty=0, steps=60, method="soft")
    assert free.losses[0] < free.base_loss


def test_losses_are_those_under_the_gates():
    model, other = BY_NAME["bert"].build(), several()[1:]
    found = fit_gates(model, batch(), steps=20, penalty=0.05, held_out=other, seeds=(0, 3), lr=0.3)
    assert not found.leaking
    assert found.base_loss == pytest.approx(losses(model, other).mean().item())
    for number in range(2):
        with gated(model, found.each[number]):
            assert found.losses[number].item() == pytest.approx(losses(model, other).mean().item(), rel=1e-6)
        with gated(model, (found.each[number] > 0.5).double()):
            assert found.open_losses[number].item() == pytest.approx(losses(model, other).mean().item(), rel=1e-6)
    torch.testing.assert_close(found.gates, found.each.mean(0))
    again = fit_gates(model, batch(), steps=20, penalty=0.05, held_out=other, seeds=(3,), lr=0.3)
    assert torch.equal(again.gates, found.each[1])


def test_a_curve_by_gates():
    model, texts = BY_NAME["bert"].build(), batch((7, 4, 5, 6))
    found = fit_gates(model, texts, steps=30, penalty=0.02)
    curve = pruning_curve(model, texts, metric="inverse_loss", by=found.scores, amount=1)
    assert curve.heads_left.tolist() == list(range(8, -1, -1))
    first = (curve.order == 0).nonzero().tolist()[0]
    assert found.scores[tuple(first)] == found.scores.min()


def test_pruned_heads_and_several_stacks():
    model = BY_NAME["gpt2"].build()
    prune_heads(model, {0: [1, 2]})
    found = fit_gates(model, several(), steps=3, method="soft")
    for gates in (found.gates, found.scores, found.rewarded, found.each[0]):
        assert gates.isnan().equal(~dissect(model).present)
    labels = torch.tensor([[4, 5, 6, 1], [7, 1, -100, -100], [8, 9, 1, -100]])
    pair = fit_gates(seq2seq("t5"), {**batch(labels=False), "labels": labels}, steps=2)
    assert list(pair.stack("cross").gates.shape) == [2, 4]


def test_roles():
    model = BY_NAME["bert"].build()
    found = fit_gates(model, several(), method="soft", steps=30, lr=0.3, penalty=0.02)
    roles = found.roles()
    assert sorted(roles) == ["facilitating", "interfering", "irrelevant"]
    assert sum(map(len, roles.values())) == 8
    with pytest.raises(DataError, match=r"method='soft'"):
        fit_gates(model, batch(), steps=1).roles()


def test_results_are_saved(tmp_path):
    for method in ("l0", "soft"):
        found = fit_gates(BY_NAME["bert"].build(), batch(), steps=2, method=method)
        found.save(tmp_path / "gates.safetensors")
        assert Result.load(tmp_path / "gates.safetensors") == found
        assert type(found) is LearnedGates
        found.plot()


def test_the_model_is_left_as_it_was():
    model = BY_NAME["bert"].build()
    before = score(model, batch(), metric="accuracy")
    check_leaves_model_alone(model, lambda model: fit_gates(model, batch(), steps=2))
    assert score(model.eval(), batch(), metric="accuracy") == before
    check_leaves_model_alone(
        model, lambda model: fit_gates(model, batch(), steps=2), broken=model.bert.encoder.layer[1]
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "hard"}, "method is 'l0' or 'soft'"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"penalty": -1.0}, "penalty must be 0 or more"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"seeds": ()}, "seeds must be one whole number or more"),
        ({"seeds": (-1,)}, "seeds must be one whole number or more"),
    ],
)
def test_mistakes(options, words):
    with pytest.raises(DataError, match=words):
        fit_gates(BY_NAME["bert"].build(), batch(), **options)
    with pytest.raises(DataError, match="an iterator"):
        fit_gates(BY_NAME["bert"].build(), iter([batch()]))


class Broken(torch.autograd.Function):
    """Numbers whose gradient is none."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def test_gates_that_are_no_numbers_are_refused():
    model = BY_NAME["bert"].build()
    for options in ({"lr": float("inf")}, {"penalty": float("inf")}):
        with pytest.raises(DataError, match="must be below 1e.30, got inf"):
            fit_gates(model, batch(), steps=1, **options)
    with pytest.raises(DataError, match="no longer finite numbers after 1 step"):
        fit_gates(model, batch(), steps=3, loss=lambda outputs, batch: Broken.apply(outputs.logits[:, 0]))
