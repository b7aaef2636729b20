"""The node types of blocks, calls and variable definitions in the grammars of four languages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Side = Literal["all", "first", "before", "unless after", "after", "next to"]


@dataclass(frozen=True)
class At:
    """Which children of a node are meant: all, the first, or those before or after a mark.

    The mark is the first child whose type is one of `marks`. "before" and "after" match nothing if there is no mark;
    "unless after" matches the children before the mark, or all of them if there is no mark; "next to" matches the child
    directly before the mark.
    """

    side: Side = "all"
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Binder:
    """A node that defines names, such as an assignment, a function or a list of parameters."""

    at: At = field(default_factory=At)
    """Which of its children are those names, or patterns that contain them."""
    start: Literal["here", "end", "marked", "parent"] = "here"
    """Where the definition starts to be valid: at the start of the node, at its end, after the child that follows the
    mark, or at the start of the node's parent."""
    scope: Literal["block", "outer", "function"] = "block"
    """Where the definition ends: at the end of the innermost scope around the name ("block") or around the node
    ("outer"), or at the end of the function."""
    compound: bool = False
    """Whether the old value is read too, as in `x += 1` and `x++`; not if one of its children is a `=`."""


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


_ALL, _FIRST = At(), At("first")
_BEFORE_EQUALS, _AFTER_COLON = At("before", ("=",)), At("after", (":",))
_UNLESS_AFTER_EQUALS = At("unless after", ("=",))
_AFTER_DOT = At("after", (".",))
_CHANGED = Binder(start="end", scope="function", compound=True)
_PYTHON = Grammar(
    blocks=frozenset({"block"}),
    arguments="argument_list",
    calls=frozenset({"call"}),
    scopes=frozenset({"function_definition", "class_definition", "lambda", "list_comprehension", "set_comprehension",
                      "dictionary_comprehension", "generator_expression"}),
    functions=frozenset({"function_definition", "class_definition", "lambda"}),
    patterns=dict.fromkeys(("pattern_list", "tuple_pattern", "list_pattern", "list_splat_pattern",
                            "dictionary_splat_pattern", "as_pattern_target"), _ALL)
    | {"default_parameter": _BEFORE_EQUALS, "typed_parameter": At("before", (":",)),
       "typed_default_parameter": At("before", (":",))},
    binders={
        "function_definition": Binder(scope="outer"),
        "class_definition": Binder(scope="outer"),
        "parameters": Binder(start="end"),  # defaults are computed before the parameters exist
        "lambda_parameters": Binder(start="end"),
        "assignment": Binder(At("before", ("=", ":")), "end", "function"),
        "augmented_assignment": Binder(_FIRST, "end", "function", compound=True),
        "named_expression": Binder(_FIRST, "end", "function"),
        "for_statement": Binder(At("before", ("in",)), "marked", "function"),
        "for_in_clause": Binder(At("before", ("in",)), "parent"),
        "as_pattern": Binder(At("after", ("as",)), "end", "function"),
    },
    no_variables={"attribute": _AFTER_DOT, "keyword_argument": _BEFORE_EQUALS, "dotted_name": _ALL},
)  # fmt: skip
_JAVA = Grammar(
    blocks=frozenset({"block", "constructor_body", "class_body", "interface_body", "enum_body", "switch_block"}),
    arguments="argument_list",
    calls=frozenset({"method_invocation", "object_creation_expression", "explicit_constructor_invocation",
                     "enum_constant"}),
    scopes=frozenset({"block", "constructor_body", "class_body", "switch_block", "method_declaration",
                      "constructor_declaration", "lambda_expression", "for_statement", "enhanced_for_statement",
                      "catch_clause", "try_with_resources_statement"}),
    functions=frozenset({"method_declaration", "constructor_declaration", "lambda_expression"}),
    patterns={"inferred_parameters": _ALL},
    binders={
        "method_declaration": Binder(scope="outer"),
        "formal_parameter": Binder(),
        "catch_formal_parameter": Binder(),
        "lambda_expression": Binder(At("before", ("->",))),
        "variable_declarator": Binder(_UNLESS_AFTER_EQUALS, "end"),
        "resource": Binder(_BEFORE_EQUALS, "end"),
        "enhanced_for_statement": Binder(At("before", (":",)), "marked"),
        "assignment_expression": Binder(_FIRST, "end", "function", compound=True),
        "update_expression": _CHANGED,
    },
    no_variables={"field_access": _AFTER_DOT, "method_invocation": At("next to", ("argument_list",)),
                  "method_reference": At("after", ("::",)), "annotation": _ALL, "marker_annotation": _ALL,
                  "element_value_pair": _BEFORE_EQUALS, "scoped_identifier": _ALL, "break_statement": _ALL,
                  "continue_statement": _ALL, "labeled_statement": At("before", (":",)), "class_declaration": _ALL},
)  # fmt: skip
_JAVASCRIPT = Grammar(
    blocks=frozenset({"statement_block", "class_body", "switch_body"}),
    arguments="arguments",
    calls=frozenset({"call_expression", "new_expression"}),
    scopes=frozenset({"statement_block", "class_body", "switch_body", "function_declaration", "function_expression",
                      "generator_function", "generator_function_declaration", "arrow_function", "method_definition",
                      "for_statement", "for_in_statement", "catch_clause"}),
    functions=frozenset({"function_declaration", "function_expression", "generator_function",
                         "generator_function_declaration", "arrow_function", "method_definition"}),
    patterns=dict.fromkeys(("object_pattern", "array_pattern", "rest_pattern"), _ALL)
    | {"pair_pattern": _AFTER_COLON, "assignment_pattern": _BEFORE_EQUALS, "object_assignment_pattern": _BEFORE_EQUALS},
    binders={
        "function_declaration": Binder(scope="outer"),
        "generator_function_declaration": Binder(scope="outer"),
        "class_declaration": Binder(scope="outer"),
        "function_expression": Binder(),
        "generator_function": Binder(),
        "formal_parameters": Binder(),
        "arrow_function": Binder(At("before", ("=>",))),
        "catch_clause": Binder(),
        "variable_declarator": Binder(_UNLESS_AFTER_EQUALS, "end"),
        "for_in_statement": Binder(At("before", ("in", "of")), "marked"),
        "assignment_expression": Binder(_FIRST, "end", "function"),
        "augmented_assignment_expression": Binder(_FIRST, "end", "function", compound=True),
        "update_expression": _CHANGED,
    },
    no_variables={},
)  # fmt: skip
_GO = Grammar(
    # Each clause of a switch or select is a block by itself (The Go Programming Language Specification, "Blocks").
    blocks=frozenset({"block", "expression_case", "type_case", "default_case", "communication_case"}),
    arguments="argument_list",
    calls=frozenset({"call_expression"}),
    scopes=frozenset({"block", "function_declaration", "method_declaration", "func_literal", "if_statement",
                      "for_statement", "expression_switch_statement", "type_switch_statement", "expression_case",
                      "type_case", "default_case", "communication_case"}),
    functions=frozenset({"function_declaration", "method_declaration", "func_literal"}),
    patterns={"expression_list": _ALL, "literal_element": _ALL},
    binders={
        "function_declaration": Binder(scope="outer"),
        "parameter_declaration": Binder(),
        "variadic_parameter_declaration": Binder(),
        "short_var_declaration": Binder(_FIRST, "end"),
        "var_spec": Binder(_UNLESS_AFTER_EQUALS, "end"),
        "const_spec": Binder(_UNLESS_AFTER_EQUALS, "end"),
        "range_clause": Binder(At("before", (":=", "=")), "end"),
        "receive_statement": Binder(At("before", (":=", "=")), "end"),
        "type_switch_statement": Binder(At("before", (":=",)), "marked"),
        "assignment_statement": Binder(_FIRST, "end", "function", compound=True),
        "inc_statement": _CHANGED,
        "dec_statement": _CHANGED,
    },
    no_variables={"keyed_element": At("before", (":",))},
)  # fmt: skip
GRAMMARS = {"python": _PYTHON, "java": _JAVA, "javascript": _JAVASCRIPT, "go": _GO}
NAMES = frozenset({"identifier", "shorthand_property_identifier", "shorthand_property_identifier_pattern"})
"""The types of leaves that may name a variable."""
BRACKETS = {"(": ")", "[": "]", "{": "}", "${": "}", "<": ">"}
ANGLED = frozenset({"type_arguments", "type_parameters"})
"""The nodes in which `<` and `>` are brackets."""
