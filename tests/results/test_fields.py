"""What a model is called in titles."""

from pathlib import Path

import pytest

from bertology import attention_entropy
from bertology.results.fields import name_of_folder
from helpers.zoo import BY_NAME, batch

HASH = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/sentiment-bert", "sentiment-bert"),
        ("/a/sentiment-bert/model", "sentiment-bert"),
        ("/a/sentiment-bert/pruned_model/", "sentiment-bert"),
        ("/runs/topic/output/best-model", "topic"),
        ("/runs/topic/checkpoint-1500", "topic/checkpoint-1500"),
        ("/runs/topic/out/epoch_3", "topic/epoch_3"),
        (f"/c/hub/models--google--electra-small/snapshots/{HASH}", "google/electra-small"),
        ("/model", "model"),
        ("/root/models/model", "model"),
        ("/a/model-2", "model-2"),
        ("/a/checkpoint-bert", "checkpoint-bert"),
    ],
)
def test_a_folder_has_a_name_that_says_something(path, name):
    assert name_of_folder(Path(path)) == name


def test_a_folder_below_the_current_one(tmp_path, monkeypatch):
    (tmp_path / "tulips").mkdir()
    monkeypatch.chdir(tmp_path / "tulips")
    for path in ("model", ".", "out/model"):
        assert name_of_folder(Path(path)) == "tulips"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/gold/model", "GPT2ForSequenceClassification (gold)"),
        ("org/model", "GPT2ForSequenceClassification (org/model)"),  # a name on the hub stays as it is
        ("", "GPT2ForSequenceClassification"),
        (f"/a/{'x' * 80}", f"GPT2ForSequenceClassification ({'x' * 59}…)"),
    ],
)
def test_titles(path, name):
    model = BY_NAME["gpt2"].build()
    model.config._name_or_path = path
    found = attention_entropy(model, batch())
    assert found.model_name == name
    title = "".join(found.plot().axes[0].get_title().split())  # long names are broken
    assert "".join(f"{name}, 3 examples".split()) in title
