"""The relations of Python, JavaScript, TypeScript, PHP and Ruby, in the node types of their grammars."""

from __future__ import annotations

from dataclasses import replace

from .relation_tables import (
    AFTER_COLON,
    AFTER_DOT,
    ALL,
    ASSIGNED,
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

_COMPREHENSIONS = {"list_comprehension", "set_comprehension", "dictionary_comprehension", "generator_expression"}
_AFTER_IN = At("after", ("in",))
PYTHON = Grammar(
    blocks=frozenset({"block"}),
    arguments="argument_list",
    calls=frozenset({"call"}),
    scopes=frozenset({"function_definition", "class_definition", "lambda", *_COMPREHENSIONS}),
    functions=frozenset({"function_definition", "class_definition", "lambda"}),
    patterns=dict.fromkeys(("pattern_list", "tuple_pattern", "list_pattern", "list_splat_pattern",
                            "dictionary_splat_pattern", "as_pattern_target"), ALL)
    | {"default_parameter": BEFORE_EQUALS, "typed_parameter": At("before", (":",)),
       "typed_default_parameter": At("before", (":",)), "dotted_name": At("only"),
       "aliased_import": At("after", ("as",))},
    binders={
        "function_definition": Binder(start="body", scope="outer"),
        "class_definition": Binder(start="body", scope="outer"),
        "parameters": PARAMETER,
        "lambda_parameters": PARAMETER,
        "assignment": Binder(At("before", ("=", ":")), "end", "function"),
        "augmented_assignment": Binder(FIRST, "end", "function", compound=True),
        "named_expression": Binder(FIRST, "end", "function"),
        "for_statement": Binder(At("before", ("in",)), "marked", "function"),
        "for_in_clause": Binder(At("before", ("in",)), "parent"),
        "as_pattern": Binder(At("after", ("as",)), "end", "function"),
        "except_clause": Binder(At("directly after", (",",)), "leaf", "function"),  # Python 2: `except E, e`
        "import_statement": Binder(At("after", ("import",)), "end", "function"),
        "import_from_statement": Binder(At("after", ("import",)), "end", "function"),
        "case_pattern": Binder(start="leaf", scope="function"),
        "splat_pattern": Binder(start="leaf", scope="function"),
        "keyword_pattern": Binder(At("after", ("=",)), "leaf", "function"),
    },
    no_variables={"attribute": AFTER_DOT, "keyword_argument": BEFORE_EQUALS, "dotted_name": ALL, "class_pattern": ALL,
                  "keyword_pattern": BEFORE_EQUALS, "global_statement": ALL, "nonlocal_statement": ALL,
                  "import_from_statement": At("before", ("import",)), "relative_import": ALL,
                  "aliased_import": At("before", ("as",))},
    hoists=True,
    closed=frozenset({"class_definition"}),
    outside={"default_parameter": At("after", ("=",)), "typed_parameter": AFTER_COLON,
             "typed_default_parameter": AFTER_COLON, "function_definition": At("directly after", ("->",)),
             "class_definition": At("of type", ("argument_list",))},
    first_outside={"for_in_clause": _AFTER_IN},
    redirected={"global_statement": "module", "nonlocal_statement": "enclosing"},
)  # fmt: skip
_TAGS = frozenset({"jsx_opening_element", "jsx_closing_element", "jsx_self_closing_element"})
JAVASCRIPT = Grammar(
    blocks=frozenset({"statement_block", "class_body", "switch_body"}),
    arguments="arguments",
    calls=frozenset({"call_expression", "new_expression"}),
    scopes=frozenset({"statement_block", "class_body", "class", "switch_body", "function_declaration",
                      "function_expression", "generator_function", "generator_function_declaration", "arrow_function",
                      "method_definition", "for_statement", "for_in_statement", "catch_clause"}),
    functions=frozenset({"function_declaration", "function_expression", "generator_function",
                         "generator_function_declaration", "arrow_function", "method_definition",
                         "class_static_block"}),
    patterns=dict.fromkeys(("object_pattern", "array_pattern", "rest_pattern"), ALL)
    | {"pair_pattern": AFTER_COLON, "assignment_pattern": BEFORE_EQUALS, "object_assignment_pattern": BEFORE_EQUALS,
       "import_specifier": At("last"), "namespace_import": ALL},
    binders={
        "function_declaration": Binder(scope="outer"),
        "generator_function_declaration": Binder(scope="outer"),
        "class_declaration": Binder(scope="outer"),
        "class": Binder(),
        "function_expression": Binder(),
        "generator_function": Binder(),
        "formal_parameters": PARAMETER,
        "arrow_function": Binder(At("before", ("=>",)), "leaf"),
        "catch_clause": PARAMETER,
        "variable_declarator": Binder(UNLESS_AFTER_EQUALS, "end"),
        "for_in_statement": Binder(At("before", ("in", "of")), "marked", declared_by=("var", "let", "const")),
        "assignment_expression": ASSIGNED,
        "augmented_assignment_expression": CHANGED,
        "update_expression": COUNTED,
        "import_clause": PARAMETER,
        "named_imports": PARAMETER,
    },
    no_variables={"jsx_namespace_name": ALL, "import_specifier": ALL, "export_specifier": At("after", ("as",)),
                  "namespace_export": ALL, "meta_property": ALL},
    names={"identifier": "", "shorthand_property_identifier": "", "shorthand_property_identifier_pattern": ""},
    hoists=True,
    function_words=frozenset({"var"}),
    elements=_TAGS,
)  # fmt: skip
_SIGNATURES = {"function_signature", "function_type", "constructor_type", "method_signature", "call_signature",
               "abstract_method_signature", "construct_signature"}  # fmt: skip
_TYPED = Binder(At("unless after", ("=", "?", "type_annotation")), "leaf")
_NAMED = Binder(scope="outer")
TYPESCRIPT = replace(
    JAVASCRIPT,
    blocks=JAVASCRIPT.blocks | {"interface_body", "object_type", "enum_body"},
    scopes=JAVASCRIPT.scopes | _SIGNATURES,
    functions=JAVASCRIPT.functions | _SIGNATURES,
    binders={**JAVASCRIPT.binders, "required_parameter": _TYPED, "optional_parameter": _TYPED,
             "function_signature": _NAMED, "enum_declaration": _NAMED, "internal_module": _NAMED, "module": _NAMED,
             "abstract_class_declaration": _NAMED},
    no_variables={**JAVASCRIPT.no_variables, "index_signature": At("directly after", ("[",)), "nested_identifier": ALL,
                  "nested_type_identifier": ALL},
    only_defined=frozenset({"type_identifier"}),  # the name of a class
)  # fmt: skip
_OWN = {"function_definition", "method_declaration", "anonymous_function"}
PHP = Grammar(
    blocks=frozenset({"compound_statement", "declaration_list", "enum_declaration_list", "switch_block", "match_block",
                      "colon_block"}),
    arguments="arguments",
    calls=frozenset({"function_call_expression", "member_call_expression", "nullsafe_member_call_expression",
                     "scoped_call_expression", "object_creation_expression"}),
    scopes=frozenset({*_OWN, "arrow_function"}),
    functions=frozenset({*_OWN, "arrow_function"}),
    patterns=dict.fromkeys(("variable_name", "list_literal", "by_ref", "pair"), ALL),
    binders={
        "simple_parameter": Binder(UNLESS_AFTER_EQUALS, "leaf"),
        "property_promotion_parameter": Binder(UNLESS_AFTER_EQUALS, "leaf"),
        "variadic_parameter": PARAMETER,
        "anonymous_function_use_clause": Binder(start="end", scope="inside", compound=True),
        "assignment_expression": Binder(FIRST, "end", "function"),
        "reference_assignment_expression": Binder(FIRST, "end", "function"),
        "augmented_assignment_expression": Binder(FIRST, "end", "function", compound=True),
        "update_expression": Binder(start="end", scope="function", compound=True),
        "foreach_statement": Binder(At("after", ("as",)), "leaf", "function"),
        "catch_clause": Binder(start="leaf", scope="function"),
        "static_variable_declaration": Binder(FIRST, "end", "function"),
    },
    no_variables={"scoped_property_access_expression": At("after", ("::",)), "property_element": ALL,
                  "global_declaration": ALL},
    names={"name": "variable_name"},
    hoists=True,
    barriers=frozenset(_OWN),
    outside={"anonymous_function": At("of type", ("anonymous_function_use_clause",))},
    redirected={"global_declaration": "module"},
)  # fmt: skip
_DEFINED = {"method", "singleton_method", "class", "module", "singleton_class"}
RUBY = Grammar(
    blocks=frozenset({"body_statement", "block_body", "then", "else", "do", "begin", "ensure", "rescue"}),
    arguments="argument_list",
    calls=frozenset({"call", "super", "yield"}),
    scopes=frozenset({*_DEFINED, "block", "do_block", "lambda"}),
    functions=frozenset({*_DEFINED, "block", "do_block", "lambda"}),
    patterns=dict.fromkeys(("left_assignment_list", "destructured_left_assignment", "rest_assignment",
                            "destructured_parameter", "splat_parameter", "hash_splat_parameter", "block_parameter"),
                           ALL)
    | {"optional_parameter": FIRST, "keyword_parameter": FIRST},
    binders={
        "method_parameters": PARAMETER,
        "block_parameters": PARAMETER,
        "lambda_parameters": PARAMETER,
        "assignment": ASSIGNED,
        "operator_assignment": CHANGED,
        "for": Binder(At("before", ("in",)), "leaf", "variable"),
        "exception_variable": Binder(start="leaf", scope="variable"),
    },
    no_variables={"call": At("unless before", (".", "&.", "::")), "method": At("directly after", ("def",)),
                  "singleton_method": AFTER_DOT, "alias": ALL, "undef": ALL},
    barriers=frozenset(_DEFINED),
    implicit="block",
)  # fmt: skip
