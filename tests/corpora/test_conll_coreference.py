import os
from collections import Counter

import pytest

from bertology.corpora.conll_coreference import read_conll_coref
from bertology.edge_probing import coreference_edges
from bertology.errors import DataError
from helpers.coreference_files import lines_of, spans
from oracles import coreference as oracles

pytestmark = pytest.mark.any_transformers


def ontogum(cells, words=None):
    words = words or [f"w{n}" for n in range(len(cells))]
    body = "\n".join(f"{n}\t{word}\t{cell}" for n, (word, cell) in enumerate(zip(words, cells, strict=True)))
    return f"# begin document \n{body}\n# end document\n"


CONLL = """#begin document (bc/cctv/00); part 000
bc/cctv/00 0 0 The DT (TOP(S(NP(NP* - - - Speaker#1 * (ARG0* (1|(2
bc/cctv/00 0 1 queen NN *) - - - Speaker#1 * * 2)
bc/cctv/00 0 2 of IN (PP* - - - Speaker#1 * * -
bc/cctv/00 0 3 hearts NNS (NP*))) - - - Speaker#1 * *) (3)|1)
bc/cctv/00 0 4 -LRB- -LRB- * - - - Speaker#1 * * -
bc/cctv/00 0 5 slept VBD (VP*) - - - Speaker#1 * (V*) -
bc/cctv/00 0 6 /. . *)) - - - Speaker#1 * * -

bc/cctv/00 0 0 She PRP (TOP(S(NP*) - - - Speaker#1 * (ARG0*) (1)
bc/cctv/00 0 1 saw VBD (VP* - - - Speaker#1 * (V*) -
bc/cctv/00 0 2 Alice NNP (NP*)))) - - - Speaker#1 * (ARG1*) (4)

#end document
#begin document (bc/cctv/00); part 001
bc/cctv/00 1 0 Hm UH (TOP(INTJ*)) - - - Speaker#1 * -

#end document
"""


def test_conll_2012(tmp_path):
    one, two = read_conll_coref(lines_of(tmp_path / "gold_conll", CONLL))
    assert (one.name, two.name) == ("bc/cctv/00 part 000", "bc/cctv/00 part 001")
    assert one.words == ("The", "queen", "of", "hearts", "(", "slept", ".", "She", "saw", "Alice")
    assert one.tags == ("DT", "NN", "IN", "NNS", "-LRB-", "VBD", ".", "PRP", "VBD", "NNP")
    assert one.sentences == (0, 7)
    assert spans(one) == [("The queen of hearts", 1), ("The queen", 2), ("hearts", 3), ("She", 1), ("Alice", 4)]
    assert [m.head for m in one.mentions] == [1, 1, 3, 7, 9]
    assert [m.kind for m in one.mentions] == ["nominal", "nominal", "nominal", "pronoun", "proper"]
    assert two.mentions == ()
    assert two.words == ("Hm",)


