import pytest
import torch

from bertology import Result, dissect, gated, head_importance, prune_heads, pruning_curve, score
from bertology.errors import DataError
from bertology.pruning.rankings import head_magnitudes
from helpers.small_models import small_t5
from helpers.zoo import BY_NAME, batch

MANY = batch((7, 4, 5, 2, 6, 3, 7, 5))


def order_of(curve):
    """The places of heads in the order in which they went, one a step."""
    gone = curve.gates[:-1] - curve.gates[1:]
    return gone.flatten(1).argmax(1).tolist()


def curve_of(model, **options):
    return pruning_curve(model, MANY, **{"metric": "accuracy", "amount": 1, **options})


def test_each_ranking_by_its_own_scores():
    model = BY_NAME["gpt2"].build(seed=3)
    importance = head_importance(model, MANY)
    expected = {
        "importance": importance.normalized("layer").scores,
        "fisher": importance.fisher,
        "magnitude": head_magnitudes(dissect(model)),
    }
    for by, scores in expected.items():
        curve = curve_of(model, by=by)
        assert order_of(curve) == scores.flatten().argsort().tolist(), by
        assert (curve.by, curve.seed, curve.only) == (by, None, None)
    orders = [scores.flatten().argsort().tolist() for scores in expected.values()]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_scores_of_ones_own_and_the_papers_oracle():
    model = BY_NAME["bert"].build()
    base = score(model, MANY, metric="inverse_loss").value
    change = torch.zeros(2, 4)
    for row in range(2):
        for head in range(4):
            gates = torch.ones(2, 4)
            gates[row, head] = 0
            with gated(model, gates):
                change[row, head] = score(model, MANY, metric="inverse_loss").value - base
    curve = curve_of(model, by=-change, metric="inverse_loss")
    # The first to go is the head without which the metric is highest, the last the one that it misses most.
    assert order_of(curve) == change.flatten().argsort(descending=True).tolist()
    assert curve.scores[1].item() == pytest.approx(base + change.max().item())
    assert curve.by == "given"


def test_normalization_scales_what_ranks():
    model = BY_NAME["gpt2"].build()
    fisher = head_importance(model, MANY).fisher
    by_layer = curve_of(model, by="fisher", normalize="layer")
    assert order_of(by_layer) == (fisher / fisher.norm(dim=1, keepdim=True)).flatten().argsort().tolist()
    own = torch.tensor([[10.0, 20, 30, 40], [1, 2, 3, 5]])
    assert order_of(curve_of(model, by=own)) == [4, 5, 6, 7, 0, 1, 2, 3]
    assert order_of(curve_of(model, by=own, normalize="layer")) == [4, 0, 5, 1, 6, 2, 3, 7]
    assert order_of(curve_of(model, normalize="auto")) == order_of(curve_of(model, normalize="layer"))


def test_fisher_of_what_is_left_and_of_a_result():
    model = BY_NAME["bert"].build()
    curve = curve_of(model, by="fisher", reestimate=True)
    for gates, place in zip(curve.gates[:-1], order_of(curve), strict=True):
        with gated(model, gates):
            fisher = head_importance(model, MANY).fisher
        assert fisher.masked_fill(gates == 0, float("inf")).argmin() == place
    other = head_importance(model, batch(seed=5))
    assert order_of(curve_of(model, by="fisher", importance=other)) == other.fisher.flatten().argsort().tolist()


def test_random_orders_are_their_seeds():
    model = BY_NAME["bert"].build()
    torch.manual_seed(4)
    state = torch.get_rng_state()
    orders = [tuple(order_of(curve_of(model, by="random", seed=seed))) for seed in (0, 0, 1, 2)]
    assert orders[0] == orders[1]
    assert len(set(orders)) == 3
    assert torch.equal(torch.get_rng_state(), state)
    assert curve_of(model, by="random", seed=2).seed == 2


def test_a_pruned_model_by_each_ranking():
    model = BY_NAME["bert"].build()
    prune_heads(model, {0: [2, 3], 1: [0]})
    own = torch.rand(2, 4).masked_fill(~dissect(model).present, float("nan"))
    for by in ("importance", "fisher", "magnitude", "random", own):
        curve = curve_of(model, by=by, amount=2)
        assert curve.heads_left.tolist() == [5, 3, 1, 0]
        assert len(curve.heads_off(keep=0)) == 5


@pytest.mark.parametrize("by", ["importance", "magnitude", "random"])
def test_only_one_stack_loses_heads(by, tmp_path):
    model = small_t5()
    inputs = {**batch(), "labels": torch.tensor([[4, 5, 6, 1], [7, 1, -100, -100], [8, 9, 1, -100]])}
    for first, only in enumerate(("encoder", "decoder", "cross")):
        rows = [2 * first, 2 * first + 1]
        curve = pruning_curve(model, inputs, metric="inverse_loss", by=by, only=only, amount=0.5)
        assert curve.heads_left.tolist() == [8, 4, 0]
        others = [row for row in range(6) if row not in rows]
        assert (curve.gates[:, others] == 1).all()
        assert (curve.gates[-1, rows] == 0).all()
        assert {str(head)[0] for head in curve.heads_off(keep=0)} == {"EDX"[first]}
        with gated(model, curve.gates[1]):
            assert score(model, inputs, metric="inverse_loss").value == pytest.approx(curve.scores[1].item())
    assert pruning_curve(model, inputs, metric="inverse_loss", only="cross", amount=0.5, keep=1).heads_left[-1] == 2
    curve.save(tmp_path / "curve")
    assert Result.load(tmp_path / "curve").only == "cross"
    with pytest.raises(DataError, match=r"a curve has no part for one stack: call pruning_curve\(..., only='cross'\)"):
        curve.stack("cross")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "size"}, r"by is 'importance', 'fisher', 'magnitude', 'random' or a tensor \[layer, head\] .* got 'size'"),
        ({"by": torch.ones(3, 4)}, r"by is of another model: wanted \[layer, head\] = \[2, 4\], got \[3, 4\]"),
        ({"by": torch.tensor([[1.0, 2, 3, 4], [5, 6, float("nan"), 8]])}, "a score must be a finite number, got nan at layer 1, head 2"),
        ({"by": "magnitude", "reestimate": True}, "reestimate=True is for by='importance' and by='fisher', .* got by='magnitude'"),
        ({"by": torch.ones(2, 4), "importance": MANY}, "importance= is for by='importance' and by='fisher', .* got by='given'"),
        ({"by": "random", "normalize": "layer"}, "a random order has no scale: leave normalize='layer' out"),
        ({"only": "middle"}, "only= takes a stack of this model, 'encoder', got 'middle'"),
    ],
)  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises(DataError, match=message):
        curve_of(BY_NAME["bert"].build(), **options)


def test_a_wrong_stack_of_three():
    inputs = {**batch(), "labels": torch.tensor([[4, 5, 6, 1], [7, 1, -100, -100], [8, 9, 1, -100]])}
    with pytest.raises(
        DataError, match="only= takes a stack of this model, 'encoder' or 'decoder' or 'cross', got 'self'"
    ):
        pruning_curve(small_t5(), inputs, metric="inverse_loss", only="self")
