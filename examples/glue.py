"""Reader of GLUE tasks and SNLI, from a folder of TSV files or from a data set of the `datasets` library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bertology.corpora.files import BLANKS, lines_of
from bertology.errors import DataError, need, shown
from bertology.metrics import MetricName


@dataclass(frozen=True)
class Task:
    """The files and columns of a task's texts and labels, and its metric."""

    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metric: MetricName
    header: tuple[str, ...] | None = None
    train: str = "train.tsv"
    dev: str = "dev.tsv"
    hub: tuple[str, str] = ("", "validation")
    hub_texts: tuple[str, ...] | None = None
    unlabelled: tuple[str, ...] = ()
    """Labels of examples that are left out."""
    skip_short: bool = False
    """Leave out lines with fewer columns than the header."""
    wanted: Callable[[dict[str, str]], bool] | None = None
    """Which rows are of the task; all by default."""


NUMBERS = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")
INFERENCE = ("contradiction", "entailment", "neutral")
PAIR = ("sentence1", "sentence2")

# The sources of CoLA's out-of-domain set (Warstadt et al. 2019); the column `source` names them.
OUT_OF_DOMAIN = ("c-05", "clc95", "j_71", "s_97", "swb04", "w_80")
COLA = Task(
    ("sentence",), "label", NUMBERS, "matthews", ("source", "label", "mark", "sentence"), hub=("cola", "validation")
)
MNLI = Task(
    PAIR, "gold_label", INFERENCE, "accuracy", dev="dev_matched.tsv", hub=("mnli", "validation_matched"),
    hub_texts=("premise", "hypothesis"), unlabelled=("-",),
)  # fmt: skip

# As the GLUE archive has them; no labels means regression. Label orders are those of transformers' GLUE processors.
TASKS = {
    "cola": COLA,
    "cola-in": replace(COLA, wanted=lambda row: row["source"] not in OUT_OF_DOMAIN),
    "cola-out": replace(COLA, wanted=lambda row: row["source"] in OUT_OF_DOMAIN),
    "sst-2": Task(("sentence",), "label", NUMBERS, "accuracy", hub=("sst2", "validation")),
    "mrpc": Task(
        ("#1 String", "#2 String"), "Quality", NUMBERS, "f1", hub=("mrpc", "validation"), hub_texts=PAIR
    ),
    "sts-b": Task(PAIR, "score", (), "pearson_spearman", hub=("stsb", "validation")),
    # The published file has lines with too few columns; transformers leaves them out, too.
    "qqp": Task(
        ("question1", "question2"), "is_duplicate", NUMBERS, "f1", hub=("qqp", "validation"), skip_short=True
    ),
    "mnli": MNLI,
    "mnli-mm": replace(MNLI, dev="dev_mismatched.tsv", hub=("mnli", "validation_mismatched")),
    "qnli": Task(("question", "sentence"), "label", ENTAILMENT, "accuracy", hub=("qnli", "validation")),
    "rte": Task(PAIR, "label", ENTAILMENT, "accuracy", hub=("rte", "validation")),
    "wnli": Task(PAIR, "label", NUMBERS, "accuracy", hub=("wnli", "validation")),
    # Scored only: a model of MNLI answers it. The published labels are in `diagnostic-full.tsv`.
    "diagnostic": Task(
        ("Premise", "Hypothesis"), "Label", INFERENCE, "matthews", train="", dev="diagnostic-full.tsv",
        hub=("ax", "test"), hub_texts=("premise", "hypothesis"),
    ),
    "snli": replace(MNLI, dev="dev.tsv", hub=("", "validation")),
}  # fmt: skip


@dataclass(frozen=True)
class Examples:
    """Texts, one or two per example, and their labels."""

    texts: list[tuple[str, ...]]
    labels: list[float] | list[int]
    skipped: Counter[str] = field(default_factory=Counter)
    """{reason: lines}: what was left out of the file."""

    def first(self, count: int) -> Examples:
        """The first `count` examples; all of them if `count` is 0 or less."""
        return Examples(self.texts[:count], self.labels[:count], self.skipped) if count > 0 else self


def find_task(name: str) -> Task:
    """The task of that name, in any case, with or without a dash. Raises `DataError`."""
    plain = name.lower().replace("-", "").replace("_", "")
    for known, task in TASKS.items():
        if {"ax": "diagnostic"}.get(plain, plain) == known.replace("-", ""):
            return task
    raise DataError(f"no GLUE task is called {name!r}: wanted one of {', '.join(TASKS)}")


