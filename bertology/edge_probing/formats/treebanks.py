"""Tasks from treebanks: parts of speech, dependencies and constituents."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from ...corpora.bracketed_trees import Parse, Phrase, Row, parses, trees_in_columns, unescaped
from ...corpora.files import files_in, lines_of, name_in, text_of
from ...corpora.skips import Broken, BrokenPart, Skip, placed
from ...corpora.treebank import Sentence, conllu_sentences, text_as_written
from ...errors import DataError, checked, shown
from ..tasks import EdgeTask, Record, Target
from .columns import COLUMN_FILES, sentences_in

_CONLL_2012 = (3, 4, 5)
"""The columns of the word, its tag and its part of the tree."""
_BEGIN = re.compile(r"#\s*begin document")
_TREE_FILES = ("*.mrg", "*.parse", "*.ptb")


@checked
def pos_edges(
    path: str | Path, *, field: Literal["upos", "xpos"] = "upos", skip_broken: bool = False, name: str = "pos"
) -> EdgeTask:
    """Make the task of predicting words' parts of speech from a treebank in CoNLL-U.

    Each word is a target. Multiword tokens and empty nodes are left out, as in `read_conllu`. The paper has the tags of
    the Penn Treebank in OntoNotes: for these see `bracket_pos_edges`. In English treebanks `xpos` has them too.

    Args:
        path: a CoNLL-U file, or a folder of `*.conllu` files.
        field: the universal tags ("upos") or the language's own ("xpos").
        skip_broken: leave out sentences that cannot be read, and list them in `skipped`, instead of raising.
        name: the name of the task in messages.

    Raises `DataError`, which names the file and the line, for lines that are not CoNLL-U, and for words without a tag.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w", suffix=".conllu") as file:
        ...     _ = file.write("1\\tSing\\tsing\\tVERB\\t_\\t_\\t0\\troot\\t_\\t_\\n\\n")
        ...     file.flush()
        ...     pos_edges(file.name)[0].targets
        (Target(span1=(0, 1), labels=('VERB',), span2=None, info=''),)
    """
    if field not in ("upos", "xpos"):
        raise DataError(f"field must be 'upos' or 'xpos', got {field!r}")
    broken = Broken(skip_broken, "such sentences")
    records = []
    for found in conllu_sentences(path, broken):
        with broken.part(found.place), placed(found.path, found.line):
            tags = [word.get(field.upper(), "_") for word in found.words]
            for line, word, tag in zip(found.lines, found.forms, tags, strict=True):
                if tag in ("", "_"):
                    raise BrokenPart(
                        found.path, line, f"sentence {found.name!r}: the word {shown(word)} has no {field}"
                    )
            targets = tuple(Target((place, place + 1), (tag,)) for place, tag in enumerate(tags))
            text, spans = text_as_written(found)
            records.append(Record(found.forms, targets, found.name, text=text, spans=spans))
    with placed(path):
        return EdgeTask.of(name, records, skipped=broken.skipped)


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
        records.append(Record(sentence.words, targets, sentence.name, text=sentence.text, spans=sentence.spans))
    return EdgeTask.of(name, records, skipped=getattr(treebank, "skipped", ()))


@checked
def constituent_edges(
    path: str | Path, *, top: bool = True, label: Literal["phrase", "function"] = "phrase",
    columns: Sequence[int] | None = None, skip_broken: bool = False, name: str = "constituents",
) -> EdgeTask:  # fmt: skip
    """Make the task of predicting what kind of phrase a span is, from the trees of the Penn Treebank or OntoNotes.

    Trees are read in brackets, or from the columns of CoNLL-2012. Each phrase is a target; a single word with its tag
    is not a phrase. Labels lose function tags and numbers (`NP-SBJ-1` is `NP`), traces are left out. If a phrase
    contains only one other phrase, both have the same span. As in the paper's data, both are targets;
    `EdgeTask.merged` merges them into one with two labels.

    Args:
        path: the trees, one after another, or in columns. A folder is read file by file: those that are named
            `*gold_conll`, or else `*conll`, `*.mrg`, `*.parse` or `*.ptb`, also in folders inside it.
        top: whether the outermost bracket, `ROOT` or `TOP`, is a target. It is the whole sentence, and easy to predict.
            The paper's program keeps every bracket. A bracket without a label is never a target.
        label: what is predicted: the kind of each "phrase", or the tags for its "function", such as `SBJ` and `TMP`, of
            phrases that have any.
        columns: the columns of the word, its tag and its part of the tree, counted from 0; by default brackets, or
            3, 4 and 5 in a file with lines `#begin document`.
        skip_broken: leave out trees that cannot be read, and list them in `skipped`, instead of raising.
        name: the name of the task in messages.

    Raises `DataError`, which names the file and the line, for brackets that do not match.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write("(ROOT (S (NP-SBJ (NNS Birds)) (VP (VBP sing))))")
        ...     file.flush()
        ...     [(*t.span1, *t.labels) for t in constituent_edges(file.name)[0].targets]
        [(0, 2, 'ROOT'), (0, 2, 'S'), (0, 1, 'NP'), (1, 2, 'VP')]
    """
    if label not in ("phrase", "function"):
        raise DataError(f"label must be 'phrase' or 'function', got {label!r}")
    broken = Broken(skip_broken, "such trees")
    records = []
    for called, parse in _parses(path, columns, broken):
        found = list(_phrases(parse.tree))
        kept = [phrase for phrase in (found if top else found[1:]) if phrase.label]
        several = [((phrase.label,) if label == "phrase" else phrase.functions) for phrase in kept]
        targets = (Target((p.start, p.end), labels) for p, labels in zip(kept, several, strict=True) if labels)
        records.append(Record(parse.words, tuple(targets), called))
    with placed(path):
        return EdgeTask.of(name, records, skipped=broken.skipped)


@checked
def bracket_pos_edges(
    path: str | Path, *, columns: Sequence[int] | None = None, skip_broken: bool = False, name: str = "pos"
) -> EdgeTask:
    """Make the task of predicting words' parts of speech from trees in brackets, or from the columns of CoNLL-2012.

    This is the paper's own task, on OntoNotes. The arguments are those of `constituent_edges`; in columns, tags need
    no trees. Raises `DataError`, which names the file and the line, for brackets that do not match, and for a word
    without a tag in columns.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write("(ROOT (S (NP-SBJ (NNS Birds)) (VP (VBP sing))))")
        ...     file.flush()
        ...     bracket_pos_edges(file.name).labels
        ('NNS', 'VBP')
    """
    broken = Broken(skip_broken, "such trees")
    records = []
    for called, parse in _parses(path, columns, broken, trees=False):
        targets = tuple(Target((place, place + 1), (tag,)) for place, tag in enumerate(parse.tags))
        records.append(Record(parse.words, targets, called))
    with placed(path):
        return EdgeTask.of(name, records, skipped=broken.skipped)


def _parses(
    path: str | Path, columns: Sequence[int] | None, broken: Broken, *, trees: bool = True
) -> Iterator[tuple[str, Parse]]:
    """The trees of a file, or of the files of a folder, with their names; without `trees`, words and tags will do."""
    if columns is not None and len(columns) != 3:
        raise DataError(f"columns must be three, of word, tag and part of the tree, got {shown(list(columns))}")
    for file in files_in(path, *COLUMN_FILES, *_TREE_FILES):
        called, found = name_in(path, file), list[tuple[str, Parse]]()
        which = columns or (_CONLL_2012 if _is_in_columns(file) else None)
        with broken.file(path, file, found, "no targets"):
            found += _in_columns(file, called, which, broken, trees) if which else _in_brackets(file, called, broken)
        yield from found


def _is_in_columns(path: Path) -> bool:
    return any(_BEGIN.match(text) for _, text in lines_of(path) if text.startswith("#"))


def _in_brackets(path: Path, name: str, broken: Broken) -> Iterator[tuple[str, Parse]]:
    for number, parse in enumerate(parses(text_of(path), path, broken), 1):
        yield f"{name} {number}", parse


def _in_columns(
    path: Path, name: str, columns: Sequence[int], broken: Broken, trees: bool
) -> Iterator[tuple[str, Parse]]:
    for rows in sentences_in(path, name):
        with broken.part(rows.name):
            words, tags = (rows.column(which) for which in columns[:2])
            if not trees:
                missing = next((at for at, tag in enumerate(tags) if tag in ("-", "_")), None)
                if missing is not None:
                    raise BrokenPart(path, rows.lines[missing], f"the word {shown(words[missing])} has no tag")
                plain = tuple(map(unescaped, words))
                yield rows.name, Parse(plain, tuple(tags), Phrase("", 0, len(plain)))
                continue
            bits = rows.column(columns[2])
            found = trees_in_columns([Row(*row) for row in zip(rows.lines, words, tags, bits, strict=True)], path)
            if not found:
                broken.skipped.append(Skip(rows.name, "no tree"))
            for place, (_, parse) in enumerate(found):
                yield f"{rows.name}, tree {place}" if len(found) > 1 else rows.name, parse


def _phrases(tree: Phrase) -> Iterator[Phrase]:
    """The phrase and all phrases inside it, outer ones first."""
    rest = [tree]
    while rest:
        phrase = rest.pop()
        if phrase.children:
            yield phrase
            rest += reversed(phrase.children)
