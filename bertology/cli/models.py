"""A model and its tokenizer, by a name or a folder, and batches of texts for it."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from ..anatomy.names import IDS_ARGUMENT
from ..data.losses import is_causal
from ..data.make_batches import make_batches
from ..data.models import is_encoder_decoder
from ..data.positions import room_of
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

    Raises `DataError` for what transformers cannot load, and for encoder-decoders.
    """
    place = _device(device)
    if name == DEMO and not os.path.exists(name):
        if tokenizer:
            raise DataError(f"nothing reads --tokenizer here, since {DEMO!r} has a tokenizer of its own")
        demo = topic_classifier()
        texts: list[tuple[str, ...]] = [(text,) for text in demo.texts]
        places = [f"the demo, sentence {number}" for number, _ in enumerate(texts)]
        return Loaded(demo.model.to(place), demo.tokenizer, Texts(texts, demo.labels, places))
    with loading(f"no model can be loaded from {name!r}"):
        model = load_pruned(name) if os.path.isdir(name) else _from_hub(name)
    if is_encoder_decoder(model):
        raise DataError(f"{name!r} is an encoder-decoder, whose texts come in pairs: call the functions in Python")
    with loading(f"no tokenizer can be loaded from {tokenizer or name!r} (--tokenizer names another)"):
        found = transformers.AutoTokenizer.from_pretrained(tokenizer or name)
    return Loaded(model.to(place).eval(), found)


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
        warnings.warn(f"these weights are random: {', '.join(sorted(told['missing_keys']))}", stacklevel=2)
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
) -> tuple[list[Mapping[str, Any]], int]:
    """Batches of texts of similar length, with labels if there are any; and how many texts were cut.

    A causal language model predicts its own texts. Raises `DataError` for labels that are none of the model.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    room = room_of(model)
    limit = min(max_length or sys.maxsize, room or sys.maxsize, tokenizer.model_max_length)
    labels = None if texts.labels is None or is_causal(model) else numbers(texts, model.config)
    whole = tokenizer(*map(list, zip(*texts.texts, strict=True)))[IDS_ARGUMENT]
    cut = sum(len(ids) > limit for ids in whole)
    columns = ("text", "text_pair")[: len(texts.texts[0])]
    rows: list[dict[str, Any]] = [dict(zip(columns, one, strict=True)) for one in texts.texts]
    if labels is not None:
        rows = [row | {"label": label} for row, label in zip(rows, labels, strict=True)]
    length = max_length or (int(limit) if cut else None)
    made = make_batches(
        rows, tokenizer, model=model, columns=columns, batch_size=batch_size, truncation=bool(cut), max_length=length
    )  # fmt: skip
    return list(made), cut


def numbers(texts: Texts, config: Any) -> list[int] | list[float]:
    """The labels as numbers: of classes by their number or name, or any number for a regression."""
    assert texts.labels is not None
    names = {str(name): number for name, number in (config.label2id or {}).items()}
    found: list[Any] = []
    for label, place in zip(texts.labels, texts.places, strict=True):
        try:
            found.append(_number(label, names, config.num_labels))
        except ValueError:
            classes = f"0 to {config.num_labels - 1}, or one of {', '.join(sorted(names, key=names.__getitem__))}"
            wanted = "a number" if config.num_labels == 1 else classes
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
