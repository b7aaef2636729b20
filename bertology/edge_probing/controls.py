"""Control tasks and shuffled labels."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter
from dataclasses import replace
from hashlib import blake2b
from itertools import accumulate

from ..errors import DataError, checked, described, how_many
from .tasks import EdgeTask, Record, Target

_Labels = tuple[str, ...]
_Words = tuple[str, ...]


@checked
def control_tasks(train: EdgeTask, *others: EdgeTask, seed: int = 0) -> tuple[EdgeTask, ...]:
    """Give each word type one random label, the same at every occurrence (Hewitt and Liang 2019, §2).

    A type is the words of a span, or of both spans in tasks over pairs. Its label (or set of labels) is sampled with
    the frequencies of labels among the targets of `train`. A probe can only memorize these labels. Its score on the
    true task minus its score on the control task is its selectivity. Selectivity is meaningful only for types that
    occur in both splits: see `shared_types`, which is near 0 for long spans and for pairs.

    Args:
        train: the task that the probe is trained on.
        others: the tasks that it is scored on, such as the dev set. Types have the same label there.
        seed: of the random choice, which depends only on `train` and the seed.

    Raises `DataError` when the tasks have different numbers of spans per target.

        >>> from bertology.edge_probing import EdgeTask, Record, Target
        >>> targets = Target((0, 1), ("DET",)), Target((1, 2), ("NOUN",)), Target((2, 3), ("DET",))
        >>> (control,) = control_tasks(EdgeTask.of("pos", [Record(("the", "cat", "the"), targets)]))
        >>> first, _, last = (target.labels for target in control[0].targets)
        >>> first == last
        True
    """
    wrong = [one for one in others if not isinstance(one, EdgeTask)]
    if wrong:
        raise DataError(f"others must be EdgeTasks, such as the dev set, got {described(wrong[0])}")
    counts = Counter(target.labels for record in train for target in record.targets)
    sets = sorted(counts)
    ends = list(accumulate(counts[labels] for labels in sets))

    def drawn(type_: tuple[_Words, ...]) -> _Labels:
        digest = blake2b(repr((seed, type_)).encode(), digest_size=8).digest()
        return sets[bisect_right(ends, int.from_bytes(digest, "big") * ends[-1] >> 64)]

    made = []
    for task in (train, *others):
        if task.sides != train.sides:
            raise DataError(
                f"task {task.name!r} has {how_many(task.sides, 'span')} per target, {train.name!r} has {train.sides}: "
                "wanted the splits of one task"
            )
        records = tuple(
            replace(r, targets=tuple(replace(t, labels=drawn(_type(r, t))) for t in r.targets)) for r in task
        )
        made.append(
            replace(task, name=f"{task.name} control", records=records, labels=train.labels, counted=train.counted)
        )
    return tuple(made)


@checked
def shuffled_labels(task: EdgeTask, *, seed: int = 0) -> EdgeTask:
    """Permute the labels among the targets: a probe can then only learn how frequent labels are.

    Each label (or set of labels) occurs as often as before.

        >>> from bertology.edge_probing import EdgeTask, Record, Target
        >>> targets = Target((0, 1), ("DET",)), Target((1, 2), ("NOUN",)), Target((2, 3), ("VERB",))
        >>> shuffled = shuffled_labels(EdgeTask.of("pos", [Record(("the", "cat", "sat"), targets)]))
        >>> sorted(target.labels for target in shuffled[0].targets)
        [('DET',), ('NOUN',), ('VERB',)]
    """
    labels = [target.labels for record in task for target in record.targets]
    random.Random(seed).shuffle(labels)
    dealt = iter(labels)
    records = tuple(replace(r, targets=tuple(replace(t, labels=next(dealt)) for t in r.targets)) for r in task)
    return replace(task, name=f"{task.name} shuffled", records=records)


@checked
def shared_types(train: EdgeTask, dev: EdgeTask) -> float:
    """The share of the dev set's targets whose words are those of a target in the training set, 0 to 1.

    >>> from bertology.edge_probing import EdgeTask, Record, Target
    >>> task = EdgeTask.of("pos", [Record(("the", "cat"), (Target((0, 1), ("DET",)), Target((1, 2), ("NOUN",))))])
    >>> shared_types(task, EdgeTask.of("pos", [Record(("the", "the"), (Target((1, 2), ("DET",)),))]))
    1.0
    """
    known = {_type(record, target) for record in train for target in record.targets}
    return sum(_type(record, target) in known for record in dev for target in record.targets) / dev.targets


def _type(record: Record, target: Target) -> tuple[_Words, ...]:
    spans = (target.span1, target.span2) if target.span2 else (target.span1,)
    return tuple(record.words[start:end] for start, end in spans)
