import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertology.corpora.treebank import Skip
from bertology.edge_probing.formats.columns import entity_edges, srl_edges
from bertology.edge_probing.jsonl import read_edges
from bertology.errors import DataError
from helpers.edge_formats import edges, tags_in

pytestmark = pytest.mark.any_transformers


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
            "some, line 2, word 1: 'I-x' continues no entity; with scheme='IOB1' it begins one",
        ),
        ("a\tB-y\nb\tI-x\n", {}, "word 1: 'I-x' continues no entity"),
        ("a\tS-y\nb\tE-y\n", {"scheme": "BIOES"}, "word 1: 'E-y' continues no entity"),
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


def test_a_folder_of_files_in_columns(tmp_path):
    """OntoNotes' tree of files: files without targets are counted."""
    (tmp_path / "bc").mkdir()
    (tmp_path / "bc" / "one.v4_gold_conll").write_text(CONLL2012)
    (tmp_path / "two.v4_gold_conll").write_text("#begin document (x)\nx 0 0 Yes A (S*) - - - - * -\n\n#end document\n")
    (tmp_path / "one.v4_auto_conll").write_text("no file that is read")
    found = srl_edges(tmp_path)
    assert edges(found) == edges(srl_edges(tmp_path / "bc" / "one.v4_gold_conll"))
    assert found[0].name == "bc/one.v4_gold_conll 1, column 11"
    assert found.skipped[0] == Skip("two.v4_gold_conll", "no targets")
    entities = entity_edges(tmp_path, word=3, tag=10, scheme="brackets")
    assert edges(entities) == [[(1, 2, "PER")]]
    assert Skip("two.v4_gold_conll 1", "no targets") in entities.skipped
