import json

import pytest

from bertology.edge_probing.formats.columns import entity_edges
from bertology.edge_probing.formats.relations import ProtoRole, proto_role_edges, semeval_edges, spr1_edges
from bertology.edge_probing.jsonl import read_edges
from bertology.errors import DataError
from helpers.edge_formats import edges, tags_in

pytestmark = pytest.mark.any_transformers

SEMEVAL = """8001\t"The most <e1>common</e1>, and "old <e2>black hats</e2>"."
Message-Topic(e1,e2)
Comment: Assuming: much.

8002 "<e2>Lids</e2> of<e1>jar</e1>-like things"
Other
Comment:

8003\t"A <e1>b</e1> <e2>c</e2>"
Cause-Effect(e2,e1)
"""


def test_relations(write):
    found = semeval_edges(write(SEMEVAL))
    assert [record.words for record in found] == [
        ("The", "most", "common", ",", "and", '"old', "black", "hats", '".'),
        ("Lids", "of", "jar", "-like", "things"),
        ("A", "b", "c"),
    ]
    assert edges(found) == [
        [(2, 3, 6, 8, "Message-Topic(e1,e2)")], [(2, 3, 0, 1, "Other")], [(1, 2, 2, 3, "Cause-Effect(e2,e1)")],
    ]  # fmt: skip
    assert [record.targets[0].info for record in found] == ["Assuming: much.", "", ""]
    assert [record.name for record in found] == ["some 8001", "some 8002", "some 8003"]
    assert found.counted == ("Cause-Effect(e2,e1)", "Message-Topic(e1,e2)")
    whole = semeval_edges(write(SEMEVAL), whole_words=True)
    assert whole[0].words == ("The", "most", "common,", "and", '"old', "black", 'hats".')
    assert whole[1].words == ("Lids", "ofjar-like", "things")
    assert [edge[:4] for (edge,) in edges(whole)] == [(2, 3, 5, 7), (1, 2, 0, 1), (1, 2, 2, 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('1 "<e1>a</e1> <e2>b</e2>"\n', "some, line 1: wanted a number and a sentence, a relation and a comment, got"),
        ("\n\n1 <e1>a</e1> <e2>b</e2>\nOther\n", "some, line 3: wanted a number and a sentence"),
        ('1 "<e1>a</e1> <e2>b</e2>"\nOther\nComment:\n2 "c"\n', "wanted a number and a sentence"),
        ('1 "<e1>a</e1> b"\nOther\n', "some, line 1: wanted words between <e2> and </e2>: '<e1>a</e1> b'"),
        ('1 "<e1>a <e2>b</e2>"\nOther\n', "wanted words between <e1> and </e1>"),
        ('1 "</e1>a<e1> <e2>b</e2>"\nOther\n', "wanted words between <e1> and </e1>"),
        ('1 "<e1>a</e1> <e1>c</e1> <e2>b</e2>"\nOther\n', "some, line 1: <e1> occurs twice"),
        ('1 "<e1>a</e1> <e2></e2>"\nOther\n', "wanted words between <e2> and </e2>"),
        ('1 "<e1>a</e1> <e2>b</e2>"\nOther\n', "no label counts of the 1 label 'Other' by the rule 'relations'"),
        ("", "task 'relations' has no targets"),
    ],
)
def test_what_is_no_file_of_relations(write, text, message):
    with pytest.raises(DataError, match=message):
        semeval_edges(write(text))


def test_proto_roles():
    words = ("Birds", "sing", "songs")
    rows = [
        ProtoRole(words, (1, 2), (0, 1), {"volition": [5, 2], "created": 3, "awareness": 3.1}, "s1"),
        ProtoRole(words, (1, 2), (2, 3), {"volition": 1, "created": None, "awareness": 2}, "s1"),
        ProtoRole(("They", "sleep"), (1, 2), (0, 1), {"volition": 4.0}, "s2"),
    ]
    found = proto_role_edges(rows)
    assert edges(found) == [[(1, 2, 0, 1, "awareness", "volition"), (1, 2, 2, 3)], [(1, 2, 0, 1, "volition")]]
    assert (found.labels, found.sides) == (("awareness", "created", "volition"), 2)
    assert [record.name for record in found] == ["s1", "s2"]
    assert edges(proto_role_edges(rows, above=4))[1] == [(1, 2, 0, 1)]
    assert edges(proto_role_edges(rows, above=4, or_equal=True)) == [
        [(1, 2, 0, 1), (1, 2, 2, 3)], [(1, 2, 0, 1, "volition")],
    ]  # fmt: skip
    for scores in ({"x": []}, {"x": "5"}, {"x": [float("nan")]}, {"x": [None]}):
        with pytest.raises(
            DataError,
            match="(the score of 'x' must be one or more numbers|scores must be a mapping from strings to numbers).*, got",
        ):
            proto_role_edges([ProtoRole(words, (1, 2), (0, 1), scores, "s")])
    with pytest.raises(DataError, match="which holds no words"):
        proto_role_edges([ProtoRole(words, (1, 1), (0, 1), {"x": 5}, "s")])
    with pytest.raises(DataError, match="task 'proto-roles' has no targets"):
        proto_role_edges([])


def test_spr1(write):
    def one(predicate, argument, **responses):
        given = [{"spr_property": name, "response": x} for name, many in responses.items() for x in many]
        return {"pred_idx": predicate, "arg_idx": argument, "responses": given}

    line = {"tokens": ["Birds", "sing", "songs"], "sent_id": "1_1", "spr1": [
        one(1, 0, volition=[5.0], created=[1.0]), one(1, 2, volition=[3.0], created=[5.0, 2.0]),
    ]}  # fmt: skip
    found = spr1_edges(write(json.dumps(line) + "\n\n"))
    assert edges(found) == [[(1, 2, 0, 1, "volition"), (1, 2, 2, 3, "created")]]
    assert found[0].name == "1_1"
    for broken in ("{", "[]", '{"tokens": ["a"]}', '{"tokens": ["a"], "spr1": [{"pred_idx": 0}]}'):
        with pytest.raises(DataError, match="some, line 2: wanted JSON with tokens, sent_id and spr1, and in these"):
            spr1_edges(write(f"{json.dumps(line)}\n{broken}\n"))


@pytest.mark.shared
def test_real_files_in_other_forms(shared, tmp_path):
    """Entities and roles, written in columns, and proto-roles from their scores, are those of the files."""
    entities = read_edges(shared / "edges" / "ner-wnut17-train.jsonl")
    for scheme in ("IOB2", "IOB1", "BIOES", "brackets"):
        text = ""
        for record in entities:
            spans, at = [], 0
            for target in (*record.targets, None):
                start = target.span1[0] if target else len(record.words)
                spans += [("O", at, start)] if start > at else []
                if target:
                    spans.append((target.labels[0], *target.span1))
                    at = target.span1[1]
            tags = tags_in(scheme, spans)
            text += "".join(f"{word}\t{tag}\n" for word, tag in zip(record.words, tags, strict=True)) + "\n"
        (tmp_path / "entities").write_text(text, encoding="utf-8")
        assert edges(entity_edges(tmp_path / "entities", scheme=scheme)) == edges(entities)

    path = shared / "edges" / "spr2-dev.jsonl"
    rows = [
        ProtoRole(tuple(line["tokens"]), tuple(target["span1"]), tuple(target["span2"]), target["scores"])
        for line in map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1]) for target in line["targets"]
    ]  # fmt: skip
    mine, theirs = proto_role_edges(rows, above=0), read_edges(path)
    assert mine.labels == theirs.labels
    assert edges(mine) == edges(theirs)
