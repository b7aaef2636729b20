"""The identity of an encoding: its model, tokenizer, data and settings, and the parts that were joined."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import DataError, how_many
from ..streaming.identity import config_settings, edits_identity, weights_digest
from .tasks import EdgeTask

About = Mapping[str, Any]
"""What meta.json says of a store."""
# Text in which tokenizers differ: case, accents, digits, signs, scripts, blanks.
_SAMPLE = "Él ate 1,234.5 naïve cafés, isn't HE?  日本語 x_y@z.com — №7"


# What is told in words where it differs, and not by its values.
_IN_WORDS = {
    "weights": "model's weights",
    "data": "data",
    "tokenizer": "tokenizer",
    "labels": "labels",
    "counted": "labels that count",
    "edits": "edits, such as gates",
}


def identity(
    model: nn.Module, tokenizer: Any, task: EdgeTask, settings: Mapping[str, Any], sizes: Sequence[int] = ()
) -> dict[str, Any]:
    """The identity of an encoding, as values for JSON; `sizes` are the numbers of records of joined parts."""
    return {
        "model": type(model).__name__,
        "weights": weights_digest(model),
        "config": config_settings(model),
        "tokenizer": tokenizer_digest(tokenizer),
        "data": joined_digest([data_digest(part, settings["raw_text"]) for part in parts_of_sizes(task, sizes)]),
        "labels": list(task.labels),
        "counted": list(task.counted),
        "edits": edits_identity(model),
        **settings,
    }


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The differences between two identities, in words; empty if there is none."""
    found = []
    for name, wanted in here.items():
        # Stores of earlier versions are of words joined by blanks, and say nothing of edits.
        got = there.get(name, {"raw_text": False, "edits": []}.get(name))
        if name == "config":
            # Versions of transformers write down more settings or fewer: those in both are compared.
            found += [
                f"the model's {key} ({got[key]!r} there, {value!r} here)"
                for key, value in wanted.items()
                if isinstance(got, Mapping) and key in got and got[key] != value
            ]
        elif name in _IN_WORDS:
            found += [f"the {_IN_WORDS[name]}"] if got != wanted else []
        elif got != wanted:
            found.append(f"{name} ({got!r} there, {wanted!r} here)")
    return found


def data_digest(task: EdgeTask, raw_text: bool) -> str:
    """A digest of all words, spans and labels of a task, in their order, and of its text if that is read.

    Names and further information don't count.
    """
    digest = hashlib.sha256()
    for record in task.records:
        targets = [(target.span1, target.span2, target.labels) for target in record.targets]
        digest.update(repr((record.words, targets)).encode())
        if raw_text:
            digest.update(repr((record.text, record.spans)).encode())
    return digest.hexdigest()


def spans_digest(task: EdgeTask) -> str:
    """A digest of all words and spans of a task, in their order: the same whatever the labels are."""
    digest = hashlib.sha256()
    for record in task.records:
        digest.update(repr((record.words, [(target.span1, target.span2) for target in record.targets])).encode())
    return digest.hexdigest()


def joined_digest(digests: Sequence[str]) -> str:
    """The digest of parts that follow one another; of one part it is its own."""
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def parts_of_sizes(task: EdgeTask, sizes: Sequence[int]) -> list[EdgeTask]:
    """The task cut into parts of these numbers of records; whole if their sum is not that of the task."""
    if sum(sizes) != len(task):
        return [task]
    ends = list(accumulate(sizes))
    return [task[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def tokenizer_digest(tokenizer: Any) -> str:
    """A digest of a tokenizer's vocabulary, and of what it makes of a text in which tokenizers differ."""
    made: list[Any] = []
    with suppress(Exception):  # `align` raises if this is no tokenizer, or has no token for such text
        made.append(sorted(tokenizer.get_vocab().items()))
        made.append(sorted((name, list(x)) for name, x in dict(tokenizer(_SAMPLE, verbose=False)).items()))
    return hashlib.sha256(repr(made).encode()).hexdigest()


def part_of(task: EdgeTask, data: str) -> dict[str, Any]:
    """The identity of a task that was encoded whole: how many records it has, and digests of what is in them."""
    return {"records": len(task), "spans": spans_digest(task), "data": data}


def parts_of(path: Path, about: About) -> list[dict[str, Any]]:
    """The identity of each part of the task of a store. Raises `DataError` for stores that do not say."""
    if "parts" not in about:
        raise DataError(
            f"{path} was made by an earlier version, which kept no digest of the words and spans: encode the task "
            "again, in another folder"
        )
    return list(about["parts"])


def joined_about(paths: Sequence[Path], abouts: Sequence[About]) -> dict[str, Any]:
    """What meta.json says of the joined store. Raises `DataError` for stores that are not parts of one task."""
    if len(abouts) < 2:
        raise DataError(f"wanted two or more stores to join, got {len(abouts)}")
    twice = next((path for path, many in Counter(path.resolve() for path in paths).items() if many > 1), None)
    if twice is not None:
        raise DataError(f"{twice} is given twice: wanted each part once")
    first = abouts[0]
    for path, about in zip(paths, abouts, strict=True):
        differ = differences(_settings(first), _settings(about))
        if differ:
            raise DataError(
                f"{path} is not of the same task and model as {paths[0]}. What differs: {', '.join(differ)}"
            )
    parts = [part for path, about in zip(paths, abouts, strict=True) for part in parts_of(path, about)]
    lost = sum((Counter(about["lost"]) for about in abouts), Counter[str]())
    made_of = {**first["made_of"], "data": joined_digest([part["data"] for part in parts])}
    return {**first, "made_of": made_of, "lost": dict(lost), "parts": parts}


def relabelled_about(path: Path, about: About, task: EdgeTask) -> dict[str, Any]:
    """What meta.json would say of a task with the same words and spans. Raises `DataError` for other words or spans."""
    parts = parts_of(path, about)
    sizes = [part["records"] for part in parts]
    raw_text = about["made_of"].get("raw_text", False)
    made = [part_of(one, data_digest(one, raw_text)) for one in parts_of_sizes(task, sizes)]
    if [part["spans"] for part in made] != [part["spans"] for part in parts]:
        raise DataError(
            f"task {task.name!r} does not have the words and spans of {about['name']!r}, which {path} was made of "
            f"({how_many(sum(sizes), 'record')}): wanted the same records and spans, with other labels"
        )
    labels = {"labels": list(task.labels), "counted": list(task.counted)}
    made_of = {**about["made_of"], **labels, "data": joined_digest([part["data"] for part in made])}
    return {**about, "name": task.name, "made_of": made_of, "parts": made}


def _settings(about: About) -> dict[str, Any]:
    """What all parts must have in common."""
    made_of = {name: value for name, value in about["made_of"].items() if name != "data"}
    return {**made_of, "layers": about["layers"], "hidden size": about["hidden"]}
