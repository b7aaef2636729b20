"""Tasks from the table of SPR2: proto-roles of arguments in the English Web Treebank."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...corpora.files import words_of
from ...corpora.skips import Broken, placed
from ...corpora.tables import rows_of
from ...corpora.treebank import Sentence, read_conllu
from ...errors import DataError, checked, how_many, shown
from ..tasks import EdgeTask
from .relations import ProtoRole, proto_role_edges

_COLUMNS = ("Sentence.ID", "Pred.Token", "Arg.Tokens.Begin", "Arg.Tokens.End", "Arg.Phrase", "Property", "Response",
            "Applicable", "Split")  # fmt: skip
_Argument = tuple[str, int, int, int]
"""The sentence's ID, the predicate, and the argument's first word and the word after its last."""


@checked
def spr2_edges(
    path: str | Path, treebank: str | Path, *, split: str | None = None, skip_broken: bool = False, name: str = "spr2"
) -> EdgeTask:
    """Make the task of proto-roles from the table of SPR2 (White et al. 2016) and the treebank that it refers to.

    The table, `protoroles_eng_ud1.2_11082016.tsv`, has a line for each answer of an annotator; the sentences are in the
    English Web Treebank of Universal Dependencies 1.2. A property holds if the mean of its answers is 4 or more, as in
    the paper's data. Answers that do not apply (`Applicable` is "no") and empty ones do not count. `span1` is the
    predicate, `span2` the argument.

    Args:
        path: the table.
        treebank: the folder with the treebank's files, such as `en-ud-train.conllu`; the column `Sentence.ID` names
            them. If this is a file, it is taken for every sentence.
        split: only answers with this value in the column `Split`: "train", "dev" or "test"; by default all.
        skip_broken: leave out arguments whose words are not those of the table, and list them in `skipped`, instead of
            raising. Later versions of the treebank have other words and other sentences.
        name: the name of the task in messages.

    Raises `DataError`, which names the file and the line, for missing columns, for numbers that are none, for sentences
    that are not in the treebank, and for arguments with other words there.

        >>> from tempfile import TemporaryDirectory
        >>> names = "Split Sentence.ID Pred.Token Arg.Phrase Arg.Tokens.Begin Arg.Tokens.End"
        >>> table = [f"{names} Property Response Applicable".split(" ")]
        >>> table += [["dev", "en-ud-dev.conllu 1", "1", "Birds", "0", "0", "volition", "5", "yes"]]
        >>> words = ["1", "Birds", *"____", "2", "nsubj", *"__"], ["2", "sing", *"____", "0", "root", *"__"]
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(f"{folder}/spr2.tsv").write_text("\\n".join("\\t".join(row) for row in table))
        ...     treebank = "\\n".join("\\t".join(row) for row in words)
        ...     _ = Path(f"{folder}/en-ud-dev.conllu").write_text(f"{treebank}\\n\\n")
        ...     spr2_edges(f"{folder}/spr2.tsv", folder)[0].targets
        (Target(span1=(1, 2), labels=('volition',), span2=(0, 1), info=''),)
    """
    broken = Broken(skip_broken, "such arguments")
    answers, phrases = _answers(path, split, broken)
    sentences = _Sentences(Path(treebank))
    rows: list[ProtoRole] = []
    for argument, scores in answers.items():
        line, phrase = phrases[argument]
        with broken.part(f"{Path(path).name} line {line}"), placed(path, line):
            rows.append(_row(argument, scores, phrase, sentences))
    if not rows:
        raise DataError(f"{path} has no answers{f' of the split {split!r}' if split else ''} that can be used")
    with placed(path):
        task = proto_role_edges(rows, above=4, or_equal=True, name=name)
        return EdgeTask.of(name, task.records, labels=task.labels, skipped=broken.skipped)


_Answers = dict[_Argument, dict[str, "list[float]"]]


def _answers(path: str | Path, split: str | None, broken: Broken) -> tuple[_Answers, dict[_Argument, tuple[int, str]]]:
    """For each argument the answers by property, and its first line and phrase."""
    answers: _Answers = {}
    phrases: dict[_Argument, tuple[int, str]] = {}
    for number, cells in rows_of(path, _COLUMNS, broken, "the table of SPR2, with its header"):
        row = {column: _unquoted(cell) for column, cell in cells.items()}
        with broken.part(), placed(path, number):
            argument, response = _argument(row), _response(row)
            if (split is None or row["Split"] == split) and row["Applicable"] != "no" and response is not None:
                answers.setdefault(argument, {}).setdefault(row["Property"], []).append(response)
                phrases.setdefault(argument, (number, row["Arg.Phrase"]))
    return answers, phrases


def _unquoted(cell: str) -> str:
    """A cell as it was before a program for tables put it into quotes."""
    return cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def _argument(row: Mapping[str, str]) -> _Argument:
    for column in ("Pred.Token", *_COLUMNS[2:4]):
        if not re.fullmatch(r"[0-9]{1,9}(\.0)?", row[column]):
            raise DataError(f"{column} must be a number, got {shown(row[column])}")
    predicate, start, last = (int(float(row[column])) for column in ("Pred.Token", *_COLUMNS[2:4]))
    return row["Sentence.ID"], predicate, start, last + 1


def _response(row: Mapping[str, str]) -> float | None:
    """The answer, 1 to 5; None if there is none."""
    value = row["Response"]
    if value.lower() in ("", "na", "nan"):
        return None
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", value):
        raise DataError(f"Response must be a number, got {shown(value)}")
    return float(value)


def _row(argument: _Argument, scores: Mapping[str, Sequence[float]], phrase: str, sentences: _Sentences) -> ProtoRole:
    called, predicate, start, end = argument
    words = sentences.words(called)
    if max(predicate + 1, end) > len(words) or start >= end:
        raise DataError(
            f"sentence {called!r} has {how_many(len(words), 'word')} there: wanted word {max(predicate, end - 1)}, too"
        )
    found = " ".join(words[start:end])
    if words_of(found) != words_of(phrase):
        raise DataError(
            f"the argument is {shown(phrase)}, but sentence {called!r} has {shown(found)} there: wanted UD 1.2"
        )
    return ProtoRole(words, (predicate, predicate + 1), (start, end), scores, called)


class _Sentences:
    """The sentences of a treebank by the IDs of the table: a file and a number, counted from 1."""

    def __init__(self, treebank: Path) -> None:
        self._treebank, self._read = treebank, dict[Path, Sequence[Sentence]]()

    def words(self, called: str) -> tuple[str, ...]:
        """The words of a sentence. Raises `DataError` if the treebank does not have it."""
        file, _, number = called.rpartition(" ")
        path = self._treebank / file if self._treebank.is_dir() else self._treebank
        if path not in self._read:
            self._read[path] = read_conllu(path)
        sentences = self._read[path]
        if not file or not number.isdecimal() or not 1 <= int(number) <= len(sentences):
            raise DataError(
                f"{path} has {how_many(len(sentences), 'sentence')}: wanted a file and one of them, got {called!r}"
            )
        return sentences[int(number) - 1].words
