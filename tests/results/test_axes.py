"""Every field of every result declares its axes: as its docstring says them, as its tensors have them."""

import ast
import dataclasses
import itertools
import re
import sys
from pathlib import Path
from typing import Annotated

import pytest
import torch

import bertology
import bertology.code_structure
import bertology.edge_probing
import bertology.syntax
from bertology.results.axes import GLOSSARY, axes, axes_of
from helpers.results import made

CORE = ["layer", "head", "query", "key", "token", "batch", "dim", "hidden", "span", "label", "class"]


def axes_said(cls):
    """{field: axes} from the brackets that open the fields' docstrings, those of the classes above included."""
    kinds = [kind for kind in reversed(cls.__mro__) if "__dataclass_fields__" in vars(kind)]
    return {name: axes for kind in kinds for name, axes in axes_written(kind).items()}


def axes_written(cls):
    """{field: axes} of a class's own fields."""
    source = ast.parse(Path(sys.modules[cls.__module__].__file__).read_text())
    body = next(n for n in source.body if isinstance(n, ast.ClassDef) and n.name == cls.__name__).body
    said = {}
    for node, after in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found = re.match(r"(\{stack: )?\[([a-z, ]*)\]", after.value.value)
            said[node.target.id] = found[2].split(", ") if found else None
    return said


@pytest.fixture(scope="module")
def results():
    return {type(result): result for result in made()}


def kinds():
    """All registered results of the library but those that are only parts of others."""
    return [
        kind
        for kind in bertology.Result._kinds.values()
        if kind.__module__.startswith("bertology.") and not kind.__subclasses__()
    ]


def wrong_fields(kind):
    """What is wrong with the axes that a kind of result declares."""
    said, declared = axes_said(kind), axes_of(kind)
    for field in dataclasses.fields(kind):
        written = said.get(field.name)
        names = list(declared[field.name].names) if field.name in declared else None
        if written != names:
            yield f"{kind.__name__}.{field.name} says {written} in its docstring, and declares {names}"
        if unknown := set(names or ()) - GLOSSARY.keys():
            yield f"{kind.__name__}.{field.name} has axes that are not in the glossary: {sorted(unknown)}"


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_field_says_its_axes(kind, results):
    assert list(wrong_fields(kind)) == []
    assert kind in results, f"add a {kind.__name__} to `made` in tests/helpers/results.py"
    for field in dataclasses.fields(kind):
        value = getattr(results[kind], field.name)
        tensor = next(iter(value.values())) if isinstance(value, dict) else value
        if isinstance(tensor, torch.Tensor):
            assert field.name in axes_of(kind), f"{kind.__name__}.{field.name} declares no axes"
            assert len(axes_of(kind)[field.name].names) == tensor.dim(), field.name


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Wrong(bertology.Result):
    values: Annotated[torch.Tensor, axes("layer head")]
    """[layer, key]: said otherwise than declared."""
    rows: torch.Tensor
    """[row]: not declared."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: right."""


def test_the_test_of_axes_can_fail():
    assert list(wrong_fields(Wrong)) == [
        "Wrong.values says ['layer', 'key'] in its docstring, and declares ['layer', 'head']",
        "Wrong.rows says ['row'] in its docstring, and declares None",
    ]


def test_the_glossary_is_that_of_the_package():
    told = re.search(r"one word for one axis: `([a-z ]+)`", " ".join(bertology.__doc__.split()))
    assert told[1].split() == CORE
    assert set(CORE) <= GLOSSARY.keys()
