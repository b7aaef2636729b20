import dataclasses
import itertools
import math

import oracles_edges as oracles
import pytest
import torch
from edge_sources import at_one_layer, random_labels, random_source
from sklearn.metrics import f1_score
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bertology.edge_probing import train as resuming
from bertology.edge_probing.layer_statistics import centre_of_gravity, unchecked_expected_layer
from bertology.edge_probing.optimizer import AMSGrad, Patience, Training
from bertology.edge_probing.probe_layers import (
    cumulative_probes,
    follow_targets,
    probabilities,
    probe_layers,
    score_layers,
)
from bertology.edge_probing.probes import Probes, cumulative
from bertology.edge_probing.random_draws import Order
from bertology.edge_probing.scores import bits_of, count, micro_f1
from bertology.edge_probing.span_batches import EdgeBatch
from bertology.edge_probing.tasks import EdgeTask, Record, Target
from bertology.edge_probing.train import train_probes
from bertology.errors import DataError, ShapeError
from bertology.results.result import Result

QUICK = Training(lr=3e-3, batch_size=8, validate_every=5, max_validations=6, width=6)
# Of six probes on `learnable`, each stops at another time.
STOPPING = Training(
    lr=1e-2, batch_size=8, validate_every=5, max_validations=12, width=6, patience_halve=2, patience_stop=4
)
SYNTHETIC = Training(lr=3e-3, validate_every=25, max_validations=24, width=16, patience_stop=8)


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance, rtol=0)


def some_probes(source, seeds=(0,), settings=QUICK):
    return cumulative_probes(source, seeds, settings).double()


def learnable():
    return [at_one_layer(1, layers=3, records=many, hidden=8, seed=seed) for seed, many in enumerate((40, 10))]


# The optimizer


def test_steps_equal_torchs_amsgrad_on_each_probe():
    draw = torch.Generator().manual_seed(0)
    weights, lrs = torch.randn(4, 11, generator=draw), [1e-2, 1e-3, 1e-2, 0.3]
    alone = [x.clone().requires_grad_() for x in weights]
    optimizers = [torch.optim.Adam([x], lr=lr, amsgrad=True) for x, lr in zip(alone, lrs, strict=True)]
    mine = AMSGrad(weights)
    for step in range(30):
        gradient = (
            torch.randn(len(lrs), 11, generator=draw) * 10 / (step + 1)
        )  # it shrinks: the highest mean square counts
        for x, g, optimizer in zip(alone, gradient, optimizers, strict=True):
            x.grad = g.clone()
            torch.nn.utils.clip_grad_norm_([x], 5.0)
            optimizer.step()
        mine.step(weights, gradient, lrs, 5.0)
        if step == 20:  # some go
            for kept in (alone, optimizers, lrs):
                del kept[1]
            mine.select([0, 2, 3])
            weights = weights[[0, 2, 3]]
        close(weights, torch.stack(alone))
    assert (mine.moments[2] > mine.moments[1]).any()  # where plain Adam would go further
    with pytest.raises(AssertionError):
        close(weights, torch.stack(alone) + 1e-5)


def test_each_probes_gradient_is_clipped_by_its_own_norm():
    gradient = torch.tensor([[30.0, 40.0], [0.3, 0.4], [0.0, 0.0]])
    AMSGrad(gradient).step(torch.zeros(3, 2), gradient, [1.0] * 3, 5.0)
    close(gradient, torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]))


# Patience


def seen(scores, training):
    """The learning rates after each validation, and why and when it stopped."""
    patience, lrs = Patience(training.lr), []
    for score in scores:
        patience.see(score, 0.0, training)
        lrs.append(patience.lr)
        if patience.stops(training):
            break
    return lrs, patience.stops(training), len(lrs)


def test_the_learning_rate_is_halved_after_five_validations_that_do_not_improve():
    training = Training(lr=1.0, min_lr=0.0)
    # The best is at the second; growth of less than the threshold does not count.
    lrs, why, _ = seen([0.1, 0.5, *[0.50005] * 5, 0.6, *[0.6] * 4, 0.2, 0.7], training)
    assert lrs == [1.0] * 6 + [0.5] * 6 + [0.25] * 2
    assert why == ""


