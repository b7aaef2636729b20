from collections import Counter

import oracles_coreference as oracles
import pytest
from trees import wordpiece_tokenizer

from bertology.corpora.conll_coreference import read_conll_coref
from bertology.corpora.documents import Document, Documents, Mention, pieces
from bertology.corpora.gap_winobias import by_gender, read_gap, read_winobias
from bertology.corpora.phrases import head_in_tree, head_in_words, kind_of, parses
from bertology.corpora.words import align
from bertology.errors import DataError


def lines_of(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def spans(document):
    return [(" ".join(document.words[m.start : m.end]), m.cluster) for m in document.mentions]


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
    ],
)
def test_brackets(tmp_path, cells, expected):
    path = lines_of(tmp_path / "some.conll", ontogum(cells))
    if expected is None:
        with pytest.raises(
            DataError, match=r"line 4: document 'some 1': a mention of cluster 3 is closed that was nev"
        ):
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
        (ontogum(["(1", "_"]), r"some.conll, line 4: document 'some 1' ends, and a mention of cluster 1 is still open"),
        (ontogum(["_", "1)"]), r"some.conll, line 3: document 'some 1': a mention of cluster 1 is closed that was nev"),
        (ontogum(["(1x)"]), r"some.conll, line 2: wanted mentions such as \(3\(4\), 2\)\|\(5 or _, got '\(1x\)'"),
        (
            "# begin document\na b\n",
            r"line 2: wanted 3 columns \(number, word, mentions\) or those of CoNLL-2012, got 2",
        ),
        ("0\tword\t_\n", r"line 1: a word stands outside a document: wanted `# begin document` before"),
        ("# begin document\n0\tw\t_\n# begin document\n", r"line 3: a document begins within 'some 1'"),
        ("# begin document\n# end document\n", r"line 2: document 'some 1' has no words"),
        ("\n", "holds no documents: wanted lines `# begin document` before the words"),
        (ontogum(["(1(1", "1)1)"]), r"document 'some 1' has the mention of the words \(0, 2\) twice: wanted it once"),
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
            r"other words than .*some.conll: word 9 of document 'some 1' is 'cats', in the t",
        ),
        (
            TREES.replace("(NNS cats)", "(NNS cats) (NN x)"),
            "word 10 of document 'some 1' is the end of the document, in",
        ),
        (TREES.partition("(ROOT (PP")[0], "some.ptb ends before word 6 of document 'some 1' of .*some.conll"),
        (TREES + "(ROOT (NN more))", "some.ptb has 1 trees more than .*some.conll has words for"),
        (TREES + "(ROOT", "some.ptb ends within a tree: 1 brackets are open"),
        (TREES + ")", r"some.ptb, line 5: '\)' stands outside every tree"),
    ],
)
def test_trees_of_other_words(tmp_path, trees, message):
    path = lines_of(tmp_path / "some.conll", ontogum(["_"] * len(WORDS), WORDS))
    with pytest.raises(DataError, match=message):
        read_conll_coref(path, trees=lines_of(tmp_path / "some.ptb", trees))


@pytest.mark.parametrize(
    ("tree", "span", "head"),
    [  # Collins (1999), appendix A, by hand
        ("(NP (NP (DT the) (NN queen)) (PP (IN of) (NP (NNS hearts))))", (0, 4), "queen"),
        ("(NP (NP (NNP Ann)) (CC and) (NP (NNP Bill)))", (0, 3), "Ann"),
        ("(NP (NP (NNP Ann) (POS 's)) (NN hat))", (0, 2), "Ann"),
        ("(NP (NP (NNP Ann) (POS 's)) (NN hat))", (0, 3), "hat"),
        ("(NP (DT the) (NN ice) (NN cream) (NN man))", (0, 3), "cream"),  # a part of a flat phrase
        ("(NP (DT the) (CD two))", (0, 2), "two"),
        ("(NP (DT the) (JJ poor))", (0, 2), "poor"),
        ("(NP (PRP she) (PRP herself))", (0, 2), "herself"),
        ("(NP (PRP us) (DT all))", (0, 2), "us"),
        ("(NP (NP (NN cake)) (, ,) (SBAR (WHNP (WDT which)) (S (VP (VBZ is) (NP (NN food))))))", (0, 5), "cake"),
        ("(S (NP (NNP Ann)) (VP (VBZ sings)))", (0, 2), "sings"),
        ("(VP (VB go) (PP (IN to) (NP (NNP Rome))))", (0, 3), "go"),
        ("(VP (VB see) (NP (NN art)) (PP (IN in) (NP (NNP Rome))))", (1, 4), "art"),  # attached elsewhere
        ("(VP (VBD said) (PP (IN in) (NP (DT the) (NN end))) (PP (IN of) (NP (NN May))))", (2, 6), "end"),
        ("(NP (DT the) (`` ``) (NN end) ('' ''))", (0, 4), "end"),
    ],
)
def test_heads_of_phrases(tree, span, head):
    (parse,) = parses(tree, "tree")
    assert parse.words[head_in_tree(parse.tree, *span)] == head


