"""TACRED, definite pronouns, CoNLL-2009 and the table of SPR2, by what their documentation says of each cell."""

import json

import pytest

from bertology.edge_probing.formats.conll2009 import conll2009_edges
from bertology.edge_probing.formats.dpr import dpr_edges
from bertology.edge_probing.formats.spr2 import spr2_edges
from bertology.edge_probing.formats.tacred import tacred_edges
from bertology.errors import DataError
from helpers.edge_formats import edges

pytestmark = pytest.mark.any_transformers


def example(**changes):
    made = {
        "id": "e1", "docid": "d", "token": ["Mia", "-LRB-", "12", "-RRB-", "of", "Oslo", "sings"],
        "relation": "per:cities_of_residence", "subj_start": 0, "subj_end": 3, "obj_start": 5, "obj_end": 5,
        "subj_type": "PERSON", "obj_type": "CITY",
    }  # fmt: skip
    return {key: value for key, value in {**made, **changes}.items() if value is not None}


def test_relations_and_entities_of_tacred(write):
    file = write(json.dumps([example(), example(id="e2", relation="no_relation")]))
    found = tacred_edges(file)
    assert found[0].words == ("Mia", "(", "12", ")", "of", "Oslo", "sings")
    assert edges(found) == [[(0, 4, 5, 6, "per:cities_of_residence")], [(0, 4, 5, 6, "no_relation")]]
    assert [record.name for record in found] == ["e1", "e2"]
    assert (found.name, found.counted) == ("relations", ("per:cities_of_residence",))
    kinds = tacred_edges(file, targets="entities")
    assert edges(kinds) == [[(0, 4, "PERSON"), (5, 6, "CITY")]] * 2
    assert kinds.counted == kinds.labels == ("CITY", "PERSON")


BROKEN = {
    "example 2: wanted an object": 3,
    "example 2: wanted token, of type list": example(token="Mia sings"),
    "example 2: token must be a list of one word": example(token=[]),
    "example 2: wanted relation, of type str": example(relation=None),
    "example 2: wanted subj_start, of type int": example(subj_start="0"),
    "example 2: wanted obj_end, of type int": example(obj_end=True),
    "example 2: obj_start and obj_end are 5 and 7: wanted two of the 7 words": example(obj_end=7),
    "example 2: subj_start and subj_end are 3 and 2": example(subj_start=3, subj_end=2),
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_examples_of_tacred(write, message):
    file = write(json.dumps([example(), BROKEN[message]]))
    with pytest.raises(DataError, match=message) as caught:
        tacred_edges(file)
    assert "some" in str(caught.value)
    left = tacred_edges(file, skip_broken=True)
    assert (len(left), [skip.name for skip in left.skipped]) == (1, ["some 2"])


@pytest.mark.parametrize(("text", "message"), [("{", "some is not JSON"), ("{}", "some must hold a list of examples")])
def test_what_is_no_list_of_examples(write, text, message):
    with pytest.raises(DataError, match=message):
        tacred_edges(write(text))


DPR = """provenance: dpr
index: 0
text: The bee left the rose because it had no pollen: none.
hypothesis: The bee left the rose because the bee had no pollen: none.
entailed: not-entailed
partof: train

index: 1
text: The bee left the rose because it had no pollen: none.
hypothesis: The bee left the rose because the rose had no pollen: none.
entailed: entailed
partof: train

text: Ann's dog saw Eve, and its tail wagged.
hypothesis: Ann's dog saw Eve, and Ann's dog's tail wagged.
entailed: entailed
partof: dev

text: Ann saw Eve, and she sang.
hypothesis: Ann saw Eve, and the girl sang.
entailed: entailed
partof: dev"""


def test_definite_pronouns(write):
    found = dpr_edges(write(DPR))
    words = ("The", "bee", "left", "the", "rose", "because", "it", "had", "no", "pollen", ":", "none", ".")
    assert [record.words for record in found] == [
        words, ("Ann", "'s", "dog", "saw", "Eve", ",", "and", "its", "tail", "wagged", "."),
    ]  # fmt: skip
    assert edges(found) == [
        [(6, 7, 0, 2, "not-entailed"), (6, 7, 3, 5, "entailed")], [(7, 8, 0, 3, "entailed")],
    ]  # fmt: skip
    reasons = [(skip.name, skip.reason) for skip in found.skipped]
    assert ("some line 19", "the phrase is not in the text before the pronoun") in reasons
    assert len(dpr_edges(write(DPR), split="train")) == 1
    assert [record.words[0] for record in dpr_edges(write(DPR), split="dev")] == ["Ann"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text: Ann sang.\nhypothesis: Eve sang.\n", "some, line 1: the example has no entailed"),
        (f"{DPR}\n\nentailed: entailed\n", "some, line 24: the example has no text and no hypothesis"),
        ("text: Ann sang.\nand sang\n", "some, line 2: wanted `key: value` or a blank line, got 'and sang'"),
    ],
)
def test_what_is_no_file_of_pronouns(write, text, message):
    with pytest.raises(DataError, match=message):
        dpr_edges(write(text))


