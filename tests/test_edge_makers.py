import json
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import sentence

from bertology.corpora.treebank import Skip
from bertology.edge_probing.formats.columns import entity_edges, srl_edges
from bertology.edge_probing.formats.coreference import coreference_edges, gap_edges
from bertology.edge_probing.formats.relations import ProtoRole, proto_role_edges, semeval_edges, spr1_edges
from bertology.edge_probing.formats.treebanks import bracket_pos_edges, constituent_edges, dependency_edges, pos_edges
from bertology.edge_probing.jsonl import read_edges
from bertology.errors import DataError
from bertology.syntax import Document, Documents, Mention, Treebank, read_conll_coref, read_conllu


@pytest.fixture
def write(tmp_path):
    def write(text, name="some"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def edges(task):
    """Each record's targets as tuples of spans and labels."""
    return [[(*t.span1, *(t.span2 or ()), *t.labels) for t in record.targets] for record in task]


CONLLU = """# sent_id = a-1
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVB\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\tRB\t_\t3\tadvmod:emph\t_\t_
2.1\tyou\tyou\tPRON\tPRP\t_\t_\t_\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\t_

1\tYes\tyes\tINTJ\tUH\t_\t0\troot\t_\t_
"""


def test_parts_of_speech(write):
    found = pos_edges(write(CONLLU))
    assert edges(found) == [[(0, 1, "AUX"), (1, 2, "PART"), (2, 3, "VERB")], [(0, 1, "INTJ")]]
    assert [(record.words, record.name) for record in found] == [(("Do", "n't", "go"), "a-1"), (("Yes",), "some 2")]
    assert (found.name, found.labels, found.sides) == ("pos", ("AUX", "INTJ", "PART", "VERB"), 1)
    assert pos_edges(write(CONLLU), field="xpos").labels == ("RB", "UH", "VB")
    with pytest.raises(DataError, match="some, sentence 'a-1': the word \"n't\" has no xpos"):
        pos_edges(write(CONLLU.replace("\tRB", "\t_")), field="xpos")
    with pytest.raises(DataError, match="field must be 'upos' or 'xpos', got 'deprel'"):
        pos_edges(write(CONLLU), field="deprel")
    with pytest.raises(DataError, match="is not CoNLL-U"):
        pos_edges(write("x\ta\t_\t_\t_\t_\t0\troot\t_\t_\n\n"))
    with pytest.raises(DataError, match="task 'pos' has no targets"):
        pos_edges(write(""))


def test_dependencies(write):
    found = dependency_edges(read_conllu(write(CONLLU)))
    assert edges(found) == [
        [(0, 1, 2, 3, "aux"), (1, 2, 2, 3, "advmod:emph"), (2, 3, 2, 3, "root")],
        [(0, 1, 0, 1, "root")],
    ]
    assert dependency_edges([sentence("a b", [2, 0], "x y")]).labels == ("x", "y")
    bank = Treebank((sentence("a b", [2, 0]),), (Skip("bad", "no tree"),))
    assert dependency_edges(bank).skipped == bank.skipped
    with pytest.raises(DataError, match="wanted sentences, got 'a.conllu': read them with read_conllu"):
        dependency_edges("a.conllu")
    with pytest.raises(DataError, match="task 'dependencies' has no targets"):
        dependency_edges([])


TREES = """( (S (NP-SBJ-1 (NNP Ann)) (VP (VBD tried) (S (NP (-NONE- *-1)) (VP (TO to) (VP (VB sing))))) (. .)))
(ROOT (S (VP=2 (VB Go) (PRT|ADVP (RP on)) (-LRB- -LRB-))))
(NN word)
"""


def test_constituents(write):
    found = constituent_edges(write(TREES))
    assert edges(found) == [
        [(0, 5, "S"), (0, 1, "NP"), (1, 4, "VP"), (2, 4, "S"), (2, 4, "VP"), (3, 4, "VP")],
        [(0, 3, "ROOT"), (0, 3, "S"), (0, 3, "VP"), (1, 2, "PRT")],
    ]
    assert found[1].words == ("Go", "on", "(")
    assert found.skipped == (Skip("some 3", "no targets"),)
    assert found.repeated == 3
    assert edges(found.merged())[1] == [(0, 3, "ROOT", "S", "VP"), (1, 2, "PRT")]
    assert edges(constituent_edges(write(TREES), top=False)) == [edges(found)[0], edges(found)[1][1:]]
    assert edges(bracket_pos_edges(write(TREES))) == [
        [(0, 1, "NNP"), (1, 2, "VBD"), (2, 3, "TO"), (3, 4, "VB"), (4, 5, ".")],
        [(0, 1, "VB"), (1, 2, "RP"), (2, 3, "-LRB-")],
        [(0, 1, "NN")],
    ]
    with pytest.raises(DataError, match="ends within a tree"):
        constituent_edges(write("(S (NP (NN a))"))


def columns(tags, sep="\t"):
    words = "\n\n".join("\n".join(f"w{n}{sep}x{sep}{tag}" for n, tag in enumerate(some.split())) for some in tags)
    return f"-DOCSTART-{sep}x{sep}O\n\n{words}\n"


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("IOB2", ["B-per I-per B-per O B-org", "O B-x-y I-x-y B-org I-org"]),
        ("IOB1", ["I-per I-per B-per O I-org", "O I-x-y I-x-y I-org I-org"]),
        ("BIOES", ["B-per E-per S-per O S-org", "O B-x-y E-x-y B-org E-org"]),
        ("BIOES", ["B-per L-per U-per O U-org", "O B-x-y L-x-y B-org L-org"]),
        ("brackets", ["(per* *) (per) * (org*)", "* (x-y* *) (org* *)"]),
    ],
)
@pytest.mark.parametrize("sep", ["\t", "   "])
def test_entities(write, scheme, tags, sep):
    found = entity_edges(write(columns(tags, sep)), scheme=scheme)
    assert edges(found) == [[(0, 2, "per"), (2, 3, "per"), (4, 5, "org")], [(1, 3, "x-y"), (3, 5, "org")]]
    assert found.sides == 1
    nothing = entity_edges(write(columns([*tags, "O" if scheme != "brackets" else "*"], sep)), scheme=scheme)
    assert nothing.skipped == (Skip("some 3", "no targets"),)


