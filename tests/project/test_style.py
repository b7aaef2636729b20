"""How the code is written: functions that can be read at one glance."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

import bertology

pytestmark = pytest.mark.any_transformers
ROOT = Path(bertology.__file__).parent
MOST = 40
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER
}  # fmt: skip


def lengths(source):
    """{function: lines of code in its body}, without empty lines, comments and docstrings."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    nodes = list(ast.walk(ast.parse(source)))
    for node in nodes:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {f"{f.name}:{f.lineno}": len(lines & set(range(f.body[0].lineno, f.end_lineno + 1))) for f in functions}


def test_functions_stay_under_forty_lines_of_code():
    long = {
        f"{path.relative_to(ROOT)}, {function}": length
        for path in ROOT.rglob("*.py")
        for function, length in lengths(path.read_text()).items()
        if length > MOST
    }
    assert long == {}, "cut these functions into parts that each have a name of their own"


def test_lines_of_code_are_counted_without_words():
    source = 'def f(\n    x,\n):\n    """Two\n    lines."""\n\n    # Why.\n    y = (\n        x\n    )\n    return y\n'
    assert lengths(source) == {"f:1": 4}


def bare_class_variables(source):
    """The lines with an annotation `ClassVar` alone, which Python 3.10 cannot read as the type of a string."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation).rpartition(".")[2] == "ClassVar"
    ]


def test_class_variables_say_of_which_type_they_are():
    assert bare_class_variables("class A:\n    x: ClassVar = 1\n    y: ClassVar[int] = 2\n    z: typing.ClassVar") == [
        2,
        4,
    ]
    found = {path.name: bare_class_variables(path.read_text()) for path in ROOT.rglob("*.py")}
    assert {name: lines for name, lines in found.items() if lines} == {}
