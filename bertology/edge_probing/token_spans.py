"""The tokens of a span of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..anatomy.names import IDS_ARGUMENT
from ..corpora.words import AlignedBatches
from .store_folder import Layout, Numbers, label_numbers
from .tasks import EdgeTask, Span, Target

NO_TOKEN = "a word has no token"
NOT_TOGETHER = "a span's tokens are not consecutive"


@dataclass(frozen=True)
class Text:
    """A record's words for `align`, and the record's number in the task."""

    number: int
    words: tuple[str, ...]
    text: str = ""
    spans: tuple[Span, ...] = ()

    @property
    def name(self) -> str:
        """The number; names of records are not always different."""
        return str(self.number)


@dataclass(frozen=True)
class Plan:
    """The layout of a task's vectors, and the targets that could not be mapped to tokens."""

    layout: Layout
    places: Numbers
    """[token]: for each row of vectors, the position of its token in the record."""
    ids: Numbers
    """The token ids of these tokens, each once, ascending."""
    rank: dict[int, int]
    """{the record's number in the task: its index in the file of vectors}, for records that have targets left."""
    lost: dict[str, int]
    """{reason: the number of targets that were lost for it}."""


def texts_of(task: EdgeTask) -> list[Text]:
    """The texts of a task that have targets."""
    records = enumerate(task.records)
    return [Text(number, one.words, one.text, one.spans) for number, one in records if one.targets]


def token_span(word_of: Sequence[int], words: Span) -> tuple[Span | None, str]:
    """The tokens of a span of words, the first token and the token after the last one; or None and the reason.

    The span has all tokens of all its words. They must be consecutive, without a special token between them. (The
    program of Tenney et al. (2019) also takes all tokens from the first word to the last.)

        >>> token_span((-1, 0, 1, 1, 2, -1), (1, 3))
        ((2, 5), '')
    """
    return _in_edges(_edges(word_of), word_of, words)


def plan(task: EdgeTask, batches: AlignedBatches) -> Plan:
    """Map all targets of a task to tokens; targets that cannot be mapped are counted by reason.

    `batches` are those that `align` made of `texts_of(task)`. The vectors are in this order: record by record as the
    model is run on them, with only the tokens that are in spans.
    """
    many = [len(record.targets) for record in task.records]
    first = np.concatenate([[0], np.cumsum(many, dtype=np.int64)])
    spans = np.full((int(first[-1]), task.sides, 2), -1, dtype=np.int32)
    lost: Counter[str] = Counter()
    for skip in batches.skipped:
        lost[skip.reason] += many[int(skip.name)]
    order: list[int] = []
    places: list[Numbers] = []
    ids: set[int] = set()
    for batch in batches:
        for one, tokens in zip(batch["annotations"], batch[IDS_ARGUMENT].numpy(), strict=True):
            number = one.source.number
            here = spans[first[number] : first[number + 1]]
            found = _project(one.word_of, task.records[number].targets, here, lost)
            if len(found):
                order.append(number)
                places.append(found)
                ids.update(tokens[found].tolist())
    counts = np.zeros(len(task.records), dtype=np.int64)
    counts[order] = [len(found) for found in places]
    layout = _layout(task, spans, first, np.array(order, dtype=np.int64), counts)
    joined = np.concatenate(places) if places else np.zeros(0, dtype=np.int32)
    rank = {number: place for place, number in enumerate(order)}
    return Plan(layout, joined, np.array(sorted(ids), dtype=np.int64), rank, dict(lost))


def _project(word_of: Sequence[int], targets: Sequence[Target], spans: Numbers, lost: Counter[str]) -> Numbers:
    """Write the spans of one record's targets, counted in those of its tokens that are kept; return which those are."""
    edges = _edges(word_of)
    for row, target in zip(spans, targets, strict=True):
        sides = [target.span1] if target.span2 is None else [target.span1, target.span2]
        found = [_in_edges(edges, word_of, words) for words in sides]
        reason = next((reason for _, reason in found if reason), "")
        if reason:
            lost[reason] += 1
        else:
            row[:] = [tokens for tokens, _ in found]
    kept = spans[spans[:, 0, 0] >= 0]
    needed = np.zeros(len(word_of), dtype=bool)
    for start, end in kept.reshape(-1, 2):
        needed[start:end] = True
    # All tokens between a span's ends are kept, so its length does not change.
    before = np.concatenate([[0], np.cumsum(needed)])
    spans[spans[:, 0, 0] >= 0] = before[kept]
    return np.flatnonzero(needed).astype(np.int32)


def _edges(word_of: Sequence[int]) -> dict[int, Span]:
    """{word: its first token, and the token after its last one}."""
    edges: dict[int, Span] = {}
    for token, word in enumerate(word_of):
        edges[word] = (edges.get(word, (token, 0))[0], token + 1)
    return edges


def _in_edges(edges: dict[int, Span], word_of: Sequence[int], words: Span) -> tuple[Span | None, str]:
    if not all(word in edges for word in range(*words)):
        return None, NO_TOKEN
    start = min(edges[word][0] for word in range(*words))
    end = max(edges[word][1] for word in range(*words))
    if not all(words[0] <= word < words[1] for word in word_of[start:end]):
        return None, NOT_TOGETHER
    return (start, end), ""


def _layout(task: EdgeTask, spans: Numbers, first: Numbers, order: Numbers, counts: Numbers) -> Layout:
    """The layout of the targets that are kept, in the task's order."""
    kept = spans[:, 0, 0] >= 0
    record_of = np.repeat(np.arange(len(task.records)), np.diff(first))
    records = np.flatnonzero(counts)
    place = np.zeros(len(task.records), dtype=np.int64)
    place[order] = np.arange(len(order))
    has = np.bincount(record_of[kept], minlength=len(task.records))[records]
    number = np.arange(len(kept)) - first[record_of]
    ids, many = label_numbers(task)
    return Layout(
        source=records,
        place=place[records],
        tokens=counts[records].astype(np.int32),
        first_target=np.concatenate([[0], np.cumsum(has)]),
        spans=spans[kept],
        number=number[kept].astype(np.int32),
        first_label=np.concatenate([[0], np.cumsum(many[kept])]),
        labels=ids[np.repeat(kept, many)],
    )
