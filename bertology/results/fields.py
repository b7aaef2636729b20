"""What all results have: what was measured, the labels of layers, and the field that they are about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

ABOUT = {"about": True}
"""The metadata of fields that say what was measured: they are no part of what a measure found."""


@dataclass(frozen=True, eq=False, repr=False)
class Measured:
    """What was measured: the fields that all results share. They have defaults, and are keyword-only."""

    model_name: str = field(default="", kw_only=True, metadata=ABOUT)
    """The class of the model, and its name if it was loaded by one; empty if not known."""
    n_examples: int | None = field(default=None, kw_only=True, metadata=ABOUT)
    """How many examples were measured, if that is known."""


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

    def _table_html(self) -> str | None:
        """What a notebook shows in the place of a map of cells, for results that have a table of their own."""
        return None


def model_name(model: Any) -> str:
    """What a model is called in results: its class, and what it was loaded from, without the folders above."""
    path = getattr(getattr(model, "config", None), "name_or_path", "")
    if not isinstance(path, str) or not path:
        return type(model).__name__
    name = Path(path).name if Path(path).is_absolute() or path.startswith(".") else path
    return f"{type(model).__name__} ({name[:60]})"


def measured(result: Fields) -> str:
    """What was measured, in words: "BertModel (bert-base-uncased), 872 examples"; empty if nothing is known."""
    many = result.n_examples if result.n_examples is not None else getattr(result, "examples", None)
    counted = f"{many} example{'' if many == 1 else 's'}" if isinstance(many, int) else ""
    return ", ".join(part for part in (result.model_name, counted) if part)
