"""What the forward method of an attention module reads, told from its compiled code."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

from torch import nn

from .names import COUNT_NAMES, KEY_COUNT_NAMES, PRUNED_NAME


def acts_on_record(attention: nn.Module) -> bool:
    """Whether it reads which of its heads were pruned, as T5's does in transformers 4."""
    return PRUNED_NAME in _names(attention)


def asks_config(attention: nn.Module) -> bool:
    """Whether it may take its numbers of heads from the config that all layers share (Phi-3)."""
    return hasattr(attention, "config") and not {*COUNT_NAMES, *KEY_COUNT_NAMES}.isdisjoint(_names(attention))


def takes_width_from_input(attention: nn.Module) -> bool:
    """Whether it lays its heads side by side in as many numbers as its input has (CLIP of transformers 4)."""
    forward = inspect.unwrap(type(attention).forward)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(forward)))
    except (OSError, TypeError):
        return False  # a class without source code, such as one of a notebook that is gone
    inputs = forward.__code__.co_varnames[1]
    widths: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _is_size(node.value, inputs):
            target = node.targets[0]
            if isinstance(target, ast.Tuple) and len(target.elts) > 2 and isinstance(target.elts[-1], ast.Name):
                widths.add(target.elts[-1].id)
    laid = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    laid = [call for call in laid if call.func.attr in ("view", "reshape")]  # type: ignore[attr-defined]
    return any(isinstance(n, ast.Name) and n.id in widths for call in laid for arg in call.args for n in ast.walk(arg))


def _is_size(value: ast.expr, name: str) -> bool:
    """Whether this is `name.shape` or `name.size()`."""
    called = value.func if isinstance(value, ast.Call) and not value.args else value
    attribute = called.attr if isinstance(called, ast.Attribute) else ""
    wanted = "size" if isinstance(value, ast.Call) else "shape"
    return attribute == wanted and isinstance(called.value, ast.Name) and called.value.id == name  # type: ignore[attr-defined]


def _names(attention: nn.Module) -> tuple[str, ...]:
    code: Any = getattr(inspect.unwrap(type(attention).forward), "__code__", None)
    return () if code is None else code.co_names
