"""A model and its tokenizer, by a name or a folder, and batches of texts for it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from ..anatomy.names import IDS_ARGUMENT, LABELS_ARGUMENT
from ..data.batches import IGNORED
from ..data.losses import is_causal
from ..data.models import is_encoder_decoder, task_name
from ..demo import topic_classifier
from ..errors import DataError, shown
from ..pruning.load import load_pruned
from .texts import Texts

DEMO = "demo"
NUMBER = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Loaded:
    """A model, its tokenizer, and the texts of the demo where it is the demo's."""

    model: Any
    tokenizer: Any
    texts: Texts | None = None


def load(name: str, *, tokenizer: str | None = None, device: str | None = None) -> Loaded:
    """Load a model with the task head that it was saved with, pruned or not; "demo" is the classifier of the demo.

    Raises `DataError` for what transformers cannot load.
    """
    if name == DEMO and not Path(name).exists():
        demo = topic_classifier()
        places = [f"the demo, sentence {number}" for number, _ in enumerate(demo.texts)]
        return Loaded(
            demo.model.to(_device(device)), demo.tokenizer, Texts([(x,) for x in demo.texts], demo.labels, places)
        )
    with loading(f"no model can be loaded from {name!r}"):
        model = load_pruned(name) if Path(name).is_dir() else _from_hub(name)
    with loading(f"no tokenizer can be loaded from {tokenizer or name!r} (--tokenizer names another)"):
        found = transformers.AutoTokenizer.from_pretrained(tokenizer or name)
    if is_encoder_decoder(model):
        raise DataError(f"{name!r} is an encoder-decoder, whose texts come in pairs: call the functions in Python")
    return Loaded(model.to(_device(device)).eval(), found)


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Say in one line what transformers could not load."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError) as error:
        if isinstance(error, DataError):
            raise
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DataError(f"{what}: {line.strip()}") from error


def _from_hub(name: str) -> Any:
    config = transformers.AutoConfig.from_pretrained(name)
    kinds = [getattr(transformers, kind, None) for kind in getattr(config, "architectures", None) or ()]
    kind = next((kind for kind in kinds if kind is not None), transformers.AutoModel)
    model, told = kind.from_pretrained(name, output_loading_info=True)
    if told["missing_keys"]:
        print(
            f"bertology: warning: these weights are random: {', '.join(sorted(told['missing_keys']))}", file=sys.stderr
        )
    return model


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def batches_of(
    loaded: Loaded, texts: Texts, *, batch_size: int, max_length: int | None
) -> tuple[list[dict[str, Tensor]], int]:
    """Batches of texts of similar length, with labels if there are any; and how many texts were cut.

    A causal language model predicts its own texts.
    """
    tokenizer = loaded.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if _needs_one_text_a_batch(loaded):
        batch_size = 1
    both = [list(part) for part in zip(*texts.texts, strict=True)]
    limit = min(max_length or sys.maxsize, _room(loaded))
    whole = tokenizer(*both)[IDS_ARGUMENT]
    cut = sum(len(ids) > limit for ids in whole)
    encoded = tokenizer(*both, truncation=True, max_length=limit) if cut else tokenizer(*both)
    labels = None if texts.labels is None or is_causal(loaded.model) else numbers(texts, loaded.model.config)
    order = sorted(range(len(whole)), key=lambda i: -len(encoded[IDS_ARGUMENT][i]))
    made = []
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = dict(tokenizer.pad({k: [v[i] for i in rows] for k, v in encoded.items()}, return_tensors="pt"))
        if is_causal(loaded.model):
            batch[LABELS_ARGUMENT] = batch[IDS_ARGUMENT].masked_fill(batch["attention_mask"] == 0, IGNORED)
        elif labels is not None:
            batch[LABELS_ARGUMENT] = torch.tensor([labels[i] for i in rows])
        made.append(batch)
    return made, cut


def _needs_one_text_a_batch(loaded: Loaded) -> bool:
    """Whether a classifier cannot find the last token of a padded text."""
    return task_name(loaded.model).endswith("SequenceClassification") and loaded.model.config.pad_token_id is None


def _room(loaded: Loaded) -> int:
    most = getattr(loaded.model.config, "max_position_embeddings", None) or sys.maxsize
    return int(min(most, loaded.tokenizer.model_max_length))


def numbers(texts: Texts, config: Any) -> list[int] | list[float]:
    """The labels as numbers: of classes by their number or name, or any number for a regression."""
    assert texts.labels is not None
    names = {str(name): number for name, number in (config.label2id or {}).items()}
    found: list[Any] = []
    for label, place in zip(texts.labels, texts.places, strict=True):
        try:
            found.append(_number(label, names, config.num_labels))
        except ValueError:
            wanted = (
                "a number" if config.num_labels == 1 else f"0 to {config.num_labels - 1}, or one of {', '.join(names)}"
            )
            raise DataError(f"{place}: {shown(label)} is no label of this model: wanted {wanted}") from None
    return found


def _number(label: Any, names: dict[str, int], many: int) -> int | float:
    if many == 1:
        return float(label)
    if isinstance(label, str) and label in names:
        return names[label]
    if isinstance(label, bool) or not NUMBER.fullmatch(str(label)) or not 0 <= int(label) < many:
        raise ValueError
    return int(label)
