import json
from collections import Counter
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import wordpiece_tokenizer

from bertology.corpora.treebank import Skip
from bertology.corpora.words import align
from bertology.edge_probing.jsonl import read_edges, write_edges
from bertology.edge_probing.tasks import EdgeTask, Record, Target, counted_labels
from bertology.errors import DataError

WORD = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=4)
LABELS = ("NP", "VP", "a b", "é")


@st.composite
def tasks(draw):
    """Random spans over random words; pairs in all targets or in none, several labels or none."""
    sides = draw(st.sampled_from((1, 2)))
    records = []
    for number in range(draw(st.integers(1, 4))):
        words = tuple(draw(st.lists(WORD, min_size=1, max_size=5)))
        span = st.tuples(st.integers(0, len(words)), st.integers(0, len(words))).map(sorted).map(tuple)
        span = span.filter(lambda s: s[0] < s[1])
        chosen = st.lists(st.sampled_from(LABELS), unique=True, max_size=3).map(tuple)
        target = st.builds(
            Target, span, chosen, span if sides == 2 else st.none(), st.sampled_from(("", "x", '{"a": 1}'))
        )
        targets = tuple(draw(st.lists(target, min_size=1, max_size=4)))
        records.append(Record(words, targets, draw(st.sampled_from((f"one {number}", "")))))
    return EdgeTask.of("random", records, labels=LABELS, counted=draw(st.sampled_from((None, LABELS[1:]))))


def task_of(*labels, name="task"):
    """A text for each label, of one word and one target."""
    return EdgeTask.of(
        name, [Record((f"w{n}",), (Target((0, 1), (label,)),), f"r{n}") for n, label in enumerate(labels)]
    )


@pytest.fixture
def write(tmp_path):
    def write(*lines, name="edges.jsonl"):
        made = [line if isinstance(line, (str, bytes)) else json.dumps(line) for line in lines]
        (tmp_path / name).write_bytes(b"\n".join(one.encode() if isinstance(one, str) else one for one in made))
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (((1, 1), ("A",)), r"span1 is \[1, 1\], which holds no words: wanted a first word from 0 and a later end"),
        (((2, 1), ("A",)), r"span1 is \[2, 1\], which holds no words"),
        (((-1, 1), ("A",)), r"span1 is \[-1, 1\], which holds no words"),
        (((0, 1), ("A",), (3, 3)), r"span2 is \[3, 3\], which holds no words"),
        (([0, 1], ("A",)), r"span1 must be \(first word, word behind the last\), two whole numbers, got \[0, 1\]"),
        (((0, 1, 2), ("A",)), r"two whole numbers, got \(0, 1, 2\)"),
        (((0, 1.0), ("A",)), r"two whole numbers, got \(0, 1.0\)"),
        (((False, True), ("A",)), "two whole numbers, got"),
        ((None, ("A",)), "two whole numbers, got None"),
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
        (("a",), (one, two), r"record 'r', target 1: span2 is \[0, 2\], wanted an end within the 1 words of the text"),
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
        (lambda: EdgeTask.of("t", [one], counted=("B",)), "'B' is to count, and is none of the 1 labels 'A'"),
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
        "coref: 1 records, 2 targets of 2 spans, 2 labels, 1 of which count; 1 targets have the spans of another; "
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
        (("0",), "coref", "no label counts of the 1 labels '0' by the rule 'coref'"),
        (("a",), (), r"no label counts of the 1 labels 'a' by the rule \(\)"),
        ((), None, "no label counts of the 0 labels"),
        ("abc", None, "labels must be strings that are not empty, got 'abc'"),
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


@settings(max_examples=40)
@given(tasks())
def test_what_is_written_is_read_back(task):
    with TemporaryDirectory() as folder:
        path, labels = f"{folder}/edges.jsonl", f"{folder}/labels.txt"
        write_edges(task, path, labels=labels)
        found = read_edges(path, name="random", labels=labels, counted=task.counted)
        assert found == task
        write_edges(found, f"{folder}/again.jsonl")
        with open(path) as one, open(f"{folder}/again.jsonl") as other:
            assert one.read() == other.read()