def test_longer_entities_in_letters(write):
    assert edges(entity_edges(write(columns(["B-a I-a I-a E-a", "B-a M-a E-a S-a"])), scheme="BIOES")) == [
        [(0, 4, "a")], [(0, 3, "a"), (3, 4, "a")],
    ]  # fmt: skip
    assert entity_edges(write("-LRB-\t(a)\n"), scheme="brackets")[0].words == ("(",)
    assert entity_edges(write("-LRB-\tB-a\n"))[0].words == ("-LRB-",)
    assert entity_edges(write("#tag\tB-a\n# x\tO\n"))[0].words == ("#tag", "# x")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "a\tO\nb\tI-x\n",
            {},
            "some, line 1, word 1: 'I-x' goes on with nothing; scheme='IOB1' takes it for a beginning",
        ),
        ("a\tB-y\nb\tI-x\n", {}, "word 1: 'I-x' goes on with nothing"),
        ("a\tS-y\nb\tE-y\n", {"scheme": "BIOES"}, "word 1: 'E-y' goes on with nothing"),
        ("a\tS-x\n", {}, "word 0: wanted O or a tag of IOB2 such as B-person, got 'S-x'"),
        ("\n\na\tO\n\nb\tx\n", {}, "some, line 5, word 0: wanted O or a tag of IOB2"),
        ("a\tO-x\n", {"scheme": "BIOES"}, "wanted O or a tag of BIOES"),
        ("a\tB-\n", {}, "wanted O or a tag of IOB2"),
        ("a\tO\nb\n", {"tag": 1}, r"some, line 2: wanted a column 1, got 1: \['b'\]"),
        ("a\tO\nb\t\n", {}, "some, line 2: wanted a column -1"),
        ("a\t(x\n", {"scheme": "brackets"}, r"some, line 1: the bracket \(x is never closed"),
        ("a\t*)\n", {"scheme": "brackets"}, r"word 0: '\*\)' closes a bracket that was never opened"),
        ("a\tO\n", {"scheme": "brackets"}, r"word 0: wanted brackets such as \(ARG0\*, \* or \*\), got 'O'"),
        ("a\tO\n", {"scheme": "IOB"}, "scheme must be 'IOB2', 'IOB1', 'BIOES' or 'brackets', got 'IOB'"),
        ("a\tO\n", {}, "task 'entities' has no targets: no targets"),
        ("", {}, "task 'entities' has no targets"),
    ],
)
def test_what_is_no_file_of_entities(write, text, options, message):
    with pytest.raises(DataError, match=message):
        entity_edges(write(text), **options)


CONLL2012 = """#begin document (x/y); part 000
x/y 0 0 -LRB-  A  (S*  -   -  -  -  *       *         *        -
x/y 0 1 Ann    A  *    -   -  -  -  (PER*)  (ARG0*)   (ARG0*)  (1)
x/y 0 2 keeps  A  *    k   01 -  -  *       (V*)      *        -
x/y 0 3 on     A  *    -   -  -  -  *       (C-V*)    *        -
x/y 0 4 saying A  *    s   01 -  -  *       (ARG1*    (V*)     -
x/y 0 5 no     A  *    -   -  -  -  *       *)        (ARGM-NEG(ARG1*)) -

x/y 0 0 Yes    A  (S*) -   -  -  -  *       -

x/y 0 0 Go     A  (S*) g   01 -  -  *       (V*)      -
#end document
"""