@pytest.mark.parametrize(
    ("phrase", "head"),
    [
        ("the queen of hearts", "queen"), ("Ann , the queen", "Ann"), ("the man who sang", "man"), ("Ann 's", "Ann"),
        ("that book", "book"), ("John Smith Jr .", "Jr"), ("the end ( of May )", "end"), ("she", "she"), ("%", "%"),
        ("of hearts", "hearts"), ("A and B", "B"),
    ],
)  # fmt: skip
def test_heads_of_words(phrase, head):
    words = phrase.split()
    assert words[head_in_words(words, 0, len(words))] == head


@pytest.mark.parametrize(
    ("words", "tags", "span", "kind"),
    [
        ("she sang", None, (0, 1), "pronoun"), ("saw US", None, (1, 2), "proper"), ("saw us", None, (1, 2), "pronoun"),
        ("The old Queen", None, (0, 3), "proper"), ("sang . Queens", None, (2, 3), "nominal"),
        ("this", None, (0, 1), "pronoun"), ("this one", None, (0, 2), "nominal"), ("a cat", None, (0, 2), "nominal"),
        ("she sang", "PRP VBD", (0, 1), "pronoun"), ("Queens sang", "NNS VBD", (0, 1), "nominal"),
        ("Ann sang", "NNP VBD", (0, 1), "proper"), ("that", "DT", (0, 1), "pronoun"), ("I", None, (0, 1), "pronoun"),
    ],
)  # fmt: skip
def test_kinds(words, tags, span, kind):
    words, tags = words.split(), tags and tags.split()
    assert kind_of(words, tags, *span, span[1] - 1) == kind


GAP = (
    "ID\tText\tPronoun\tPronoun-offset\tA\tA-offset\tA-coref\tB\tB-offset\tB-coref\tURL\n"
    "one\tAnn O'Hara met Eve's aunt as she'd left.\tshe\t29\tAnn O'Hara\t0\tTRUE\tEve\t15\tFALSE\tx\n"
    'two\tHis "hat" was Bob\'s, Al said in 1,000.5 words.\tHis\t0\tBob\t14\tFALSE\tAl\t21\tTRUE\tx\n'
    "three\tAnn met Eve; she left.\tshe\t13\tAnn\t0\tFALSE\tEve\t8\tFALSE\tx\n"
    "four\tAnne met Eve; she left.\tshe\t14\tAnn\t0\tFALSE\tEve\t9\tTRUE\tx\n"
)


def test_gap(tmp_path):
    found = read_gap(lines_of(tmp_path / "gap.tsv", GAP))
    assert [(s.name, s.reason) for s in found.skipped] == [("four", "a mention begins or ends within a word")]
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
    assert str(found) == "3 documents, 9 mentions; 1 skipped: a mention begins or ends within a word"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\tshe\t29", "\tshe\t28", r"gap.tsv, line 2: Pronoun is 'she', its text has ' sh' at character 28"),
        ("\tshe\t29", "\tshe\tx", r"gap.tsv, line 2: Pronoun-offset must be a number, got 'x'"),
        ("0\tTRUE\tEve", "0\tyes\tEve", r"gap.tsv, line 2: A-coref must be TRUE or FALSE, got 'yes'"),
        ("A-coref\t", "", "has no column A-coref: wanted the TSV of GAP, with its header"),
        ("\t15\tFALSE\tx\n", "\n", r"gap.tsv, line 2: wanted 10 columns or more, got fewer"),
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
    assert (one.targets, two.targets) == ((2,), (2,))
    assert [(s.name, s.reason) for s in found.skipped] == [("wino.txt 3", "the other occupation is not to be found")]


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


def test_what_is_no_mention_and_no_document():
    for fields, message in (
        ((2, 2, 2, 1, "proper"), "a mention is from a word to a later one, got from 2 to 2"),
        ((1, 3, 3, 1, "proper"), "the head of the mention from word 1 to 3 is 3, outside it"),
        ((1, 3, 1, 1, "verb"), "a mention is of the kind pronoun, proper, nominal, got 'verb'"),
    ):
        with pytest.raises(DataError, match=message):
            Mention(*fields)
    words, mention = ("the", "cat"), Mention(0, 2, 1, 1, "nominal")
    for options, message in (
        ({"words": ()}, "document 'x' has no words"),
        ({"words": ("cat",)}, "document 'x' has 1 words, a mention is from word 0 to 2"),
        ({"mentions": (mention, mention)}, r"document 'x' has the mention of the words \(0, 2\) twice"),
        ({"tags": ("DT",)}, "document 'x' has 2 words and 1 tags: wanted one a word"),
        ({"sentences": (1,)}, r"document 'x': its sentences begin at \(1,\): wanted rising numbers from 0"),
        ({"sentences": (0, 2)}, r"document 'x': its sentences begin at \(0, 2\)"),
        ({"sentences": (0, 1, 1)}, "wanted rising numbers from 0"),
        ({"targets": (1,)}, "document 'x' has 1 mentions, none is number 1"),
    ):
        with pytest.raises(DataError, match=message):
            Document(**{"words": words, "mentions": (mention,), "name": "x", **options})


