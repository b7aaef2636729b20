import pytest

from bertology.corpora.gap_winobias import by_gender, read_gap, read_winobias
from bertology.errors import DataError
from helpers.coreference_files import lines_of, spans

pytestmark = pytest.mark.any_transformers

GAP = (
    "ID\tText\tPronoun\tPronoun-offset\tA\tA-offset\tA-coref\tB\tB-offset\tB-coref\tURL\n"
    "one\tAnn O'Hara met Eve's aunt as she'd left.\tshe\t29\tAnn O'Hara\t0\tTRUE\tEve\t15\tFALSE\tx\n"
    'two\tHis "hat" was Bob\'s, Al said in 1,000.5 words.\tHis\t0\tBob\t14\tFALSE\tAl\t21\tTRUE\tx\n'
    "three\tAnn met Eve; she left.\tshe\t13\tAnn\t0\tFALSE\tEve\t8\tFALSE\tx\n"
    "four\tAnne met Eve; she left.\tshe\t14\tAnn\t0\tFALSE\tEve\t9\tTRUE\tx\n"
)


def test_gap(tmp_path):
    found = read_gap(lines_of(tmp_path / "gap.tsv", GAP))
    assert [(s.name, s.reason) for s in found.skipped] == [("four", "a mention begins or ends inside a word")]
    one, two, three = found
    assert one.words == ("Ann", "O'Hara", "met", "Eve", "'s", "aunt", "as", "she", "'d", "left", ".")
    assert two.words[-4:] == ("in", "1,000.5", "words", ".")
    assert spans(one) == [("Ann O'Hara", 0), ("Eve", 2), ("she", 0)]
    assert (one.targets, two.targets, one.both_sides) == ((2,), (0,), True)
    assert spans(two) == [("His", 0), ("Bob", 1), ("Al", 0)]
    assert {m.cluster for m in three.mentions} == {0, 1, 2}
    assert [m.kind for m in two.mentions] == ["pronoun", "proper", "proper"]
    from bertology.syntax.antecedents import antecedent_baselines, questions

    assert [len(questions(document)) for document in found] == [1, 1, 0]
    assert [sorted(q.places) for q in (*questions(one), *questions(two))] == [[1, 3], [5, 8]]
    assert antecedent_baselines(found).right.tolist()[0] == [0, 0, 0]  # the nearest is the wrong one twice
    assert {gender: len(some) for gender, some in by_gender(found).items()} == {"feminine": 2, "masculine": 1}
    assert str(found) == "3 documents, 9 mentions; 1 skipped: a mention begins or ends inside a word"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\tshe\t29", "\tshe\t28", r"gap.tsv, line 2: Pronoun is 'she', but the text has ' sh' at character 28"),
        ("\tshe\t29", "\tshe\tx", r"gap.tsv, line 2: Pronoun-offset must be a number, got 'x'"),
        ("0\tTRUE\tEve", "0\tyes\tEve", r"gap.tsv, line 2: A-coref must be TRUE or FALSE, got 'yes'"),
        ("A-coref\t", "", "has no column A-coref: wanted the TSV of GAP, with its header"),
        ("\t15\tFALSE\tx\n", "\n", r"gap.tsv, line 2: wanted 10 columns or more, got fewer: 8"),
        (GAP.partition("\n")[2], "", "gap.tsv holds no examples"),
    ],
)
def test_broken_gap_files(tmp_path, old, new, message):
    with pytest.raises(DataError, match=message):
        read_gap(lines_of(tmp_path / "gap.tsv", GAP.replace(old, new, 1)))


WINO = (
    "1 [The construction worker] met the guard because [he] asked.\n"
    "2 The construction worker met [the guard] because [he] had [his] car.\n"
    "3 Someone met [the guard] and [her] was seen.\n"
)


def test_winobias(tmp_path):
    found = read_winobias(lines_of(tmp_path / "wino.txt", WINO))
    one, two = found
    assert one.words[:6] == ("The", "construction", "worker", "met", "the", "guard")
    assert spans(one) == [("The construction worker", 0), ("the guard", 1), ("he", 0)]
    assert [m.head for m in one.mentions] == [2, 5, 7]
    assert spans(two) == [("The construction worker", 1), ("the guard", 0), ("he", 0), ("his", 0)]
    with_tabs = read_winobias(lines_of(tmp_path / "wino.txt", WINO.replace(" ", "\t", 1)))
    assert with_tabs.documents == found.documents
    assert (one.targets, two.targets) == ((2,), (2,))
    assert [(s.name, s.reason) for s in found.skipped] == [("wino.txt 3", "the other occupation was not found")]