def read_examples(task: Task, data: str | Path, *, train: bool = False) -> Examples:
    """Read a task's dev (or training) set.

    `data` is a folder with the GLUE TSV files, or the name of a data set that `datasets.load_dataset` takes: "glue"
    on the hub (where it can be reached), or a folder with one file a split in a format that it knows.
    Raises `DataError` that names the file, the line and the column that cannot be used.
    """
    if train and not task.train:
        raise DataError(f"{task.dev} is for scoring only: train on another task of the same labels, such as MNLI")
    file = Path(data) / (task.train if train else task.dev)
    if file.is_file():
        return _read_tsv(task, file)
    if any(Path(data).glob("*.tsv")):
        raise DataError(
            f"no {file.name} in {data}: it has {', '.join(sorted(f.name for f in Path(data).glob('*.tsv')))}"
        )
    return _read_dataset(task, str(data), train)


def _read_tsv(task: Task, file: Path) -> Examples:
    rows = [(number, [cell.strip(BLANKS) for cell in line.split("\t")]) for number, line in lines_of(file)]
    header = list(task.header) if task.header else (rows.pop(0)[1] if rows else [])
    if not rows:
        raise DataError(f"{file} holds no examples")
    missing = [column for column in (*task.texts, task.label) if column not in header]
    if missing:
        raise DataError(f"{file} has no column {missing[0]!r}: its columns are {', '.join(header)[:500]}")
    found = Examples([], [])
    for number, row in rows:
        if len(row) < len(header) and task.skip_short:
            found.skipped["too few columns"] += 1
        else:
            _add(found, task, header, row, f"{file}, line {number}")
    if not found.texts:
        raise DataError(f"{file} holds no examples that can be used: {dict(found.skipped)}")
    return found


def _add(found: Examples, task: Task, header: list[str], row: list[str], where: str) -> None:
    """Add the example of a row."""
    wanted = 1 + max(header.index(column) for column in (*task.texts, task.label))
    if len(row) < wanted:
        raise DataError(f"{where}: wanted {wanted} columns or more, got {len(row)}")
    cells = dict(zip(header, row, strict=False))
    if task.wanted is not None and not task.wanted(cells):
        found.skipped["of another domain"] += 1
    elif cells[task.label] in task.unlabelled:
        found.skipped["no label"] += 1
    else:
        labels: list[Any] = found.labels
        labels.append(_label(task, cells[task.label], where))
        found.texts.append(tuple(cells[column] for column in task.texts))


def _label(task: Task, text: str, where: str) -> float | int:
    if task.labels:
        if text not in task.labels:
            wanted = ", ".join(task.labels)
            raise DataError(f"{where}: {shown(text)} is not a label of this task: wanted one of {wanted}")
        return task.labels.index(text)
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{where}: wanted a number as label, got {shown(text)}") from error


def _read_dataset(task: Task, name: str, train: bool) -> Examples:
    datasets = need("datasets", extra="glue")
    config, dev = task.hub
    split = "train" if train else dev
    try:
        on_disk = Path(name).is_dir()
        rows = datasets.load_dataset(name, split=split) if on_disk else datasets.load_dataset(name, config, split=split)
    except Exception as error:
        raise DataError(
            f"no GLUE data at {name!r}: it is neither a folder with {task.dev} nor a data set with a split {split!r} "
            f"that datasets can load ({type(error).__name__}: {error})"
        ) from error
    columns = task.hub_texts or task.texts
    missing = [column for column in (*columns, "label") if column not in rows.column_names]
    if missing:
        raise DataError(
            f"the data set {name!r} has no column {missing[0]!r}: its columns are {', '.join(rows.column_names)}"
        )
    texts = list(zip(*(list(rows[column]) for column in columns), strict=True))
    names = getattr(rows.features["label"], "names", None)
    # Hub data sets number their labels in another order (MNLI: entailment first).
    labels = [task.labels.index(names[i]) if names and set(names) == set(task.labels) else i for i in rows["label"]]
    if not labels:
        raise DataError(f"the data set {name!r} holds no examples")
    return Examples(texts, labels)


def make_batches(
    tokenizer: Any, examples: Examples, *, max_seq_length: int, batch_size: int, shuffle: torch.Generator | None = None
) -> tuple[list[dict[str, torch.Tensor]], int]:
    """Tokenize, and batch texts of similar length; optionally shuffle whole batches. Also count cut texts."""
    both = [list(texts) for texts in zip(*examples.texts, strict=True)]
    limit = min(max_seq_length, tokenizer.model_max_length)
    full = tokenizer(*both)
    cut = sum(len(ids) > limit for ids in full["input_ids"])
    encoded = tokenizer(*both, truncation=True, max_length=limit) if cut else full
    kind = torch.float if isinstance(examples.labels[0], float) else torch.long
    order = sorted(range(len(examples.texts)), key=lambda i: len(encoded["input_ids"][i]))
    batches = []
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer.pad(
            {name: [values[i] for i in rows] for name, values in encoded.items()}, return_tensors="pt"
        )
        batches.append({**batch, "labels": torch.tensor([examples.labels[i] for i in rows], dtype=kind)})
    if shuffle is not None:
        batches = [batches[i] for i in torch.randperm(len(batches), generator=shuffle).tolist()]
    return batches, cut
