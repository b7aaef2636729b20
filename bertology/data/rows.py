"""One example of a data set: its text or token ids, and its label.

Data sets come in many forms: texts, pairs of a text and a label, rows of columns, columns of many rows. All of them are
read as `Row`s here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..anatomy.names import EMBEDS_ARGUMENT, IDS_ARGUMENT, LABELS_ARGUMENT, NO_TEXT_ARGUMENTS
from ..errors import DataError, described, how_many, shown

PAIRED_COLUMNS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "context"),
)
"""Columns of two texts that belong together, as in GLUE, SNLI and SQuAD."""
TEXT_COLUMNS = ("text", "sentence", "content", "document", "code")
LABEL_COLUMNS = (LABELS_ARGUMENT, "label", "label_ids")
FILE_LABEL_COLUMNS = (*LABEL_COLUMNS, "gold_label", "score")
"""In files of texts also the columns of SNLI and STS-B; in other data, a score may be of something else."""
AMBIGUOUS = (
    "it may be two texts, or a text and a label: pass rows, {'text': ..., 'text_pair': ...} or "
    "{'text': ..., 'label': ...}"
)
PASS_TOKENIZER = "pass tokenizer= as well, such as AutoTokenizer.from_pretrained returns"


@dataclass(frozen=True)
class Row:
    """One example: a text, two texts, or arguments of the model such as token ids; and its label, if it has one."""

    texts: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    label: Any = None


def is_batch(item: Any) -> bool:
    """Whether this is a batch of model arguments: a mapping with tensors that have a batch axis."""
    if not isinstance(item, Mapping):
        return False
    least = {IDS_ARGUMENT: 2, EMBEDS_ARGUMENT: 3} | dict.fromkeys(NO_TEXT_ARGUMENTS, 2)
    return any(isinstance(item.get(name), Tensor) and item[name].dim() >= axes for name, axes in least.items())


def is_row(item: Any) -> bool:
    """Whether this is a row of a data set: a mapping with a text, or with the token ids of one example."""
    if not isinstance(item, Mapping) or is_batch(item):
        return False
    ids = item.get(IDS_ARGUMENT)
    return _is_flat(ids) if ids is not None else any(isinstance(x, str) for x in item.values())


def is_columns(item: Any) -> bool:
    """Whether these are the columns of several rows, as a slice of a `datasets.Dataset` is."""
    if not isinstance(item, Mapping) or is_batch(item):
        return False
    ids = item.get(IDS_ARGUMENT)
    if ids is not None:
        return _is_listed(ids) and len(ids) > 0 and all(_is_flat(one) for one in ids)
    return any(are_texts(column) for column in item.values())


def length_of(data: Any) -> int | None:
    """How many items there are, or None where that is not known.

    A DataLoader has a `__len__` whatever it reads; over an iterable without a length, it raises.
    """
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def are_texts(item: Any) -> bool:
    """Whether these are several texts: a list, an array or a column of strings."""
    return _is_listed(item) and len(item) > 0 and all(isinstance(one, str) for one in item)


def with_labels(item: Any, *, collated: bool = False) -> bool:
    """Whether this is a list of texts and a list of their labels, in this order.

    Two pairs of strings are not, unless a DataLoader has put them together: `[("a", "b"), ("c", "d")]`.
    """
    if not isinstance(item, (tuple, list)) or len(item) != 2 or not are_texts(item[0]):
        return False
    if are_texts(item[1]) and not collated:
        return isinstance(item, tuple) and not isinstance(item[0], tuple)
    return hasattr(item[1], "__len__") and not isinstance(item[1], (str, Mapping))


def rows_of(item: Any, *, columns: Sequence[str] = ()) -> Iterator[Row]:
    """Read what holds several rows: columns, texts with labels, or texts; what it is was found out before."""
    if isinstance(item, Mapping):
        sizes = {name: len(x) for name, x in item.items() if hasattr(x, "__len__") and not isinstance(x, str)}
        count = sizes[next(name for name, x in item.items() if name == IDS_ARGUMENT or are_texts(x))]
        listed = {name: x for name, x in item.items() if sizes.get(name) == count}
        for name in LABEL_COLUMNS:
            if sizes.get(name, count) != count:
                raise DataError(
                    f"the column {name} must have a value for each of the {how_many(count, 'row')}, got {sizes[name]}"
                )
        for number in range(count):
            yield read_row({name: x[number] for name, x in listed.items()}, columns=columns)
        return
    texts, labels = item if with_labels(item, collated=True) else (item, [None] * len(item))
    if len(texts) != len(labels):
        raise DataError(
            f"there must be a label for each of the {how_many(len(texts), 'text')}, got "
            f"{how_many(len(labels), 'label')}"
        )
    for text, label in zip(texts, labels, strict=True):
        yield Row((text,), label=label)


def read_row(item: Any, *, columns: Sequence[str] = (), to_text: bool = False) -> Row:
    """Read one example: a text, a pair of a text and a label, or a mapping from columns to values.

    `columns` are the names of the columns with the text, by default those that are usual. With `to_text`, labels are
    texts, and a pair of strings is a text and its label. Raises `DataError` for what is no example.
    """
    if isinstance(item, str):
        return Row((item,))
    if isinstance(item, Mapping):
        return _of_columns(item, columns)
    if isinstance(item, (tuple, list)) and len(item) == 2:
        text, label = item
        texts = (text,) if isinstance(text, str) else tuple(text) if isinstance(text, (tuple, list)) else ()
        if 0 < len(texts) < 3 and all(isinstance(one, str) for one in texts):
            if isinstance(label, str) and isinstance(text, str) and not to_text:
                raise DataError(f"the pair {shown(tuple(item))} is ambiguous: {AMBIGUOUS}")
            return Row(texts, label=label)
    if are_texts(item):
        raise DataError(
            f"an example is one string, got a {type(item).__name__} of {len(item)}, {shown(item)}: join words to a "
            "text, or tokenize them with is_split_into_words=True"
        )
    raise DataError(
        "an example must be a text, a pair of a text and a label, or a row such as {'text': ..., 'label': ...}, got "
        f"{described(item)}"
    )


def _of_columns(row: Mapping[str, Any], columns: Sequence[str]) -> Row:
    label = next((row[name] for name in LABEL_COLUMNS if row.get(name) is not None), None)
    if row.get(IDS_ARGUMENT) is not None and not columns:
        return Row(arguments={name: x for name, x in row.items() if name not in LABEL_COLUMNS}, label=label)
    texts = []
    for name in columns or _text_columns(row):
        if not isinstance(row.get(name), str):
            came = f"got {described(row[name])}" if name in row else f"got the columns {', '.join(map(str, row))}"
            raise DataError(f"the column {name!r} must hold a text, {came}")
        texts.append(row[name])
    return Row(tuple(texts), label=label)


def _text_columns(row: Mapping[str, Any]) -> Sequence[str]:
    """The columns that hold the text: the usual ones, or else the only one with a string."""
    strings = [name for name, x in row.items() if isinstance(x, str) and name not in LABEL_COLUMNS]
    for pair in PAIRED_COLUMNS:
        if set(pair) <= set(strings):
            return pair
    usual = [name for name in TEXT_COLUMNS if name in strings]
    found = usual[:1] or strings or [name for name in TEXT_COLUMNS if name in row][:1]
    if len(found) != 1:
        raise DataError(
            f"it is not known which column holds the text, got {', '.join(map(str, row)) or 'none'}: name it, "
            "make_batches(data, tokenizer, columns=['...'])"
        )
    return found


def _is_listed(x: Any) -> bool:
    """Whether this is a list or the like: several values in order, and no string."""
    if getattr(x, "shape", None) == ():  # one number
        return False
    return hasattr(x, "__len__") and hasattr(x, "__getitem__") and not isinstance(x, (str, bytes, Mapping))


def _is_flat(ids: Any) -> bool:
    """Whether these are the token ids of one example."""
    if isinstance(ids, Tensor):
        return ids.dim() == 1
    return _is_listed(ids) and len(ids) > 0 and not hasattr(ids[0], "__len__")
