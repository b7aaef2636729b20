"""Which stores can be joined, and which tasks have the words and spans of a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .store_folder import data_digest, differences, joined_digest, parts_of_sizes, spans_digest
from .tasks import EdgeTask

About = Mapping[str, Any]


def part_of(task: EdgeTask, raw_text: bool) -> dict[str, Any]:
    """The identity of a task that was encoded whole: how many records it has, and digests of what is in them."""
    return {"records": len(task), "spans": spans_digest(task), "data": data_digest(task, raw_text)}


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
    made = [part_of(one, raw_text) for one in parts_of_sizes(task, sizes)]
    if [part["spans"] for part in made] != [part["spans"] for part in parts]:
        raise DataError(
            f"task {task.name!r} does not have the words and spans of {about['name']!r}, which {path} was made of "
            f"({sum(sizes)} records): wanted the same records and spans, with other labels"
        )
    labels = {"labels": list(task.labels), "counted": list(task.counted)}
    made_of = {**about["made_of"], **labels, "data": joined_digest([part["data"] for part in made])}
    return {**about, "name": task.name, "made_of": made_of, "parts": made}


def _settings(about: About) -> dict[str, Any]:
    """What all parts must have in common."""
    made_of = {name: value for name, value in about["made_of"].items() if name != "data"}
    return {**made_of, "layers": about["layers"], "hidden size": about["hidden"]}
