"""Where there is nothing to find, nothing is found: controls on a real model and real sentences."""

import pytest
from transformers import AutoModel, AutoTokenizer

from bertology.edge_probing import (
    Probes,
    Training,
    control_tasks,
    encode,
    pos_edges,
    shared_types,
    shuffled_labels,
    train_probes,
)
from bertology.edge_probing.probes import cumulative
from bertology.syntax import randomized

SETTINGS = Training(lr=3e-3, validate_every=50, max_validations=4, width=64)


@pytest.fixture(scope="module")
def score(minilm, shared, tmp_path_factory):
    """F1 at layer 0 and with all layers, of a task on a model."""
    tokenizer = AutoTokenizer.from_pretrained(minilm)

    def scored(model, tasks):
        folder = tmp_path_factory.mktemp("store")
        stores = [encode(model, tokenizer, task, folder / str(n)) for n, task in enumerate(tasks)]
        layers = cumulative(stores[0].layers)[[0, -1]]
        probes = Probes(layers, stores[0].hidden, len(stores[0].labels), 1, width=SETTINGS.width)
        return train_probes(*stores, probes, SETTINGS).validation_f1.nan_to_num(0).max(1).values

    return scored


@pytest.fixture(scope="module")
def parts_of_speech(shared):
    task = pos_edges(shared / "ud" / "en_ewt-ud-dev.conllu")
    return task[:300], task[300:420]


@pytest.fixture(scope="module")
def model(minilm):
    return AutoModel.from_pretrained(minilm).eval()


@pytest.fixture(scope="module")
def real(score, model, parts_of_speech):
    return score(model, parts_of_speech)


@pytest.mark.slow
@pytest.mark.shared
def test_selectivity_is_positive(score, model, parts_of_speech, real):
    """A word keeps its random label, so that it can be learnt by heart, but there is nothing to learn of new words."""
    control = score(model, control_tasks(*parts_of_speech))
    assert 0.6 < shared_types(*parts_of_speech) < 0.8
    assert (real > 0.8).all()
    assert (control > 0.4).all()
    assert (real - control > 0.2).all()
    # What a word means to its neighbours helps with its part of speech, and hurts a label that hangs on the word alone.
    assert real[1] > real[0] + 0.02
    assert control[1] < control[0]


@pytest.mark.slow
@pytest.mark.shared
def test_without_trained_weights_less_is_found(score, model, parts_of_speech, real):
    """Embeddings are kept: layer 0 is as good as before, and all layers together are worse than it."""
    untrained = score(randomized(model).eval(), parts_of_speech)
    assert abs(untrained[0] - real[0]) < 0.02
    assert untrained[1] < real[1] - 0.05


@pytest.mark.slow
@pytest.mark.shared
def test_shuffled_labels_give_chance(score, model, parts_of_speech, real):
    """No part of speech is that of half of the words, so that who knows only shares never says yes."""
    shuffled = score(model, [shuffled_labels(task) for task in parts_of_speech])
    assert (shuffled < 0.05).all()
    assert (real > 0.8).all()