@pytest.mark.parametrize(
    "line",
    ["[The cook] met [her].", "4 [The cook] left.", "4 [The cook] met [the guard].", "4 [He] met [the cook].",
     "4 [The cook met [her].", "4 [The cook] met [her]."],
)  # fmt: skip
def test_broken_winobias_files(tmp_path, line):
    path = lines_of(tmp_path / "wino.txt", WINO + line + "\n")
    if line == "4 [The cook] met [her].":
        assert len(read_winobias(path)) == 2
    else:
        with pytest.raises(DataError, match=r"wino.txt, line 4: wanted "):
            read_winobias(path)
    with pytest.raises(DataError, match="holds no sentences"):
        read_winobias(lines_of(path, "\n"))
    with pytest.raises(DataError, match=r"line 1: \[cook\] is not made of whole words"):
        read_winobias(lines_of(path, "1 The [cook]ie met [her] aunt.\n"))


def test_winobias_in_the_form_of_allennlp(tmp_path):
    text = (
        "[The salesperson] sold (some books) to the librarian because [she] was trying to sell (them).\n"
        "The salesperson greeted [the librarian] and [they] left.\n"
    )
    one, two = read_winobias(lines_of(tmp_path / "wino.txt", text))
    assert spans(one) == [
        ("The salesperson", 0), ("some books", 1), ("the librarian", 2), ("she", 0), ("them", 1)
    ]  # fmt: skip
    assert [one.mentions[target].head for target in one.targets] == [9, 14]
    assert spans(two) == [("The salesperson", 1), ("the librarian", 0), ("they", 0)]
    assert [m.kind for m in two.mentions] == ["nominal", "nominal", "pronoun"]
    assert (one.sentences, two.sentences) == ((0,), (0,))
    with pytest.raises(DataError, match=r"wino.txt, line 3: wanted a sentence, got '3 \[The cook\]"):
        read_winobias(lines_of(tmp_path / "wino.txt", text + "3 [The cook] met [her].\n"))


@pytest.mark.parametrize(
    ("pronoun", "words"), [("they", 1), ("Their", 1), ("he or she", 3), ("his/her", 3), ("themself", 1), ("she", 1)]
)
def test_pronouns_of_any_gender(tmp_path, pronoun, words):
    text = f"1 [The cook] met the guard as [{pronoun}] could.\n2 The cook met [the guard] as [he] left.\n"
    one = read_winobias(lines_of(tmp_path / "wino.txt", text))[0]
    target = one.mentions[one.targets[0]]
    assert (target.kind, target.end - target.start) == ("pronoun", words)


def test_broken_lines_of_gap_and_winobias_are_left_out(tmp_path):
    found = read_gap(lines_of(tmp_path / "gap.tsv", GAP.replace("\tshe\t29", "\tshe\t28")), skip_broken=True)
    assert [document.name for document in found] == ["two", "three"]
    assert found.skipped[0].name == "gap.tsv, line 2"
    wino = read_winobias(lines_of(tmp_path / "wino.txt", "0 Nobody [left].\n" + WINO), skip_broken=True)
    assert [document.name for document in wino] == ["wino.txt 2", "wino.txt 3"]
    assert [skip.name for skip in wino.skipped] == ["wino.txt, line 1", "wino.txt 4"]


@pytest.mark.shared
def test_gap_and_winobias_files(shared):
    gap = read_gap(shared / "coref" / "gap-validation.tsv")
    assert len(gap) + len(gap.skipped) == 454
    assert len(gap.skipped) == 0
    asked = [len({m.cluster for m in document.mentions}) == 2 for document in gap]
    assert sum(asked) == 205 + 187
    assert {gender: len(some) for gender, some in by_gender(gap).items()} == {"feminine": 227, "masculine": 227}
    for side in ("pro", "anti"):
        for kind in (1, 2):
            found = read_winobias(shared / "coref" / f"{side}_stereotyped_type{kind}.txt.dev")
            assert (len(found), found.skipped) == (396, ())
            assert {gender: len(some) for gender, some in by_gender(found).items()} == {
                "feminine": 198, "masculine": 198,
            }  # fmt: skip
            assert all(len({m.cluster for m in document.mentions}) in (2, 3) for document in found)
