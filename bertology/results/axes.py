"""The axes of results, and which of them each field has.

A field of a result declares its axes, and its unit if it has one:

    mean: Annotated[Tensor, axes("layer head", unit="nats")]

Printing, `Result.stack` and pictures read what is declared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, get_args, get_origin, get_type_hints

from ..errors import checked

GLOSSARY = {
    "layer": "the layers of the model, counted from 0, in the order of a result's `labels`",
    "head": "the heads of a layer, counted from 0",
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


@dataclass(frozen=True)
class FieldAxes:
    """What a field declares: the names of its axes, in order, and its unit."""

    names: tuple[str, ...]
    unit: str | None = None

    def __str__(self) -> str:
        return f"[{', '.join(self.names)}]"


@checked
def axes(names: str, *, unit: str | None = None) -> FieldAxes:
    """Declare the axes of a result's field, in `Annotated`; for a dictionary, the axes of each of its tensors.

    Args:
        names: words of `GLOSSARY`, separated by spaces.
        unit: the unit of the values, such as "nats"; None for counts, shares and other plain numbers.

    Returns what `Annotated` holds.

        >>> axes("layer head", unit="nats")
        FieldAxes(names=('layer', 'head'), unit='nats')
    """
    return FieldAxes(tuple(names.split()), unit)


_declared: dict[type, dict[str, FieldAxes]] = {}  # read once for each class


def axes_of(kind: type) -> dict[str, FieldAxes]:
    """{field: its axes} of a class of results; fields that declare none are left out."""
    if kind in _declared:
        return _declared[kind]
    declared: dict[str, FieldAxes] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        found = [x for x in get_args(hint)[1:] if isinstance(x, FieldAxes)] if get_origin(hint) is Annotated else []
        if found:
            declared[name] = found[0]
    _declared[kind] = declared
    return declared
