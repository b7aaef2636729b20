from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertology.corpora.treebank import Skip
from bertology.edge_probing.tasks import EdgeTask, Record, Target, counted_labels
from bertology.errors import DataError
from helpers.edge_tasks import task_of, tasks

pytestmark = pytest.mark.any_transformers


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (((1, 1), ("A",)), r"span1 is \[1, 1\], which holds no words: wanted a first word from 0 and a later end"),
        (((2, 1), ("A",)), r"span1 is \[2, 1\], which holds no words"),
        (((-1, 1), ("A",)), r"span1 is \[-1, 1\], which holds no words"),
        (((0, 1), ("A",), (3, 3)), r"span2 is \[3, 3\], which holds no words"),
        (([0, 1], ("A",)), r"span1 must be \(first word, word after the last\), two integers, got \[0, 1\]"),
        (((0, 1, 2), ("A",)), r"two integers, got \(0, 1, 2\)"),
        (((0, 1.0), ("A",)), r"two integers, got \(0, 1.0\)"),
        (((False, True), ("A",)), "two integers, got"),
        ((None, ("A",)), "two integers, got None"),
        (((0, 1), "A"), "labels must be a tuple of strings that are not empty, got 'A'"),
        (((0, 1), ("A", "")), r"not empty, got \('A', ''\)"),
        (((0, 1), (" ",)), "not empty, got"),
        (((0, 1), (1,)), r"not empty, got \(1,\)"),
        (((0, 1), ("A", "A")), r"labels must differ, got \('A', 'A'\)"),
    ],
)
def test_what_is_no_target(fields, message):
    with pytest.raises(DataError, match=message):
        Target(*fields)


def test_what_is_no_record():
    one, two = Target((0, 1), ("A",)), Target((0, 1), ("A",), (0, 2))
    for words, targets, message in (
        ((), (), r"record 'r' must have words, strings that are not empty, got \(\)"),
        (("a", ""), (), "must have words, strings that are not empty"),
        (("a",), (one, two), r"record 'r', target 1: span2 is \[0, 2\], wanted an end within the 1 word of the text"),
        (
            ("a", "b"),
            (one, two),
            "record 'r', target 1 has a span2, target 0 differs: wanted span2 in all targets, or in",
        ),
        (("a", "b"), (two, one), "target 1 has no span2, target 0 differs"),
    ):
        with pytest.raises(DataError, match=message):
            Record(words, targets, "r")


def test_targets_may_overlap_and_have_no_label():
    phrases = Target((0, 3), ("NP",)), Target((0, 2), ()), Target((1, 3), ("NP", "VP")), Target((0, 3), ("VP",))
    found = EdgeTask.of("phrases", [Record(("a", "b", "c"), phrases)])
    assert (found.targets, found.labels, found.sides, found.counted) == (4, ("NP", "VP"), 1, ("NP", "VP"))


def test_what_is_no_task():
    one, two = Record(("a",), (Target((0, 1), ("A",)),), "r"), Record(("a",), (Target((0, 1), ("A",), (0, 1)),), "s")
    for make, message in (
        (lambda: EdgeTask.of("t", []), "task 't' has no targets$"),
        (lambda: EdgeTask.of("t", [Record(("a",), ())]), "task 't' has no targets: no targets"),
        (
            lambda: EdgeTask.of("t", [one, two]),
            "task 't', record 's', target 0: wanted 1 span, as the first target has",
        ),
        (lambda: EdgeTask.of("t", [two, one]), "record 'r', target 0: wanted 2 spans"),
        (
            lambda: EdgeTask.of("t", [one], labels=("B", "C")),
            "record 'r', target 0: the label 'A' is none of the 2 labels 'B', 'C'",
        ),
        (lambda: EdgeTask.of("t", [one], labels=("A", "A")), "labels must differ, got 'A' more than once"),
        (lambda: EdgeTask("t", (one,), ("A",), 3, ("A",)), "task 't': sides must be 1 or 2, got 3"),
        (lambda: EdgeTask.of("t", [one], counted=("B",)), "'B' is to count, and is none of the 1 label 'A'"),
    ):
        with pytest.raises(DataError, match=message):
            make()


def test_a_task_is_a_sequence():
    found = task_of("A", "B", "A")
    assert len(found) == 3
    assert found[1].words == ("w1",)
    assert [record.name for record in found[1:]] == ["r1", "r2"]
    assert isinstance(found[1:], EdgeTask)
    assert found.first(2) == found[:2]
    assert found[1:2].labels == ("A", "B")
    assert repr(found) == str(found) == "task: 3 records, 3 targets of 1 span, 2 labels"
    with pytest.raises(DataError, match="the first of 3 records: wanted 1 or more, got 0"):
        found.first(0)


def test_what_is_told_of_a_task():
    twice = Record(("a", "b"), (Target((0, 1), ("1",), (1, 2)), Target((0, 1), ("0",), (1, 2))), "r")
    found = EdgeTask.of("coref", [twice, Record(("a",), (), "s")], counted="coref")
    assert found.repeated == 1
    assert found.skipped == (Skip("s", "no targets"),)
    assert str(found) == (
        "coref: 1 record, 2 targets of 2 spans, 2 labels, 1 of which count; 1 target with the spans of another; "
        "1 skipped: no targets"
    )
    merged = found.merged()
    assert merged[0].targets == (Target((0, 1), ("1", "0"), (1, 2)),)
    assert merged.repeated == 0