def test_conll_2012_without_trees(tmp_path):
    text = (
        CONLL.replace("(TOP(S(NP(NP*", "*").replace("*)))) -", "* -").replace("*))) -", "* -").replace("*)) -", "* -")
    )
    for bit in ("(PP*", "(NP*", "(VP*)", "(VP*", "(TOP(S(NP*)", "(TOP(INTJ*", "*)"):
        text = text.replace(f" {bit} -", " * -")
    one = read_conll_coref(lines_of(tmp_path / "gold_conll", text))[0]
    assert one.tags is not None
    assert one.sentences == (0, 7)
    assert [m.head for m in one.mentions] == [1, 1, 3, 7, 9]  # by the plain rule


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["(3(4)", "_", "3)"], [(0, 3, 3), (0, 1, 4)]),
        (["(2", "_", "2)3)"], None),
        (["(3", "(2", "2)3)"], [(0, 3, 3), (1, 3, 2)]),
        (["(1", "1)|(2", "2)"], [(0, 2, 1), (1, 3, 2)]),
        (["(1", "1)(2", "2)"], [(0, 2, 1), (1, 3, 2)]),
        (["(1(1", "1)", "1)"], [(0, 3, 1), (0, 2, 1)]),
        (["(1", "(1", "1)", "1)"], [(0, 4, 1), (1, 3, 1)]),
        (["(1", "(1)", "1)"], [(0, 3, 1), (1, 2, 1)]),
        (["(2", "(2|2)", "2)"], [(0, 2, 2), (1, 3, 2)]),
        (["(10", "(1)", "(11)10)"], [(0, 3, 10), (1, 2, 1), (2, 3, 11)]),
        (["-", "*", "_"], []),
        (["(1(1", "1)1)"], [(0, 2, 1)]),  # a cluster is a set of mentions
        (["(1", "1)|(3)|(3)"], [(0, 2, 1), (1, 2, 3)]),
        (["(1)|(2)", "_"], [(0, 1, 1), (0, 1, 2)]),  # a mention of two entities
    ],
)
def test_brackets(tmp_path, cells, expected):
    path = lines_of(tmp_path / "some.conll", ontogum(cells))
    if expected is None:
        with pytest.raises(DataError, match=r"line 4: document 'some 1': a mention of cluster 3 is closed but was nev"):
            read_conll_coref(path)
    else:
        found = read_conll_coref(path)[0].mentions
        assert [(m.start, m.end, m.cluster) for m in found] == expected