def test_semantic_roles(write):
    found = srl_edges(write(CONLL2012))
    assert edges(found) == [
        [(2, 3, 1, 2, "ARG0"), (2, 3, 3, 4, "C-V"), (2, 3, 4, 6, "ARG1")],
        [(4, 5, 1, 2, "ARG0"), (4, 5, 5, 6, "ARG1"), (4, 5, 5, 6, "ARGM-NEG")],
    ]
    assert found[0].words == found[1].words == ("(", "Ann", "keeps", "on", "saying", "no")
    assert [record.name for record in found] == ["some 1, column 11", "some 1, column 12"]
    assert found.counted == ("ARG0", "ARG1", "ARGM-NEG")
    assert found.skipped == (Skip("some 3, column 11", "no targets"),)
    assert edges(entity_edges(write(CONLL2012), word=3, tag=10, scheme="brackets")) == [[(1, 2, "PER")]]


def test_semantic_roles_of_2005(write):
    text = "The - (A0* (A1*\nbirds - *) *)\nsing sing (V*) *\nand - * *\nfly fly * (V*)\nup - * (R-AM-DIR*)\n"
    found = srl_edges(write(text), word=0, first=2, last=0)
    assert edges(found) == [[(2, 3, 0, 2, "A0")], [(4, 5, 0, 2, "A1"), (4, 5, 5, 6, "R-AM-DIR")]]
    assert found.counted == ("A0", "A1")


def test_broken_roles(write):
    for cells, message in (
        ("(A0* *", r"some, line 1, column 1: the bracket \(A0 is never closed"),
        ("*) (V*)", r"column 1, word 0: '\*\)' closes a bracket that was never opened"),
        ("(A0*) *", r"column 1: wanted one predicate, marked \(V\*\), got 0"),
        ("(V*) (V*)", "column 1: wanted one predicate, .* got 2"),
        ("(A0) -", "word 1: wanted brackets such as"),
    ):
        one, two = cells.split()
        path = write(f"a {one} (A0*)\nb {two} (V*)\n")
        with pytest.raises(DataError, match=f"{message}.*skip_broken=True leaves such predicates out"):
            srl_edges(path, word=0, first=1, last=0)
        found = srl_edges(path, word=0, first=1, last=0, skip_broken=True)
        assert edges(found) == [[(1, 2, 0, 1, "A0")]]
        assert [skip.name for skip in found.skipped] == ["some 1, column 1"]
    with pytest.raises(DataError, match="some, line 1: the words of a sentence have different numbers of columns"):
        srl_edges(write("a (V*)\nb\n"), word=0, first=1, last=0)
    with pytest.raises(DataError, match="task 'srl' has no targets"):
        srl_edges(write("a\nb\n"), word=0, first=1, last=0)
    with pytest.raises(DataError, match="some, line 1: wanted a column 3, got 1"):
        srl_edges(write("a\nb\n"))


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
        ([sentence("a", [0])], {}, "wanted documents with mentions, got Sentence"),
        ("a.conll", {}, "wanted documents, got 'a.conll': read them with read_conll_coref"),
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
    assert found.skipped == (Skip("3", "a mention begins or ends within a word"),)


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
        ('1 "<e1>a</e1> <e1>c</e1> <e2>b</e2>"\nOther\n', "some, line 1: <e1> stands twice"),
        ('1 "<e1>a</e1> <e2></e2>"\nOther\n', "wanted words between <e2> and </e2>"),
        ('1 "<e1>a</e1> <e2>b</e2>"\nOther\n', "no label counts of the 1 labels 'Other' by the rule 'relations'"),
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
        with pytest.raises(DataError, match="record 's': the score of 'x' must be one or more numbers, got"):
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


@settings(max_examples=60)
@given(st.data())
def test_letters_and_brackets_say_the_same(tmp_path_factory, data):
    """Random entities, written in each scheme, are read back."""
    spans, at = [], 0
    while at < 12:
        end = at + data.draw(st.integers(1, 3))
        spans.append((data.draw(st.sampled_from("aabO")), at, end))
        at = end
    wanted = [(start, end, label) for label, start, end in spans if label != "O"]
    path = tmp_path_factory.mktemp("columns") / "some"
    for scheme in ("IOB2", "IOB1", "BIOES", "brackets"):
        path.write_text("".join(f"w\t{tag}\n" for tag in tags_in(scheme, spans)))
        if wanted:
            assert edges(entity_edges(path, scheme=scheme)) == [wanted]


