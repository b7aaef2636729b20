"""Texts and rows encoded as batches: token ids, padding and labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.names import IDS_ARGUMENT, LABELS_ARGUMENT, MASK_ARGUMENT, SEGMENTS_ARGUMENT, SPAN_ARGUMENTS
from ..errors import DataError, how_many, shown
from .batches import ANNOTATIONS, IGNORED
from .losses import is_causal
from .models import config_of, not_taken, task_name, writes
from .positions import room_of
from .rows import Row
from .tokens import WordsOfTokens, words_in

NO_LIMIT = 10**6
"""Tokenizers that know no limit have a larger one."""
FEWEST_TOKENS = 10
"""A tokenizer without its files knows its special tokens alone."""


@dataclass(frozen=True)
class Encoded:
    """One example in token ids."""

    arguments: dict[str, Any]
    label: Any
    name: str
    """How messages call it."""
    word_of: tuple[int, ...] = ()
    """[token]: the word of each token, if the tokenizer tells."""

    def __len__(self) -> int:
        return len(self.arguments[IDS_ARGUMENT])


@dataclass(frozen=True)
class Encoder:
    """Makes batches of rows, for a model if there is one. `batch_size=0` and `max_tokens=0` set no limit."""

    tokenizer: Any
    model: nn.Module | None = None
    columns: tuple[str, ...] = ()
    batch_size: int = 32
    max_tokens: int = 8192
    sort: bool = True
    truncation: bool | str = False
    max_length: int | None = None
    notes_words: bool = False
    class_numbers: Mapping[int, int] = field(default_factory=dict)
    """{number of a class in the data: its number in the model}, where the two differ."""

    @cached_property
    def to_text(self) -> bool:
        """Whether labels are texts that the model writes."""
        return self.model is not None and writes(self.model)

    @cached_property
    def most(self) -> int | None:
        """The longest text in tokens, or None. Raises `DataError` where more is asked for than the model takes."""
        if self.model is not None:
            room = room_of(self.model)
        else:
            limit = getattr(self.tokenizer, "model_max_length", NO_LIMIT)
            room = limit if limit < NO_LIMIT else None
        if self.max_length is not None and (self.max_length < 1 or (room is not None and self.max_length > room)):
            raise DataError(f"max_length must be from 1 to {room or 'any number'}, got {self.max_length}")
        return room if self.max_length is None else self.max_length

    @cached_property
    def one_by_one(self) -> bool:
        """Whether the model cannot find the last token of a padded text: a classifier without a padding token."""
        no_padding = getattr(config_of(self.model), "pad_token_id", None) is None if self.model is not None else False
        return no_padding and self.model is not None and self._classifies

    @cached_property
    def _classifies(self) -> bool:
        return self.model is not None and task_name(self.model).endswith("SequenceClassification")

    def batches(self, rows: Iterable[Row], first: int = 0) -> Iterator[dict[str, Any]]:
        """Batches of rows, of which the first has this number in messages."""
        found = self._encoded(list(rows), first)
        if self.sort:
            found.sort(key=len, reverse=True)
        group: list[Encoded] = []
        for one in found:
            longest = max((*map(len, group), len(one)))
            full = len(group) == self.batch_size or longest * (len(group) + 1) > self.max_tokens
            limited = self.batch_size > 0 and (full or self.one_by_one)
            if group and limited:
                yield self._padded(group)
                group = []
            group.append(one)
        if group:
            yield self._padded(group)

    def together(self, rows: list[Row], first: int) -> dict[str, Any]:
        """One batch of rows."""
        return self._padded(self._encoded(rows, first))

    def _encoded(self, rows: list[Row], first: int) -> list[Encoded]:
        """The rows in token ids, in their order."""
        found: list[Encoded] = []
        for count, some in groupby(enumerate(rows, first), key=lambda numbered: len(numbered[1].texts)):
            numbers, same = zip(*some, strict=True)
            found += self._tokenized(same, numbers) if count else map(self._given, same, numbers)
        for one in found:
            self._check_length(one)
        return found

    def _tokenized(self, rows: Sequence[Row], numbers: Sequence[int]) -> list[Encoded]:
        options: dict[str, Any] = {"truncation": self.truncation}
        if self.truncation:
            if self.most is None:
                raise DataError("truncation needs max_length=: neither the model nor the tokenizer has a limit")
            options["max_length"] = self.most
        encoded = self.tokenizer(*map(list, zip(*(row.texts for row in rows), strict=True)), **options)
        columns = {name: list(values) for name, values in encoded.items() if len(values) == len(rows)}
        if IDS_ARGUMENT not in columns:
            raise DataError(f"the tokenizer must return input_ids, got {', '.join(columns) or 'nothing'}")
        if self.model is not None:
            columns = {name: x for name, x in columns.items() if name == IDS_ARGUMENT or name not in self._not_taken}
        return [
            Encoded(
                {name: x[i] for name, x in columns.items()},
                row.label,
                f"example {n}, {shown(row.texts[0])},",
                words_in(encoded[i], row.texts) if self.notes_words and getattr(encoded, "is_fast", False) else (),
            )
            for i, (row, n) in enumerate(zip(rows, numbers, strict=True))
        ]

    @cached_property
    def _not_taken(self) -> list[str]:
        """What the tokenizer may return and the model does not take, such as segments for DistilBERT."""
        return not_taken(self.model, self.tokenizer.model_input_names) if self.model is not None else []

    def _given(self, row: Row, number: int) -> Encoded:
        """A row with token ids: of its other columns, those that are arguments of the model."""
        wanted = {MASK_ARGUMENT, *SPAN_ARGUMENTS, *getattr(self.tokenizer, "model_input_names", ())}
        if self.model is not None:
            wanted = (wanted - set(self._not_taken)) | set(signature(self.model.forward).parameters)
        wanted |= {IDS_ARGUMENT}
        arguments = {name: _plain(x) for name, x in row.arguments.items() if name in wanted and x is not None}
        return Encoded(arguments, row.label, f"example {number}")

    def _check_length(self, one: Encoded) -> None:
        if not len(one):
            if hasattr(self.tokenizer, "__len__") and len(self.tokenizer) < FEWEST_TOKENS:
                raise DataError(
                    f"the tokenizer knows {how_many(len(self.tokenizer), 'token')}, so that {one.name} has none: it "
                    "was loaded from a folder without the files of a tokenizer. Load that of the original model, and "
                    "save it beside the model with tokenizer.save_pretrained(folder)"
                )
            raise DataError(f"{one.name} has no token: leave empty texts out")
        if self.most is not None and len(one) > self.most:
            limit = f"max_length is {self.most}" if self.max_length is not None else f"the limit is {self.most}"
            raise DataError(
                f"{one.name} has {how_many(len(one), 'token')}, and {limit}: split the text, or cut it with "
                f"make_batches(texts, tokenizer, model=model, truncation=True, max_length={self.most})"
            )

    # Batches.

    def _padded(self, group: list[Encoded]) -> dict[str, Any]:
        """[example, token] of each argument, with padding on the tokenizer's side, and the labels."""
        longest = max(map(len, group))
        batch: dict[str, Any] = {}
        for name in dict.fromkeys(name for one in group for name in one.arguments):
            values: list[Any] = [one.arguments.get(name) for one in group]
            if any(x is None for x in values):
                raise DataError(f"every row must have {name}, but {_first(group, values, None)} has none")
            if not isinstance(values[0], list):
                batch[name] = torch.tensor(values)
                continue
            wrong = [one.name for one, x in zip(group, values, strict=True) if len(x) != len(one)]
            if wrong:
                raise DataError(f"{name} must have one value for each token, which it has not in {wrong[0]}")
            batch[name] = torch.tensor([self._filled(x, longest, self._padding(name)) for x in values])
        if MASK_ARGUMENT not in batch and (self.model is None or not not_taken(self.model, [MASK_ARGUMENT])):
            batch[MASK_ARGUMENT] = torch.tensor([self._filled([1] * len(one), longest, 0) for one in group])
        if self.notes_words:
            batch[ANNOTATIONS] = [WordsOfTokens(one.word_of) for one in group]
        labels = self._labels(group, batch)
        return batch if labels is None else {**batch, LABELS_ARGUMENT: labels}

    def _filled(self, values: list[Any], longest: int, value: int) -> list[Any]:
        fill = [value] * (longest - len(values))
        return fill + values if getattr(self.tokenizer, "padding_side", "right") == "left" else values + fill

    def _padding(self, name: str) -> int:
        """The padding value of an argument. Models may find padding by the padding id of their config."""
        if name == SEGMENTS_ARGUMENT:
            return int(getattr(self.tokenizer, "pad_token_type_id", 0) or 0)
        if name != IDS_ARGUMENT:
            return 0
        config = config_of(self.model) if self.model is not None else None
        own, of_tokenizer = getattr(config, "pad_token_id", None), getattr(self.tokenizer, "pad_token_id", None)
        return next((x for x in (own, of_tokenizer) if isinstance(x, int) and x >= 0), 0)

    def _labels(self, group: list[Encoded], batch: dict[str, Any]) -> Tensor | None:
        labels = [self._numbered(_plain(one.label)) for one in group]
        if all(x is None for x in labels):
            if self.model is None or not is_causal(self.model):
                return None
            real = batch.get(MASK_ARGUMENT, torch.ones_like(batch[IDS_ARGUMENT]))
            return batch[IDS_ARGUMENT].masked_fill(real == 0, IGNORED)
        if any(x is None for x in labels):
            raise DataError(f"all examples must have a label, or none, but {_first(group, labels, None)} has none")
        kinds = {list if isinstance(x, list) else str if isinstance(x, str) else float for x in labels}
        if len(kinds) > 1:
            raise DataError(f"labels must be of one kind, got {shown(labels)}")
        if str in kinds:
            return self._written(labels) if self.to_text else torch.tensor([self._class(x) for x in labels])
        if list in kinds:
            return self._several(group, labels)
        wrong = [x for x in labels if not isinstance(x, (int, float))]
        if wrong:
            raise DataError(
                f"a label must be a number, a list of numbers or the name of a class, got {shown(wrong[0])}"
            )
        return torch.tensor([int(x) if isinstance(x, bool) else x for x in labels])

    def _numbered(self, label: Any) -> Any:
        """The number of a class, or of the class of each token, in the model."""
        if isinstance(label, list) and not self._classifies:
            return [self._numbered(x) for x in label]
        return self.class_numbers.get(label, label) if isinstance(label, int) else label

    def _class(self, name: str) -> int:
        """The number of a class that is given by its name in the config of the model."""
        known = dict(getattr(config_of(self.model), "label2id", None) or {}) if self.model is not None else {}
        if name not in known:
            raise DataError(
                f"the label {name!r} is no class of the model, which has {', '.join(map(repr, known)) or 'none'}: pass "
                "numbers, or set label2id in the model's config"
            )
        return int(known[name])

    def _written(self, labels: list[str]) -> Tensor:
        """[example, token]: the ids of the texts that an encoder-decoder is to write."""
        return _ignored_after(self.tokenizer(text_target=labels)[IDS_ARGUMENT])

    def _several(self, group: list[Encoded], labels: list[Any]) -> Tensor:
        """Labels with several numbers: [example, label] for a classifier of texts, else one for each token."""
        if self._classifies:
            if len({len(x) for x in labels}) > 1:
                raise DataError(f"each text must have a number for each label, got {shown(labels)}")
            return torch.tensor(labels, dtype=torch.float32)
        if all(len(x) == len(one) for x, one in zip(labels, group, strict=True)):
            longest = max(map(len, group))
            return torch.tensor([self._filled(x, longest, IGNORED) for x in labels])
        if self.to_text:
            return _ignored_after(labels)
        one, label = next((one, x) for one, x in zip(group, labels, strict=True) if len(x) != len(one))
        raise DataError(
            f"labels must have one value for each token: {one.name} has {how_many(len(one), 'token')} and "
            f"{how_many(len(label), 'label')}. Align them first, and pass rows with input_ids and labels"
        )


def _plain(x: Any) -> Any:
    """Numbers and lists of Python of a tensor or an array, and the value itself otherwise."""
    x = x.tolist() if hasattr(x, "tolist") else x
    if isinstance(x, float) and x != x:
        return None  # what is missing in a frame
    return list(x) if isinstance(x, tuple) else x


def _ignored_after(rows: Sequence[Sequence[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*x, *[IGNORED] * (longest - len(x))] for x in rows])


def _first(group: list[Encoded], values: list[Any], wanted: Any) -> str:
    return next(one.name for one, x in zip(group, values, strict=True) if x is wanted)
