"""Batches made of texts: tokenized, sorted by length, padded, with labels.

`as_batches` is what every measure calls: it turns texts into batches where a tokenizer was given, and leaves batches as
they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..errors import DataError, check_least, checked, described
from .batches import BatchesOrTexts
from .class_names import check_same_classes, class_numbers
from .encoder import Encoder
from .rows import PASS_TOKENIZER, Row, are_texts, is_batch, is_columns, is_row, read_row, rows_of, with_labels
from .token_classes import check_is_tokenizer

WINDOW = 64
"""How many batches of an iterator are read ahead, to put texts of similar length together."""


@checked
def make_batches(
    data: BatchesOrTexts,
    tokenizer: Any,
    *,
    model: nn.Module | None = None,
    columns: Sequence[str] = (),
    batch_size: int = 32,
    max_tokens: int = 8192,
    sort: bool = True,
    truncation: bool | str = False,
    max_length: int | None = None,
) -> Iterable[Mapping[str, Any]]:
    """Tokenize texts, and put those of similar length together in batches, which every measure takes.

    Args:
        data: a text, a list of texts, texts with labels as `(texts, labels)` or as pairs `(text, label)`, rows such as
            `{"text": ..., "label": ...}`, a `datasets.Dataset` with or without token ids, a pandas frame, a DataLoader
            of texts, or any iterable of texts, pairs or rows. Batches of model arguments stay as they are.
        tokenizer: the model's. It is not changed; where it has no padding token, padding is masked all the same.
        model: what the batches are for. It tells how long a text may be, which arguments it takes, and what a label
            is: a class by its name, the text to write, and for causal language models the text itself. Where a
            `datasets.Dataset` names its classes as the model does and in another order, labels are renumbered.
        columns: the names of the columns with the text, one or two; by default the usual ones, such as `text`,
            `sentence`, or `premise` and `hypothesis`.
        batch_size: the most examples in a batch.
        max_tokens: the most tokens in a batch, with padding. A longer text is a batch of its own.
        sort: False keeps the order of the texts; else long texts come first. Of an iterator, as many texts are sorted
            as 64 batches hold.
        truncation: passed to the tokenizer: True cuts texts that are too long. They are an error without it.
        max_length: the longest text in tokens, special tokens included; by default what the model takes, or else the
            tokenizer's limit.

    Returns a list of batches. Of an iterator, or a DataLoader, it returns an iterable that reads the data when it is
    asked for the batches. Padding is on the tokenizer's `padding_side`.

    Raises `DataError` for what is no text, for a text that is too long or without a token, and for a data set with
    some classes of the model and some others.

        >>> from transformers import AutoTokenizer
        >>> from bertology.demo import minilm_path
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> batches = make_batches((["Birds sing.", "Do they?", "Yes."], [1, 0, 1]), tokenizer, batch_size=2)
        >>> [batch["labels"].tolist() for batch in batches]
        [[1, 0], [1]]
    """
    check_is_tokenizer(tokenizer)
    check_least("batch_size", batch_size, 1)
    check_least("max_tokens", max_tokens, 1)
    encoder = Encoder(tokenizer, model, tuple(columns), batch_size, max_tokens, sort, truncation, max_length)
    return _made(data, encoder)


def as_batches(
    model: nn.Module | None, data: BatchesOrTexts, tokenizer: Any, *, sort: bool = True, notes_words: bool = False
) -> Any:
    """Turn texts into batches, if there is a tokenizer; batches stay as they are.

    Texts are sorted by length unless a result has values by example. With `notes_words` captures know their words.
    """
    if tokenizer is None:
        _check_no_text(data)
        check_same_classes(data, model)
        return data
    if notes_words:
        check_is_tokenizer(tokenizer)
        return _made(data, Encoder(tokenizer, model, sort=sort, notes_words=True))
    return make_batches(data, tokenizer, model=model, sort=sort)


def as_batch(model: nn.Module, inputs: BatchesOrTexts, tokenizer: Any) -> Any:
    """Turn texts into one batch, in their order, if there is a tokenizer; a batch stays as it is."""
    if tokenizer is None:
        _check_no_text(inputs)
        return inputs
    check_is_tokenizer(tokenizer)
    if is_batch(inputs):
        return inputs
    made = _made(inputs, Encoder(tokenizer, model, batch_size=0, max_tokens=0, sort=False, notes_words=True))
    if made is inputs and isinstance(inputs, Mapping):
        return inputs
    batches = list(made)
    if len(batches) != 1 or (made is inputs and is_batch(batches[0])):
        came = "a list of batches" if made is inputs and batches else f"{len(batches) or 'no'} batches"
        raise DataError(f"wanted one batch, or texts of which one batch can be made, got {came}")
    return batches[0]


def _check_no_text(data: Any) -> None:
    if isinstance(data, str):
        raise DataError(
            f"without a tokenizer, data must be a mapping of model arguments, or an iterable of them, got "
            f"{described(data)}: {PASS_TOKENIZER}"
        )


def _made(data: Any, encoder: Encoder) -> Any:
    """Batches of what holds texts; what is a batch, or a list of batches, itself."""
    encoder = replace(encoder, class_numbers=class_numbers(data, encoder.model))
    if type(data).__name__ == "DataFrame" and hasattr(data, "to_dict"):
        data = data.to_dict("records")  # iterating over a frame gives the names of its columns
    if is_columns(data):
        return list(encoder.batches(rows_of(data, columns=encoder.columns)))
    if is_batch(data):
        return data
    if isinstance(data, Mapping) and not is_row(data):
        _check_no_splits(data)
        return data
    if isinstance(data, (str, Mapping)) or _is_labelled_text(data):
        return list(_each_made([data], encoder))
    if with_labels(data):
        return list(encoder.batches(rows_of(data)))
    if isinstance(data, DataLoader):
        return _SizedMade(data, encoder)
    if isinstance(data, Iterator):
        return _each_made(data, encoder, window=WINDOW * encoder.batch_size)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        items = data if hasattr(data, "__iter__") else [data[i] for i in range(len(data))]
        first = next(iter(items), None)
        return data if first is None or is_batch(first) else list(_each_made(items, encoder))
    return _Made(data, encoder) if isinstance(data, Iterable) else data


def _check_no_splits(data: Mapping[str, Any]) -> None:
    """Raise `DataError` for several data sets by name, as a `datasets.DatasetDict` is."""
    sets = {name: x for name, x in data.items() if hasattr(x, "__iter__") and not isinstance(x, (Tensor, Mapping))}
    splits = [name for name, x in sets.items() if is_row(next(iter(x), None))]
    if splits:
        raise DataError(f"wanted one data set, got {', '.join(splits)}: choose one, data[{splits[0]!r}]")


def _is_labelled_text(data: Any) -> bool:
    """Whether this is one text with its label, and not a tuple of texts."""
    return isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], str) and not isinstance(data[1], str)


def _each_made(
    items: Iterable[Any], encoder: Encoder, *, window: int = 0, in_batches: bool = False
) -> Iterator[Mapping[str, Any]]:
    """Yield batches as they are, what holds several rows as one batch, and single rows put together."""
    pool: list[Row] = []
    for number, item in enumerate(items):
        several = is_columns(item) or (in_batches and (with_labels(item, collated=True) or are_texts(item)))
        if pool and (several or is_batch(item) or len(pool) == window):
            yield from encoder.batches(pool, number - len(pool))
            pool = []
        if is_batch(item):
            check_same_classes(items, encoder.model)
            yield item
        elif several:
            yield encoder.together(list(rows_of(item, columns=encoder.columns)), 0)
        else:
            pool.append(_row(item, number, encoder))
    if pool:
        yield from encoder.batches(pool, number + 1 - len(pool))


def _row(item: Any, number: int, encoder: Encoder) -> Row:
    try:
        return read_row(item, columns=encoder.columns, to_text=encoder.to_text)
    except DataError as error:
        raise DataError(f"example {number} of the data (from 0): {error}") from None


class _Made:
    """Batches of an iterable that can be read again: they are made each time. Its attributes are those of the data."""

    def __init__(self, data: Any, encoder: Encoder) -> None:
        self._data, self._encoder = data, encoder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_data" not in vars(self):
            raise AttributeError(name)
        return getattr(self._data, name)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        window = WINDOW * self._encoder.batch_size
        return _each_made(self._data, self._encoder, window=window, in_batches=isinstance(self._data, DataLoader))


class _SizedMade(_Made):
    """Batches of a DataLoader, of which each makes one."""

    def __len__(self) -> int:
        return len(self._data)