def test_the_learning_rate_is_that_of_torchs_plateau():
    for seed in range(20):
        scores = torch.rand(60, generator=torch.Generator().manual_seed(seed)).mul(50).floor().div(50).tolist()
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        # What torch calls patience is how many are let pass: it halves at one more.
        plateau = ReduceLROnPlateau(optimizer, "max", 0.5, patience=4, threshold=1e-4, threshold_mode="abs", eps=0)
        patience, training = Patience(1.0), Training()
        for score in scores:
            plateau.step(score)
            patience.see(score, 0.0, training)
            assert patience.lr == optimizer.param_groups[0]["lr"]
        assert patience.best == max(range(60), key=lambda place: (scores[place], -place))


def test_when_a_probe_stops():
    training = Training(min_lr=0.0)
    assert seen([0.5, *[0.4] * 30], training)[1:] == ("patience", 21)
    assert seen([0.4, 0.5, *[0.5] * 30], training)[1:] == ("patience", 22)
    assert seen([place / 1000 for place in range(200)], training)[1:] == ("validations", 100)
    # From 1e-4, the seventh halving goes below 1e-6.
    assert seen([0.5] * 100, Training(patience_stop=90))[1:] == ("learning rate", 36)
    assert seen([0.5, *[0.0] * 30], Training(max_validations=21))[1:] == ("patience", 21)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"dev_records": 0}, "dev_records must be 1 or more, got 0"),
        ({"lr": 0.0}, "lr must be a number above 0, got 0.0"),
        ({"clip": math.nan}, "clip must be a number above 0, got nan"),
        ({"choose_by": "accuracy"}, "choose_by is 'f1' or 'loss', got 'accuracy'"),
        ({"threshold": -1.0}, "threshold must be a number, 0 or more, got -1.0"),
    ],
)
def test_settings_that_make_no_training(change, said):
    with pytest.raises(DataError, match=said):
        Training(**change)


def test_the_papers_settings():
    assert Training.large().max_steps == 250_000
    assert Training().max_steps == 50_000
    assert Training.small().max_steps == 10_000
    paper = (1e-4, 32, 5, 20, 1e-4, 1e-6, 5.0, 5000, 256, 0.3, 0.2)
    told = dataclasses.astuple(Training())
    assert (*told[:2], *told[4:12], told[12]) == paper


# The order of records