def tags_in(scheme, spans):
    """[word]: the tags of these labelled spans, one after another, O for none."""
    tags, before = [], None
    for label, start, end in spans:
        many = end - start
        if label == "O":
            tags += ["*" if scheme == "brackets" else "O"] * many
        elif scheme == "IOB2":
            tags += [f"B-{label}"] + [f"I-{label}"] * (many - 1)
        elif scheme == "IOB1":
            tags += [f"{'B' if before == label else 'I'}-{label}"] + [f"I-{label}"] * (many - 1)
        elif scheme == "BIOES":
            tags += [f"S-{label}"] if many == 1 else [f"B-{label}", *[f"I-{label}"] * (many - 2), f"E-{label}"]
        else:
            tags += [f"({label})"] if many == 1 else [f"({label}*", *["*"] * (many - 2), "*)"]
        before = label
    return tags


@pytest.mark.shared
def test_ewt(shared):
    path = shared / "ud" / "en_ewt-ud-dev.conllu"
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if re.match(r"\d+\t", line)]
    for field, column in (("upos", 3), ("xpos", 4)):
        found = pos_edges(path, field=field)
        assert (len(found), found.targets) == (2001, len(rows))
        assert [t.labels[0] for r in found for t in r.targets] == [row[column] for row in rows]
        assert [word for r in found for word in r.words] == [row[1] for row in rows]
        assert len(found.labels) == len({row[column] for row in rows})
    found = dependency_edges(read_conllu(path))
    assert (len(found), found.targets) == (2001, len(rows))
    assert [t.labels[0] for r in found for t in r.targets] == [row[7] for row in rows]
    offsets = [0 if row[6] == "0" else int(row[6]) - int(row[0]) for row in rows]
    assert [t.span2[0] - t.span1[0] for r in found for t in r.targets] == offsets
    roots = [t for r in found for t in r.targets if t.labels == ("root",)]
    assert len(roots) == 2001
    assert all(t.span1 == t.span2 for t in roots)


def bracketed(text):
    """Phrases and tags of each tree, read sign by sign: an independent reader of brackets without traces."""
    trees, opened, words = [], [], 0
    for sign in re.findall(r"[()]|[^\s()]+", text):
        if sign == "(":
            if not opened:
                trees.append(([], []))
                words = 0
            opened.append([None, words, True])
        elif sign == ")":
            label, start, is_word = opened.pop()
            (trees[-1][1] if is_word else trees[-1][0]).append((start, words, label))
            if opened:
                opened[-1][2] = False
        elif opened[-1][0] is None:
            opened[-1][0] = sign if sign[0] == "-" else re.split("[-=|]", sign)[0]
        else:
            words += 1
    return trees


@pytest.mark.shared
def test_gum_trees(shared):
    path = shared / "constituency" / "gum_open-train.ptb"
    text = path.read_text(encoding="utf-8")
    trees = bracketed(text)
    phrases, tags = constituent_edges(path), bracket_pos_edges(path)
    assert (len(phrases), phrases.targets, len(phrases.labels)) == (1829, 32_638, 25)
    assert [sorted(one) for one in edges(phrases)] == [sorted(one) for one, _ in trees]
    assert [sorted(one) for one in edges(tags)] == [sorted(one) for _, one in trees]
    assert phrases.targets == len(re.findall(r"\([^\s()]+\s+(?=\()", text))
    assert tags.targets == 39_486
    inner = constituent_edges(path, top=False)
    assert inner.targets == phrases.targets - 1829
    assert "ROOT" not in inner.labels
    merged = phrases.merged()
    assert merged.targets == sum(len({edge[:2] for edge in one}) for one, _ in trees)
    spoiled = bracketed(text.replace("(NP ", "(XP ", 1))
    assert [sorted(one) for one in edges(phrases)] != [sorted(one) for one, _ in spoiled]


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


@pytest.mark.shared
def test_real_roles_in_columns(shared, tmp_path):
    found = read_edges(shared / "edges" / "srl-dev.jsonl", skip_broken=True)
    wanted, text = [], ""
    for record in found:
        predicates = sorted({target.span1 for target in record.targets})
        cells = [[""] * len(predicates) for _ in record.words]
        for column, predicate in enumerate(predicates):
            own = [target for target in record.targets if target.span1 == predicate]
            wanted.append(sorted((*t.span1, *t.span2, *t.labels) for t in own))
            for at in range(len(record.words)):
                labels = [t.labels[0] for t in own if t.span2[0] == at] + ["V"] * (predicate[0] == at)
                cells[at][column] = "".join(f"({label}" for label in labels) + "*" + ")" * len(labels)
        text += "".join(f"{word}\t{chr(9).join(row)}\n" for word, row in zip(record.words, cells, strict=True)) + "\n"
    (tmp_path / "roles").write_text(text, encoding="utf-8")
    mine = srl_edges(tmp_path / "roles", word=0, first=1, last=0)
    assert [sorted(one) for one in edges(mine)] == wanted
    assert mine.targets == found.targets
