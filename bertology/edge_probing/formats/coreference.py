"""Tasks from coreference: pairs of spans that refer to the same thing or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

from ...corpora.documents import Document, document_of
from ...corpora.gap_winobias import read_gap
from ...corpora.skips import Skip
from ...errors import DataError, checked
from ..tasks import EdgeTask, Record, Span, Target

_LABELS = ("0", "1")
_Clusters = dict[Span, frozenset[int]]
"""{the span of a mention: the clusters it belongs to, usually one}"""


@checked
def coreference_edges(
    documents: Sequence[Document], *, window: int | None = None, name: str = "coreference"
) -> EdgeTask:
    """Make the task of predicting whether two mentions refer to the same entity, "1", or not, "0".

    All pairs of mentions are targets, the earlier one first; only "1" counts for the score. If a span is a mention of
    two entities, it is one mention, and the label is "1" with the mentions of either entity. As in the paper's data a
    record is a sentence, and both mentions of a pair are in it. If the ends of sentences are not known, or for pairs
    that are farther apart, `window` takes all pairs within so many words, and a record is a document: split documents
    with `pieces` first, so that they fit the model.

    Args:
        documents: documents with mentions, such as `read_conll_coref` reads.
        window: the most words from the beginning of the earlier mention to the end of the other; None for sentences.
        name: the name of the task in messages.

    Sentences with fewer than two mentions, and mentions across the end of a sentence, are listed in `skipped`.
    Raises `DataError` for documents without sentences if no `window` is given.

        >>> from bertology.syntax import Document, Mention
        >>> mentions = (Mention(0, 1, 0, 1, "proper"), Mention(2, 3, 2, 2, "proper"), Mention(4, 5, 4, 1, "pronoun"))
        >>> document = Document(("Ann", "saw", "Eve", "as", "she", "left"), mentions, sentences=(0,))
        >>> [(t.span1, t.span2, *t.labels) for t in coreference_edges([document])[0].targets]
        [((0, 1), (2, 3), '0'), ((0, 1), (4, 5), '1'), ((2, 3), (4, 5), '0')]
    """
    if isinstance(documents, (str, Path)):
        raise DataError(f"wanted documents, got {str(documents)!r}: read them with read_conll_coref")
    if window is not None and window < 2:
        raise DataError(f"window must be 2 words or more, got {window}")
    records: list[Record] = []
    skipped = list(getattr(documents, "skipped", ()))
    for document in map(document_of, documents):
        if window is None and not document.sentences:
            raise DataError(
                f"document {document.name!r} does not say where its sentences end: read it with trees, or give a window"
            )
        clusters = _clusters(document)
        if window is None:
            records += _by_sentence(document, clusters, skipped)
        else:
            near = [(a, b) for a, b in combinations(clusters, 2) if max(a[1], b[1]) - a[0] <= window]
            targets = tuple(_target(clusters, *pair, 0) for pair in near)
            records.append(Record(document.words, targets, document.name))
    return EdgeTask.of(name, records, labels=_LABELS, counted="coref", skipped=skipped)


@checked
def gap_edges(path: str | Path, *, skip_broken: bool = False, name: str = "gap") -> EdgeTask:
    """Make the task of predicting whether a pronoun of GAP (Webster et al. 2018) refers to a name, "1", or not, "0".

    Each text has two targets: `span1` is the pronoun, `span2` one of the names, in the order of the text. Only "1"
    counts for the score. `skip_broken` is that of `read_gap`; raises `DataError` as `read_gap` does.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     names = "A\\tA-offset\\tA-coref\\tB\\tB-offset\\tB-coref"
        ...     _ = file.write(f"ID\\tText\\tPronoun\\tPronoun-offset\\t{names}\\n")
        ...     _ = file.write("1\\tAnn met Eve as she left.\\tshe\\t15\\tAnn\\t0\\tTRUE\\tEve\\t8\\tFALSE\\n")
        ...     file.flush()
        ...     [(t.span1, t.span2, *t.labels) for t in gap_edges(file.name)[0].targets]
        [((4, 5), (0, 1), '1'), ((4, 5), (2, 3), '0')]
    """
    documents = read_gap(path, skip_broken=skip_broken)
    records = []
    for document in documents:
        mention = document.mentions[(document.targets or (0,))[0]]
        pronoun, clusters = (mention.start, mention.end), _clusters(document)
        targets = tuple(_target(clusters, pronoun, one, 0) for one in clusters if one != pronoun)
        records.append(Record(document.words, targets, document.name))
    return EdgeTask.of(name, records, labels=_LABELS, counted="coref", skipped=documents.skipped)


def _clusters(document: Document) -> _Clusters:
    """The spans of the mentions, in the order of the text."""
    found: _Clusters = {}
    for mention in sorted(document.mentions, key=lambda m: (m.start, m.end)):
        span = mention.start, mention.end
        found[span] = found.get(span, frozenset()) | {mention.cluster}
    return found


def _by_sentence(document: Document, clusters: _Clusters, skipped: list[Skip]) -> Iterator[Record]:
    ends = (*document.sentences[1:], len(document.words))
    for number, (start, end) in enumerate(zip(document.sentences, ends, strict=True)):
        begun = [span for span in clusters if start <= span[0] < end]
        skipped += [
            Skip(f"{document.name}, words {span[0]} to {span[1]}", "a mention runs over a sentence's end")
            for span in begun
            if span[1] > end
        ]
        pairs = combinations((span for span in begun if span[1] <= end), 2)
        targets = tuple(_target(clusters, *pair, start) for pair in pairs)
        yield Record(document.words[start:end], targets, f"{document.name}, sentence {number}")


def _target(clusters: _Clusters, one: Span, other: Span, begin: int) -> Target:
    same = "1" if clusters[one] & clusters[other] else "0"
    return Target((one[0] - begin, one[1] - begin), (same,), (other[0] - begin, other[1] - begin))
