"""Tasks from relations and proto-roles."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ...corpora.files import BLANKS, blocks_of, json_of, lines_of
from ...corpora.skips import Broken, BrokenPart, placed
from ...errors import DataError, checked, how_many, shown
from ...results.views import brief
from ..tasks import EdgeTask, Record, Span, Target

_SENTENCE = re.compile(rf'([0-9]+)[{BLANKS}]+"(.*)"')
_WORD = re.compile(f"[^{BLANKS}]+")
_MARK = re.compile(r"<(/?)e([12])>")


@checked
def semeval_edges(
    path: str | Path, *, whole_words: bool = False, skip_broken: bool = False, name: str = "relations"
) -> EdgeTask:
    """Make the task of predicting the relation of two entities from SemEval-2010, task 8 (Hendrickx et al.).

    A blank line follows each example. Its first line is a number and a sentence in quotes, in which
    `<e1>`...`</e1>` and `<e2>`...`</e2>` mark the entities, the second the relation, the third a comment, which may be
    missing. `span1` is e1, `span2` e2. Words are separated by blanks and by the marks, so that a span has nothing but
    the entity. All relations but `Other` count for the score.

    Args:
        path: the file.
        whole_words: separate words only by blanks, as in the paper's program: a comma after a mark is then in the span.
        skip_broken: leave out examples that cannot be read, and list them in `skipped`, instead of raising.
        name: the name of the task in messages.

    Raises `DataError`, which names the file and the line, for examples of another format.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write('7\\t"The <e1>lid</e1> of a <e2>jar</e2>."\\nComponent-Whole(e1,e2)\\nComment: none\\n')
        ...     file.flush()
        ...     task = semeval_edges(file.name)
        >>> task[0].words, task[0].targets[0].span2
        (('The', 'lid', 'of', 'a', 'jar', '.'), (4, 5))
    """
    broken = Broken(skip_broken, "such examples")
    records = []
    for block in blocks_of(path):
        with broken.part(), placed(path, block[0][0]):
            records.append(_example(block, Path(path), whole_words))
    with placed(path):
        return EdgeTask.of(name, records, counted="relations", skipped=broken.skipped)


def _example(block: Sequence[tuple[int, str]], path: Path, whole_words: bool) -> Record:
    lines = [line.strip(BLANKS) for _, line in block]
    match = _SENTENCE.fullmatch(lines[0])
    if match is None or not 2 <= len(lines) <= 3:
        raise DataError(
            f"wanted a number and a sentence, a relation and a comment, got {how_many(len(lines), 'line')}: "
            f"{shown(lines[0])}"
        )
    if _SENTENCE.fullmatch(lines[-1]):
        raise BrokenPart(path, block[-1][0], "another sentence begins: wanted a blank line after each example")
    words, (span1, span2) = _marked(match[2], whole_words)
    comment = lines[2].partition(":")[2].strip(BLANKS) if len(lines) == 3 else ""
    return Record(words, (Target(span1, (lines[1],), span2, comment),), f"{path.name} {match[1]}")


@checked
@dataclass(frozen=True)
class ProtoRole:
    """A predicate, one of its arguments, and how far each property holds of the argument (Reisinger et al. 2015)."""

    words: tuple[str, ...]
    predicate: Span
    argument: Span
    scores: Mapping[str, float | Sequence[float] | None]
    """{property: its score, the scores of several annotators, or None where the question does not apply}"""
    name: str = ""
    """The name of the sentence in messages."""

    __repr__ = brief


@checked
def proto_role_edges(
    rows: Iterable[ProtoRole], *, above: float = 3.0, or_equal: bool = False, name: str = "proto-roles"
) -> EdgeTask:
    """Make the task of predicting which properties hold of a predicate's argument; there may be none or several.

    A property holds where its mean score is above 3 of 1 to 5, as in the paper's data (SPR1). For SPR2 (White et
    al. 2016), which takes a mean of 4 or more, pass `above=4, or_equal=True`; for UDS (White et al. 2020), whose scores
    are around 0, pass `above=0`. A property that does not apply has no score, and does not hold. `span1` is the
    predicate, `span2` the argument. Neighbouring rows of the same words make one record. All properties are labels,
    whether or not they hold anywhere, sorted.

    Raises `DataError` for scores that are not numbers.

        >>> scores = {"awareness": [5, 4], "volition": 5, "change_of_location": 1, "was_used": None}
        >>> proto_role_edges([ProtoRole(("Birds", "sing"), (1, 2), (0, 1), scores)])[0].targets[0].labels
        ('awareness', 'volition')
    """
    every = list(rows)
    records = []
    for words, group in groupby(every, lambda row: row.words):
        some = list(group)
        targets = tuple(_target(row, above, or_equal) for row in some)
        records.append(Record(words, targets, some[0].name))
    return EdgeTask.of(name, records, labels=sorted({label for row in every for label in row.scores}))


@checked
def spr1_edges(path: str | Path, *, skip_broken: bool = False, name: str = "spr1") -> EdgeTask:
    """Make the task of proto-roles from the JSON of SPR1, the source of the paper's data (Rudinger et al. 2018).

    Each line is a sentence: `tokens`, `sent_id`, and in `spr1` a list of arguments, each with `pred_idx` and `arg_idx`,
    the words, and `responses`: a list of `spr_property` and `response`, 1 to 5. Several responses to one question are
    averaged; the paper's program takes the last. The data itself needs a licence of the Penn Treebank.

    Args:
        path: the file.
        skip_broken: leave out lines that cannot be read, and list them in `skipped`, instead of raising.
        name: the name of the task in messages.

    Raises `DataError`, which names the file and the line, for lines of another format.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     response = '[{"spr_property": "volition", "response": 5.0}]'
        ...     argument = f'{{"pred_idx": 1, "arg_idx": 0, "responses": {response}}}'
        ...     _ = file.write(f'{{"tokens": ["Birds", "sing"], "sent_id": "1_1", "spr1": [{argument}]}}')
        ...     file.flush()
        ...     spr1_edges(file.name)[0].targets
        (Target(span1=(1, 2), labels=('volition',), span2=(0, 1), info=''),)
    """
    broken = Broken(skip_broken, "such lines")
    rows: list[ProtoRole] = []
    for number, line in lines_of(path):
        with broken.part(), placed(path, number):
            found = _spr1(line)
            for row in found:
                Record(row.words, (_target(row, 3.0, False),), row.name)  # refuses what fits no record, in this line
            rows += found
    with placed(path):
        task = proto_role_edges(rows, name=name)
        return EdgeTask.of(name, task, labels=task.labels, skipped=[*broken.skipped, *task.skipped])


def _spr1(line: str) -> list[ProtoRole]:
    """The arguments in a line. Raises `DataError`."""
    try:
        found = json_of(line)
        words, name, rows = tuple(found["tokens"]), str(found["sent_id"]), []
        for one in found["spr1"]:
            scores: dict[str, list[float]] = {}
            for response in one["responses"]:
                scores.setdefault(response["spr_property"], []).append(response["response"])
            predicate, argument = ((at, at + 1) for at in (one["pred_idx"], one["arg_idx"]))
            rows.append(ProtoRole(words, predicate, argument, scores, name))
        return rows
    except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "wanted JSON with tokens, sent_id and spr1, and in these pred_idx, arg_idx and responses: "
            f"{type(error).__name__}: {error}"
        ) from error


def _target(row: ProtoRole, above: float, or_equal: bool) -> Target:
    return Target(row.predicate, _holding(row, above, or_equal), row.argument)


def _holding(row: ProtoRole, above: float, or_equal: bool) -> tuple[str, ...]:
    means = {name: _mean(score, name, row) for name, score in row.scores.items() if score is not None}
    return tuple(sorted(name for name, mean in means.items() if mean > above or (or_equal and mean == above)))


def _mean(score: float | Sequence[float], name: str, row: ProtoRole) -> float:
    scores = [score] if isinstance(score, (int, float)) else list(score)
    if not scores or not all(isinstance(one, (int, float)) and one == one for one in scores):
        raise DataError(f"record {row.name!r}: the score of {name!r} must be one or more numbers, got {shown(score)}")
    return sum(scores) / len(scores)


def _marked(text: str, whole_words: bool) -> tuple[tuple[str, ...], tuple[Span, Span]]:
    """The words of a sentence, and the spans of e1 and e2."""
    pieces = _MARK.split(text)
    plain, marks = pieces[0], dict[tuple[str, str], int]()
    for slash, which, following in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        if (slash, which) in marks:
            raise DataError(f"<{slash}e{which}> occurs twice: {shown(text)}")
        marks[slash, which] = len(plain)
        plain += following if whole_words else f" {following}"
    words = list(_WORD.finditer(plain))
    spans: list[Span] = []
    for which in "12":
        begin, end = marks.get(("", which), len(plain)), marks.get(("/", which), 0)
        inside = [number for number, word in enumerate(words) if word.start() < end and word.end() > begin]
        if not inside:
            raise DataError(f"wanted words between <e{which}> and </e{which}>: {shown(text)}")
        spans.append((inside[0], inside[-1] + 1))
    return tuple(word[0] for word in words), (spans[0], spans[1])
