"""The axes of results, and which of them each field has.

A field of a result declares its axes, and its unit if it has one:

    mean: Annotated[Tensor, axes("layer head", unit="nats")]

Printing, `Result.stack` and pictures read what is declared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from torch import Tensor

from ..errors import checked

GLOSSARY = {
    "layer": "the layers of the model, counted from 0, in the order of a result's `labels`",
    "head": "the heads of a layer, counted from 0",
    "neuron": "the neurons of the MLP of a layer, counted from 0",
    "query": "the positions that attend",
    "key": "the positions that are attended to",
    "token": "the tokens of a text",
    "batch": "the texts of one batch",
    "dim": "the dimensions of one head",
    "hidden": "the dimensions of the residual stream",
    "rank": "the dimensions that a probe projects hidden states to",
    "span": "the ends of spans of words",
    "label": "the labels that a task tells apart",
    "class": "classes of tokens",
    "example": "the examples of a data set",
    "row": "the labels of a data set, of which an example may have several",
    "step": "steps of training, of pruning or of an online code",
    "variant": "the model as it is, and under each set of gates",
    "seed": "the seeds of training",
    "target": "what an edge probe classifies: one span or two spans of a record",
    "probe": "edge probes",
    "validation": "the validations during training",
    "relation": "relations between words, or between leaves of code",
    "direction": "from the dependent and from the head, or from a mention and to it",
    "offset": "fixed distances between two words",
    "kind": "kinds of mentions, or attention and its null models",
    "baseline": "the baselines that a result is compared with",
    "model": "the models that are compared",
    "size": "sizes of a batch",
    "round": "rounds of timing",
}
"""{axis: what it counts}. One word for one axis: results use no others."""


Scale = Literal["plain", "signed", "share", "p-value"]


@dataclass(frozen=True)
class FieldAxes:
    """What a field declares: the names of its axes, in order, its unit, and how pictures say and scale its values."""

    names: tuple[str, ...]
    unit: str | None = None
    words: str = ""
    scale: Scale = "plain"

    @property
    def label(self) -> str:
        """What the values are, with their unit, for a colour bar or an axis; empty if neither is declared."""
        unit = self.unit or ""
        return f"{self.words} ({unit})" if self.words and unit else self.words or unit

    def __str__(self) -> str:
        return f"[{', '.join(self.names)}]"


@checked
def axes(names: str, *, unit: str | None = None, words: str = "", scale: Scale = "plain") -> FieldAxes:
    """Declare the axes of a result's field, in `Annotated`; for a dictionary, the axes of each of its tensors.

    Args:
        names: words of `GLOSSARY`, separated by spaces.
        unit: the unit of the values, such as "nats"; None for counts, shares and other plain numbers.
        words: what the values are, beside the colours of a picture: "entropy of the attention".
        scale: "signed" for values on both sides of 0, whose pictures have 0 in the middle; "share" for values whose
            pictures all go from 0 to 1, such as gates; "p-value" for p-values, whose pictures have a logarithmic scale.

    Returns what `Annotated` holds.

        >>> axes("layer head", unit="nats", words="entropy").label
        'entropy (nats)'
    """
    return FieldAxes(tuple(names.split()), unit, words, scale)


_declared: dict[type, dict[str, FieldAxes]] = {}  # read once for each class
_properties: dict[type, dict[str, FieldAxes]] = {}


def axes_of(kind: type) -> dict[str, FieldAxes]:
    """{field: its axes} of a class of results; fields that declare none are left out."""
    if kind not in _declared:
        hints = get_type_hints(kind, include_extras=True)
        _declared[kind] = {name: found for name, hint in hints.items() if (found := _annotated(hint))}
    return _declared[kind]


def all_axes_of(kind: type) -> dict[str, FieldAxes]:
    """{field or property: its axes}: a property declares them in what it returns."""
    if kind not in _properties:
        found = dict(axes_of(kind))
        for one in reversed(kind.__mro__):
            for name, value in vars(one).items():
                if isinstance(value, property) and (hint := value.fget and _returned(value.fget)):
                    found[name] = hint
        _properties[kind] = found
    return _properties[kind]


def main_field(kind: type) -> str | None:
    """The field, or the property, that a class of results is about.

    That is what the class calls its `main`, otherwise its first `[layer, head]` field, otherwise its only field with
    several axes.
    """
    if (named := getattr(kind, "main", None)) is not None:
        return str(named)
    declared = axes_of(kind)
    heads = [name for name, axes in declared.items() if axes.names == ("layer", "head")]
    wide = [name for name, axes in declared.items() if len(axes.names) > 1]
    return heads[0] if heads else wide[0] if len(wide) == 1 else None


def shown_name(field: str) -> str:
    """The name by which users take a field: a model's only stack is `values`."""
    return "values" if field == "stacks" else field


def names_along(result: Any, axis: str) -> tuple[Any, ...] | None:
    """The names along an axis, or the numbers that its positions stand for; None if they are only counted."""
    if axis == "layer":
        return tuple(result.labels)
    if axis in result.axis_names:
        return tuple(result.axis_names[axis])
    for name, declared in all_axes_of(type(result)).items():
        if declared.names == (axis,):
            value = getattr(result, name)
            if isinstance(value, (tuple, list)):
                return tuple(value)
            if isinstance(value, Tensor) and name == f"{axis}s":
                return tuple(value.tolist())
    return None


def _returned(function: Any) -> FieldAxes | None:
    # Other properties may return types that are imported for type checkers only.
    said = function.__annotations__.get("return", "")
    if isinstance(said, str) and not said.startswith("Annotated["):
        return None
    return _annotated(get_type_hints(function, include_extras=True).get("return"))


def _annotated(hint: Any) -> FieldAxes | None:
    found = [x for x in get_args(hint)[1:] if isinstance(x, FieldAxes)] if get_origin(hint) is Annotated else []
    return found[0] if found else None