def texts(documents):
    return [" ".join(document.words) for document in documents]


CATS = Document(
    ("the", "cat", "sat", "on", "a", "mat", "and", "the", "cat", "purred", "under", "the", "stars"),
    (Mention(0, 2, 1, 1, "nominal"), Mention(4, 6, 5, 2, "nominal"), Mention(5, 8, 7, 3, "nominal"),
     Mention(7, 9, 8, 1, "nominal"), Mention(11, 13, 12, 2, "pronoun")),
    "cats", tags=tuple("abcdefghijklm"), sentences=(0, 3, 6, 10), targets=(1, 4),
)  # fmt: skip


def test_pieces_end_with_sentences():
    found = pieces(wordpiece_tokenizer(), [CATS], max_length=9)  # seven words, or fewer where words are split
    assert texts(found) == ["the cat sat on a mat", "and the cat purred", "under the stars"]
    assert [piece.sentences for piece in found] == [(0, 3), (0,), (0,)]
    assert found[1].tags == tuple("ghij")
    assert found[1].name == "cats [6:10]"
    assert [spans(piece) for piece in found] == [[("the cat", 1), ("a mat", 2)], [("the cat", 1)], [("the stars", 2)]]
    assert [piece.targets for piece in found] == [(1,), (), (0,)]
    assert (found.cut_through, found.beyond, found.mentions) == (1, 0, 4)
    assert str(found) == "3 documents, 4 mentions; 1 mentions cut through"


def test_pieces_end_with_words():
    found = pieces(wordpiece_tokenizer(), [CATS], max_length=9, at="word")
    assert texts(found) == ["the cat sat on a mat and", "the cat purred under the", "stars"]
    assert [piece.sentences for piece in found] == [(0, 3, 6), (0, 3), (0,)]
    assert found.cut_through == 2
    assert [len(p.mentions) for p in found] == [2, 1, 0]


def test_first_pieces():
    found = pieces(wordpiece_tokenizer(), [CATS, CATS], max_length=9, first_only=True)
    assert texts(found) == ["the cat sat on a mat"] * 2
    assert (found.cut_through, found.beyond, found.mentions) == (2, 4, 4)
    assert "4 mentions behind the first piece" in str(found)


def test_what_fits_stays_as_it_is():
    found = pieces(wordpiece_tokenizer(), [CATS], max_length=30)
    assert found[0] is CATS
    again = pieces(wordpiece_tokenizer(), pieces(wordpiece_tokenizer(), [CATS], max_length=9), max_length=30)
    assert again.cut_through == 1  # what was lost before is still told


@pytest.mark.parametrize("at", ["sentence", "word"])
@pytest.mark.parametrize("length", [4, 5, 7, 12])
def test_nothing_is_lost_without_a_word(at, length):
    documents = oracles.random_documents(40, 3)
    found = pieces(wordpiece_tokenizer(), documents, max_length=length, at=at)
    assert sum(len(d.words) for d in found) == sum(len(d.words) for d in documents)
    assert sum(len(d.mentions) for d in documents) == found.mentions + found.cut_through
    assert found.cut_through > 0
    assert not align(wordpiece_tokenizer(), list(found), max_length=length).skipped
    whole = Counter(span for d in documents for span in spans(d))
    assert not Counter(span for d in found for span in spans(d)) - whole
    heads = {(d.words[m.head], m.cluster, m.kind) for d in documents for m in d.mentions}
    assert {(d.words[m.head], m.cluster, m.kind) for d in found for m in d.mentions} <= heads


def test_words_longer_than_a_piece_are_told():
    found = pieces(wordpiece_tokenizer(), [CATS], max_length=3)
    assert [(s.name, s.reason) for s in found.skipped] == [
        (f"cats, word {n}", "a word is longer than a piece") for n in (9, 10, 12)
    ]
    assert len(found) == 10
    assert found.cut_through == 5
    with pytest.raises(DataError, match="max_length=2 holds special tokens only: wanted room for words"):
        pieces(wordpiece_tokenizer(), [CATS], max_length=2)
    with pytest.raises(DataError, match="at must be 'sentence' or 'word', got 'line'"):
        pieces(wordpiece_tokenizer(), [CATS], at="line")


def test_documents_are_a_sequence():
    some = Documents((CATS, CATS))
    assert some[1] is CATS
    assert isinstance(some[:1], Documents)
    assert len(some[:1]) == 1
    assert str(some) == "2 documents, 10 mentions"


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
