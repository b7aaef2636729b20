import dataclasses
import math

import pytest
import torch

from bertology.edge_probing.optimizer import Training
from bertology.edge_probing.probe_layers import (
    cumulative_probes,
    probe_layers,
    score_layers,
)
from bertology.edge_probing.probes import Probes, cumulative
from bertology.edge_probing.scores import bits_of, count, micro_f1
from bertology.edge_probing.span_batches import EdgeBatch
from bertology.edge_probing.train import AT_ONCE, train_probes
from bertology.errors import DataError, ShapeError
from helpers.edge_sources import at_one_layer, random_labels, random_source
from helpers.edge_training import QUICK, CutOff, Failing, close, some_probes
from oracles import edge_probes as oracles

pytestmark = pytest.mark.any_transformers

# Of six probes on `learnable`, each stops at another time.
STOPPING = Training(
    lr=1e-2, batch_size=8, validate_every=5, max_validations=12, width=6, patience_halve=2, patience_stop=4
)


def learnable():
    return [at_one_layer(1, layers=3, records=many, hidden=8, seed=seed) for seed, many in enumerate((40, 10))]


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


# The loss falls until a rate is too high.
BY_LOSS = dataclasses.replace(STOPPING, choose_by="loss", lr=0.2, patience_stop=3)


@pytest.mark.parametrize("settings", [STOPPING, BY_LOSS], ids=["f1", "loss"])
@pytest.mark.parametrize("after", [3, 12, 30])
def test_a_training_that_was_cut_off_goes_on_to_the_same_bits(tmp_path, monkeypatch, after, settings):
    monkeypatch.setattr("bertology.streaming.checkpoint.EVERY_SECONDS", 0.0)
    (train, dev), file = learnable(), tmp_path / "training"
    probes = cumulative_probes(train, (0, 5), settings)
    whole = train_probes(train, dev, probes, settings)
    assert whole.steps.min() < 30 < whole.steps.max()
    reads = -(-train.records // AT_ONCE)  # by which the data is identified
    with pytest.raises(CutOff):
        train_probes(Failing(train, after + 1 + reads), dev, probes, settings, checkpoint=file)
    assert file.is_file()
    left = Failing(train, int(whole.steps.max()) - after + 1 + reads)  # no more batches than are missing
    resumed = train_probes(left, dev, probes, settings, checkpoint=file)
    assert not list(tmp_path.iterdir())
    assert torch.equal(resumed.probes.weights, whole.probes.weights)
    for name in ("steps", "best_steps", "validation_f1", "validation_bits", "losses"):
        torch.testing.assert_close(getattr(resumed, name), getattr(whole, name), rtol=0, atol=0, equal_nan=True)
    assert resumed.stopped == whole.stopped


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A training on so many records that is interrupted: its records, those of dev, its probes and its checkpoint."""
    monkeypatch.setattr("bertology.streaming.checkpoint.EVERY_SECONDS", 0.0)

    def run(records):
        train, dev, file = random_source(records), random_source(6, seed=1), tmp_path / "training"
        probes = some_probes(train)
        with pytest.raises(CutOff):
            train_probes(Failing(train, 9), dev, probes, QUICK, checkpoint=file)
        return train, dev, probes, file

    return run


def test_a_checkpoint_of_another_training_is_refused(tmp_path, interrupted):
    train, dev, probes, file = interrupted(12)
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


def test_a_checkpoint_of_data_that_changed_in_its_last_record_is_refused(interrupted):
    train, dev, probes, file = interrupted(70)
    kept = train.vectors[-1].clone()
    train.vectors[-1][-1, -1, -1] += 1e-6
    with pytest.raises(DataError, match="other data: remove it or name another"):
        train_probes(train, dev, probes, QUICK, checkpoint=file)
    train.vectors[-1].copy_(kept)
    train_probes(train, dev, probes, QUICK, checkpoint=file)


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
        with pytest.raises(DataError, match="one or more different integers"):
            probe_layers(train, dev, seeds=seeds, settings=QUICK)
    trained = train_probes(train, dev, some_probes(train).select([0, 2]), QUICK)
    with pytest.raises(DataError, match="wanted cumulative probes, 3 for each seed, got 2 other ones"):
        score_layers(trained, dev)


def test_numbers_that_are_not_finite_are_never_scores():
    train, dev = random_source(12), random_source(6, seed=1)
    broken = dataclasses.replace(train, vectors=(*train.vectors[:-1], train.vectors[-1] * math.nan))
    with pytest.raises(DataError, match="the loss of probe 0 is nan in the steps before step 5"):
        train_probes(broken, dev, some_probes(train), QUICK)
    with pytest.raises(DataError, match="probe 0 returns logits that are not finite for records 8 to 11"):
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

    with pytest.raises(ShapeError, match=r"records 0 to 5 have \d+ targets in target_record, but their batch has \d+"):
        count(some_probes(random_source()), Short(random_source(), 9))


def test_a_progress_bar_is_shown_where_asked_for(capsys):
    train_probes(random_source(), random_source(), some_probes(random_source()), QUICK, progress="POS")
    assert "POS: 100%" in capsys.readouterr().err
    train_probes(random_source(), random_source(), some_probes(random_source()), QUICK)
    assert not capsys.readouterr().err
