"""Tasks from CoNLL-2009: the roles of words, from one head word to another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from ...corpora.skips import Broken, placed
from ...errors import DataError, checked, how_many
from ..tasks import EdgeTask, Record, Target, counted_labels
from .columns import Rows, records_in

_FORM, _FILLED, _PREDICATE, _ROLES = 1, 12, 13, 14


@checked
def conll2009_edges(path: str | Path, *, skip_broken: bool = False, name: str = "srl") -> EdgeTask:
    """Make the task of predicting semantic roles from the columns of CoNLL-2009 (Hajič et al. 2009).

    Columns are separated by tabs: ID, FORM, ..., FILLPRED (column 12, counted from 0), PRED (13), and from column 14 on
    one column of roles for each predicate of the sentence, in their order. Each predicate makes one record, as in
    `srl_edges`; `span1` is the predicate, `span2` the head word of an argument, which may be the predicate itself. Core
    roles and adjuncts count for the score: see `counted_labels`. If no role has such a name, as in Czech, all count.

    Args:
        path: the file, or a folder of such files.
        skip_broken: leave out sentences of another format, and list them in `skipped`, instead of raising.
        name: the name of the task in messages.

    Predicates without arguments are left out and listed. Raises `DataError`, which names the line, for sentences in
    which words have different numbers of columns, or that have not one column of roles for each predicate.

        >>> from tempfile import NamedTemporaryFile
        >>> rest = "\\t".join("_" * 10)
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write(f"1\\tBirds\\t{rest}\\t_\\t_\\tA0\\n2\\tsing\\t{rest}\\tY\\tsing.01\\t_\\n")
        ...     file.flush()
        ...     conll2009_edges(file.name)[0].targets
        (Target(span1=(1, 2), labels=('A0',), span2=(0, 1), info=''),)
    """
    broken = Broken(skip_broken, "such sentences")

    def made(rows: Rows) -> Iterator[Record]:
        with broken.part(rows.name), placed(rows.path, rows.lines[0]):
            yield from _records(rows)

    records = records_in(path, broken, made)
    with placed(path):
        return EdgeTask.of(name, records, counted=_rule(records), skipped=broken.skipped)


def _rule(records: Sequence[Record]) -> Literal["srl"] | None:
    """Which labels count: in languages with other names of roles than PropBank's, all."""
    labels = sorted({label for record in records for target in record.targets for label in target.labels})
    with suppress(DataError):
        counted_labels(labels, "srl")
        return "srl"
    return None


def _records(rows: Rows) -> list[Record]:
    many = {len(row) for row in rows.columns}
    if len(many) > 1 or min(many) < _ROLES:
        raise DataError(f"wanted {_ROLES} columns or more, as many for each word of a sentence, got {sorted(many)}")
    filled, named = rows.column(_FILLED), rows.column(_PREDICATE)
    predicates = [word for word, (yes, name) in enumerate(zip(filled, named, strict=True)) if yes == "Y" or name != "_"]
    if len(predicates) != min(many) - _ROLES:
        raise DataError(
            f"the sentence has {how_many(len(predicates), 'predicate')} and {how_many(min(many) - _ROLES, 'column')} "
            "of roles: wanted one column for each"
        )
    words = tuple(rows.column(_FORM))
    made = []
    for column, predicate in enumerate(predicates, _ROLES):
        roles = [(word, role) for word, role in enumerate(rows.column(column)) if role != "_"]
        span = (predicate, predicate + 1)
        targets = tuple(Target(span, (role,), (word, word + 1)) for word, role in roles)
        made.append(Record(words, targets, f"{rows.name}, predicate {column - _ROLES + 1}"))
    return made