@pytest.mark.parametrize("count", range(5))
def test_random_mentions_are_read_back(tmp_path, count):
    """Nested and crossing mentions, several at once; crossing ones of one cluster cannot be told from nested ones."""
    for document in oracles.random_documents(30, count):
        crossing = any(
            a.cluster == b.cluster and a.start < b.start < a.end < b.end
            for a in document.mentions
            for b in document.mentions
        )
        if not crossing:
            text = ontogum(oracles.cells(document), list(document.words))
            found = read_conll_coref(lines_of(tmp_path / "random.conll", text))[0]
            assert {(m.start, m.end, m.cluster) for m in found.mentions} == {
                (m.start, m.end, m.cluster) for m in document.mentions
            }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ontogum(["(1", "_"]), r"some.conll, line 4: document 'some 1' ends before its mention of cluster 1 is closed"),
        (ontogum(["_", "1)"]), r"some.conll, line 3: document 'some 1': a mention of cluster 1 is closed but was nev"),
        (
            ontogum(["(1x)"]),
            r"some.conll, line 2: document 'some 1': wanted mentions such as \(3\(4\), 2\)\|\(5 or _, got '\(1x\)'",
        ),
        (
            "# begin document\na b\n",
            r"line 2: document 'some 1': wanted 3 columns \(number, word, mentions\) or those of CoNLL-2012 .*, got 2: 'a b",
        ),
        ("0\tword\t_\n", r"line 1: a word is outside a document: wanted a line `# begin document` before"),
        ("# begin document\n0\tw\t_\n# begin document\n", r"line 3: a document begins before 'some 1' ends"),
        ("# begin document\n# end document\n", r"line 2: document 'some 1' has no words"),
        ("\n", "holds no documents: wanted lines `# begin document` before the words"),
        ("# begin document\n0\tw\t_\n", r"some.conll, line 2: the file ends before document 'some 1': wanted a line"),
    ],
)
def test_broken_coreference_files(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_conll_coref(lines_of(tmp_path / "some.conll", text))


WORDS = ["A", "queen", "(", "she", ")", "sang", "of", "John", "'s", "cats"]
TREES = """
(ROOT (S (NP-SBJ (NP (DT A) (NN queen)) (PRN (-LRB- -LRB-) (NP (PRP she)) (-RRB- -RRB-)))
  (VP (VBD sang) (NP (-NONE- *T*-1)))))
(ROOT (PP (IN of) (NP (NP (NNP John) (POS 's)) (NNS cats))))
"""


def test_trees_beside(tmp_path):
    path = lines_of(
        tmp_path / "some.conll", ontogum(["(1", "_", "_", "(1)", "1)", "_", "_", "(3(2", "2)", "3)"], WORDS)
    )
    trees = lines_of(tmp_path / "some.ptb", TREES)
    plain, one = read_conll_coref(path)[0], read_conll_coref(path, trees=trees)[0]
    assert plain.tags is None
    assert plain.sentences == ()
    assert one.tags == ("DT", "NN", "-LRB-", "PRP", "-RRB-", "VBD", "IN", "NNP", "POS", "NNS")
    assert one.sentences == (0, 6)
    assert [m.head for m in one.mentions] == [1, 3, 9, 7]
    assert [m.kind for m in one.mentions] == ["nominal", "pronoun", "nominal", "proper"]
    assert [m.head for m in plain.mentions] == [1, 3, 9, 7]


@pytest.mark.parametrize(
    ("trees", "message"),
    [
        (
            TREES.replace("cats", "dogs"),
            r"must have the same words as .*some.conll: word 9 of document 'some 1' is 'cats', but 'dogs' in the trees",
        ),
        (
            TREES.replace("(NNS cats)", "(NNS cats) (NN x)"),
            "word 10 of document 'some 1' is the end of the document, but",
        ),
        (TREES.partition("(ROOT (PP")[0], "some.ptb ends before word 6 of document 'some 1' of .*some.conll"),
        (
            TREES + "(ROOT (NN more))",
            "some.ptb and .*some.conll must have the same documents: 1 tree is left after the last document",
        ),
        (TREES + "(ROOT", r"some.ptb, line 5: the file ends inside a tree: 1 bracket is not closed since here"),
        (TREES + ")", r"some.ptb, line 5: '\)' is outside of all trees"),
    ],
)
def test_trees_of_other_words(tmp_path, trees, message):
    path = lines_of(tmp_path / "some.conll", ontogum(["_"] * len(WORDS), WORDS))
    with pytest.raises(DataError, match=message):
        read_conll_coref(path, trees=lines_of(tmp_path / "some.ptb", trees))


@pytest.fixture(scope="module")
def gum(shared):
    return shared / "coref" / "ontogum_open-train.conll", shared / "constituency" / "gum_open-train.ptb"


@pytest.mark.shared
def test_ontogum_is_read_back(gum):
    """The brackets, written once more from what was read, are the file's; sorted, since their order within is free."""
    documents = read_conll_coref(gum[0])
    lines = [
        line.rstrip("\n").split("\t") for line in gum[0].read_text(encoding="utf-8").split("\n") if line[:1].isdigit()
    ]
    column = [cell for document in documents for cell in oracles.cells(document)]
    assert len(column) == len(lines) == 39_486

    def parts(cell):
        return sorted(cell.replace("(", " (").replace(")", ") ").split())

    assert [parts(cell) for cell in column] == [parts(line[2]) for line in lines]
    assert [word for document in documents for word in document.words] == [line[1] for line in lines]
    assert len(documents) == 45
    assert documents.mentions == sum(line[2].count("(") for line in lines) == 4444
    assert sum(len({m.cluster for m in document.mentions}) for document in documents) == 1128


@pytest.mark.shared
def test_ontogum_with_trees(gum):
    plain, parsed = read_conll_coref(gum[0]), read_conll_coref(gum[0], trees=gum[1])
    assert [document.words for document in plain] == [document.words for document in parsed]
    pairs = [
        (a, b) for one, two in zip(plain, parsed, strict=True) for a, b in zip(one.mentions, two.mentions, strict=True)
    ]
    assert all((a.start, a.end, a.cluster) == (b.start, b.end, b.cluster) for a, b in pairs)
    assert sum(a.head == b.head for a, b in pairs) / len(pairs) > 0.96  # two rules, one tree-less
    assert sum(a.kind == b.kind for a, b in pairs) / len(pairs) > 0.9
    tags = Counter(document.tags[m.head] for document in parsed for m in document.mentions)
    assert sum(tags[tag] for tag in ("NN", "NNS", "NNP", "NNPS", "PRP", "PRP$")) / len(pairs) > 0.94
    assert sum(len(document.sentences) for document in parsed) == gum[1].read_text().count("(ROOT")


def conll(name, *sentences, part="0"):
    """A document in CoNLL-2012: (word, tag, bit, cell) for each word of each sentence."""
    lines = [
        "\n".join(
            f"{name} {part} {n} {word} {tag} {bit} - - - S * {cell}" for n, (word, tag, bit, cell) in enumerate(one)
        )
        for one in sentences
    ]
    return f"#begin document ({name}); part 00{part}\n" + "\n\n".join(lines) + "\n\n#end document\n"


SHE = [("Mia", "NNP", "(S(NP*)", "(1)"), ("loves", "VBZ", "(VP*", "-"), ("her", "PRP$", "(NP*", "(1)|(1)")]
HER = [*SHE, ("cat", "NN", "*)))", "-")]


def test_a_mention_that_is_written_twice_is_one(tmp_path):
    found = read_conll_coref(lines_of(tmp_path / "some.conll", conll("d/0", HER)))
    assert spans(found[0]) == [("Mia", 1), ("her", 1)]
    assert found[0].sentences == (0,)


def test_documents_of_one_sentence_without_trees(tmp_path):
    """The files of WinoBias."""
    words = [("The", "(1"), ("cook", "1)"), ("left", "-"), ("as", "-"), ("she", "(1)"), ("could", "-")]
    lines = "".join(
        f"wb/1\t0\t{n}\t{word}\t-\t-\t-\t-\t-\tSpeaker#1\t*\t*\t*\t*\t{cell}\n" for n, (word, cell) in enumerate(words)
    )
    (one,) = read_conll_coref(
        lines_of(tmp_path / "some.conll", f"#begin document (wb/1); part 000\n{lines}\n#end document\n")
    )
    assert (one.sentences, one.tags) == ((0,), None)
    assert spans(one) == [("The cook", 1), ("she", 1)]
    assert [m.head for m in one.mentions] == [1, 4]
    task = coreference_edges([one])
    assert [(t.span1, t.span2, t.labels) for t in task[0].targets] == [((0, 2), (4, 5), ("1",))]


def test_a_sentence_may_have_no_tree_where_others_have(tmp_path):
    bare = [("Yes", "UH", "-", "(2)"), ("Sir", "NN", "*", "-")]
    (one,) = read_conll_coref(lines_of(tmp_path / "some.conll", conll("d/0", bare, HER)))
    assert one.sentences == (0, 2)
    assert [m.head for m in one.mentions] == [0, 2, 4]


SEMEVAL = """#begin document 7
1\tThe\tthe\tthe\tDT\tDT\t_\t_\t3\t3\tN\tN\t_\t_\t_\t_\t(4
2\told\told\told\tJJ\tJJ\t_\t_\t3\t3\tN\tN\t_\t_\t_\t_\t_
3\tqueen\tq\tq\tNN\tNN\t_\t_\t5\t5\tS\tS\t_\t_\t_\t_\t_
4\tregnant\tr\tr\tJJ\tJJ\t_\t_\t3\t3\tN\tN\t_\t_\t_\t_\t4)
5\tsings\ts\ts\tVBZ\tVBZ\t_\t_\t0\t0\tR\tR\t_\t_\t_\t_\t_

1\tShe\tshe\tshe\tPRP\tPRP\t_\t_\t2\t2\tS\tS\t_\t_\t_\t_\t(4)
2\tsleeps\ts\ts\tVBZ\tVBZ\t_\t_\t0\t0\tR\tR\t_\t_\t_\t_\t_

#end document 7
"""


def test_semeval_2010(tmp_path):
    (one,) = read_conll_coref(lines_of(tmp_path / "some.txt", SEMEVAL))
    assert one.name == "7"
    assert one.words == ("The", "old", "queen", "regnant", "sings", "She", "sleeps")
    assert one.tags == ("DT", "JJ", "NN", "JJ", "VBZ", "PRP", "VBZ")
    assert one.sentences == (0, 5)
    assert spans(one) == [("The old queen regnant", 4), ("She", 4)]
    assert [(m.head, m.kind) for m in one.mentions] == [(2, "nominal"), (5, "pronoun")]  # by the dependencies
    other = read_conll_coref(lines_of(tmp_path / "ca.txt", SEMEVAL.replace("\tDT\tDT", "\td\td")))[0]
    assert other.tags is None  # tags of another language say nothing of names and pronouns


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "d/0 0 2 her",
            "d/0 0 1 her",
            "line 4: document 'd/0 part 000': wanted word number 2, got '1': words count up",
        ),
        (
            "d/0 0 2 her",
            "d/0 0 0 her",
            "line 4: document 'd/0 part 000': wanted word number 2, got '0': .* a blank line",
        ),
        ("d/0 0 0 Mia", "d/0 0 5 Mia", "line 2: document 'd/0 part 000': wanted word number 0, got '5'"),
        ("d/0 0 0 Mia", "d/0 x 0 Mia", "line 2: document 'd/0 part 000': wanted 3 columns .*, got 12"),
        ("(NP*)", "NP", "line 2: document 'd/0 part 000': wanted 3 columns .* or those of CoNLL-2012 .*, got 12"),
        (" VBZ (VP*", " VBZ VP", "line 3: document 'd/0 part 000': wanted a part of a tree such as .*, got 'VP'"),
        ("*)))", "*))", "line 5: document 'd/0 part 000': the sentence ends inside a tree: 1 bracket"),
        ("*)))", "*))))", r"line 5: document 'd/0 part 000': '\)' is outside of all trees"),
        (" S * (1)|(1)", " S (1)|(1)", "line 4: document 'd/0 part 000': wanted 12 columns of CoNLL-2012, .*, got 11"),
        ("#end document\n", "", "line 6: the file ends before document 'd/0 part 000': wanted a line `#end document`"),
    ],
)
def test_broken_documents_have_a_place_and_can_be_left_out(tmp_path, old, new, message):
    text = conll("d/0", HER)
    assert old in text
    path = lines_of(tmp_path / "some.conll", text.replace(old, new, 1))
    with pytest.raises(DataError, match=rf"some.conll, {message}.*\(skip_broken=True leaves such documents out\)"):
        read_conll_coref(path)
    end = "" if new else "#end document\n"
    rest = conll("d/1", HER)
    path.write_text(text.replace(old, new, 1) + rest + end if new else rest + text.replace(old, new, 1))
    found = read_conll_coref(path, skip_broken=True)
    assert [one.name for one in found] == ["d/1 part 000"]
    assert len(found.skipped) == 1
    assert found.skipped[0].name.startswith("some.conll, line ")


