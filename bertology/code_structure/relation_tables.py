"""What is told of a programming language's grammar, so that relations between leaves can be read from its trees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Side = Literal[
    "all", "first", "last", "only", "of type", "before", "unless after", "unless before", "after", "directly after",
    "next to",
]  # fmt: skip


@dataclass(frozen=True)
class At:
    """Which children of a node are meant: by their place among its children, by their type, or by a mark.

    The mark is the first child whose type is one of `marks`. "before" and "after" match nothing if there is no mark;
    "unless after" matches the children before the mark, "unless before" those after it, and both match all children if
    there is no mark. "next to" matches the child directly before the mark, "directly after" any child directly after a
    child of these types. "of type" matches the children whose own type is one of `marks`, "only" a child without
    siblings.
    """

    side: Side = "all"
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Binder:
    """A node that defines names, such as an assignment, a function or a list of parameters."""

    at: At = field(default_factory=At)
    """Which of its children are those names, or patterns that contain them."""
    start: Literal["here", "leaf", "end", "marked", "parent", "body"] = "here"
    """Where the definition starts to be valid: at the start of the node, after the name, at the end of the node, after
    the child that follows the mark, at the start of the node's parent, or at the start of the node's last child."""
    scope: Literal["block", "inside", "outer", "function", "variable"] = "block"
    """Where the variable belongs: to the innermost scope around the name ("block"; "inside" if the name is read outside
    of that scope), to the scope around the node ("outer"), or to the function. A definition with "variable" declares
    nothing: it gives a new value to the variable that is visible there."""
    compound: bool = False
    """Whether the old value is read too, as in `x += 1` and `x++`; not if one of its children is a `=`."""
    declared_by: tuple[str, ...] = ()
    """If given, the node declares variables only if one of its children is of these types, as in Go's `:=`."""


@dataclass(frozen=True)
class Grammar:
    """The node types of one language that relations are read from."""

    blocks: frozenset[str]
    arguments: str
    """The type of the list of a call's arguments."""
    calls: frozenset[str]
    scopes: frozenset[str]
    functions: frozenset[str]
    patterns: Mapping[str, At]
    """Nodes that may stand between a name and the node that defines it, as in `(a, b) = ...`."""
    binders: Mapping[str, Binder]
    no_variables: Mapping[str, At]
    """Nodes with names that are not variables: attributes, methods, keyword arguments."""
    names: Mapping[str, str] = field(default_factory=lambda: {"identifier": ""})
    """The types of leaves that may name a variable, and the type that their parent must have; "" for any."""
    only_defined: frozenset[str] = frozenset()
    """The types of leaves that may define a variable, and never use one."""
    hoists: bool = False
    """Whether a name belongs to the whole of its scope, also before its definition, as in Python and JavaScript."""
    whole: frozenset[str] = frozenset()
    """Where the language does not hoist: the scopes whose names are visible everywhere in them, such as fields."""
    closed: frozenset[str] = frozenset()
    """Scopes whose names are not visible in other scopes inside them, such as a class of Python in its methods."""
    barriers: frozenset[str] = frozenset()
    """Scopes in which no name from outside is visible, such as a function of PHP."""
    outside: Mapping[str, At] = field(default_factory=dict)
    """Code that is evaluated outside of the innermost scope around it, such as the default value of a parameter."""
    first_outside: Mapping[str, At] = field(default_factory=dict)
    """The same, if no sibling before the node has its type: the first iterable of a comprehension."""
    redirected: Mapping[str, Literal["module", "enclosing"]] = field(default_factory=dict)
    """Statements that say that a name belongs to another scope, such as `global` and `nonlocal`."""
    function_words: frozenset[str] = frozenset()
    """Words that make a declaration belong to the function instead of the block, such as `var`."""
    implicit: Literal["module", "block"] = "module"
    """Where a variable belongs that is assigned and not declared anywhere."""
    elements: frozenset[str] = frozenset()
    """JSX tags. A name in one of them is a variable only if it does not start with a small letter."""
    constants_in: frozenset[str] = frozenset()
    """Nodes with patterns, in which a name that starts with a capital is a constant and is not defined."""


ALL, FIRST = At(), At("first")
BEFORE_EQUALS, AFTER_COLON = At("before", ("=",)), At("after", (":",))
UNLESS_AFTER_EQUALS = At("unless after", ("=",))
AFTER_DOT = At("after", (".",))
PARAMETER = Binder(start="leaf")
ASSIGNED = Binder(FIRST, "end", "variable")
CHANGED = Binder(FIRST, "end", "variable", compound=True)
COUNTED = Binder(start="end", scope="variable", compound=True)
"""An operator such as `++`, which may stand before or after the name."""
BRACKETS = {"(": ")", "[": "]", "{": "}", "${": "}", "#{": "}", "<": ">"}
ANGLED = frozenset({"type_arguments", "type_parameters", "template_argument_list", "template_parameter_list"})
"""The nodes in which `<` and `>` are brackets."""
