"""Reader and writer of edge-probing tasks in JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..corpora.files import BLANKS, json_of, open_text, text_of, words_of
from ..corpora.skips import Broken, BrokenPart, placed
from ..errors import DataError, checked, shown, writable
from ..results.complete_file import complete_file, write_text
from ..results.files import check_suffix
from .tasks import Counted, EdgeTask, Record, Target, check_inside

_OF_TARGET, _OF_RECORD = ("span1", "span2", "label"), ("text", "tokens", "targets", "name")
_HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, such as `\\ud83d` in JSON without the other half: tokenizers do not accept it."""


@checked
def read_edges(
    path: str | Path, *, name: str | None = None, labels: str | Path | Sequence[str] | None = None,
    counted: Counted = None, skip_broken: bool = False,
) -> EdgeTask:  # fmt: skip
    """Read a task in the JSONL of Tenney et al. (2019), one text a line.

    A line is an object with `text`, whose words are separated by blanks and by no other white space, and `targets`.
    Each target has `span1`, in tasks over pairs also `span2`, both as the first word and the word after the last, and
    `label`, a string or a list.
    A line may also have `tokens`, a list of words, which may contain blanks; joined by blanks they must be the text.
    All other keys of a text or target are kept in its `info`. Texts without targets are left out and listed in
    `skipped`, as in the paper's program. Blank lines are ignored.

    Args:
        path: the file.
        name: the name of the task in messages; by default the file's name.
        labels: all labels in their order, or a file with one label per line (`labels.txt`); by default those that
            occur, sorted. A dev set needs those of its training set: see `EdgeTask.with_labels`.
        counted: which labels count for the score: "coref", "srl", "relations", the labels themselves, or all.
        skip_broken: leave out lines and targets that cannot be used, and list them in `skipped`, instead of raising.

    Raises `DataError`, which names the file, the line and the target, for lines of another format, such as an
    incomplete line, a span outside the text or an empty label.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write('{"text": "Ann ate", "targets": [{"span1": [1, 2], "span2": [0, 1], "label": "ARG0"}]}')
        ...     file.flush()
        ...     read_edges(file.name, name="srl", counted="srl")[0].targets[0]
        Target(span1=(1, 2), labels=('ARG0',), span2=(0, 1), info='')
    """
    path = Path(path)
    broken = Broken(skip_broken, "it")
    reader = _Reader(path, broken)
    # A line that is not UTF-8 is a broken line like others.
    with open_text(path, errors="surrogateescape") as file:
        records = [record for number, line in enumerate(file, 1) if (record := reader.record(line, number))]
    names = _labels_in(Path(labels)) if isinstance(labels, (str, Path)) else labels
    task = path.stem if name is None else name
    try:
        return EdgeTask.of(task, records, labels=names, counted=counted, skipped=broken.skipped)
    except DataError as error:
        told = f"; the labels are those of {labels}" if isinstance(labels, (str, Path)) else ""
        raise DataError(f"{path}: {error}{told}") from error


@checked
def write_edges(task: EdgeTask, path: str | Path, *, labels: str | Path | None = None) -> None:
    """Write a task in the format of `read_edges`; `labels` names a file for its labels, one per line.

    Both words and text are written, so that other programs can read the file. `read_edges` reads the same task from
    the two files. Raises `DataError` for labels that contain a line break, and for a name that ends as a file of
    another format does, such as `.csv`.

        >>> from tempfile import TemporaryDirectory
        >>> from bertology.edge_probing import Record, Target
        >>> task = EdgeTask.of("pos", [Record(("Birds", "sing"), (Target((1, 2), ("VERB",)),), "birds")])
        >>> with TemporaryDirectory() as folder:
        ...     write_edges(task, f"{folder}/pos.jsonl")
        ...     read_edges(f"{folder}/pos.jsonl") == task
        True
    """
    check_suffix(path, (".jsonl", ".json", ".txt"), "a task is written as JSON lines")
    ends = [label for label in task.labels if "\n" in label or "\r" in label]
    if labels is not None and ends:
        raise DataError(f"labels must not contain line breaks, got {ends[0]!r}")
    with (
        writable(path),
        complete_file(Path(path)) as part,
        open(part, "w", encoding="utf-8", newline="\n") as file,
    ):
        for record in task:
            file.write(json.dumps(_written(record), ensure_ascii=False) + "\n")
    if labels is None:
        return
    write_text(labels, "".join(f"{label}\n" for label in task.labels))


