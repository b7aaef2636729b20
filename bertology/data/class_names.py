"""The classes of a `datasets.Dataset` and those of a model, compared by their names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..anatomy.names import LABELS_ARGUMENT
from ..errors import DataError
from .models import config_of, task_name
from .rows import LABEL_COLUMNS

NO_NAME = re.compile(r"LABEL_\d+")
"""What transformers calls classes that have no names."""


def class_numbers(data: Any, model: nn.Module | None) -> dict[int, int]:
    """{number of a class in the data: its number in the model}, where both have names and count them differently.

    Empty where the numbers agree, and where one of the two has no names. Names are compared without capitals, blanks,
    hyphens and underscores. Raises `DataError` where the model has only some of the names, and warns where it has none
    of them, since the numbers cannot be compared then.
    """
    column, ours = _names_in(data)
    theirs = _names_of(model)
    if not ours or not theirs:
        return {}
    places = {_plain(name): number for number, name in theirs.items()}
    missing = [name for name in ours if _plain(name) not in places]
    told = f"the classes of {column!r} are {_listed(dict(enumerate(ours)))}, those of the model {_listed(theirs)}"
    if len(missing) == len(ours):
        warnings.warn(
            f"{told}: no name is in both, so that it is not known whether the numbers mean the same. Rename the "
            "classes of one of the two",
            UserWarning,
            stacklevel=2,
        )
        return {}
    if missing:
        raise DataError(
            f"{told}: the model has no class {missing[0]!r}. Rename the classes of one of the two, or leave out those "
            "that the model does not know"
        )
    found = {number: places[_plain(name)] for number, name in enumerate(ours)}
    return {} if all(number == other for number, other in found.items()) else found


def check_same_classes(data: Any, model: nn.Module | None) -> None:
    """Raise `DataError` for batches of a data set that counts the classes differently than the model."""
    if class_numbers(data, model):
        column, ours = _names_in(data)
        raise DataError(
            f"the classes of {column!r} are {_listed(dict(enumerate(ours)))}, those of the model "
            f"{_listed(_names_of(model))}, and batches are taken as they are: pass the data set with tokenizer=, or "
            f"first call data.align_labels_with_mapping(model.config.label2id, {column!r})"
        )


def _names_in(data: Any) -> tuple[str, list[str]]:
    """The label column of a `datasets.Dataset`, also inside of a DataLoader, and the names of its classes."""
    while not isinstance(getattr(data, "features", None), Mapping) and hasattr(data, "dataset"):
        data = data.dataset
    features = getattr(data, "features", None)
    if not isinstance(features, Mapping):
        return LABELS_ARGUMENT, []
    column = next((name for name in LABEL_COLUMNS if name in features), LABELS_ARGUMENT)
    feature = features.get(column)
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return column, list(names or [])


def _names_of(model: nn.Module | None) -> dict[int, str]:
    """{number: name} of the classes of a classifier; empty where they have no names."""
    if model is None or "Classification" not in task_name(model):
        return {}
    names = {int(number): str(name) for number, name in (getattr(config_of(model), "id2label", None) or {}).items()}
    return {} if all(NO_NAME.fullmatch(name) for name in names.values()) else names


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]", "", name).casefold()


def _listed(names: Mapping[int, str]) -> str:
    some = ", ".join(f"{number} {name!r}" for number, name in sorted(names.items())[:20])
    return some + ", ..." * (len(names) > 20)
