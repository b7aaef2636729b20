import dataclasses
import math

import pytest
import torch
from sklearn.metrics import f1_score

from bertology.edge_probing.layer_statistics import centre_of_gravity
from bertology.edge_probing.probe_layers import (
    cumulative_probes,
    score_layers,
)
from bertology.edge_probing.probes import Probes, cumulative
from bertology.edge_probing.scores import count, micro_f1
from bertology.edge_probing.train import train_probes
from bertology.errors import DataError
from bertology.results.result import Result
from helpers.edge_sources import random_source
from helpers.edge_training import QUICK, close, some_probes, trained_scores
from oracles import edge_probes as oracles

pytestmark = pytest.mark.any_transformers

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