def test_an_epoch_has_each_record_once():
    order = Order(records=10, batch_size=4, seed=3)
    epochs = [[order.at(3 * epoch + turn).tolist() for turn in range(3)] for epoch in range(3)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert sorted(itertools.chain(*batches)) == list(range(10))
    assert epochs[0] != epochs[1]
    assert Order(10, 4, 3).at(4).tolist() == epochs[1][1]
    assert Order(10, 4, 4).at(0).tolist() != epochs[0][0]


# Many at once


def test_probes_are_trained_together_as_each_alone():
    train, dev = learnable()
    probes = some_probes(train, seeds=(0, 5))
    together = train_probes(train, dev, probes, STOPPING)
    assert len(set(together.steps.tolist())) > 3  # some stop before others
    assert set(together.stopped) == {"patience", "validations"}
    for place in range(6):
        alone = train_probes(train, dev, probes.select([place]), STOPPING)
        close(alone.probes.weights[0], together.probes.weights[place], 1e-9)
        assert alone.stopped[0] == together.stopped[place]
        assert alone.steps[0] == together.steps[place]
        assert alone.best_steps[0] == together.best_steps[place]
        many = int(alone.steps[0]) // STOPPING.validate_every
        close(alone.validation_f1[0], together.validation_f1[place, :many])
        close(alone.losses[0], together.losses[place, :many])
        assert together.validation_f1[place, many:].isnan().all()
    assert not torch.allclose(together.probes.weights[0], together.probes.weights[3])


def test_the_probes_that_are_given_stay_as_they_are_and_so_does_torchs_random_state():
    train, dev = random_source(12), random_source(4, seed=1)
    probes, before = some_probes(train), torch.get_rng_state()
    weights = probes.weights.detach().clone()
    with torch.no_grad():
        trained = train_probes(train, dev, probes, QUICK)
    assert torch.equal(probes.weights, weights)
    assert probes.training
    assert probes.weights.requires_grad
    assert probes.weights.grad is None
    assert torch.equal(torch.get_rng_state(), before)
    assert not trained.probes.training
    assert trained.stopped == ("validations",) * 3


def test_inference_mode_does_not_matter():
    train, dev = random_source(12), random_source(4, seed=1)
    with torch.inference_mode():
        found = probe_layers(train, dev, settings=QUICK)
    assert torch.equal(found.f1, probe_layers(train, dev, settings=QUICK).f1)


def test_the_best_weights_are_what_is_kept():
    train, dev = random_source(12), random_source(20, seed=1)
    trained = train_probes(train, dev, some_probes(train), dataclasses.replace(QUICK, lr=0.1))
    best = trained.validation_f1.max(1).values
    assert (best > trained.validation_f1[:, -1]).any()
    found = count(trained.probes, dev)
    close(micro_f1(found.tp.sum(1), found.fp.sum(1), found.fn.sum(1)), best)
    rows = torch.arange(3), trained.best_steps // QUICK.validate_every - 1
    assert torch.equal(trained.validation_f1[rows], best)


def best_so_far(values):
    """[validation]: how many validations ago the lowest value was seen for the first time."""
    return [at - values.index(min(values[: at + 1])) for at in range(len(values))]


def test_probes_can_be_judged_by_their_loss():
    """A rate too high, so that probes get surer than they should: F1 and loss are not best at once."""
    train, dev = random_source(12), random_source(20, seed=1)
    settings = dataclasses.replace(QUICK, lr=0.1, max_validations=12, patience_stop=3, choose_by="loss")
    probes = some_probes(train)
    trained = train_probes(train, dev, probes, settings)
    by_f1 = train_probes(train, dev, probes, dataclasses.replace(settings, choose_by="f1"))
    assert not torch.equal(trained.best_steps, by_f1.best_steps)
    logits, gold = trained.probes(dev.batch(range(20))), dev.batch(range(20)).gold
    close(bits_of(logits, gold) / len(gold), trained.validation_bits.nan_to_num(math.inf).amin(1))
    found = count(trained.probes, dev)
    rows = torch.arange(3), trained.best_steps // 5 - 1
    close(micro_f1(found.tp.sum(1), found.fp.sum(1), found.fn.sum(1)), trained.validation_f1[rows])
    for place in range(3):
        seen = [x for x in trained.validation_bits[place].tolist() if x == x]
        assert int(trained.best_steps[place]) == 5 * (seen.index(min(seen)) + 1)
        assert int(trained.steps[place]) == 5 * len(seen)
        waits = best_so_far(seen)
        assert all(wait < 3 for wait in waits[:-1])
        assert (waits[-1] == 3) == (trained.stopped[place] == "patience")
    assert "patience" in trained.stopped


def test_the_loss_of_a_validation_is_that_of_the_targets():
    """All labels, also those that do not count; the mean over targets, not over batches of them."""
    train, dev = random_source(12), dataclasses.replace(random_source(7, seed=1), counted=("label2",))
    train = dataclasses.replace(train, counted=("label2",))
    still = dataclasses.replace(QUICK, lr=1e-12, min_lr=0.0, batch_size=3, dev_records=5)
    probes = some_probes(train)
    found = train_probes(train, dev, probes, still).validation_bits
    batch = dev.batch(range(5))
    expected = torch.stack([oracles.loss(list(each.detach()), batch.gold) for each in probes.eval()(batch)])
    close(found, (expected * len(dev.labels) / math.log(2))[:, None].expand(-1, 6))


def test_losses_are_means_of_the_steps():
    train = random_source(8)
    settings = dataclasses.replace(QUICK, lr=1e-12, min_lr=0.0, dropout=0.0, input_dropout=0.0, validate_every=2)
    probes = some_probes(train, settings=settings)
    trained = train_probes(train, train, probes, settings)
    batch = train.batch(range(8))
    expected = torch.stack([oracles.loss(list(each.detach()), batch.gold) for each in probes.eval()(batch)])
    close(trained.losses, expected[:, None].expand(-1, 6))


def test_only_the_first_records_are_validated_on():
    train, dev = random_source(12), random_source(20, seed=1)
    few = dataclasses.replace(QUICK, dev_records=3)
    found = train_probes(train, dev, some_probes(train), few)
    alone = train_probes(train, dev.first(3), some_probes(train), QUICK)
    assert torch.equal(found.validation_f1, alone.validation_f1)


# Going on


class CutOff(Exception):
    pass


class Failing:
    """A source that fails at some batch."""

    def __init__(self, source, after):
        self._source, self._left = source, after

    def __getattr__(self, name):
        return getattr(self._source, name)

    def batch(self, records):
        if self._left == 0:
            raise CutOff
        self._left -= 1
        return self._source.batch(records)


# The loss falls until a rate is too high.
BY_LOSS = dataclasses.replace(STOPPING, choose_by="loss", lr=0.2, patience_stop=3)


@pytest.mark.parametrize("settings", [STOPPING, BY_LOSS], ids=["f1", "loss"])
@pytest.mark.parametrize("after", [3, 12, 30])
def test_a_training_that_was_cut_off_goes_on_to_the_same_bits(tmp_path, monkeypatch, after, settings):
    monkeypatch.setattr(resuming, "EVERY_SECONDS", 0.0)
    (train, dev), file = learnable(), tmp_path / "training"
    probes = cumulative_probes(train, (0, 5), settings)
    whole = train_probes(train, dev, probes, settings)
    assert whole.steps.min() < 30 < whole.steps.max()
    with pytest.raises(CutOff):
        train_probes(Failing(train, after + 2), dev, probes, settings, checkpoint=file)
    assert file.is_file()
    left = Failing(train, int(whole.steps.max()) - after + 2)  # no more batches than are missing
    resumed = train_probes(left, dev, probes, settings, checkpoint=file)
    assert not list(tmp_path.iterdir())
    assert torch.equal(resumed.probes.weights, whole.probes.weights)
    for name in ("steps", "best_steps", "validation_f1", "validation_bits", "losses"):
        torch.testing.assert_close(getattr(resumed, name), getattr(whole, name), rtol=0, atol=0, equal_nan=True)
    assert resumed.stopped == whole.stopped


def test_scores_that_were_cut_off_do_not_train_again(tmp_path):
    train, dev, file = random_source(12), random_source(6, seed=1), tmp_path / "training"
    # The digest and the check look at 2 batches of dev, each of 6 validations at 1.
    with pytest.raises(CutOff):
        probe_layers(train, Failing(dev, 8), settings=QUICK, checkpoint=file)
    found = probe_layers(Failing(train, 2), dev, settings=QUICK, checkpoint=file)
    assert torch.equal(found.f1, probe_layers(train, dev, settings=QUICK).f1)
    assert not file.exists()


def test_a_checkpoint_of_another_training_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(resuming, "EVERY_SECONDS", 0.0)
    train, dev, file = random_source(12), random_source(6, seed=1), tmp_path / "training"
    probes = some_probes(train)
    with pytest.raises(CutOff):
        train_probes(Failing(train, 9), dev, probes, QUICK, checkpoint=file)
    changed = probes.select(range(3))
    with torch.no_grad():
        changed.weights[1, 2] += 1e-6
    others = (
        (train, dev, changed, QUICK),
        (train, dev, probes, dataclasses.replace(QUICK, lr=1e-2)),
        (train, dev, probes, dataclasses.replace(QUICK, choose_by="loss")),
        (train, dev, some_probes(train, seeds=(1,)), QUICK),
        (random_source(12, seed=3), dev, probes, QUICK),
        (train, random_labels(dev), probes, QUICK),
        (train, dev.first(5), probes, QUICK),
    )
    for other in others:
        with pytest.raises(
            DataError, match="with other settings, other probes or other data: remove it or name another"
        ):
            train_probes(*other, checkpoint=file)
    train_probes(train, dev, probes, QUICK, checkpoint=file)
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read .*: remove it or name another"):
        train_probes(train, dev, probes, QUICK, checkpoint=file)
    for path in (tmp_path, tmp_path / "none" / "training"):
        with pytest.raises(DataError, match="must be a file in a folder that exists"):
            train_probes(train, dev, probes, QUICK, checkpoint=path)


# Scores


@pytest.mark.parametrize("seed", range(3))
def test_f1_equals_scikit_learns_and_loops(seed):
    source = random_source(15, labels=5, seed=seed)
    source = dataclasses.replace(source, counted=("label1", "label2", "label4"))
    probes = Probes(cumulative(3), 8, 5, 2, width=6, seeds=seed)
    found = count(probes, source, batch_size=4)
    batch = source.batch(range(15))
    logits = probes.eval()(batch).detach()
    for place in range(3):
        pooled = [x[place].sum() for x in found[:3]]
        columns = [1, 2, 4]
        said, gold = (logits[place][:, columns] >= 0).int().numpy(), batch.gold[:, columns].int().numpy()
        expected = f1_score(gold, said, average="micro", zero_division=0)
        assert micro_f1(*pooled).item() == pytest.approx(expected, abs=1e-12)
        assert micro_f1(*pooled).item() == pytest.approx(oracles.f1(logits[place], batch.gold, columns))
        assert micro_f1(*pooled).item() != pytest.approx(oracles.f1(logits[place], batch.gold, [1, 2]))
    for label in range(5):
        said, gold = logits[:, :, label] >= 0, batch.gold[:, label] == 1
        assert found.label_tp[:, label].tolist() == (said & gold).sum(1).tolist()
        assert found.label_fp[:, label].tolist() == (said & ~gold).sum(1).tolist()
        assert found.label_fn[:, label].tolist() == (~said & gold).sum(1).tolist()
    for record in range(15):
        one = source.batch(range(record, record + 1))
        each, gold = probes(one).detach(), one.gold
        for place in range(3):
            tp, fp, fn = (int(x[place, record]) for x in found[:3])
            assert tp + fn == int(gold[:, [1, 2, 4]].sum())
            assert tp + fp == int((each[place][:, [1, 2, 4]] >= 0).sum())
            assert 2 * tp / max(1, 2 * tp + fp + fn) == pytest.approx(oracles.f1(each[place], gold, [1, 2, 4]))


class Said:
    """Not probes, but decisions that are known."""

    seeds = (0,)
    training = True

    def __init__(self, logits):
        self._logits, self.weights = logits, torch.zeros(1)

    def eval(self):
        return self

    def train(self, mode):
        assert mode

    def __call__(self, batch):
        return self._logits[None]


@pytest.mark.parametrize(
    ("labels", "counted", "expected"),
    [
        # METHODS A2: coreference counts "1" only; semantic roles no R- and C-; relations not "Other".
        (("0", "1"), ("1",), 2 * 1 / (2 * 1 + 1 + 1)),
        (("R-ARG0", "ARG0"), ("ARG0",), 2 * 1 / (2 * 1 + 1 + 1)),
        (("Other", "Cause-Effect(e1,e2)"), ("Other", "Cause-Effect(e1,e2)"), 2 * 3 / (2 * 3 + 1 + 2)),
    ],
)
def test_labels_that_do_not_count_do_not(labels, counted, expected):
    gold = torch.tensor([[1, 0], [1, 0], [0, 1], [1, 1]]).float()
    said = torch.tensor([[1.0, -2.0], [-1.0, 0.0], [-1.0, 3.0], [2.0, -3.0]])  # a logit of 0 is a yes
    source = dataclasses.replace(
        random_source(1, sides=1), truths=(gold,), spans=((((0, 1),),) * 4,), labels=labels, counted=counted
    )
    found = count(Said(said), source)
    assert micro_f1(found.tp.sum(), found.fp.sum(), found.fn.sum()).item() == pytest.approx(expected)


def test_f1_of_nothing_is_0_and_nothing_to_find_is_an_error():
    assert micro_f1(*torch.zeros(3, dtype=torch.int32)).item() == 0
    source = random_source(4)
    nothing = source.with_truths(torch.zeros(len(source.target_record), 4))
    with pytest.raises(
        DataError, match=r"none of the labels that count is true .* of the 4 records .*\(label0, label1, label2, ...\)"
    ):
        count(some_probes(source), nothing)


def trained_scores(**options):
    train, dev = random_source(30), random_source(12, seed=1)
    return probe_layers(train, dev, settings=QUICK, **options), train, dev


def test_layer_scores_say_what_the_probes_do(tmp_path):
    found, train, dev = trained_scores(seeds=(0, 4), device=torch.device("cpu"))
    trained = train_probes(train, dev, cumulative_probes(train, (0, 4), QUICK), QUICK)
    assert torch.equal(found.f1, score_layers(trained, dev).f1)
    assert found.f1.shape == found.steps.shape == (2, 3)
    assert found.tp.shape == (2, 3, 12)
    assert found.seeds == (0, 4)
    assert found.labels == ("0", "1", "2")
    assert found.targets == len(dev.target_record)
    assert found.stopped == (("validations",) * 3,) * 2
    close(found.f1, found.validation_f1.max(2).values)
    close(found.mix, trained.probes.mix[[2, 5]])
    close(found.gamma, trained.probes.gamma[[2, 5]])
    close(found.mix.sum(1), torch.ones(2))
    assert (found.mix - 1 / 3).abs().max() > 1e-4
    close(micro_f1(*(getattr(found, f"label_{x}").sum(2) for x in ("tp", "fp", "fn"))), found.f1)
    assert torch.equal(found.label_tp.sum(2), found.tp.sum(2))
    statistics = found.statistics()
    close(statistics.f1, found.f1)
    close(statistics.centres, centre_of_gravity(found.mix))
    found.save(tmp_path / "scores")
    again = Result.load(tmp_path / "scores")
    assert torch.equal(again.f1, found.f1)
    assert (again.stopped, again.seeds, again.counted) == (found.stopped, found.seeds, found.counted)
    assert again.settings == repr(QUICK)
    assert "6 of 6 probes used up all validations" in str(found)
    assert "used up" not in str(dataclasses.replace(found, stopped=(("patience",) * 3,) * 2))
    assert "F1 is 0" not in str(found)
    assert "F1 is 0" in str(dataclasses.replace(found, f1=found.f1 * 0))
    assert f"seed 4: {100 * found.f1[1, 0]:.1f} " in str(found)


def test_a_test_set_is_scored_and_dev_is_not():
    found, train, dev = trained_scores()
    other = random_source(9, seed=2)
    tested = probe_layers(train, dev, test=other, settings=QUICK)
    assert torch.equal(tested.validation_f1, found.validation_f1)
    assert tested.tp.shape == (1, 3, 9)
    with pytest.raises(DataError, match="one task and one model, but labels differ"):
        probe_layers(train, dev, test=random_source(labels=3), settings=QUICK)


def test_f1_of_each_label_is_nan_where_there_is_nothing():
    found, _, _ = trained_scores()
    cut = dataclasses.replace(
        found, label_tp=found.label_tp.clone(), label_fp=found.label_fp.clone(), label_fn=found.label_fn.clone()
    )
    for cells in (cut.label_tp, cut.label_fp, cut.label_fn):
        cells[:, 1, 2] = 0
    f1 = cut.label_f1()
    assert f1[0, 1, 2].isnan()
    assert f1.isnan().sum() == 1
    tp, fp, fn = (getattr(found, f"label_{x}")[0, 2, 0].item() for x in ("tp", "fp", "fn"))
    assert f1[0, 2, 0].item() == pytest.approx(2 * tp / (2 * tp + fp + fn))


def test_the_bootstrap_draws_records(monkeypatch):
    found, _, _ = trained_scores(seeds=(0, 4))
    draws = found.bootstrap(200, seed=3)
    assert draws.shape == (200, 2, 3)
    assert torch.equal(draws, found.bootstrap(200, seed=3))
    assert not torch.equal(draws, found.bootstrap(200, seed=4))
    drawn = torch.randint(12, (200, 12), generator=torch.Generator().manual_seed(3))
    for draw in (0, 7, 199):
        tp, fp, fn = (
            sum(x[1, 2, record].item() for record in drawn[draw].tolist()) for x in (found.tp, found.fp, found.fn)
        )
        assert draws[draw, 1, 2].item() == pytest.approx(2 * tp / (2 * tp + fp + fn))
    monkeypatch.setattr("bertology.results.statistics.CELLS", 12 * 37)
    assert torch.equal(found.bootstrap(200, seed=3), draws)
    low, high = found.interval(0.9, resamples=200, seed=3)
    close(low, draws.quantile(0.05, 0))
    close(high, draws.quantile(0.95, 0))
    assert ((low <= found.f1) & (found.f1 <= high)).all()
    with pytest.raises(DataError, match="1 or more, got 0"):
        found.bootstrap(0)
    with pytest.raises(DataError, match="between 0 and 1, got 95"):
        found.interval(95)


def test_the_bootstraps_spread_is_that_of_new_data():
    generator = torch.Generator().manual_seed(0)
    right = (torch.rand(1, 1, 400, generator=generator) < 0.8).int()
    found, _, _ = trained_scores()
    # tp or fn, each record one label: F1 = 2p / (1 + p) of the share p of right ones.
    known = dataclasses.replace(found, f1=torch.zeros(1, 1), tp=right, fp=torch.zeros_like(right), fn=1 - right)
    p = right.double().mean().item()
    expected = 2 / (1 + p) ** 2 * math.sqrt(p * (1 - p) / 400)
    assert known.bootstrap(4000).std().item() == pytest.approx(expected, rel=0.05)


def test_probabilities_are_sigmoids_of_the_logits():
    source = random_source(7)
    probes = some_probes(source).train()
    found = probabilities(probes, source, batch_size=3)
    assert probes.training
    close(found, probes.eval()(source.batch(range(7))).sigmoid())
    some = torch.tensor([5, 0])
    close(probabilities(probes, source, records=some), probes(source.batch(some)).sigmoid())
    assert probabilities(probes, source, records=range(0)).shape == (3, 0, 4)


# Where is the answer?


@pytest.mark.parametrize(("where", "sides"), [(0, 1), (2, 1), (3, 1), (3, 2)])
def test_the_scores_jump_at_the_layer_where_the_answer_is(where, sides):
    train, dev = at_one_layer(where, sides=sides), at_one_layer(where, seed=1, records=150, sides=sides)
    found = probe_layers(train, dev, settings=SYNTHETIC)
    before, after = found.f1[0, :where], found.f1[0, where:]
    assert (before < 0.65).all(), found.f1
    assert (after > 0.8).all(), found.f1
    statistics = found.statistics()
    if where:
        assert statistics.differential[0].nan_to_num().argmax() == where
        assert abs(unchecked_expected_layer(found.f1).item() - where) < 0.6
    else:
        assert statistics.why[0]
    assert found.mix[0].argmax() == where
    assert found.mix[0, where] > 0.3
    assert abs(statistics.centre_of_gravity - 2) >= 0.3 * abs(where - 2)


def test_labels_of_others_give_chance():
    train, dev = at_one_layer(2), at_one_layer(2, seed=1, records=150)
    found = probe_layers(
        random_labels(train), random_labels(dev), settings=dataclasses.replace(SYNTHETIC, max_validations=8)
    )
    assert (found.f1 - 0.5).abs().max() < 0.1


def test_the_expected_layers_interval_is_that_of_each_draw():
    """Both a task with an answer at layer 2, of which each draw has a layer, and one whose F1 is the same at all."""
    train, dev = at_one_layer(2), at_one_layer(2, records=100, seed=1)
    scores = probe_layers(train, dev, seeds=(0, 1), settings=dataclasses.replace(SYNTHETIC, max_validations=10))
    layers = []
    for draw in scores.bootstrap(200, seed=5):
        gain = draw[:, -1] - draw[:, 0]
        assert (gain > 0.1).all()
        moments = [sum(layer * (f1[layer] - f1[layer - 1]) for layer in range(1, 5)) for f1 in draw]
        layers.append((torch.stack(moments) / gain).mean())
    drawn = torch.stack(layers)
    low, high = scores.layer_interval(0.9, resamples=200, seed=5)
    assert (low, high) == pytest.approx((drawn.quantile(0.05).item(), drawn.quantile(0.95).item()))
    assert low < scores.statistics().expected_layer < high
    flat = {x: getattr(scores, x)[:, :1].expand_as(getattr(scores, x)).clone() for x in ("f1", "tp", "fp", "fn")}
    assert all(map(math.isnan, dataclasses.replace(scores, **flat).layer_interval()))
    with pytest.raises(DataError, match="between 0 and 1, got 95"):
        scores.layer_interval(95)


def test_targets_are_followed_with_one_seeds_probes():
    train, dev = random_source(30), random_source(12, seed=1)
    trained = train_probes(train, dev, some_probes(train, (0, 4)), QUICK)
    records = [
        Record(
            tuple("abcdefgh"),
            tuple(
                Target(spans[0], tuple(name for name, one in zip(dev.labels, gold, strict=True) if one), spans[1])
                for spans, gold in zip(some, truth, strict=True)
            ),
        )
        for some, truth in zip(dev.spans, dev.truths, strict=True)
    ]
    task = EdgeTask.of("random", records, labels=dev.labels)
    every = probabilities(trained.probes, dev).double()
    for seed, rows in ((None, slice(0, 3)), (0, slice(0, 3)), (4, slice(3, 6))):
        found = follow_targets(trained, dev, task, seed=seed)
        assert torch.equal(found.probabilities, every[rows])
        assert torch.equal(found.gold.float(), torch.cat(dev.truths))
    with pytest.raises(DataError, match="seed must be one of the probes', 0, 4; got 1"):
        follow_targets(trained, dev, task, seed=1)
    other = dataclasses.replace(trained, probes=trained.probes.select([0, 2]))
    with pytest.raises(DataError, match="wanted cumulative probes"):
        follow_targets(other, dev, task)


def test_the_settings_that_are_told_are_those_of_the_probes():
    train, dev = random_source(12), random_source(6, seed=1)
    probes = Probes(cumulative(3), 8, 4, 2, width=5, dropout=0.5, input_dropout=0.0)
    told = train_probes(train, dev, probes, QUICK).settings
    assert told == dataclasses.replace(QUICK, width=5, dropout=0.5, input_dropout=0.0)


@pytest.mark.shared
@pytest.mark.slow
def test_parts_of_speech_are_in_a_real_model(minilm, shared, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    from bertology.edge_probing.encoding import encode
    from bertology.edge_probing.formats.treebanks import pos_edges

    model, tokenizer = AutoModel.from_pretrained(minilm), AutoTokenizer.from_pretrained(minilm)
    task = pos_edges(shared / "ud" / "en_ewt-ud-dev.conllu")
    train, dev = (
        encode(model, tokenizer, some, tmp_path / name) for name, some in (("a", task[:160]), ("b", task[160:240]))
    )
    settings = Training(lr=3e-3, validate_every=40, max_validations=2, width=32)
    found = probe_layers(train, dev, settings=settings)
    true = (found.label_tp + found.label_fn)[0, 0]
    most = true.max() / true.sum()  # F1 of always saying the most common label
    assert (found.f1[0] > most + 0.4).all(), found.f1
    assert found.f1[0, 1:].max() > found.f1[0, 0] + 0.02
    assert found.targets == dev.targets
    low, high = found.interval()
    assert ((low < found.f1) & (found.f1 < high) & (high - low < 0.15)).all()


# What is wrong with it?


class NoRecords(Failing):
    records = 0


def test_data_that_do_not_fit():
    train, dev = random_source(12), random_source(6, seed=1)
    for other, said in (
        (random_source(layers=2), "layers differ: 3 and 2"),
        (random_source(sides=1), "sides differ: 2 and 1"),
        (random_source(hidden=4), "hidden differ: 8 and 4"),
        (dataclasses.replace(dev, counted=("label1",)), "counted differ"),
    ):
        with pytest.raises(DataError, match=said):
            probe_layers(train, other, settings=QUICK)
    with pytest.raises(DataError, match="the probes are for 3 labels, train has 4"):
        train_probes(train, dev, Probes(cumulative(3), 8, 3, 2), QUICK)
    with pytest.raises(ShapeError, match="vectors must be"):
        train_probes(train, dev, Probes(cumulative(2), 8, 4, 2), QUICK)
    with pytest.raises(DataError, match="dev has no records"):
        train_probes(train, NoRecords(dev, 0), some_probes(train), QUICK)
    for seeds in ((), (1, 1)):
        with pytest.raises(DataError, match="one or more, each once"):
            probe_layers(train, dev, seeds=seeds, settings=QUICK)
    trained = train_probes(train, dev, some_probes(train).select([0, 2]), QUICK)
    with pytest.raises(DataError, match="wanted cumulative probes, 3 for each seed, got 2 other ones"):
        score_layers(trained, dev)


def test_numbers_that_are_not_finite_are_never_scores():
    train, dev = random_source(12), random_source(6, seed=1)
    broken = dataclasses.replace(train, vectors=(*train.vectors[:-1], train.vectors[-1] * math.nan))
    with pytest.raises(DataError, match="the loss of probe 0 is nan in the steps before step 5"):
        train_probes(broken, dev, some_probes(train), QUICK)
    with pytest.raises(DataError, match="probe 0 gives logits that are not finite for records 8 to 11"):
        count(some_probes(train), broken, batch_size=8)


def test_a_batch_without_targets_is_an_error():
    class Empty(Failing):
        def batch(self, records):
            found = self._source.batch(records)
            if isinstance(records, range):
                return found
            nothing = torch.zeros(0, dtype=torch.int64)
            return EdgeBatch(found.vectors, (nothing,) * 2, (nothing,) * 2, found.gold[:0])

    with pytest.raises(DataError, match="the batch of step 0 has no targets"):
        train_probes(Empty(random_source(), 0), random_source(), some_probes(random_source()), QUICK)

    class Short(Failing):
        @property
        def target_record(self):
            return self._source.target_record[1:]

    with pytest.raises(ShapeError, match=r"target_record gives records 0 to 5 \d+ targets, their batch has \d+"):
        count(some_probes(random_source()), Short(random_source(), 9))


def test_a_progress_bar_is_shown_where_asked_for(capsys):
    train_probes(random_source(), random_source(), some_probes(random_source()), QUICK, progress="POS")
    assert "POS: 100%" in capsys.readouterr().err
    train_probes(random_source(), random_source(), some_probes(random_source()), QUICK)
    assert not capsys.readouterr().err
