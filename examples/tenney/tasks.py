"""From which files does the study take its tasks, and how are they split?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bertology.edge_probing import (
    EdgeTask,
    Training,
    bracket_pos_edges,
    constituent_edges,
    coreference_edges,
    dependency_edges,
    entity_edges,
    gap_edges,
    pos_edges,
    read_edges,
    semeval_edges,
    spr1_edges,
    srl_edges,
)
from bertology.edge_probing.tasks import Counted, counted_labels
from bertology.errors import DataError
from bertology.syntax import read_conll_coref, read_conllu

Reader = Callable[[str], EdgeTask]


@dataclass(frozen=True)
class Kind:
    """A task of the paper: its title, who reads its files by their ending, what counts, and how long probes train."""

    title: str
    readers: dict[str, Reader]
    settings: Training
    counted: Counted = None

    def read(self, path: str) -> EdgeTask:
        """The task in a file."""
        jsonl = partial(read_edges, name=self.title, counted=self.counted, skip_broken=True)
        every: dict[str, Reader] = {".jsonl": jsonl, **self.readers}
        if Path(path).suffix not in every:
            raise DataError(f"{path}: a file of {self.title} is {', '.join(every)}, by its name")
        return every[Path(path).suffix](path)


_LARGE, _SMALL = Training.large(), Training.small()
KINDS = {
    "pos": Kind("parts of speech", {".conllu": pos_edges, ".ptb": bracket_pos_edges}, _LARGE),
    "constituents": Kind("constituents", {".ptb": constituent_edges}, _LARGE),
    "dependencies": Kind("dependencies", {".conllu": lambda path: dependency_edges(read_conllu(path))}, _LARGE),
    "entities": Kind("entities", {".conll": entity_edges}, _LARGE),
    "srl": Kind("semantic roles", {".conll": srl_edges}, _LARGE, "srl"),
    "proto_roles": Kind("proto-roles", {".json": spr1_edges}, _SMALL),
    "relations": Kind("relations", {".txt": semeval_edges}, _SMALL, "relations"),
    "coreference": Kind(
        "coreference",
        {".conll": lambda path: coreference_edges(read_conll_coref(path)), ".tsv": gap_edges},
        _LARGE,
        "coref",
    ),
}
"""The paper's eight tasks, in the order of its first figure."""


def splits(name: str, files: Sequence[str], *, share: float, trees: str | None = None) -> tuple[EdgeTask, EdgeTask]:
    """The training and the dev set of a task, with the labels of both, as the paper's program has them.

    A single file is cut in two: its end is the dev set, so that documents stay whole. `trees` tells where the sentences
    of coreference end.
    """
    kind = KINDS[name]
    if name == "coreference" and trees:
        tasks = [coreference_edges(read_conll_coref(path, trees=trees)) for path in files]
    else:
        tasks = [kind.read(path) for path in files]
    train, dev = tasks[0].split(1 - share) if len(tasks) == 1 else tasks
    labels = sorted({*train.labels, *dev.labels})
    counted = counted_labels(labels, kind.counted)
    return train.with_labels(labels, counted=counted), dev.with_labels(labels, counted=counted)