def test_the_paper_s_form_and_ours(write):
    line = {"text": "Ian ate  strawberry ice cream", "targets": [
        {"span1": [1, 2], "span2": [2, 5], "label": "A1", "info": {"height": 2}},
        {"span1": [1, 2], "span2": [0, 1], "label": ["A0", "x", "A0"]},
    ], "info": {"source": "PropBank"}}  # fmt: skip
    found = read_edges(write(line, "", {"text": "None .", "targets": []}), counted="srl")
    assert (found.name, found.labels, found.counted) == ("edges", ("A0", "A1", "x"), ("A0", "A1"))
    assert found[0].words == ("Ian", "ate", "strawberry", "ice", "cream")
    assert found[0].targets[0] == Target((1, 2), ("A1",), (2, 5), '{"info": {"height": 2}}')
    assert found[0].targets[1].labels == ("A0", "x")
    assert found[0].name == "edges.jsonl 1"
    assert json.loads(found[0].info) == {"info": {"source": "PropBank"}}
    assert found.skipped == (Skip("edges.jsonl 3", "no targets"),)
    blanks = {
        "tokens": ["10 000", "men"],
        "text": "10 000 men",
        "targets": [{"span1": [0, 1], "label": "CD", "span2": None}],
    }
    assert read_edges(write(b"\xef\xbb\xbf" + json.dumps(blanks).encode()))[0].words == ("10 000", "men")


GOOD = {"text": "a b c", "targets": [{"span1": [0, 1], "label": "A"}, {"span1": [1, 3], "label": ["B"]}]}


def with_target(**changes):
    return {"text": "a b c", "targets": [GOOD["targets"][0], {"span1": [1, 3], "label": "B", **changes}]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(GOOD)[:40], "line 2: not JSON: "),
        (b'{"text": "\xff"}', "line 2: not JSON: .* can't decode"),
        ("[1]", r"line 2: wanted an object with text and targets, got \[1\]"),
        ({"text": "a"}, "line 2: wanted a list of targets, got None"),
        ({"targets": []}, "line 2: wanted text with words, got None"),
        ({"text": " ", "targets": []}, "line 2: wanted text with words, got ' '"),
        ({"tokens": ["a", ""], "targets": []}, "line 2: tokens must be a list of strings that are not empty"),
        ({"tokens": "a b", "targets": []}, "line 2: tokens must be a list of strings"),
        (
            {"tokens": ["a", "b"], "text": "a  b", "targets": []},
            "line 2: text is not its tokens, joined by blanks: 'a  b'",
        ),
        ('{"text": "half \\ud83d", "targets": []}', "line 2: wanted whole characters, got half of one"),
        ('{"tokens": ["\\ud83d"], "targets": []}', "line 2: wanted whole characters, got half of one"),
        ({**GOOD, "name": 3}, "line 2: name must be a string, got 3"),
        (
            {**GOOD, "targets": [3]},
            "line 2, target 0: wanted an object with span1, label and, over pairs, span2, got 3",
        ),
        ({**GOOD, "targets": [{"span1": [0, 1]}]}, "line 2, target 0: wanted an object with span1, label"),
        (with_target(label=3), "line 2, target 1: label must be a string or a list of strings, got 3"),
        (
            with_target(label=["A", None]),
            r"line 2, target 1: label must be a string or a list of strings, got \['A', None\]",
        ),
        (with_target(label=""), r"line 2, target 1: labels must be a tuple of strings that are not empty, got \(''"),
        (
            with_target(span1=[1, 4]),
            r"line 2, target 1: span1 is \[1, 4\], wanted an end within the 3 words of the text",
        ),
        (with_target(span1=[1, 1]), r"line 2, target 1: span1 is \[1, 1\], which holds no words"),
        (with_target(span1=[True, 2]), r"line 2, target 1: span1 must be \(first word"),
        (with_target(span1=3), "line 2, target 1: span1 must be .* got 3"),
        (with_target(span2=[0, 1]), "line 2: record 'edges.jsonl 2', target 1 has a span2, target 0 differs"),
    ],
)
def test_lines_that_cannot_be_read(write, line, message):
    path = write(GOOD, line, GOOD)
    with pytest.raises(DataError, match=rf"edges.jsonl, {message}.*\(skip_broken=True leaves it out\)"):
        read_edges(path)
    found = read_edges(path, skip_broken=True)
    kept = 5 if "target 1:" in message else 4
    assert found.targets == kept
    assert len(found.skipped) == 1
    place = message.partition(": ")[0]
    assert found.skipped[0].name == f"edges.jsonl, {place}"
    assert found.skipped[0].reason


def test_files_that_cannot_be_read(write, tmp_path):
    pair = {"text": "a", "targets": [{"span1": [0, 1], "span2": [0, 1], "label": "A"}]}
    for lines, options, message in (
        ((), {}, "edges.jsonl: task 'edges' has no targets"),
        (({"text": "a", "targets": []},), {}, "edges.jsonl: task 'edges' has no targets: no targets"),
        ((GOOD, pair), {}, "edges.jsonl: task 'edges', record 'edges.jsonl 2', target 0: wanted 1 span"),
        ((GOOD,), {"labels": ("A",)}, "record 'edges.jsonl 1', target 1: the label 'B' is none of the 1 labels 'A'"),
        ((GOOD,), {"counted": "coref"}, "edges.jsonl: no label counts of the 2 labels 'A', 'B' by the rule 'coref'"),
    ):
        with pytest.raises(DataError, match=message):
            read_edges(write(*lines), **options)
    with pytest.raises(DataError, match="labels of one line are wanted, got 'a\\\\nb'"):
        write_edges(task_of("a\nb"), tmp_path / "x", labels=tmp_path / "y")


