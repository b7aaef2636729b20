"""Tasks from TACRED: relations of two entities, and the kinds of these."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ...corpora.bracketed_trees import unescaped
from ...corpora.files import json_list_of
from ...corpora.skips import Broken, placed
from ...errors import DataError, checked, described, how_many
from ..tasks import EdgeTask, Record, Span, Target

_SIDES = ("subj", "obj")


@checked
def tacred_edges(
    path: str | Path, *, targets: Literal["relations", "entities"] = "relations", skip_broken: bool = False,
    name: str | None = None,
) -> EdgeTask:  # fmt: skip
    """Make a task from the JSON of TACRED (Zhang et al. 2017): a list of examples with a subject and an object.

    Each example has `id`, `token`, `relation` and for the subject and the object `subj_start`, `subj_end` (the last
    word, included) and `subj_type`; `obj_start` and so on. Of the "relations", `span1` is the subject, `span2` the
    object, and all but `no_relation` count for the score. As "entities" the subject and the object are a target each,
    and the label is the type. Escapes such as `-LRB-` are read as `(`.

    Args:
        path: the file.
        targets: "relations", or "entities" as in the second task that the paper's program makes.
        skip_broken: leave out examples of another format, and list them in `skipped`, instead of raising.
        name: the name of the task in messages; by default that of the targets.

    Raises `DataError`, which names the example, for examples of another format.

        >>> from tempfile import NamedTemporaryFile
        >>> spans = '"subj_start": 0, "subj_end": 0, "obj_start": 3, "obj_end": 3'
        >>> kinds = '"subj_type": "PERSON", "obj_type": "CITY", "relation": "per:cities_of_residence"'
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write(f'[{{"id": "e1", "token": ["Ann", "lives", "in", "Rome"], {spans}, {kinds}}}]')
        ...     file.flush()
        ...     tacred_edges(file.name)[0].targets
        (Target(span1=(0, 1), labels=('per:cities_of_residence',), span2=(3, 4), info=''),)
    """
    if targets not in ("relations", "entities"):
        raise DataError(f"targets must be 'relations' or 'entities', got {targets!r}")
    broken = Broken(skip_broken, "such examples")
    records = []
    for number, example in enumerate(json_list_of(path, "examples"), 1):
        with broken.part(f"{Path(path).name} {number}"), placed(path, f"example {number}"):
            records.append(_record(example, targets, f"{Path(path).name} {number}"))
    with placed(path):
        counted = "relations" if targets == "relations" else None
        return EdgeTask.of(name or targets, records, counted=counted, skipped=broken.skipped)


def _record(example: Any, targets: str, called: str) -> Record:
    if not isinstance(example, Mapping):
        raise DataError(f"wanted an object, got {described(example)}")
    words = _of_type(example, "token", list)
    if not words or not all(isinstance(word, str) for word in words):
        raise DataError(f"token must be a list of one word or more, got {described(words)}")
    subject, target = (_span(example, side, len(words)) for side in _SIDES)
    if targets == "relations":
        made = [Target(subject, (_of_type(example, "relation", str),), target)]
    else:
        kinds = [_of_type(example, f"{side}_type", str) for side in _SIDES]
        made = [Target(span, (kind,)) for span, kind in zip((subject, target), kinds, strict=True)]
    return Record(tuple(unescaped(word) for word in words), tuple(made), str(example.get("id", called)))


def _span(example: Mapping[str, Any], side: str, words: int) -> Span:
    start, last = (_of_type(example, f"{side}_{end}", int) for end in ("start", "end"))
    if not 0 <= start <= last < words:
        raise DataError(
            f"{side}_start and {side}_end are {start} and {last}: wanted two of the {how_many(words, 'word')}"
        )
    return start, last + 1


def _of_type(example: Mapping[str, Any], key: str, kind: type) -> Any:
    value = example.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"wanted {key}, of type {kind.__name__}, got {described(value)}")
    return value
