import ast
from pathlib import Path

import pytest

import bertology
from bertology.anatomy import names

pytestmark = pytest.mark.any_transformers

FOLDER = Path(bertology.__file__).parent
# Words that mean other things, too.
AMBIGUOUS = {"cache", "dropout", "features", "hidden_states", "input", "labels", "mask", "scaling", "state"}
ARGUMENTS = {
    value
    for name, held in vars(names).items()
    if name.endswith(("_ARGUMENT", "_ARGUMENTS"))
    for value in ([held] if isinstance(held, str) else held)
} - AMBIGUOUS
FILES = sorted(path for path in FOLDER.rglob("*.py") if path.name not in ("names.py", "__init__.py"))


def test_arguments_are_known():
    assert {"input_ids", "attention_mask", "past_key_values", "position_bias", "use_cache"} <= ARGUMENTS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_arguments_of_other_libraries_are_named_in_the_table_alone(path):
    found = [
        f"line {node.lineno}: {node.value!r}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in ARGUMENTS
    ]
    assert not found, f"take the constant of bertology/anatomy/names.py instead: {', '.join(found)}"
