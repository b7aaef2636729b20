"""The public surface: what is exported, what it says of itself, and what importing it loads."""

import ast
import dataclasses
import doctest
import importlib
import itertools
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bertology
import bertology.code_structure
import bertology.edge_probing
import bertology.syntax
from helpers.edge_sources import random_source
from helpers.edges import NOUNS
from helpers.trees import CATS, wordpiece_tokenizer
from helpers.zoo import BY_NAME, batch

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


@pytest.mark.parametrize("module", MODULES)
def test_doctests(module):
    # Doctests open with their own imports; run them as a reader would paste them.
    results = doctest.testmod(importlib.import_module(module), extraglobs=vars(bertology))
    assert results.failed == 0


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


def axes_said(cls):
    """{field: axes} from the brackets that open the fields' docstrings, those of the classes above included."""
    kinds = [kind for kind in reversed(cls.__mro__) if "__dataclass_fields__" in vars(kind)]
    return {name: axes for kind in kinds for name, axes in axes_written(kind).items()}


def axes_written(cls):
    """{field: axes} of a class's own fields."""
    source = ast.parse(Path(sys.modules[cls.__module__].__file__).read_text())
    body = next(n for n in source.body if isinstance(n, ast.ClassDef) and n.name == cls.__name__).body
    said = {}
    for node, after in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found = re.match(r"(\{stack: )?\[([a-z, ]*)\]", after.value.value)
            said[node.target.id] = found[2].split(", ") if found else None
    return said


GLOSSARY = {"layer", "head", "query", "key", "token", "batch", "dim", "hidden", "span", "label", "step"}
GLOSSARY |= {"example", "row"}  # of one figure an example, or a row of the logits
GLOSSARY |= {"class"}  # of tokens
GLOSSARY |= {"seed", "target", "probe", "validation"}  # of edge probing
GLOSSARY |= {"relation", "direction", "offset", "kind", "baseline"}  # of syntax, coreference and code
GLOSSARY |= {"model", "size", "round"}  # of a comparison of models: no axes of a model's insides


def of_syntax(model):
    syntax = bertology.syntax
    batches = syntax.align(wordpiece_tokenizer(), CATS)
    mentions = (syntax.Mention(0, 2, 1, 1, "nominal"), syntax.Mention(2, 3, 2, 1, "pronoun"))
    documents = syntax.align(wordpiece_tokenizer(), [syntax.Document(("the", "cat", "and"), mentions)])
    return [
        syntax.dependency_heads(model, batches),
        syntax.coreference_heads(model, documents),
        syntax.attention_probe(model, batches, batches, vectors="embeddings"),
        syntax.show_head(model, wordpiece_tokenizer(), CATS[0], (0, 0)),
    ]


def of_edge_probing():
    probing = bertology.edge_probing
    train, dev = random_source(), random_source(seed=1)
    settings = probing.Training(validate_every=1, max_validations=1, width=4)
    scores = probing.probe_layers(train, dev, settings=settings)
    targets = sum(len(record.targets) for record in NOUNS.records)
    return [
        scores,
        scores.statistics(),
        probing.label_trajectories(torch.rand(3, targets, len(NOUNS.labels)), NOUNS),
        probing.code_lengths(train, dev, settings=settings),
    ]


def of_code(model):
    code = bertology.code_structure
    batches = code.align_code(wordpiece_tokenizer(), [code.parse_code("cat = the(cat, dog)", "python")])
    found = code.cat_scores(model, batches, types="all")
    return [
        found,
        found.scores,
        found.beyond("positional"),
        code.leaf_types(model, batches),
        code.relation_heads(model, batches),
    ]


def test_every_field_says_its_axes():
    model, inputs = BY_NAME["bert"].build(), batch()
    results = [
        bertology.hidden_states(model, inputs),
        bertology.attention_maps(model, inputs),
        bertology.head_outputs(model, inputs, loss="auto"),
        bertology.head_importance(model, inputs),
        bertology.attention_entropy(model, inputs),
        bertology.attention_patterns(model, inputs),
        bertology.attention_gradients(model, inputs, tokens={"low": [3]}),
        bertology.repeat_scores(model, inputs),
        bertology.head_distances(model, inputs),
        *of_syntax(model),
        *of_edge_probing(),
        *of_code(model),
        bertology.pruning_curve(model, inputs, metric="accuracy"),
        bertology.importance_through_training([(1, model)], inputs),
        bertology.compare_efficiency(BY_NAME["bert"].build(), model, inputs, batch_sizes=(1,), rounds=1, seconds=0),
        bertology.head_ablation(model, inputs, metric="accuracy"),
        bertology.head_ablation(model, inputs, metric="accuracy").significance("bootstrap", resamples=2),
        bertology.sole_head_ablation(model, inputs, metric="accuracy"),
        bertology.head_means(model, inputs),
    ]
    for result in results:
        said = axes_said(type(result))
        for field in dataclasses.fields(result):
            value = getattr(result, field.name)
            tensor = next(iter(value.values())) if isinstance(value, dict) else value
            if isinstance(tensor, torch.Tensor):
                assert said[field.name] is not None, field.name
                assert len(said[field.name]) == tensor.dim()
                assert set(said[field.name]) <= GLOSSARY


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
