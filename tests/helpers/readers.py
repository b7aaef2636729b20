"""Every reader of files: a small good file, what is in it, and the same file with something broken.

A new reader joins by one row in `READERS`; a public reader without a row fails `test_all_readers.py`.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertology import code_structure, edge_probing, syntax
from bertology.corpora.files import lines_of
from bertology.errors import DataError

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from cat_probing import train
from clark import brackets
from glue import find_task, read_examples


@dataclass(frozen=True)
class Reader:
    """One reader, and what it reads."""

    read: Callable[..., Any]
    text: str
    """A good file, in which the word `Birds` occurs."""
    look: Callable[[Any], Any]
    """What was read, in plain lists and strings."""
    value: Any
    """What `look` sees in the good file."""
    broken: str
    """The text with a part that cannot be used."""
    line: int | None
    """The line that the error names; None where the format has no lines."""
    skip: Mapping[str, Any] | None = field(default_factory=lambda: {"skip_broken": True})
    """How such parts are left out; None if they cannot be."""
    rest: int = -1
    """How many elements of `value` are left then, from its start; by default all."""
    words: bool = True
    """Whether words are given, so that any character may be in one; else they are found in running text."""
    refused: tuple[str, ...] = ()
    """The oddities that this format does not allow: an error is right there."""


def same_words(found):
    return [list(one.words) for one in found]


def targets(found):
    return [[*record.words, *(label for target in record.targets for label in target.labels)] for record in found]


def with_clusters(found):
    return [[*one.words, *(str(m.cluster) for m in one.mentions)] for one in found]


def row(number, word, head, relation):
    return f"{number}\t{word}\t_\tX\t_\t_\t{head}\t{relation}\t_\t_\n"


def read_task(path):
    """A training set of QQP. Its folder has nothing else, so that the file may have any name."""
    folder = Path(f"{path}.task")
    folder.mkdir(exist_ok=True)
    if Path(path).is_file():
        os.replace(path, folder / "train.tsv")
    return read_examples(find_task("mrpc"), folder, train=True)


def read_spr2(path, **options):
    """The table, with its treebank in a folder beside it."""
    folder = Path(f"{path}.ud")
    folder.mkdir(exist_ok=True)
    words = [["Birds", "sing"], ["Rain", "fell"]]
    if Path(path).is_file():  # the table says what the argument of the first sentence is
        with contextlib.suppress(DataError):
            words[0][0] = next(
                (line.split("\t")[3] for number, line in lines_of(path) if "sentences 1" in line), "Birds"
            )
    lines = ["".join(row(n, word, 2 * (n == 1), "dep") for n, word in enumerate(some, 1)) for some in words]
    (folder / "sentences").write_text("\n".join(lines), encoding="utf-8")
    return edge_probing.spr2_edges(path, folder, **options)


def example(word, **changes):
    spans = {"subj_start": 0, "subj_end": 0, "obj_start": 1, "obj_end": 1, "subj_type": "A", "obj_type": "B"}
    return json.dumps({"id": "1", "token": [word, "Oslo"], "relation": "in", **spans, **changes}, ensure_ascii=False)


def roles(number, word, filled, *columns):
    return "\t".join([str(number), word, *"_" * 10, filled, "x.01" if filled == "Y" else "_", *columns]) + "\n"


def conll(*cells):
    rows = [f"d/0 0 {n} {word} {tag} {tree} - - - S * {cell}\n" for n, (word, tag, tree, cell) in enumerate(cells)]
    return "".join(rows) + "\n"


TREES = row(1, "Birds", 2, "nsubj") + row(2, "sing", 0, "root") + "\n" + row(1, "Yes", 0, "root") + "\n"
BRACKETS = "(S (NP (NNS Birds)) (VP (VBP sing)))\n(NP (NN rain))\n"
COREFERENCE = (
    "#begin document (d/0); part 000\n"
    + conll(("Birds", "NNS", "(S(NP*)", "(1)"), ("sing", "VBP", "(VP*))", "-"))
    + conll(("They", "PRP", "(S(NP*)", "(1)"), ("fly", "VBP", "(VP*))", "-"))
    + "#end document\n"
)
SECOND = COREFERENCE.replace("d/0", "d/1")
ENTITIES = "Birds B-animal\nsing O\n\nAnn B-person\nflies O\n"
ROLES = "Birds (A0*)\nsing (V*)\n\nAnn (A0*)\nflies (V*)\n"
GAP = (
    "ID\tText\tPronoun\tPronoun-offset\tA\tA-offset\tA-coref\tB\tB-offset\tB-coref\n"
    "1\tAnn met Eve as she left.\tshe\t15\tAnn\t0\tTRUE\tEve\t8\tFALSE\n"
    "2\tAl met Bob as he left.\the\t14\tAl\t0\tTRUE\tBob\t7\tFALSE\n"
)
GAP_WORDS = [["Ann", "met", "Eve", "as", "she", "left", "."], ["Al", "met", "Bob", "as", "he", "left", "."]]
WINO = "1 [The cook] met the guard as [she] left.\n2 The cook met [the guard] as [he] left.\n"
WINO_WORDS = [["The", "cook", "met", "the", "guard", "as", who, "left", "."] for who in ("she", "he")]
EDGES = (
    '{"text": "Birds sing", "targets": [{"span1": [0, 1], "label": "A"}]}\n'
    '{"text": "Ann flies", "targets": [{"span1": [1, 2], "label": "B"}]}\n'
)
RELATIONS = (
    '1 "<e1>Birds</e1> in <e2>trees</e2>"\nIn(e1,e2)\nComment: none\n\n2 "<e1>lid</e1> of <e2>jar</e2>"\nOf(e1,e2)\n'
)
SPR1 = "".join(
    f'{{"tokens": ["{word}", "sing"], "sent_id": "1", "spr1": [{{"pred_idx": 1, "arg_idx": 0, "responses": '
    '[{"spr_property": "will", "response": 5.0}]}]}\n'
    for word in ("Birds", "They")
)
CODE = '{"code": "Birds = 1", "language": "python"}\n{"code": "y = 2", "language": "python"}\n'
TASK = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tBirds sing\tThey sing\n0\t3\t4\tNo\tYes\n"
TREE_WORDS = [["Birds", "sing"], ["Yes"]]

THREE = "# begin document\n0\tBirds\t(1)\n1\tsing\t_\n# end document\n"
ENTITY = (
    "# newdoc id = a\n"
    + row(1, "Birds", 2, "nsubj").replace("_\n", "Entity=(e1-animal)\n")
    + row(2, "sing", 0, "root")
    + "\n"
)
SEMEVAL = (
    "#begin document 1\n1\tBirds" + "\t_" * 2 + "\tNNS\tNNS\t_\t_\t2\t2" + "\t_" * 6 + "\t(1)\n"
    "2\tsing" + "\t_" * 2 + "\tVBP\tVBP\t_\t_\t0\t0" + "\t_" * 6 + "\t_\n\n#end document 1\n"
)
CONTROL = ("file separator",)
"""JSON has no control characters as they are."""

TACRED = f"[{example('Birds')},\n {example('Ann')}]\n"
PRONOUNS = (
    "text: Birds sing as they fly.\nhypothesis: Birds sing as Birds fly.\nentailed: entailed\n\n"
    "text: Ann met Eve as she left.\nhypothesis: Ann met Eve as Eve left.\nentailed: not\n"
)
ROLES_2009 = roles(1, "Birds", "_", "A0") + roles(2, "sing", "Y", "_") + "\n" + roles(1, "Go", "Y", "A1")
HEADER = "Split Sentence.ID Pred.Token Arg.Phrase Arg.Tokens.Begin Arg.Tokens.End Property Response Applicable"
ANSWERS = (
    "\t".join(HEADER.split(" ")) + "\ndev\tsentences 1\t1\tBirds\t0\t0\twill\t5\tyes\n"
    "dev\tsentences 2\t1\tRain\t0\t0\twill\t4\tyes\n"
)

READERS = {
    "read_conllu": Reader(
        syntax.read_conllu, TREES, same_words, TREE_WORDS, TREES + row(1, "falls", "x", "root") + "\n", 6
    ),
    "read_depparse": Reader(
        syntax.read_depparse, "Birds 2-nsubj\nsing 0-root\n\nYes 0-root\n", same_words, TREE_WORDS,
        "Birds 2-nsubj\nsing 0-root\n\nYes 0-root\n\na 0-root\nb c\n", 7,
    ),
    "read_json": Reader(
        syntax.read_json, '[{"words": ["Birds", "sing"], "heads": [2, 0], "relns": ["nsubj", "root"]}]\n', same_words,
        TREE_WORDS[:1], '[{"words": ["Birds", "sing"], "heads": [2, 0], "relns": ["nsubj", "root"]}, 3]', None,
        refused=CONTROL,
    ),
    "read_conll_coref": Reader(
        syntax.read_conll_coref, COREFERENCE,
        with_clusters,
        [["Birds", "sing", "They", "fly", "1", "1"]], COREFERENCE + SECOND.replace("(VP*))", "(VP*)", 1), 11,
    ),
    "read_conll_coref, three columns": Reader(
        syntax.read_conll_coref, THREE, with_clusters, [["Birds", "sing", "1"]],
        THREE + THREE.replace("(1)", "1)"), 6,
    ),
    "read_conll_coref, CoNLL-U": Reader(
        syntax.read_conll_coref, ENTITY, with_clusters, [["Birds", "sing", "1"]],
        ENTITY + ENTITY.replace("(e1-animal)", "e1)"), 6,
    ),
    "read_conll_coref, SemEval-2010": Reader(
        syntax.read_conll_coref, SEMEVAL, with_clusters, [["Birds", "sing", "1"]],
        SEMEVAL + SEMEVAL.replace("2\tsing", "3\tsing"), 8,
    ),
    "constituent_edges, columns": Reader(
        edge_probing.constituent_edges, COREFERENCE, targets,
        [["Birds", "sing", "S", "NP", "VP"], ["They", "fly", "S", "NP", "VP"]],
        COREFERENCE + SECOND.partition("\n\n")[0].replace("(VP*))", "VP") + "\n", 11,
    ),
    "read_gap": Reader(
        syntax.read_gap, GAP, same_words, GAP_WORDS, GAP + "3\tAl left.\the\t3\tAl\t0\tTRUE\tBob\t7\tFALSE\n", 4,
        words=False,
    ),
    "read_winobias": Reader(
        syntax.read_winobias, WINO, same_words, WINO_WORDS, WINO + "3 Nobody met [the guard].\n", 3, words=False
    ),
    "read_vectors": Reader(
        syntax.read_vectors, "Birds 1.0 2.0\nsing 3.0 4.0\n",
        lambda found: [word for word in ("Birds", "sing") if word in found], ["Birds", "sing"],
        "Birds 1.0 2.0\nsing 3.0 4.0\nfly 5.0 x\n", 3, words=False, refused=("lines that end in CR",),
    ),
    "read_edges": Reader(edge_probing.read_edges, EDGES, targets, [["Birds", "sing", "A"], ["Ann", "flies", "B"]],
                         EDGES + '{"text": "Eve", "targets": [{"span1": [0, 4], "label": "A"}]}\n', 3, refused=CONTROL),
    "pos_edges": Reader(
        edge_probing.pos_edges, TREES, targets, [["Birds", "sing", "X", "X"], ["Yes", "X"]],
        TREES + row(2, "falls", 0, "root") + "\n", 6,
    ),
    "constituent_edges": Reader(
        edge_probing.constituent_edges, BRACKETS, targets, [["Birds", "sing", "S", "NP", "VP"], ["rain", "NP"]],
        BRACKETS + "(NP (NN a) b)\n", 3,
    ),
    "bracket_pos_edges": Reader(
        edge_probing.bracket_pos_edges, BRACKETS, targets, [["Birds", "sing", "NNS", "VBP"], ["rain", "NN"]],
        BRACKETS + "(NP (NN a)))\n", 3, rest=-2,
    ),
    "entity_edges": Reader(
        edge_probing.entity_edges, ENTITIES, targets, [["Birds", "sing", "animal"], ["Ann", "flies", "person"]],
        ENTITIES + "\na O\nb X-y\n", 8,
    ),
    "srl_edges": Reader(
        lambda path, **options: edge_probing.srl_edges(path, word=0, first=1, last=0, **options), ROLES, targets,
        [["Birds", "sing", "A0"], ["Ann", "flies", "A0"]], ROLES + "\na (A0*\nb *\n", 7,
    ),
    "gap_edges": Reader(
        edge_probing.gap_edges, GAP, targets, [[*words, "1", "0"] for words in GAP_WORDS],
        GAP + "3\tAl left.\the\tx\tAl\t0\tTRUE\tBob\t7\tFALSE\n", 4, words=False,
    ),
    "semeval_edges": Reader(
        edge_probing.semeval_edges, RELATIONS, targets,
        [["Birds", "in", "trees", "In(e1,e2)"], ["lid", "of", "jar", "Of(e1,e2)"]], RELATIONS + '\n3 "a b"\nOther\n', 8,
    ),
    "spr1_edges": Reader(
        edge_probing.spr1_edges, SPR1, targets, [["Birds", "sing", "will"], ["They", "sing", "will"]],
        SPR1 + SPR1.partition("\n")[0].replace('"pred_idx": 1', '"pred_idx": 7') + "\n", 3,
        refused=CONTROL,
    ),
    "spr2_edges": Reader(
        read_spr2, ANSWERS, targets, [["Birds", "sing", "will"], ["Rain", "fell", "will"]],
        ANSWERS + "dev\tsentences 2\t1\tfell\t1\t7\twill\t5\tyes\n", 4,
    ),
    "tacred_edges": Reader(
        edge_probing.tacred_edges, TACRED, targets, [["Birds", "Oslo", "in"], ["Ann", "Oslo", "in"]],
        f"[{example('Birds')},\n {example('Ann')}, {example('Eve', obj_end=7)}]", None, refused=CONTROL,
    ),
    "dpr_edges": Reader(
        edge_probing.dpr_edges, PRONOUNS, targets,
        [["Birds", "sing", "as", "they", "fly", ".", "entailed"], ["Ann", "met", "Eve", "as", "she", "left", ".", "not"]],
        PRONOUNS + "\ntext: Ann met Eve\n", 9, words=False,
    ),
    "conll2009_edges": Reader(
        edge_probing.conll2009_edges, ROLES_2009, targets, [["Birds", "sing", "A0"], ["Go", "A1"]],
        ROLES_2009 + "\n" + roles(1, "Go", "Y"), 6,
    ),
    "read_code": Reader(
        code_structure.read_code, CODE, lambda found: [" ".join(tree.texts) for tree in found],
        ["Birds = 1", "y = 2"], CODE + '{"code": 3, "language": "python"}\n', 3, {"broken": "skip"}, words=False,
    ),
    "examples, brackets": Reader(
        brackets.read_brackets, BRACKETS, same_words, [["Birds", "sing"], ["rain"]], BRACKETS + "(NP (NN a)", 3, None
    ),
    "examples, code to train on": Reader(
        lambda path: train.read([str(path)], 0), CODE, list, ["Birds = 1", "y = 2"], CODE + "{\n", 3, None,
        refused=CONTROL,
    ),
    "examples, GLUE": Reader(
        read_task, TASK, lambda found: [list(texts) for texts in found.texts],
        [["Birds sing", "They sing"], ["No", "Yes"]], TASK + "1\t2\n", 4, None,
    ),
}  # fmt: skip