@dataclass
class _Reader:
    """Makes records from lines, and lists the lines and targets that could not be used."""

    path: Path
    broken: Broken
    # Few different sets of labels occur, each many times: they share one object.
    sets: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)

    def record(self, line: str, number: int) -> Record | None:
        """The record of a line; None for a blank line, and for one that is left out."""
        if not line.strip(BLANKS):
            return None
        with self.broken.part(), placed(self.path, number):
            found = _object(line)
            words: tuple[str, ...] = found["words"]
            targets = []
            for k, one in enumerate(found["targets"]):
                with self.broken.part(), placed(self.path, f"line {number}, target {k}"):
                    targets.append(self._target(one, len(words)))
            if found["targets"] and not targets:
                return None
            name = found["name"] if found["name"] is not None else f"{self.path.name} {number}"
            return Record(words, tuple(targets), name, found["info"])
        return None

    def _target(self, found: Any, many: int) -> Target:
        if not isinstance(found, dict) or "span1" not in found or "label" not in found:
            raise DataError(f"wanted an object with span1, label and, over pairs, span2, got {shown(found)}")
        label = found["label"]
        if not isinstance(label, (str, list)) or not all(isinstance(one, str) for one in label):
            raise DataError(f"label must be a string or a list of strings, got {shown(label)}")
        labels = (label,) if isinstance(label, str) else tuple(dict.fromkeys(label))
        spans = [_span(found.get(which)) for which in ("span1", "span2")]
        info = _info({key: value for key, value in found.items() if key not in _OF_TARGET})
        target = Target(spans[0], self.sets.setdefault(labels, labels), spans[1], info)
        check_inside(target, many)
        return target


def _object(line: str) -> dict[str, Any]:
    """The words, targets, name and info of a line."""
    found = json_of(line)
    if not isinstance(found, dict):
        raise DataError(f"wanted an object with text and targets, got {shown(found)}")
    targets, name = found.get("targets"), found.get("name")
    if not isinstance(targets, list):
        raise DataError(f"wanted a list of targets, got {shown(targets)}")
    if not isinstance(name, str | None):
        raise DataError(f"name must be a string, got {shown(name)}")
    info = _info({key: value for key, value in found.items() if key not in _OF_RECORD})
    return {"words": _words(found), "targets": targets, "name": name, "info": info}


def _words(found: Mapping[str, Any]) -> tuple[str, ...]:
    text, tokens = found.get("text"), found.get("tokens")
    if tokens is None:
        words = words_of(text) if isinstance(text, str) else []
        if not words:
            raise DataError(f"wanted text with words, got {shown(text)}")
    elif not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) and token for token in tokens):
        raise DataError(f"tokens must be a list of strings that are not empty, got {shown(tokens)}")
    elif text is not None and " ".join(tokens) != text:
        raise DataError(f"text is not its tokens, joined by blanks: {shown(text)} and {shown(tokens)}")
    else:
        words = tokens
    if _HALF.search(" ".join(words)):
        raise DataError(f"words must not contain half of a surrogate pair, got {shown(words)}")
    return tuple(words)


def _span(found: Any) -> Any:
    return tuple(found) if isinstance(found, list) else found


def _info(rest: dict[str, Any]) -> str:
    """The other keys of a line as JSON, or as they are if they are a string."""
    if rest.get("info") in ({}, "", None):
        rest.pop("info", None)
    if set(rest) == {"info"} and isinstance(rest["info"], str):
        return str(rest["info"])
    return json.dumps(rest, ensure_ascii=False) if rest else ""


def _rest(info: str) -> dict[str, Any]:
    """The keys that `info` was made from."""
    try:
        rest = json.loads(info)
    except ValueError:
        rest = info
    return rest if isinstance(rest, dict) else {"info": info} if info else {}


def _written(record: Record) -> dict[str, Any]:
    line = {"text": " ".join(record.words), "tokens": record.words, "name": record.name}
    return {**_rest(record.info), **line, "targets": [_written_target(target) for target in record.targets]}


def _written_target(target: Target) -> dict[str, Any]:
    spans = {"span1": target.span1} | ({"span2": target.span2} if target.span2 else {})
    labels = target.labels[0] if len(target.labels) == 1 else target.labels
    return {**_rest(target.info), **spans, "label": labels}


def _labels_in(path: Path) -> tuple[str, ...]:
    names = text_of(path).split("\n")
    found = tuple(names[:-1] if names[-1] == "" else names)
    empty = next((line for line, name in enumerate(found, 1) if not name.strip()), None)
    if empty is not None:
        raise BrokenPart(path, empty, "labels must be strings that are not empty, one a line")
    return found
