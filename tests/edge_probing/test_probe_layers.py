import dataclasses
import math

import pytest
import torch

from bertology.edge_probing.layer_statistics import unchecked_expected_layer
from bertology.edge_probing.optimizer import Training
from bertology.edge_probing.probe_layers import (
    follow_targets,
    probabilities,
    probe_layers,
)
from bertology.edge_probing.probes import Probes, cumulative
from bertology.edge_probing.tasks import EdgeTask, Record, Target
from bertology.edge_probing.train import train_probes
from bertology.errors import DataError
from helpers.edge_sources import at_one_layer, random_labels, random_source
from helpers.edge_training import QUICK, CutOff, Failing, close, some_probes, trained_scores

SYNTHETIC = Training(lr=3e-3, validate_every=25, max_validations=24, width=16, patience_stop=8)


def test_inference_mode_does_not_matter():
    train, dev = random_source(12), random_source(4, seed=1)
    with torch.inference_mode():
        found = probe_layers(train, dev, settings=QUICK)
    assert torch.equal(found.f1, probe_layers(train, dev, settings=QUICK).f1)


def test_scores_that_were_cut_off_do_not_train_again(tmp_path):
    train, dev, file = random_source(12), random_source(6, seed=1), tmp_path / "training"
    # The digest and the check look at 2 batches of dev, each of 6 validations at 1.
    with pytest.raises(CutOff):
        probe_layers(train, Failing(dev, 8), settings=QUICK, checkpoint=file)
    found = probe_layers(Failing(train, 2), dev, settings=QUICK, checkpoint=file)
    assert torch.equal(found.f1, probe_layers(train, dev, settings=QUICK).f1)
    assert not file.exists()


def test_a_test_set_is_scored_and_dev_is_not():
    found, train, dev = trained_scores()
    other = random_source(9, seed=2)
    tested = probe_layers(train, dev, test=other, settings=QUICK)
    assert torch.equal(tested.validation_f1, found.validation_f1)
    assert tested.tp.shape == (1, 3, 9)
    with pytest.raises(DataError, match="one task and one model, but labels differ"):
        probe_layers(train, dev, test=random_source(labels=3), settings=QUICK)


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
