import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertology.errors import DataError
from bertology.syntax import Sentence, Treebank, read_conllu, read_depparse, read_json
from helpers.trees import heads, sentence

pytestmark = pytest.mark.any_transformers

CONLLU = """# sent_id = a-1
# text = Don't go
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\t_\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\t_\t_\t3\tadvmod:emph\t_\t_
3\tgo\tgo\tVERB\t_\t_\t0\troot\t_\t_
3.1\tgone\tgo\tVERB\t_\t_\t_\t_\t3:conj\t_

# text = New York 10 000
1\tNew\tNew\tPROPN\t_\t_\t2\tcompound\t_\t_
2\t10 000\t10000\tNUM\t_\t_\t0\troot\t_\t_
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="trees"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def test_conllu_without_multiword_tokens_and_empty_nodes(write):
    found = read_conllu(write(CONLLU, "some.conllu"))
    assert found[0] == Sentence(("Do", "n't", "go"), (3, 3, 0), ("aux", "advmod:emph", "root"), "a-1")
    assert found[1].words == ("New", "10 000")
    assert found[1].name == "some.conllu 2"
    assert found.relations == ("advmod:emph", "aux", "compound", "root")
    assert read_conllu(write(CONLLU), subtypes=False)[0].relations == ("aux", "advmod", "root")


def test_a_treebank_is_a_sequence(write):
    found = read_conllu(write(CONLLU))
    assert len(found) == 2
    assert isinstance(found[:1], Treebank)
    assert [one.name for one in found[1:]] == [found[1].name]


@pytest.mark.shared
def test_ewt(shared):
    found = read_conllu(shared / "ud" / "en_ewt-ud-dev.conllu")
    lines = (shared / "ud" / "en_ewt-ud-dev.conllu").read_text().splitlines()
    rows = [line.split("\t") for line in lines if line[:1].isdigit()]
    plain = [row for row in rows if row[0].isdigit()]
    assert len(rows) > len(plain)
    assert len(found) == 2001 == sum(line.startswith("# sent_id") for line in lines)
    assert [word for one in found for word in one.words] == [row[1] for row in plain]
    assert [head for one in found for head in one.heads] == [int(row[6]) for row in plain]
    assert [name for one in found for name in one.relations] == [row[7] for row in plain]


@pytest.mark.shared
def test_ewt_is_read_as_the_package_conllu_reads_it(shared):
    conllu = pytest.importorskip("conllu")
    with open(shared / "ud" / "en_ewt-ud-dev.conllu", encoding="utf-8") as file:
        wanted = [
            (
                [w["form"] for w in words],
                [w["head"] for w in words],
                [w["deprel"] for w in words],
                one.metadata["sent_id"],
            )
            for one in conllu.parse_incr(file)
            if (words := [word for word in one if isinstance(word["id"], int)])
        ]
    found = read_conllu(shared / "ud" / "en_ewt-ud-dev.conllu")
    assert [(list(one.words), list(one.heads), list(one.relations), one.name) for one in found] == wanted


def test_the_columns_of_a_file_may_be_named(write):
    text = "# global.columns = ID FORM HEAD DEPREL\n1\tBirds\t2\tnsubj\n2\tsing\t0\troot\n\n1\tYes\t0\troot\n"
    assert [one.heads for one in read_conllu(write(text))] == [(2, 0), (0,)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "3\tgo",
            "1\tgo",
            "line 6: the line is not CoNLL-U: wanted word 3 of the sentence, got word '1': .* a blank line",
        ),
        ("1\tDo", "0\tDo", "line 4: the line is not CoNLL-U: the number of a word must be 1 or more, got '0'"),
        ("1\tDo", "1a\tDo", "line 4: the line is not CoNLL-U: the number of a word must be 1 or more, got '1a'"),
        ("\tDo\t", "\t\t", "line 4: the line is not CoNLL-U: the word is empty"),
        ("\t3\taux\t_\t_", "\t3\taux", "line 4: the line is not CoNLL-U: wanted 10 columns, parted by tabs, got 8"),
        (
            "\t3\taux",
            "\tx\taux",
            r"line 4: sentence 'a-1': the head must be a number from 0 \(the root\) to 3, got 'x'",
        ),
        (
            "\t3\taux",
            "\t4\taux",
            r"line 4: sentence 'a-1': the head must be a number from 0 \(the root\) to 3, got '4'",
        ),
        (
            "\t3\taux",
            "\t_\taux",
            r"line 4: sentence 'a-1': the head must be a number from 0 \(the root\) to 3, got '_'",
        ),
        ("\t3\taux", "\t1\taux", "line 3: sentence 'a-1' is not a tree: words 1 form a cycle"),
    ],
)
def test_broken_lines_have_a_place_and_can_be_left_out(write, old, new, message):
    assert old in CONLLU
    path = write(CONLLU.replace(old, new, 1), "some.conllu")
    with pytest.raises(DataError, match=f"some.conllu, {message}.*skip_broken=True leaves such sentences out"):
        read_conllu(path)
    found = read_conllu(path, skip_broken=True)
    assert [one.words for one in found] == [("New", "10 000")]
    assert [skip.name for skip in found.skipped] == ["some.conllu 1"]
    assert str(found) == f"1 sentence, 2 words; 1 skipped: {found.skipped[0].reason}"


def test_a_folder_of_treebanks(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.conllu").write_text(CONLLU, encoding="utf-8")
    (tmp_path / "a.conllu").write_text("# nothing\n\n" + CONLLU, encoding="utf-8")
    assert [one.name for one in read_conllu(tmp_path)] == ["a-1", "a.conllu 2", "a-1", "b/a.conllu 2"]


def test_depparse_text(write):
    """Slip C4.7: the last sentence needs no blank line, a relation may hold a hyphen, blank lines may be several."""
    text = "Birds 2-nsubj\nsing 0-root\n\n\n\nNew 2-nn-x\nYork 0-root"
    found = read_depparse(write(text))
    assert [one.words for one in found] == [("Birds", "sing"), ("New", "York")]
    assert found[1].relations == ("nn-x", "root")
    assert found[0].heads == (2, 0)
    assert len(read_depparse(write(text.replace("\n", "\r\n")))) == 2
    assert len(read_depparse(write(text + "\n\n"))) == 2


def test_json_and_text_are_alike(write):
    records = [{"words": ["Birds", "sing"], "heads": [2, 0], "relns": ["nsubj", "root"], "other": 1}]
    one = read_json(write(json.dumps(records), "same"))
    assert one.sentences == read_depparse(write("Birds 2-nsubj\nsing 0-root\n", "same")).sentences


@given(heads())
def test_every_tree_is_one(found):
    sentence(" ".join("w" * len(found)), found)


@given(heads(least=2), st.data())
def test_every_circle_is_found(found, data):
    """The root hung from a word below it closes a circle."""
    root = found.index(0)
    below = [word for word in range(len(found)) if word != root]
    found[root] = data.draw(st.sampled_from(below)) + 1
    with pytest.raises(DataError, match="form a cycle"):
        sentence(" ".join("w" * len(found)), found)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([3, 0], "sentence 'one': the head of word 1 must be a number from 0 \\(the root\\) to 2, got 3"),
        ([-1, 0], "the head of word 1 must be a number from 0 \\(the root\\) to 2, got -1"),
        ([1, 0], "sentence 'one' is not a tree: words 1 form a cycle"),
        ([0], "has 2 words, 1 head and 2 relations"),
        ([None, 0], "the head of word 1 must be .*, got None"),
    ],
)
def test_what_is_no_tree(found, message):
    with pytest.raises(DataError, match=message):
        Sentence(("a", "b"), tuple(found), ("dep", "root"), "one")


def test_broken_sentences_raise_or_are_listed(write):
    broken = CONLLU.replace("\t0\troot", "\t1\troot", 1)
    path = write(broken, "broken.conllu")
    with pytest.raises(
        DataError, match=r"broken.conllu, line 3: .*'a-1' is not a tree: .* \(skip_broken=True leaves such"
    ):
        read_conllu(path)
    found = read_conllu(path, skip_broken=True)
    assert len(found) == 1
    assert [skip.name for skip in found.skipped] == ["broken.conllu 1"]
    assert "form a cycle" in found.skipped[0].reason


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_conllu, "", "has no sentences"),
        (read_conllu, "1\tone\ttwo\n", "is not CoNLL-U|the head of word 1 must be .*, got None"),
        (read_conllu, "x\ta\t_\t_\t_\t_\t0\troot\t_\t_\n\n", "is not CoNLL-U"),
        (read_depparse, "", "has no sentences"),
        (read_depparse, "Birds 2\nsing 0-root", "wanted a line `word head-relation`, got 'Birds 2'"),
        (read_depparse, "Birds", "wanted a line"),
        (read_json, "{", "is not JSON"),
        (read_json, "{}", "must hold a list of sentences, got dict"),
        (read_json, '[{"tokens": ["a"]}]', "has no words, heads, relns"),
        (read_json, "[3]", "has no words, heads, relns"),
        (read_json, '[{"words": [], "heads": [], "relns": []}]', "has no words"),
    ],
)
def test_files_that_cannot_be_read(write, read, text, message):
    with pytest.raises(DataError, match=message):
        read(write(text))
