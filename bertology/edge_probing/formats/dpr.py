"""Tasks from definite pronouns: does a pronoun refer to a phrase before it?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from ...corpora.files import BLANKS, blocks_of
from ...corpora.gap_winobias import words_in
from ...corpora.skips import Broken, BrokenPart, Skip, placed
from ...errors import DataError, checked, shown
from ..tasks import EdgeTask, Record, Target

_KEYS = ("text", "hypothesis", "entailed")
_Example = dict[str, str]


@checked
def dpr_edges(path: str | Path, *, split: str | None = None, skip_broken: bool = False, name: str = "dpr") -> EdgeTask:
    """Make the task of resolving definite pronouns (Rahman and Ng 2012) from the file of White et al. (2017).

    The file is `dpr_data.txt` of "Inference is Everything". Its examples are lines such as `text: ...`, `hypothesis:
    ...`, `entailed: entailed` or `not-entailed`, and `partof: train`; a blank line follows each. The hypothesis is the
    text with a phrase in the place of the pronoun. As in the paper's data `span1` is the pronoun, `span2` the first
    place of the phrase before it, and the label is `entailed` or `not-entailed`. Examples of one text that follow one
    another make one record. Words are those of `read_gap`; the paper's program takes the words of the Moses tokenizer.

    Args:
        path: the file.
        split: only examples with this `partof`, such as "train", "dev" or "test"; by default all.
        skip_broken: leave out examples without these lines, and list them in `skipped`, instead of raising.
        name: the name of the task in messages.

    Examples whose phrase is not in the text before the pronoun are left out and listed. Raises `DataError`, which names
    the line, for examples without these lines, or if none is of the split.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write("text: The bee left the rose as it had pollen.\\n")
        ...     _ = file.write("hypothesis: The bee left the rose as the bee had pollen.\\nentailed: not-entailed\\n")
        ...     file.flush()
        ...     dpr_edges(file.name)[0].targets
        (Target(span1=(6, 7), labels=('not-entailed',), span2=(0, 2), info=''),)
    """
    broken = Broken(skip_broken, "such examples")
    found: list[tuple[int, _Example]] = []
    for block in blocks_of(path):
        line = block[0][0]
        with broken.part(f"{Path(path).name} line {line}"), placed(path, line):
            example = _example(block, path)
            if split is None or example.get("partof") == split:
                found.append((line, example))
    if split is not None and not found:
        raise DataError(f"{path} has no example with `partof: {split}`")
    groups = groupby(found, lambda one: one[1]["text"])
    records = [_record(text, list(group), Path(path).name, broken.skipped) for text, group in groups]
    with placed(path):
        return EdgeTask.of(name, records, skipped=broken.skipped)


def _example(block: Sequence[tuple[int, str]], path: str | Path) -> _Example:
    """The keys and values of an example."""
    example: _Example = {}
    for line, text in block:
        key, colon, value = (part.strip(BLANKS) for part in text.partition(":"))
        if not colon:
            raise BrokenPart(path, line, f"wanted `key: value` or a blank line, got {shown(key)}")
        example[key] = value
    missing = [key for key in _KEYS if not example.get(key)]
    if missing:
        raise DataError(
            f"the example has no {' and no '.join(missing)}: wanted lines `text: ...`, `hypothesis: ...` and "
            "`entailed: ...`"
        )
    return example


def _record(text: str, examples: list[tuple[int, _Example]], file: str, skipped: list[Skip]) -> Record:
    words = words_in(text).words
    targets = []
    for line, example in examples:
        target = _target(words, words_in(example["hypothesis"]).words, example["entailed"])
        if target is None:
            skipped.append(Skip(f"{file} line {line}", "the phrase is not in the text before the pronoun"))
        else:
            targets.append(target)
    return Record(words, tuple(targets), f"{file} line {examples[0][0]}")


def _target(words: tuple[str, ...], hypothesis: tuple[str, ...], label: str) -> Target | None:
    """The pronoun, which the hypothesis replaces by a phrase, and the first place of that phrase before it."""
    place = next((k for k, (a, b) in enumerate(zip(words, hypothesis, strict=False)) if a != b), None)
    more = len(hypothesis) - len(words) + 1
    if place is None or more < 1 or words[place + 1 :] != hypothesis[place + more :]:
        return None
    phrase = [word.lower() for word in hypothesis[place : place + more]]
    if phrase[-1] in ("'s", "’s") and len(phrase) > 1:  # in the place of "its" or "their"
        phrase.pop()
    small = [word.lower() for word in words[:place]]
    starts = range(place - len(phrase) + 1)
    start = next((k for k in starts if small[k : k + len(phrase)] == phrase), None)
    if start is None:
        return None
    return Target((place, place + 1), (label,), (start, start + len(phrase)))
