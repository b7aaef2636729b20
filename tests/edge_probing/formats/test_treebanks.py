import re

import pytest

from bertology.corpora.treebank import Skip
from bertology.edge_probing.formats.treebanks import bracket_pos_edges, constituent_edges, dependency_edges, pos_edges
from bertology.errors import DataError
from bertology.syntax import Treebank, read_conllu
from helpers.edge_formats import bracketed, edges
from helpers.trees import sentence

pytestmark = pytest.mark.any_transformers

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
    with pytest.raises(DataError, match="some, line 4: sentence 'a-1': the word \"n't\" has no xpos"):
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
    with pytest.raises(DataError, match="a list of sentences, as read_conllu reads them, got 'a.conllu'"):
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
    with pytest.raises(DataError, match="ends inside a tree"):
        constituent_edges(write("(S (NP (NN a))"))


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


def columns(*sentences):
    lines = [
        "".join(f"d/0 0 {n} {word} {tag} {bit} - - - S * -\n" for n, (word, tag, bit) in enumerate(one))
        for one in sentences
    ]
    return "#begin document (d/0); part 000\n" + "\n".join(lines) + "\n#end document\n"


ONTONOTES = columns(
    [
        ("-LRB-", "-LRB-", "(TOP(S*"),
        ("Birds", "NNS", "(NP-SBJ*)"),
        ("sing", "VBP", "(VP*"),
        ("today", "NN", "(NP-TMP*))))"),
    ],
    [("Yes", "UH", "-")],
    [("Rain", "NN", "(TOP(NP-HLN*))")],
)


def test_constituents_and_parts_of_speech_from_the_columns_of_conll_2012(write):
    found = constituent_edges(write(ONTONOTES))
    assert edges(found) == [
        [(0, 4, "TOP"), (0, 4, "S"), (1, 2, "NP"), (2, 4, "VP"), (3, 4, "NP")], [(0, 1, "TOP"), (0, 1, "NP")]
    ]  # fmt: skip
    assert found[0].words == ("(", "Birds", "sing", "today")
    assert [record.name for record in found] == ["some 1", "some 3"]
    assert found.skipped == (Skip("some 2", "no tree"),)
    assert edges(constituent_edges(write(ONTONOTES), top=False))[0] == edges(found)[0][1:]
    functions = constituent_edges(write(ONTONOTES), label="function")
    assert edges(functions) == [[(1, 2, "SBJ"), (3, 4, "TMP")], [(0, 1, "HLN")]]
    tags = bracket_pos_edges(write(ONTONOTES))
    assert edges(tags) == [
        [(0, 1, "-LRB-"), (1, 2, "NNS"), (2, 3, "VBP"), (3, 4, "NN")], [(0, 1, "UH")], [(0, 1, "NN")]
    ]  # fmt: skip


def test_columns_can_be_named(write):
    text = "Birds NNS (S(NP*)\nsing VBP (VP*))\n"
    assert edges(constituent_edges(write(text), columns=(0, 1, 2))) == [[(0, 2, "S"), (0, 1, "NP"), (1, 2, "VP")]]
    assert edges(bracket_pos_edges(write(text), columns=(0, 1, 2))) == [[(0, 1, "NNS"), (1, 2, "VBP")]]
    with pytest.raises(DataError, match=r"columns must be three, of word, tag and part of the tree, got \[0, 1\]"):
        constituent_edges(write(text), columns=(0, 1))
    with pytest.raises(DataError, match="label must be 'phrase' or 'function', got 'both'"):
        constituent_edges(write(text), label="both")


def test_functions_from_brackets(write):
    found = constituent_edges(write("(S (NP-SBJ-1 (NN x)) (PP-LOC-PRD (IN in) (NP (NN y))))"), label="function")
    assert edges(found) == [[(0, 1, "SBJ"), (1, 3, "LOC", "PRD")]]


def test_broken_trees_in_columns_have_a_place_and_can_be_left_out(write):
    path = write(ONTONOTES.replace("(NP-TMP*))))", "(NP-TMP*)))"))
    with pytest.raises(
        DataError, match="some, line 5: the sentence ends inside a tree.*skip_broken=True leaves such tr"
    ):
        constituent_edges(path)
    found = constituent_edges(path, skip_broken=True)
    assert [skip.name for skip in found.skipped] == ["some 1", "some 2"]
    with pytest.raises(DataError, match="some, line 3: the word 'Birds' has no tag"):
        bracket_pos_edges(write(ONTONOTES.replace("NNS", "-")))


def test_a_folder_of_trees(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.gold_conll").write_text(ONTONOTES)
    (tmp_path / "two.gold_conll").write_text("\n")
    (tmp_path / "two.parse").write_text("(no tree")
    found = constituent_edges(tmp_path)
    assert [record.name for record in found] == ["a/one.gold_conll 1", "a/one.gold_conll 3"]
    assert found.skipped[-1] == Skip("two.gold_conll", "no targets")
    (tmp_path / "trees").mkdir()
    (tmp_path / "trees" / "wsj_0001.mrg").write_text(TREES)
    assert edges(constituent_edges(tmp_path / "trees")) == edges(constituent_edges(tmp_path / "trees" / "wsj_0001.mrg"))
