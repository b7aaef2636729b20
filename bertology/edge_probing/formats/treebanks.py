"""Tasks from treebanks: parts of speech, dependencies and constituents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from ...corpora.bracketed_trees import Phrase, parses
from ...corpora.files import open_text, text_of
from ...corpora.treebank import Sentence
from ...errors import DataError, checked, need
from ..tasks import EdgeTask, Record, Target


@checked
def pos_edges(path: str | Path, *, field: Literal["upos", "xpos"] = "upos", name: str = "pos") -> EdgeTask:
    """Make the task of predicting words' parts of speech from a treebank in CoNLL-U (extra `syntax`).

    Each word is a target. Multiword tokens and empty nodes are left out, as in `read_conllu`. The paper has the tags of
    the Penn Treebank in OntoNotes: for these see `bracket_pos_edges`. In English treebanks `xpos` has them too.

    Args:
        path: a CoNLL-U file.
        field: the universal tags ("upos") or the language's own ("xpos").
        name: the name of the task in messages.

    Raises `DataError` for a file that is not CoNLL-U, and for words without a tag.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w", suffix=".conllu") as file:
        ...     _ = file.write("1\\tSing\\tsing\\tVERB\\t_\\t_\\t0\\troot\\t_\\t_\\n\\n")
        ...     file.flush()
        ...     pos_edges(file.name)[0].targets
        (Target(span1=(0, 1), labels=('VERB',), span2=None, info=''),)
    """
    if field not in ("upos", "xpos"):
        raise DataError(f"field must be 'upos' or 'xpos', got {field!r}")
    records = []
    for found in _conllu(path):
        tags = [word.get(field) for word in found["words"]]
        for word, tag in zip(found["words"], tags, strict=True):
            if tag in (None, "_"):
                raise DataError(f"{path}, sentence {found['name']!r}: the word {word['form']!r} has no {field}")
        targets = tuple(Target((place, place + 1), (tag,)) for place, tag in enumerate(tags))
        records.append(Record(tuple(word["form"] for word in found["words"]), targets, found["name"]))
    return EdgeTask.of(name, records)


def _conllu(path: str | Path) -> Iterator[dict[str, Any]]:
    """The words and the name of each sentence."""
    conllu = need("conllu", extra="syntax")
    try:
        with open_text(path) as file:
            for number, tokens in enumerate(conllu.parse_incr(file), 1):
                name = tokens.metadata.get("sent_id") or f"{Path(path).name} {number}"
                yield {"words": [token for token in tokens if isinstance(token["id"], int)], "name": name}
    except conllu.exceptions.ParseException as error:
        raise DataError(f"{path} is not CoNLL-U: {error}") from error


@checked
def dependency_edges(treebank: Sequence[Sentence], *, name: str = "dependencies") -> EdgeTask:
    """Make the task of predicting how a word depends on its head, when both are given.

    Each word is a target: `span1` is the word, `span2` its head, and the label their relation. A word whose head is
    the root is its own head, as in the paper's converter. That converter drops sentences with empty nodes and stops at
    multiword tokens; `read_conllu` ignores both.

    Args:
        treebank: sentences with their trees; `read_conllu(path, subtypes=False)` has no subtypes such as `nsubj:pass`,
            the paper's task has them.
        name: the name of the task in messages.

    Raises `DataError` if there are no sentences.

        >>> from bertology.syntax import Sentence
        >>> task = dependency_edges([Sentence(("Birds", "sing"), (2, 0), ("nsubj", "root"))])
        >>> [(t.span1, t.span2, t.labels) for t in task[0].targets]
        [((0, 1), (1, 2), ('nsubj',)), ((1, 2), (1, 2), ('root',))]
    """
    if isinstance(treebank, (str, Path)):
        raise DataError(f"wanted sentences, got {str(treebank)!r}: read them with read_conllu")
    records = []
    for sentence in treebank:
        heads = [head - 1 if head else word for word, head in enumerate(sentence.heads)]
        targets = tuple(
            Target((word, word + 1), (relation,), (head, head + 1))
            for word, (head, relation) in enumerate(zip(heads, sentence.relations, strict=True))
        )
        records.append(Record(sentence.words, targets, sentence.name))
    return EdgeTask.of(name, records, skipped=getattr(treebank, "skipped", ()))


@checked
def constituent_edges(path: str | Path, *, top: bool = True, name: str = "constituents") -> EdgeTask:
    """Make the task of predicting what kind of phrase a span is, from trees in the brackets of the Penn Treebank.

    Each phrase is a target; a single word with its tag is not a phrase. Labels lose function tags and numbers
    (`NP-SBJ-1` is `NP`), traces are left out. If a phrase contains only one other phrase, both have the same span. As
    in the paper's data, both are targets; `EdgeTask.merged` merges them into one with two labels.

    Args:
        path: the trees, one after another.
        top: whether the outermost bracket, `ROOT` or `TOP`, is a target. It is the whole sentence, and easy to predict.
            The paper's program keeps every bracket. A bracket without a label is never a target.
        name: the name of the task in messages.

    Raises `DataError` for brackets that do not match.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write("(ROOT (S (NP-SBJ (NNS Birds)) (VP (VBP sing))))")
        ...     file.flush()
        ...     [(*t.span1, *t.labels) for t in constituent_edges(file.name)[0].targets]
        [(0, 2, 'ROOT'), (0, 2, 'S'), (0, 1, 'NP'), (1, 2, 'VP')]
    """
    records = []
    for number, parse in enumerate(parses(text_of(path), str(path)), 1):
        found = list(_phrases(parse.tree))
        kept = (phrase for phrase in (found if top else found[1:]) if phrase.label)
        targets = tuple(Target((phrase.start, phrase.end), (phrase.label,)) for phrase in kept)
        records.append(Record(parse.words, targets, f"{Path(path).name} {number}"))
    return EdgeTask.of(name, records)


@checked
def bracket_pos_edges(path: str | Path, *, name: str = "pos") -> EdgeTask:
    """Make the task of predicting words' parts of speech from trees in brackets: the paper's own task, on OntoNotes.

    Raises `DataError` for brackets that do not match.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write("(ROOT (S (NP-SBJ (NNS Birds)) (VP (VBP sing))))")
        ...     file.flush()
        ...     bracket_pos_edges(file.name).labels
        ('NNS', 'VBP')
    """
    records = []
    for number, parse in enumerate(parses(text_of(path), str(path)), 1):
        targets = tuple(Target((place, place + 1), (tag,)) for place, tag in enumerate(parse.tags))
        records.append(Record(parse.words, targets, f"{Path(path).name} {number}"))
    return EdgeTask.of(name, records)


def _phrases(tree: Phrase) -> Iterator[Phrase]:
    """The phrase and all phrases inside it, outer ones first."""
    if tree.children:
        yield tree
        for child in tree.children:
            yield from _phrases(child)
