"""What all results have: what was measured, the labels of layers, and the field that they are about."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from ..errors import how_many

ABOUT = {"about": True}
"""The metadata of fields that say what was measured: they are no part of what a measure found."""


@dataclass(frozen=True, eq=False, repr=False)
class Measured:
    """What was measured: the fields that all results share. They have defaults, and are keyword-only."""

    model_name: str = field(default="", kw_only=True, metadata=ABOUT)
    """The class of the model, and its name if it was loaded by one; empty if not known."""
    n_examples: int | None = field(default=None, kw_only=True, metadata=ABOUT)
    """How many examples were measured, if that is known: that of `examples`, where a result has it."""

    def __post_init__(self) -> None:
        many = getattr(self, "examples", None)
        if isinstance(many, int):  # also where `dataclasses.replace` passes on what was known before
            object.__setattr__(self, "n_examples", many)  # results are frozen


def about_fields(kind: Any) -> list[Field[Any]]:
    """The fields of a result, or of its class, that say what was measured."""
    return [f for f in fields(kind) if f.metadata.get("about")]


class Fields(Measured):
    """What texts, frames and pictures read of a result, beside the fields of its class."""

    labels: tuple[str, ...]
    main: ClassVar[str | None] = None
    """The field or property that the result is about; by default as `bertology.results.axes.main_field` finds it."""
    axis_names: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """{axis: names} for axes whose names are not in a field."""

    instead_of_top: ClassVar[str] = ""
    """What to call for a ranking, where a result has no one value for each head."""

    def _heading(self) -> str:
        """What a picture is called: the class in words, where a class has no better name."""
        return words_of(type(self).__name__)

    def _table_html(self) -> str | None:
        """What a notebook shows in the place of a map of cells, for results that have a table of their own."""
        return None


NO_NAME = re.compile(
    r"((pruned|trained|fine-?tuned|saved|best|last|final|hf|my)[-_]?)?(models?|checkpoints?|weights|outputs?|out|best|last|final|"
    r"snapshots|tmp|temp|home|root|data|runs?|results?)",
    re.IGNORECASE,
)
"""Folders that say nothing of a model: the name is then that of a folder above."""
NUMBERED = re.compile(r"(checkpoint|epoch|step|ckpt|iter)[-_]?\d+", re.IGNORECASE)
"""Folders of one model at several times: the name is then that of the folder above, and this one."""
REVISION = re.compile(r"[0-9a-f]{40}")
CACHED = "models--"
"""How folders of the hub's cache begin: `models--google--electra-small/snapshots/<revision>`."""


def model_name(model: Any) -> str:
    """What a model is called in results: its class, and what it was loaded from.

    Of a folder that is its name; where that is a word such as `model`, the name of the folder above.
    """
    path = getattr(getattr(model, "config", None), "name_or_path", "")
    if not isinstance(path, str) or not path:
        return type(model).__name__
    folder = Path(path).is_absolute() or path.startswith(".")
    name = name_of_folder(Path(path)) if folder else path
    return f"{type(model).__name__} ({name if len(name) <= 60 else f'{name[:59]}…'})"


def name_of_folder(path: Path) -> str:
    """The name of a model in a folder.

    >>> name_of_folder(Path("/runs/sst2/model")), name_of_folder(Path("/runs/sst2/checkpoint-500"))
    ('sst2', 'sst2/checkpoint-500')
    """
    path = Path(os.path.abspath(path))
    numbered = [path.name] if NUMBERED.fullmatch(path.name) else []
    for part in reversed(path.parts[1 : len(path.parts) - len(numbered)]):
        if part.startswith(CACHED):
            return "/".join([part.removeprefix(CACHED).replace("--", "/"), *numbered])
        if not NO_NAME.fullmatch(part) and not REVISION.fullmatch(part):
            return "/".join([part, *numbered])
    return path.name


def words_of(name: str) -> str:
    """The name of a class in words.

    >>> words_of("HeadImportance")
    'Head importance'
    """
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip().capitalize()


def measured(result: Fields) -> str:
    """What was measured, in words: "BertModel (bert-base-uncased), 872 examples"; empty if nothing is known.

    A result whose examples are tokens or texts says so in its field `over`.
    """
    many = result.n_examples
    counted = how_many(many, getattr(result, "over", "") or "example") if isinstance(many, int) else ""
    return ", ".join(part for part in (result.model_name, counted) if part)