def ud(number, word, tag, head, entity):
    return f"{number}\t{word}\t_\tX\t{tag}\t_\t{head}\tdep\t_\t{entity}\n"


GUM = (
    "# newdoc id = GUM_a\n# global.Entity = eid-etype-head-other\n# text = The (old) queen's cat sleeps\n"
    + ud(1, "The", "DT", 4, "Entity=(e3-animal-5-new(e1-person-4-new")
    + ud(2, "(", "-LRB-", 3, "_")
    + ud(3, "old", "JJ", 4, "_")
    + ud("4-5", "queen's", "_", "_", "_")
    + ud(4, "queen", "NN", 6, "SpaceAfter=No|Entity=e1)")
    + ud(5, "'s", "POS", 4, "_")
    + ud(6, "cat", "NN", 7, "Entity=e3)|Bridge=e1<e3")
    + ud(7, "sleeps", "VBZ", 0, "_")
    + "\n# text = She\n"
    + ud("0.1", "_", "_", "_", "Entity=(e9-person-1-new)")
    + ud(1, "She", "PRP", 2, "Entity=(e1-person-1-ana)")
    + ud(2, "left", "VBD", 0, "_")
    + "\n# newdoc id = GUM_b\n"
    + ud(1, "It", "PRP", 2, "Entity=(e1[1/2]-person-1-new)")
    + ud(2, "rains", "VBZ", 0, "Entity=(e1[2/2]-person-1-new)(e7-event-1-new)")
    + "\n"
)


