import json
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings

from bertology.corpora.treebank import Skip
from bertology.corpora.words import align
from bertology.edge_probing.jsonl import read_edges, write_edges
from bertology.edge_probing.tasks import Target
from bertology.errors import DataError
from helpers.edge_tasks import task_of, tasks
from helpers.trees import wordpiece_tokenizer


@pytest.fixture
def write(tmp_path):
    def write(*lines, name="edges.jsonl"):
        made = [line if isinstance(line, (str, bytes)) else json.dumps(line) for line in lines]
        (tmp_path / name).write_bytes(b"\n".join(one.encode() if isinstance(one, str) else one for one in made))
        return tmp_path / name

    return write


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
        ('{"text": "half \\ud83d", "targets": []}', "line 2: words must not contain half of a surrogate pair"),
        ('{"tokens": ["\\ud83d"], "targets": []}', "line 2: words must not contain half of a surrogate pair"),
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
        ((GOOD,), {"labels": ("A",)}, "record 'edges.jsonl 1', target 1: the label 'B' is none of the 1 label 'A'"),
        ((GOOD,), {"counted": "coref"}, "edges.jsonl: no label counts of the 2 labels 'A', 'B' by the rule 'coref'"),
    ):
        with pytest.raises(DataError, match=message):
            read_edges(write(*lines), **options)
    with pytest.raises(DataError, match="labels must not contain line breaks, got 'a\\\\nb'"):
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
