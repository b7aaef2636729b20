"""What tests of code share: snippets of the words that the tests' tokenizer knows."""

from __future__ import annotations

from bertology.code_structure import CodeTree, parse_code

# Tokens lie across several leaves, "):" and "()"; leaves have several tokens, "purred"; one has no other beside it.
CODE = [
    "def cat(sat, mat): return sat(mat)",
    "stars = purred + under[cat]  # on a mat",
    "the = the(on, a) and mat - the()",
    "on",
    "if cat: mat = stars",
]


def snippets() -> list[CodeTree]:
    return [parse_code(code, "python", name=f"f{number}") for number, code in enumerate(CODE)]


GOOD, BAD = "def f(x):\n    return x\n", "def f(x):\n    retürn (x\n"
