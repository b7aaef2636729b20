import re
from collections import Counter

import pytest

from bertology.corpora.treebank import Skip
from bertology.edge_probing.formats.coreference import coreference_edges, gap_edges
from bertology.errors import DataError
from bertology.syntax import Document, Documents, Mention, read_conll_coref
from helpers.edge_formats import bracketed, edges
from helpers.trees import sentence

pytestmark = pytest.mark.any_transformers

TEXT = ("Ann", "met", "Eve", ".", "She", "told", "her", "sister", ".")
MENTIONS = (
    Mention(0, 1, 0, 1, "proper"), Mention(2, 3, 2, 2, "proper"), Mention(4, 5, 4, 1, "pronoun"),
    Mention(6, 8, 7, 3, "nominal"), Mention(6, 7, 6, 2, "pronoun"),
)  # fmt: skip


def test_coreference():
    document = Document(TEXT, MENTIONS, "met", sentences=(0, 4))
    found = coreference_edges(Documents((document,), (Skip("x", "y"),)))
    assert edges(found) == [
        [(0, 1, 2, 3, "0")],
        [(0, 1, 2, 3, "0"), (0, 1, 2, 4, "0"), (2, 3, 2, 4, "0")],
    ]
    assert [(record.name, record.words) for record in found] == [
        ("met, sentence 0", TEXT[:4]), ("met, sentence 1", TEXT[4:]),
    ]  # fmt: skip
    assert (found.labels, found.counted, found.skipped) == (("0", "1"), ("1",), (Skip("x", "y"),))
    near = coreference_edges([document], window=5)
    assert edges(near) == [
        [
            (0, 1, 2, 3, "0"), (0, 1, 4, 5, "1"), (2, 3, 4, 5, "0"), (2, 3, 6, 7, "1"),
            (4, 5, 6, 7, "0"), (4, 5, 6, 8, "0"), (6, 7, 6, 8, "0"),
        ]
    ]  # fmt: skip
    assert near[0].words == TEXT
    assert edges(coreference_edges([document], window=99)) == [
        [
            (a.start, a.end, b.start, b.end, str(int(a.cluster == b.cluster)))
            for n, a in enumerate(sorted(MENTIONS, key=lambda m: (m.start, m.end)))
            for b in sorted(MENTIONS, key=lambda m: (m.start, m.end))[n + 1 :]
        ]
    ]


def test_words_that_are_mentions_of_two_things():
    both = Document(TEXT, (*MENTIONS[:3], Mention(2, 3, 2, 1, "proper")), "met")
    assert edges(coreference_edges([both], window=9)) == [[(0, 1, 2, 3, "1"), (0, 1, 4, 5, "1"), (2, 3, 4, 5, "1")]]


def test_mentions_over_the_end_of_a_sentence():
    over = Mention(2, 5, 2, 9, "nominal")
    found = coreference_edges([Document(TEXT, (*MENTIONS, over), "met", sentences=(0, 4))])
    assert found.targets == 4
    assert found.skipped == (Skip("met, words 2 to 5", "a mention runs over a sentence's end"),)


def test_documents_that_cannot_be_asked():
    for documents, options, message in (
        (
            [Document(TEXT, MENTIONS, "met")],
            {},
            "document 'met' does not say where its sentences end: read it with trees",
        ),
        ([Document(TEXT, MENTIONS, "met")], {"window": 1}, "window must be 2 words or more, got 1"),
        ([sentence("a", [0])], {}, "a list of documents with mentions, as .* reads them, got list with Sentence in it"),
        ("a.conll", {}, "a list of documents with mentions, as read_conll_coref reads them, got 'a.conll'"),
        ([Document(TEXT, MENTIONS[:1], "met", sentences=(0,))], {}, "task 'coreference' has no targets: no targets"),
    ):
        with pytest.raises(DataError, match=message):
            coreference_edges(documents, **options)


GAP = "ID\tText\tPronoun\tPronoun-offset\tA\tA-offset\tA-coref\tB\tB-offset\tB-coref\n"