def test_broken_examples_and_splits_of_pronouns(write):
    found = dpr_edges(write(f"{DPR}\n\nentailed: entailed\n"), skip_broken=True)
    broken = next(skip for skip in found.skipped if skip.name == "some line 24")
    assert broken.reason.startswith("line 24: the example has no text and no hypothesis: wanted lines `text: ...`")
    with pytest.raises(DataError, match="some has no example with `partof: test`"):
        dpr_edges(write(DPR), split="test")


def row2009(number, word, filled, predicate, *roles):
    return "\t".join([str(number), word, *"_" * 10, filled, predicate, *roles])


SENTENCES = "\n".join(
    [
        row2009(1, "Ann", "_", "_", "A0", "_"),
        row2009(2, "buys", "Y", "buy.01", "_", "_"),
        row2009(3, "10\u00a0000", "_", "_", "_", "A1"),
        row2009(4, "shares", "Y", "share.02", "A1", "A1"),
        row2009(5, "today", "_", "_", "AM-TMP", "R-A0"),
        "",
        row2009(1, "Birds", "_", "_"),
        row2009(2, "fly", "_", "_"),
    ]
)


def test_roles_of_conll_2009(write):
    found = conll2009_edges(write(SENTENCES))
    assert found[0].words == ("Ann", "buys", "10\u00a0000", "shares", "today")
    assert edges(found) == [
        [(1, 2, 0, 1, "A0"), (1, 2, 3, 4, "A1"), (1, 2, 4, 5, "AM-TMP")],
        [(3, 4, 2, 3, "A1"), (3, 4, 3, 4, "A1"), (3, 4, 4, 5, "R-A0")],
    ]
    assert found.counted == ("A0", "A1", "AM-TMP")
    assert [record.name for record in found] == ["some 1, predicate 1", "some 1, predicate 2"]


def test_all_roles_count_where_none_is_of_propbank(write):
    text = SENTENCES.replace("R-A0", "RSTR").replace("AM-TMP", "TWHEN").replace("A0", "ACT").replace("A1", "PAT")
    assert conll2009_edges(write(text)).counted == ("ACT", "PAT", "RSTR", "TWHEN")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{SENTENCES}\n\n1\tBirds\t_", r"some, line 10: wanted 14 columns or more.* got \[3\]"),
        (f"{SENTENCES}\n{row2009(3, 'high', '_', '_', 'A1')}", r"some, line 7: .* got \[14, 15\]"),
        (f"{SENTENCES}\n\n{row2009(1, 'fly', 'Y', 'fly.01')}", "some, line 10: the sentence has 1 predicate and 0 columns"),
        (f"{SENTENCES}\n\n{row2009(1, 'fly', '_', '_', 'A0')}", "some, line 10: the sentence has 0 predicates and 1 column"),
    ],
)  # fmt: skip
def test_what_is_not_conll_2009(write, text, message):
    with pytest.raises(DataError, match=message):
        conll2009_edges(write(text))
    left = conll2009_edges(write(text), skip_broken=True)
    broken = [skip for skip in left.skipped if skip.reason != "no targets"]
    assert [skip.name for skip in broken] == [f"some {3 if 'line 10' in message else 2}"]
    assert len(left) == 2


