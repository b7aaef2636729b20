"""The small classifier of the demo: trained, the same each time, and on sentences of its own."""

import collections

import pytest
import torch
from transformers import AutoModel

from bertology import score
from bertology.demo import TOPICS, sentences, topic_classifier


@pytest.fixture(scope="module")
def demo(minilm):
    return topic_classifier()


def test_it_knows_sentences_that_it_did_not_see(demo):
    assert score(demo.model, demo.batch, metric="accuracy").value == pytest.approx(59 / 60)
    assert demo.topics == TOPICS == tuple(demo.model.config.id2label.values())
    assert not demo.model.training


def test_only_the_head_is_trained(demo, minilm):
    body = AutoModel.from_pretrained(minilm).state_dict()
    assert all(torch.equal(x, body[name]) for name, x in demo.model.base_model.state_dict().items())
    assert all(parameter.grad is None for parameter in demo.model.parameters())
    assert demo.model.classifier.weight.abs().sum() > 1


def test_it_is_the_same_each_time(demo):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with torch.no_grad():
        again = topic_classifier()
    assert torch.equal(torch.get_rng_state(), before)
    ours, theirs = demo.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())
    assert (again.texts, again.labels) == (demo.texts, demo.labels)


@pytest.mark.any_transformers
def test_sentences():
    (train, learned), (test, asked) = sentences("train"), sentences("test")
    assert collections.Counter(learned) == dict.fromkeys(range(4), 10)
    assert collections.Counter(asked) == dict.fromkeys(range(4), 15)
    assert len({text.lower() for text in train + test}) == 100
    assert all(text.isascii() and text.endswith(".") for text in train + test)