def test_gap(write):
    rows = (
        "1\tAnn met Eve as she left.\tshe\t15\tAnn\t0\tFALSE\tEve\t8\tTRUE\n"
        "2\tHer mother Ann met Eve.\tHer\t0\tEve\t19\tFALSE\tAnn\t11\tFALSE\n"
        "3\tAnn met Eve as she left.\tshe\t15\tnn\t1\tTRUE\tEve\t8\tFALSE\n"
    )
    found = gap_edges(write(GAP + rows))
    assert edges(found) == [[(4, 5, 0, 1, "0"), (4, 5, 2, 3, "1")], [(0, 1, 2, 3, "0"), (0, 1, 4, 5, "0")]]
    assert found.counted == ("1",)
    assert found.skipped == (Skip("3", "a mention begins or ends inside a word"),)


@pytest.mark.shared
def test_ontogum_pairs(shared):
    trees = shared / "constituency" / "gum_open-train.ptb"
    found = coreference_edges(read_conll_coref(shared / "coref" / "ontogum_open-train.conll", trees=trees))
    lengths = iter(len(tags) for _, tags in bracketed(trees.read_text(encoding="utf-8")))
    wanted, over = [], 0
    text = (shared / "coref" / "ontogum_open-train.conll").read_text(encoding="utf-8")
    for document in re.split(r"# begin document.*\n", text)[1:]:
        rows = [line.split("\t") for line in document.split("\n") if re.match(r"\d", line)]
        sentence_of = []
        while len(sentence_of) < len(rows):
            sentence_of += [len(wanted)] * next(lengths)
            wanted.append([])
        first = {number: sentence_of.index(number) for number in set(sentence_of)}
        spans, opened = [], []
        for at, row in enumerate(rows):
            for opens, cluster, closes in re.findall(r"(\(?)(\d+)(\)?)", row[2]):
                if opens:
                    opened.append((cluster, at))
                if closes:
                    start = max((s for c, s in opened if c == cluster), default=None)
                    opened.remove((cluster, start))
                    spans.append((start, at + 1, cluster))
        for start, end, cluster in spans:
            if sentence_of[start] != sentence_of[end - 1]:
                over += 1
                continue
            begin = first[sentence_of[start]]
            wanted[sentence_of[start]].append((start - begin, end - begin, cluster))
    pairs = []
    for some in wanted:
        labels = {}
        for n, a in enumerate(some):
            for b in some[n + 1 :]:
                if a[:2] != b[:2]:  # the same words, as mentions of two things
                    pair = frozenset((a[:2], b[:2]))
                    labels[pair] = max(labels.get(pair, "0"), str(int(a[2] == b[2])))
        pairs += [labels] if labels else []
    mine = [{frozenset((t.span1, t.span2)): t.labels[0] for t in record.targets} for record in found]
    assert mine == pairs
    assert found.targets == sum(map(len, mine))
    assert all(t.span1 <= t.span2 for record in found for t in record.targets)
    assert sum(skip.reason == "a mention runs over a sentence's end" for skip in found.skipped) == over
    assert Counter(t.labels[0] for record in found for t in record.targets) == {"0": 5731, "1": 1383}


@pytest.mark.shared
def test_gap_file(shared):
    found = gap_edges(shared / "coref" / "gap-validation.tsv")
    rows = [line.split("\t") for line in (shared / "coref" / "gap-validation.tsv").read_text().split("\n")[1:] if line]
    assert (len(found), found.targets) == (454, 908)
    true = sum((row[6] == "TRUE") + (row[9] == "TRUE") for row in rows)
    assert Counter(t.labels[0] for r in found for t in r.targets) == {"1": true, "0": 908 - true}
    for record, row in zip(found, rows, strict=True):
        texts = {" ".join(record.words[slice(*t.span2)]) for t in record.targets}
        assert {text.replace(" ", "") for text in texts} == {row[4].replace(" ", ""), row[7].replace(" ", "")}
        assert all(record.words[t.span1[0]] == row[2] for t in record.targets)
