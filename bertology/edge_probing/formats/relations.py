"""Tasks from relations and proto-roles."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ...corpora.files import open_text
from ...errors import DataError, checked
from ..tasks import EdgeTask, Record, Span, Target

_SENTENCE = re.compile(r'(\d+)\s+"(.*)"')
_MARK = re.compile(r"<(/?)e([12])>")


@checked
def semeval_edges(path: str | Path, *, whole_words: bool = False, name: str = "relations") -> EdgeTask:
    """Make the task of predicting the relation of two entities from SemEval-2010, task 8 (Hendrickx et al.).

    A blank line follows each example. Its first line is a number and a sentence in quotes, in which
    `<e1>`...`</e1>` and `<e2>`...`</e2>` mark the entities, the second the relation, the third a comment, which may be
    missing. `span1` is e1, `span2` e2. Words are separated by blanks and by the marks, so that a span has nothing but
    the entity. All relations but `Other` count for the score.

    Args:
        path: the file.
        whole_words: separate words only by blanks, as in the paper's program: a comma after a mark is then in the span.
        name: the name of the task in messages.

    Raises `DataError`, which names the line, for examples of another format.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write('7\\t"The <e1>lid</e1> of a <e2>jar</e2>."\\nComponent-Whole(e1,e2)\\nComment: none\\n')
        ...     file.flush()
        ...     task = semeval_edges(file.name)
        >>> task[0].words, task[0].targets[0].span2
        (('The', 'lid', 'of', 'a', 'jar', '.'), (4, 5))
    """
    records = []
    for line, example in _examples(Path(path)):
        place = f"{path}, line {line}"
        match = _SENTENCE.fullmatch(example[0])
        if match is None or not 2 <= len(example) <= 3:
            raise DataError(f"{place}: wanted a number and a sentence, a relation and a comment, got {example}")
        words, (span1, span2) = _marked(match[2], whole_words, place)
        comment = example[2].partition(":")[2].strip() if len(example) == 3 else ""
        target = Target(span1, (example[1].strip(),), span2, comment)
        records.append(Record(words, (target,), f"{Path(path).name} {match[1]}"))
    return EdgeTask.of(name, records, counted="relations")


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
        targets = tuple(Target(row.predicate, _holding(row, above, or_equal), row.argument) for row in some)
        records.append(Record(words, targets, some[0].name))
    return EdgeTask.of(name, records, labels=sorted({label for row in every for label in row.scores}))


@checked
def spr1_edges(path: str | Path, *, name: str = "spr1") -> EdgeTask:
    """Make the task of proto-roles from the JSON of SPR1, the source of the paper's data (Rudinger et al. 2018).

    Each line is a sentence: `tokens`, `sent_id`, and in `spr1` a list of arguments, each with `pred_idx` and `arg_idx`,
    the words, and `responses`: a list of `spr_property` and `response`, 1 to 5. Several responses to one question are
    averaged; the paper's program takes the last. The data itself needs a licence of the Penn Treebank. Raises
    `DataError`, which names the line, for lines of another format.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     response = '[{"spr_property": "volition", "response": 5.0}]'
        ...     argument = f'{{"pred_idx": 1, "arg_idx": 0, "responses": {response}}}'
        ...     _ = file.write(f'{{"tokens": ["Birds", "sing"], "sent_id": "1_1", "spr1": [{argument}]}}')
        ...     file.flush()
        ...     spr1_edges(file.name)[0].targets
        (Target(span1=(1, 2), labels=('volition',), span2=(0, 1), info=''),)
    """
    rows: list[ProtoRole] = []
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            try:
                rows += _spr1(json.loads(line)) if line.strip() else ()
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number}: wanted JSON with tokens, sent_id and spr1, and in these pred_idx, arg_idx "
                    f"and responses: {type(error).__name__}: {error}"
                ) from error
    return proto_role_edges(rows, name=name)


def _spr1(found: Mapping[str, Any]) -> Iterator[ProtoRole]:
    for one in found["spr1"]:
        scores: dict[str, list[float]] = {}
        for response in one["responses"]:
            scores.setdefault(response["spr_property"], []).append(response["response"])
        predicate, argument = ((at, at + 1) for at in (one["pred_idx"], one["arg_idx"]))
        yield ProtoRole(tuple(found["tokens"]), predicate, argument, scores, str(found["sent_id"]))


def _holding(row: ProtoRole, above: float, or_equal: bool) -> tuple[str, ...]:
    means = {name: _mean(score, name, row) for name, score in row.scores.items() if score is not None}
    return tuple(sorted(name for name, mean in means.items() if mean > above or (or_equal and mean == above)))


def _mean(score: float | Sequence[float], name: str, row: ProtoRole) -> float:
    scores = [score] if isinstance(score, (int, float)) else list(score)
    if not scores or not all(isinstance(one, (int, float)) and one == one for one in scores):
        raise DataError(f"record {row.name!r}: the score of {name!r} must be one or more numbers, got {score!r}")
    return sum(scores) / len(scores)


def _examples(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The first line and the lines of each example."""
    with open_text(path) as file:
        lines = list(enumerate((line.strip() for line in file), 1))
    for filled, group in groupby(lines, lambda one: bool(one[1])):
        some = list(group)
        if filled:
            yield some[0][0], [line for _, line in some]


def _marked(text: str, whole_words: bool, place: str) -> tuple[tuple[str, ...], tuple[Span, Span]]:
    """The words of a sentence, and the spans of e1 and e2."""
    pieces = _MARK.split(text)
    plain, marks = pieces[0], dict[tuple[str, str], int]()
    for slash, which, following in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        if (slash, which) in marks:
            raise DataError(f"{place}: <{slash}e{which}> occurs twice: {text!r}")
        marks[slash, which] = len(plain)
        plain += following if whole_words else f" {following}"
    words = list(re.finditer(r"\S+", plain))
    spans: list[Span] = []
    for which in "12":
        begin, end = marks.get(("", which), len(plain)), marks.get(("/", which), 0)
        inside = [number for number, word in enumerate(words) if word.start() < end and word.end() > begin]
        if not inside:
            raise DataError(f"{place}: wanted words between <e{which}> and </e{which}>: {text!r}")
        spans.append((inside[0], inside[-1] + 1))
    return tuple(word[0] for word in words), (spans[0], spans[1])
