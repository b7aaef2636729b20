"""Which grammar reads a language?"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ..errors import DataError, need

PACKAGES = {
    "go": "tree_sitter_go",
    "java": "tree_sitter_java",
    "javascript": "tree_sitter_javascript",
    "python": "tree_sitter_python",
}
"""The languages that the extra `code` brings, and the packages of their grammars."""


def language_of(language: Any) -> Any:
    """The `tree_sitter.Language` of a name, or of what a grammar package's `language()` returns.

    Raises `DataError` for other names, and for what is no grammar or one of another version of tree-sitter;
    `MissingExtra` without tree-sitter or without the grammar's package.
    """
    tree_sitter = need("tree_sitter", extra="code")
    if isinstance(language, tree_sitter.Language):
        return language
    if isinstance(language, str):
        return _known(language.lower())
    if type(language).__name__ == "PyCapsule":
        return _made(tree_sitter, language)
    raise DataError(f"a language is a name ({', '.join(PACKAGES)}) or a tree_sitter.Language, got {language!r}")


def name_of(language: Any) -> str:
    """What a language is called: its name, or what its grammar says of itself; "" where that says nothing."""
    return language.lower() if isinstance(language, str) else getattr(language_of(language), "name", None) or ""


@lru_cache
def _known(name: str) -> Any:
    if name not in PACKAGES:
        raise DataError(
            f"no grammar is known for {name!r}, only for {', '.join(PACKAGES)}: pass another as a "
            "tree_sitter.Language, such as tree_sitter.Language(tree_sitter_rust.language())"
        )
    return _made(need("tree_sitter", extra="code"), need(PACKAGES[name], extra="code").language())


def _made(tree_sitter: Any, capsule: Any) -> Any:
    try:
        return tree_sitter.Language(capsule)
    except ValueError as error:
        raise DataError(f"{capsule!r} is no grammar that the installed tree-sitter can read: {error}") from error