def test_mentions_in_universal_dependencies(tmp_path):
    """GUM and CorefUD: `Entity=` in the last column."""
    found = read_conll_coref(lines_of(tmp_path / "gum.conllu", GUM))
    one, two = found
    assert (one.name, two.name) == ("GUM_a", "GUM_b")
    assert one.words == ("The", "(", "old", "queen", "'s", "cat", "sleeps", "She", "left")
    assert one.sentences == (0, 7)
    assert spans(one) == [("The ( old queen 's cat", 3), ("The ( old queen", 1), ("She", 1)]
    assert [(m.head, m.kind) for m in one.mentions] == [(5, "nominal"), (3, "nominal"), (7, "pronoun")]
    assert spans(two) == [("rains", 7)]
    assert [(skip.name, skip.reason) for skip in found.skipped] == [("GUM_b", "a mention has several pieces")]
    without = GUM.replace("# newdoc id = GUM_a\n", "").partition("# newdoc")[0]
    assert read_conll_coref(lines_of(tmp_path / "part.conllu", without))[0].name == "part 1"
    with pytest.raises(DataError, match="gum.conllu, line 8: document 'GUM_a': a mention of cluster e4 is closed but"):
        read_conll_coref(lines_of(tmp_path / "gum.conllu", GUM.replace("Entity=e1)", "Entity=e4)")))


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["(e1-person", "_", "e1)"], [(0, 3, 1)]),
        (["(e1-person-1-new-coref)", "(e2-place(e1-person", "e1)e2)"], [(0, 1, 1), (1, 3, 1), (1, 3, 2)]),
        (["(person-1", "person-1)", "(place-12)"], [(0, 2, 1), (2, 3, 12)]),
        (["(1-abstract-new-cf1*-1-sgl", "_", "1)"], [(0, 3, 1)]),
        (["(e1-person)", "(x1-person)", "_"], [(0, 1, 1), (1, 2, 2)]),  # two entities with one number
    ],
)
def test_cells_that_say_more_than_a_number(tmp_path, cells, expected):
    (one,) = read_conll_coref(lines_of(tmp_path / "some.conll", ontogum(cells)))
    assert [(m.start, m.end, m.cluster) for m in one.mentions] == expected


def test_a_folder_of_files(tmp_path):
    (tmp_path / "bc" / "cctv").mkdir(parents=True)
    (tmp_path / "wb").mkdir()
    lines_of(tmp_path / "wb" / "b.v4_gold_conll", conll("wb/b", HER))
    lines_of(tmp_path / "bc" / "cctv" / "a.v4_gold_conll", conll("bc/a", HER))
    lines_of(tmp_path / "bc" / "cctv" / "a.v4_auto_conll", "no file that is read")
    lines_of(tmp_path / "bc" / "empty.v4_gold_conll", "\n")
    lines_of(tmp_path / "readme.txt", "no file that is read")
    found = read_conll_coref(tmp_path)
    assert [one.name for one in found] == ["bc/a part 000", "wb/b part 000"]
    assert [(skip.name, skip.reason) for skip in found.skipped] == [
        (os.path.join("bc", "empty.v4_gold_conll"), "holds no documents")
    ]
    with pytest.raises(DataError, match=r"is a folder: wanted a file, or a folder with files \*gold_conll or \*conll"):
        read_conll_coref(empty_folder(tmp_path))


def empty_folder(tmp_path):
    (tmp_path / "none").mkdir()
    return tmp_path / "none"
