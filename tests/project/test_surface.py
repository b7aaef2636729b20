"""The public surface: what is exported, what it says of itself, and what importing it loads."""

import ast
import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bertology
import bertology.code_structure
import bertology.edge_probing
import bertology.syntax

MODULES = sorted(m.name for m in pkgutil.walk_packages(bertology.__path__, "bertology."))
ROOT = Path(bertology.__file__).parent


@pytest.mark.skipif("BERTOLOGY_WHEEL" not in os.environ, reason="only where the built wheel is under test")
def test_the_wheel_is_what_is_tested():
    assert "site-packages" in str(ROOT)
    assert (ROOT / "py.typed").is_file()


@pytest.mark.parametrize("module", [bertology, bertology.syntax, bertology.edge_probing, bertology.code_structure])
def test_exports_are_sorted_and_there(module):
    assert module.__all__ == sorted(module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name).__doc__


class Finder(doctest.DocTestFinder):
    """Finds the examples of decorated functions, too: doctest takes those for functions of another module."""

    def _from_module(self, module, object):
        return super()._from_module(module, inspect.unwrap(object) if inspect.isfunction(object) else object)


@pytest.mark.parametrize("module", MODULES)
def test_doctests(module):
    module = importlib.import_module(module)
    runner = doctest.DocTestRunner()
    # Doctests open with their own imports; run them as a reader would paste them.
    for test in Finder().find(module, extraglobs=vars(bertology)):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def taking_heads():
    """The public functions and methods that take heads by any of their names."""
    for module in (bertology, bertology.syntax, bertology.edge_probing, bertology.code_structure):
        for name in module.__all__:
            one = getattr(module, name)
            methods = [x for key, x in vars(one).items() if key[0] != "_"] if inspect.isclass(one) else []
            for method in [one, *methods]:
                hints = getattr(inspect.unwrap(method), "__annotations__", {}) if inspect.isfunction(method) else {}
                if any(re.search(r"\b(Heads|OneHead)\b", str(x)) for what, x in hints.items() if what != "return"):
                    yield method


def test_help_names_the_printed_form_of_heads():
    found = {method.__qualname__: method.__doc__ for method in taking_heads()}
    assert {"prune_heads", "ablated", "HeadDistances.between", "show_head"} <= found.keys()
    elsewhere = r"the same holds for|heads: likewise"  # another function of the same arguments says it
    told = re.compile(rf'"L\d+H\d+|`L\d|{elsewhere}')
    assert [name for name, text in found.items() if not told.search(text)] == []


def test_doctests_of_decorated_functions_are_found():
    for decorated in (bertology.score, bertology.gated):
        module = importlib.import_module(decorated.__module__)
        assert f"{module.__name__}.{decorated.__name__}" in {test.name for test in Finder().find(module)}


def test_public_functions_show_an_example():
    modules = (bertology, bertology.syntax, bertology.edge_probing, bertology.code_structure)
    public = {n: getattr(m, n) for m in modules for n in m.__all__}
    shown = {n for n, one in public.items() if ">>>" in (one.__doc__ or "")}
    functions = {n for n, one in public.items() if callable(one) and n[0].islower()}
    assert functions - shown == {"accumulate", "load_pruned", "save_pruned", "stat", "tap"}


@pytest.mark.parametrize("module", MODULES)
def test_the_first_line_of_a_file_says_what_it_is(module):
    """Files of measures may ask a question; files of machinery do not."""
    first = (importlib.import_module(module).__doc__ or "").splitlines()[0]
    machinery = module.split(".")[1] in {"errors", "demo", "data", "corpora", "results", "streaming"}
    assert first.endswith("." if machinery else (".", "?")), first


def test_importing_loads_no_extra():
    code = (
        "import sys, bertology.edge_probing, bertology.code_structure; "
        "print([m for m in ('matplotlib', 'sklearn', 'datasets', 'tree_sitter', 'conllu') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_hooks_are_set_in_the_tap_alone():
    words = re.compile(r"register_\w*hook")
    for file in ROOT.rglob("*.py"):
        if file.parent.name != "tap":
            assert not words.search(file.read_text()), file


MARKED = ("anatomy/forward_source.py", "tap/private_api.py")
PRIVATE = (
    r"_attn_implementation_internal",
    r"_push_mode|_pop_mode|_get_current_function_mode",
    r"\btorch\._|\btransformers\._",
    r"from (torch|transformers)\S* import .*\b_\w",
    r"\b(co_names|co_freevars|co_consts|__code__|__closure__|cell_contents|__wrapped__)\b|inspect\.(unwrap|getsource)",
    r"\b(torch|transformers)\.__version__",
    r"sys\.modules",
    r"_getframe|f_locals",
    r"\.forward = ",
    r"\._(modules|parameters|buffers)\b|\._\w+_hooks\b",
)


@pytest.mark.parametrize("pattern", PRIVATE)
def test_insides_of_other_peoples_code_are_used_in_the_marked_files_alone(pattern):
    used = {str(file.relative_to(ROOT)) for file in ROOT.rglob("*.py") if re.search(pattern, file.read_text())}
    assert used <= set(MARKED), (
        f"move what uses {pattern} to {' or '.join(MARKED)}, with a comment 'Fragile:' and a test"
    )


def test_every_function_of_the_marked_files_says_what_it_rests_on():
    for name in MARKED:
        source = (ROOT / name).read_text()
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                lines = source.splitlines()[node.lineno - 1 : node.end_lineno]
                assert any("# Fragile: " in line for line in lines), f"{name}: {node.name}"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("load", r"'load': Result.load\(path\) reads a result, load_pruned\(path\) a pruned model"),
        ("save", r"result.save\(path\)"),
        ("head_importances", r"did you mean head_importance\?"),
        ("qqq", "'qqq'$"),
    ],
)
def test_a_name_that_is_not_here_says_where_it_may_be(name, words):
    with pytest.raises(AttributeError, match=f"module 'bertology' has no attribute .*{words}"):
        getattr(bertology, name)
    assert not hasattr(bertology, name)