def test_labels_from_a_file(write, tmp_path):
    (tmp_path / "labels.txt").write_bytes(b"-\r\nB\r\nA\r\n")
    assert read_edges(write(GOOD), labels=tmp_path / "labels.txt").labels == ("-", "B", "A")
    (tmp_path / "labels.txt").write_text("B\nA")
    assert read_edges(write(GOOD), labels=str(tmp_path / "labels.txt")).labels == ("B", "A")
    (tmp_path / "labels.txt").write_text("B\n\nA\n")
    with pytest.raises(DataError, match="labels must be strings that are not empty"):
        read_edges(write(GOOD), labels=tmp_path / "labels.txt")


def test_a_task_can_be_aligned_with_tokens(write):
    one = {"text": "the cat purred", "targets": [{"span1": [2, 3], "label": "VERB"}]}
    long = {"text": "cat " * 40, "targets": [{"span1": [2, 3], "label": "NOUN"}]}
    found = read_edges(write(one, long, {"text": "cat", "targets": []}, "{"), skip_broken=True)
    batches = align(wordpiece_tokenizer(), found)
    (aligned,) = (a for batch in batches for a in batch["annotations"])
    assert aligned.source is found[0]
    start, end = aligned.source.targets[0].span1
    assert [token for token, word in enumerate(aligned.word_of) if start <= word < end] == [3, 4]
    assert [(skip.name, skip.reason) for skip in batches.skipped[1:]] == [
        ("edges.jsonl 3", "no targets"), ("edges.jsonl 2", "longer than 32 tokens"),
    ]  # fmt: skip
    assert batches.skipped[0].name == "edges.jsonl, line 4"


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "sizes"),
    [
        ("ner-wnut17-dev", (628, 836, 6)),
        ("ner-wnut17-train", (1228, 1975, 6)),
        ("semeval-train", (8000, 8000, 19)),
        ("spr2-dev", (291, 751, 18)),
        ("spr2-train", (2000, 5157, 18)),
        ("srl-dev", (1497, 9682, 44)),
    ],
)
def test_real_files(shared, tmp_path, file, sizes):
    path = shared / "edges" / f"{file}.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    found = read_edges(path, skip_broken=file == "srl-dev")
    listed = [
        (line["tokens"], target["span1"], target.get("span2"), target["label"])
        for line in lines for target in line["targets"] if target["label"] != ""
    ]  # fmt: skip
    mine = [(list(r.words), list(t.span1), t.span2 and list(t.span2), list(t.labels)) for r in found for t in r.targets]
    assert mine == [(a, b, c, [x] if isinstance(x, str) else x) for a, b, c, x in listed]
    labels = {x for *_, label in listed for x in ([label] if isinstance(label, str) else label)}
    assert found.labels == tuple(sorted(labels))
    assert (len(found), found.targets, len(found.labels)) == sizes
    assert len(found.skipped) == sum(target["label"] == "" for line in lines for target in line["targets"])
    write_edges(found, tmp_path / "again.jsonl")
    assert read_edges(tmp_path / "again.jsonl", name=file).records == found.records


@pytest.mark.shared
def test_a_cut_file_is_told(shared, tmp_path):
    whole = (shared / "edges" / "ner-wnut17-dev.jsonl").read_bytes()
    (tmp_path / "cut.jsonl").write_bytes(whole[: len(whole) // 2])
    line = whole[: len(whole) // 2].count(b"\n") + 1
    with pytest.raises(DataError, match=f"cut.jsonl, line {line}: not JSON"):
        read_edges(tmp_path / "cut.jsonl")
    assert len(read_edges(tmp_path / "cut.jsonl", skip_broken=True)) == line - 1


@pytest.mark.shared
def test_what_counts_in_real_files(shared):
    srl = read_edges(shared / "edges" / "srl-dev.jsonl", counted="srl", skip_broken=True)
    assert set(srl.labels) - set(srl.counted) == {x for x in srl.labels if x[:2] in ("C-", "R-")}
    relations = read_edges(shared / "edges" / "semeval-train.jsonl", counted="relations")
    assert set(relations.labels) - set(relations.counted) == {"Other"}
