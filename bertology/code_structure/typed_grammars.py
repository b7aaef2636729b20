"""The relations of Java, Go, C, C++ and Rust, in the node types of their grammars."""

from __future__ import annotations

from dataclasses import replace

from .relation_tables import (
    AFTER_DOT,
    ALL,
    BEFORE_EQUALS,
    CHANGED,
    COUNTED,
    FIRST,
    PARAMETER,
    UNLESS_AFTER_EQUALS,
    At,
    Binder,
    Grammar,
)

_BODIES = {"class_body", "interface_body", "enum_body", "annotation_type_body"}
_DECLARED = ("class_declaration", "interface_declaration", "enum_declaration", "record_declaration",
             "annotation_type_declaration", "method_declaration", "constructor_declaration",
             "compact_constructor_declaration", "annotation_type_element_declaration", "package_declaration",
             "import_declaration")  # fmt: skip
JAVA = Grammar(
    blocks=frozenset({"block", "constructor_body", "class_body", "interface_body", "enum_body", "switch_block"}),
    arguments="argument_list",
    calls=frozenset({"method_invocation", "object_creation_expression", "explicit_constructor_invocation",
                     "enum_constant"}),
    scopes=frozenset({"block", "constructor_body", *_BODIES, "record_declaration", "switch_block", "switch_rule",
                      "method_declaration", "constructor_declaration", "compact_constructor_declaration",
                      "lambda_expression", "for_statement", "enhanced_for_statement", "catch_clause",
                      "try_with_resources_statement"}),
    functions=frozenset({"method_declaration", "constructor_declaration", "compact_constructor_declaration",
                         "lambda_expression"}),
    patterns={"inferred_parameters": ALL},
    binders={
        "formal_parameter": PARAMETER,
        "catch_formal_parameter": PARAMETER,
        "lambda_expression": Binder(At("before", ("->",)), "leaf"),
        "variable_declarator": Binder(UNLESS_AFTER_EQUALS, "end"),
        "enum_constant": PARAMETER,
        "resource": Binder(BEFORE_EQUALS, "end"),
        "enhanced_for_statement": Binder(At("before", (":",)), "marked"),
        "instanceof_expression": Binder(At("after", ("instanceof",)), "end"),
        "type_pattern": PARAMETER,
        "record_pattern_component": PARAMETER,
        "assignment_expression": CHANGED,
        "update_expression": COUNTED,
    },
    no_variables={"field_access": AFTER_DOT, "method_invocation": At("next to", ("argument_list",)),
                  "method_reference": At("after", ("::",)), "annotation": ALL, "marker_annotation": ALL,
                  "element_value_pair": BEFORE_EQUALS, "scoped_identifier": ALL, "break_statement": ALL,
                  "continue_statement": ALL, "labeled_statement": At("before", (":",)), "record_pattern": ALL,
                  **dict.fromkeys(_DECLARED, ALL)},
    whole=frozenset({*_BODIES, "record_declaration"}),
)  # fmt: skip
GO = Grammar(
    # Each clause of a switch or select is a block by itself (The Go Programming Language Specification, "Blocks").
    blocks=frozenset({"block", "expression_case", "type_case", "default_case", "communication_case"}),
    arguments="argument_list",
    calls=frozenset({"call_expression"}),
    scopes=frozenset({"block", "function_declaration", "method_declaration", "func_literal", "function_type",
                      "method_elem", "if_statement", "for_statement", "expression_switch_statement",
                      "type_switch_statement", "expression_case", "type_case", "default_case", "communication_case"}),
    functions=frozenset({"function_declaration", "method_declaration", "func_literal"}),
    patterns={"expression_list": ALL, "literal_element": ALL},
    binders={
        "function_declaration": Binder(scope="outer"),
        "parameter_declaration": PARAMETER,
        "variadic_parameter_declaration": PARAMETER,
        "short_var_declaration": Binder(FIRST, "end"),
        "var_spec": Binder(UNLESS_AFTER_EQUALS, "end"),
        "const_spec": Binder(UNLESS_AFTER_EQUALS, "end"),
        "range_clause": Binder(At("before", (":=", "=")), "end", declared_by=(":=",)),
        "receive_statement": Binder(At("before", (":=", "=")), "end", declared_by=(":=",)),
        "type_switch_statement": Binder(At("before", (":=",)), "marked"),
        "assignment_statement": CHANGED,
        "inc_statement": COUNTED,
        "dec_statement": COUNTED,
    },
    no_variables={"keyed_element": At("before", (":",))},
)  # fmt: skip
# Declarations are scopes too, for the parameters of function types inside; the names that they declare are outside.
_DECLARATIONS = ("declaration", "parameter_declaration")
_OUTSIDE = Binder(start="leaf", scope="outer")
_OF_FILE = Binder(start="leaf", scope="function")
_TYPES = frozenset({"type_definition", "field_declaration"})
C = Grammar(
    blocks=frozenset({"compound_statement", "field_declaration_list", "enumerator_list"}),
    arguments="argument_list",
    calls=frozenset({"call_expression"}),
    scopes=frozenset({*_DECLARATIONS, *_TYPES, "compound_statement", "function_definition", "for_statement"}),
    functions=frozenset({"function_definition"}),
    patterns=dict.fromkeys(("init_declarator", "array_declarator", "function_declarator"), FIRST)
    | dict.fromkeys(("pointer_declarator", "parenthesized_declarator", "attributed_declarator"), ALL),
    binders={
        **dict.fromkeys((*_DECLARATIONS, "function_definition"), _OUTSIDE),
        "enumerator": Binder(UNLESS_AFTER_EQUALS, "leaf", "function"),
        "preproc_def": _OF_FILE,
        "preproc_function_def": _OF_FILE,
        "assignment_expression": CHANGED,
        "update_expression": COUNTED,
    },
    no_variables={"preproc_params": ALL, "attribute": ALL},
)  # fmt: skip
_MORE = ("optional_parameter_declaration", "variadic_parameter_declaration")
CPP = replace(
    C,
    blocks=C.blocks | {"declaration_list"},
    calls=frozenset({"call_expression", "new_expression", "field_initializer", "init_declarator"}),
    scopes=C.scopes | {*_MORE, "field_declaration_list", "lambda_expression", "for_range_loop", "catch_clause",
                       "if_statement", "while_statement", "switch_statement", "template_declaration",
                       "declaration_list"},
    functions=C.functions | {"lambda_expression"},
    patterns={**C.patterns, **dict.fromkeys(("reference_declarator", "variadic_declarator",
                                             "structured_binding_declarator"), ALL)},
    binders={
        **C.binders,
        **dict.fromkeys((*_MORE, "field_declaration"), replace(_OUTSIDE, at=UNLESS_AFTER_EQUALS)),
        "for_range_loop": Binder(At("before", (":",)), "marked"),
        "lambda_capture_initializer": Binder(BEFORE_EQUALS, "end"),
    },
    no_variables={**C.no_variables, "qualified_identifier": ALL},
    only_defined=frozenset({"field_identifier"}),
    whole=frozenset({"field_declaration_list"}),
)  # fmt: skip
RUST = Grammar(
    blocks=frozenset({"block", "match_block", "declaration_list", "field_declaration_list", "enum_variant_list"}),
    arguments="arguments",
    calls=frozenset({"call_expression"}),
    scopes=frozenset({"block", "function_item", "function_signature_item", "closure_expression", "match_arm",
                      "if_expression", "while_expression", "for_expression", "impl_item", "trait_item", "mod_item"}),
    functions=frozenset({"function_item", "closure_expression"}),
    patterns=dict.fromkeys(("tuple_pattern", "slice_pattern", "ref_pattern", "mut_pattern", "reference_pattern",
                            "or_pattern", "captured_pattern"), ALL)
    | {"tuple_struct_pattern": At("after", ("(",)), "struct_pattern": At("after", ("{",)), "field_pattern": At("last")},
    binders={
        "function_item": Binder(scope="outer"),
        "parameter": Binder(At("before", (":",)), "leaf"),
        "closure_parameters": PARAMETER,
        "let_declaration": Binder(At("unless after", (":", "=")), "end"),
        "const_item": Binder(At("before", (":",)), "end"),
        "static_item": Binder(At("before", (":",)), "end"),
        "let_condition": Binder(BEFORE_EQUALS, "end"),
        "for_expression": Binder(At("before", ("in",)), "marked"),
        "match_pattern": Binder(At("unless after", ("if",)), "leaf"),
        "assignment_expression": Binder(FIRST, "end", "variable"),
        "compound_assignment_expr": CHANGED,
    },
    no_variables=dict.fromkeys(("scoped_identifier", "label", "lifetime", "use_declaration", "use_list",
                                "use_as_clause", "scoped_use_list", "enum_variant", "mod_item", "attribute",
                                "extern_crate_declaration", "function_signature_item", "macro_definition"), ALL)
    | {"macro_invocation": FIRST, "tuple_struct_pattern": FIRST,
       "token_tree": At("directly after", (".", "::"))},
    only_defined=frozenset({"shorthand_field_identifier"}),
    closed=frozenset({"impl_item", "trait_item"}),
    outside={"if_expression": At("of type", ("else_clause",))},
    constants_in=frozenset({"match_pattern", "let_condition", "let_declaration"}),
)  # fmt: skip