@settings(max_examples=40)
@given(tasks())
def test_merged_targets_keep_every_label(task):
    def labels(one):
        return {(n, t.span1, t.span2, x) for n, r in enumerate(one) for t in r.targets for x in t.labels}

    merged = task.merged()
    assert labels(merged) == labels(task)
    assert merged.targets == task.targets - task.repeated
    assert merged.merged() == merged


ROLES = (
    "A0", "A5", "AA", "AM", "AM-TMP", "ARG0", "ARG5", "ARGA", "ARGM", "ARGM-TMP",
    "A6", "ARG6", "ARGM-", "C-ARG0", "C-V", "R-ARGM-LOC", "R-A0", "V", "XARG0",
)  # fmt: skip


def test_what_counts():
    assert counted_labels(("0", "1"), "coref") == ("1",)
    assert counted_labels(ROLES, "srl") == ROLES[:10]
    relations = ("Other", "Cause-Effect(e1,e2)", "no_relation", "_none", "other")
    assert counted_labels(relations, "relations") == ("Cause-Effect(e1,e2)", "other")
    assert counted_labels(relations) == relations
    assert counted_labels(("a", "b", "c"), ["c", "a"]) == ("a", "c")
    for labels, rule, message in (
        (("a",), "pos", "what counts must be 'coref', 'srl', 'relations', a list of labels or None, got 'pos'"),
        (("0",), "coref", "no label counts of the 1 label '0' by the rule 'coref'"),
        (("a",), (), r"no label counts of the 1 label 'a' by the rule \(\)"),
        ((), None, "no label counts of the 0 labels"),
        ("abc", None, "labels must be a list of strings, got 'abc'"),
        (("a", ""), None, "labels must be strings that are not empty"),
        (("a", "b", "a"), None, "labels must differ, got 'a' more than once"),
        (tuple("abcdefgh"), ("z",), "'z' is to count, and is none of the 8 labels 'a', 'b', 'c', 'd', 'e', 'f', ..."),
    ):
        with pytest.raises(DataError, match=message):
            counted_labels(labels, rule)


def test_the_labels_of_another_task():
    train, dev = task_of("A", "B", "C"), task_of("C", "A", "D", "C", "D", name="dev")
    with pytest.raises(
        DataError, match=r"task 'dev' has labels that are none of the 3 labels 'A', 'B', 'C': 'D' \(2\)"
    ):
        dev.with_labels(train)
    found = dev.with_labels(train, skip_unknown=True)
    assert (found.labels, found.targets, found.counted) == (("A", "B", "C"), 3, ("A", "B", "C"))
    assert found.skipped[:2] == (Skip("r2, target 0", "a label is unknown"), Skip("r4, target 0", "a label is unknown"))
    assert train.with_labels(("C", "B", "A")).labels == ("C", "B", "A")
    with pytest.raises(DataError, match="task 'task' has no targets: a label is unknown, no targets"):
        train.with_labels(("X",), skip_unknown=True)


def test_what_counts_follows_the_labels():
    train = EdgeTask.of("srl", task_of("ARG0", "ARG1", "C-V"), counted="srl")
    dev = EdgeTask.of("dev", task_of("ARG0", "C-V"), counted=("C-V",))
    assert dev.with_labels(train).counted == ("ARG0", "ARG1")
    assert dev.with_labels(train, counted=["ARG1"]).counted == ("ARG1",)
    assert dev.with_labels(("C-V", "ARG0")).counted == ("C-V",)
    with pytest.raises(DataError, match="task 'dev' counts some of its labels only, and the 3 labels .* has others"):
        dev.with_labels(train.labels)


def test_parts_follow_one_another():
    task = task_of(*"ABCDEFGHIJ")
    assert [[r.name for r in part] for part in task.split(0.25, 3)] == [
        ["r0", "r1"], ["r2", "r3", "r4"], ["r5", "r6", "r7", "r8", "r9"],
    ]  # fmt: skip
    assert task.split(4)[1].labels == task.labels
    for sizes in ((10,), (0.5, 5), (0.96,), (20,)):
        with pytest.raises(DataError, match="10 records cannot be split into .* and a rest: a part would be empty"):
            task.split(*sizes)
    for size in (0, 0.0, 1.0, -1, 1.5, True, "a"):
        with pytest.raises(DataError, match="a part's size must be a share between 0 and 1 or a number of records"):
            task.split(size)


def test_the_records_of_one_sentence_stay_together():
    target = (Target((0, 1), ("A",)),)
    words = [("a",), ("b",), ("b",), ("b",), ("c",), ("d",), ("d",), ("e",)]
    task = EdgeTask.of("frames", [Record(one, target, str(n)) for n, one in enumerate(words)])
    assert [len(part) for part in task.split(2)] == [4, 4]
    for seed in range(20):
        parts = task.split(2, 1, seed=seed)
        texts = [{record.words for record in part} for part in parts]
        assert sum(map(len, texts)) == 5


@settings(max_examples=40)
@given(tasks(), st.integers(0, 99))
def test_parts_are_the_whole(task, seed):
    if len({record.words for record in task}) < 2:
        return
    one, rest = task.split(1, seed=seed)
    assert Counter(map(repr, (*one, *rest))) == Counter(map(repr, task))
    assert (one.labels, one.counted, one.sides) == (task.labels, task.counted, task.sides)
    assert (one, rest) == task.split(1, seed=seed)


def test_random_parts_depend_on_the_seed_alone():
    task = task_of(*"ABCDEFGHIJ")
    chosen = {tuple(r.name for r in task.split(0.5, seed=seed)[0]) for seed in range(9)}
    assert len(chosen) > 5