TREES = [["Mia", "gave", "the", "old", "cat", "fish"], ["Rain", "fell"]]
HEADER = "Split\tSentence.ID\tPred.Token\tArg.Phrase\tArg.Tokens.Begin\tArg.Tokens.End\tProperty\tResponse\tApplicable"


@pytest.fixture
def treebank(tmp_path):
    blocks = [
        "".join(f"{i}\t{word}\t_\tX\t_\t_\t{i - 1}\tdep\t_\t_\n" for i, word in enumerate(some, 1)) for some in TREES
    ]
    (tmp_path / "ud").mkdir()
    (tmp_path / "ud" / "en-ud-dev.conllu").write_text("\n".join(blocks) + "\n")
    return tmp_path / "ud"


def answers(*rows):
    return "\n".join([HEADER, *("\t".join(map(str, row)) for row in rows)]) + "\n"


CAT = ("dev", "en-ud-dev.conllu 1", 1, "the old  cat", 2, 4)
RAIN = ("dev", "en-ud-dev.conllu 2", 1, "Rain", 0, 0)
ROWS = [
    (*CAT, "awareness", 5, "yes"), (*CAT, "awareness", 3, "yes"), (*CAT, "volition", 4, "yes"), (*CAT, "volition", 3, "yes"),
    (*CAT, "was_used", 5, "no"), (*CAT, "sentient", "nan", "yes"), (*CAT, "sentient", 5, "yes"),
    ("train", "en-ud-dev.conllu 2", 1, "Rain", 0, 0, "awareness", 5, "yes"), (*RAIN, "awareness", 1, "yes"),
]  # fmt: skip


def test_answers_of_spr2(write, treebank):
    found = spr2_edges(write(answers(*ROWS)), treebank, split="dev")
    assert [record.words for record in found] == [tuple(TREES[0]), tuple(TREES[1])]
    assert edges(found) == [[(1, 2, 2, 5, "awareness", "sentient")], [(1, 2, 0, 1)]]
    assert found.labels == ("awareness", "sentient", "volition")
    assert spr2_edges(write(answers(*ROWS)), treebank / "en-ud-dev.conllu", split="dev") == found


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("dev", "en-ud-dev.conllu 1", 1, "new cat", 3, 4, "awareness", 5, "yes"), "line 11: the argument is 'new cat', but"),
        (("dev", "en-ud-dev.conllu 1", 1, "cat fish", 5, 6, "awareness", 5, "yes"), "line 11: sentence .* has 6 words"),
        (("dev", "en-ud-dev.conllu 3", 1, "Rain", 0, 0, "awareness", 5, "yes"), "line 11: .* has 2 sentences"),
    ],
)  # fmt: skip
def test_arguments_that_are_not_in_the_treebank(write, treebank, row, message):
    file = write(answers(*ROWS, row))
    with pytest.raises(DataError, match=f"some, {message}"):
        spr2_edges(file, treebank, split="dev")
    left = spr2_edges(file, treebank, split="dev", skip_broken=True)
    assert (len(left), [skip.name for skip in left.skipped]) == (2, ["some line 11"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\n", "some, line 1: the file has no column Sentence.ID, Pred.Token"),
        (answers((*CAT, "awareness", "five", "yes")), "some, line 2: Response must be a number, got 'five'"),
        (answers(("dev", "en-ud-dev.conllu 1", "one", *CAT[3:], "awareness", 5, "yes")), "some, line 2: Pred.Token must be"),
        (answers(("dev", "en-ud-dev.conllu 1", 1)), "some, line 2: wanted 9 columns or more, got fewer: 3"),
        (answers(), "some has no answers of the split 'dev'"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_spr2(write, treebank, text, message):
    with pytest.raises(DataError, match=message):
        spr2_edges(write(text), treebank, split="dev")
