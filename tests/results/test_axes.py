"""Every field of every result declares its axes: as its docstring says them, as its tensors have them."""

import ast
import dataclasses
import itertools
import re
import sys
from pathlib import Path
from typing import Annotated

import pytest
import torch

import bertology
import bertology.code_structure
import bertology.edge_probing
import bertology.syntax
from bertology.code_structure.position_means import PositionAccumulator
from bertology.importance.ablation import one_off
from bertology.importance.many_gates import score_variants
from bertology.results.axes import GLOSSARY, axes, axes_of
from helpers.edge_sources import random_source
from helpers.edges import NOUNS
from helpers.trees import CATS, wordpiece_tokenizer
from helpers.zoo import BY_NAME, batch

CORE = ["layer", "head", "query", "key", "token", "batch", "dim", "hidden", "span", "label", "class"]


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
        bertology.accumulate(model, batches, PositionAccumulator(batches.examples))[0],
    ]


def made():
    """One result of each kind; a new kind of result is one more line here."""
    model, inputs = BY_NAME["bert"].build(), batch()
    return [
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
        bertology.prune_heads(BY_NAME["bert"].build(), {0: [1]}),
        bertology.score(model, inputs, metric="accuracy"),
        score_variants(
            model, inputs, one_off, metric="accuracy", replace="zero", loss=None, seed=0, checkpoint=None, progress=None
        ),
    ]


@pytest.fixture(scope="module")
def results():
    return {type(result): result for result in made()}


def kinds():
    """All registered results of the library but those that are only parts of others."""
    return [
        kind
        for kind in bertology.Result._kinds.values()
        if kind.__module__.startswith("bertology.") and not kind.__subclasses__()
    ]


def wrong_fields(kind):
    """What is wrong with the axes that a kind of result declares."""
    said, declared = axes_said(kind), axes_of(kind)
    for field in dataclasses.fields(kind):
        written = said.get(field.name)
        names = list(declared[field.name].names) if field.name in declared else None
        if written != names:
            yield f"{kind.__name__}.{field.name} says {written} in its docstring, and declares {names}"
        if unknown := set(names or ()) - GLOSSARY.keys():
            yield f"{kind.__name__}.{field.name} has axes that are not in the glossary: {sorted(unknown)}"


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_field_says_its_axes(kind, results):
    assert list(wrong_fields(kind)) == []
    assert kind in results, f"add a {kind.__name__} to `made` in tests/results/test_axes.py"
    for field in dataclasses.fields(kind):
        value = getattr(results[kind], field.name)
        tensor = next(iter(value.values())) if isinstance(value, dict) else value
        if isinstance(tensor, torch.Tensor):
            assert field.name in axes_of(kind), f"{kind.__name__}.{field.name} declares no axes"
            assert len(axes_of(kind)[field.name].names) == tensor.dim(), field.name


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Wrong(bertology.Result):
    values: Annotated[torch.Tensor, axes("layer head")]
    """[layer, key]: said otherwise than declared."""
    rows: torch.Tensor
    """[row]: not declared."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: right."""


def test_the_test_of_axes_can_fail():
    assert list(wrong_fields(Wrong)) == [
        "Wrong.values says ['layer', 'key'] in its docstring, and declares ['layer', 'head']",
        "Wrong.rows says ['row'] in its docstring, and declares None",
    ]


def test_the_glossary_is_that_of_the_package():
    told = re.search(r"one word for one axis: `([a-z ]+)`", " ".join(bertology.__doc__.split()))
    assert told[1].split() == CORE
    assert set(CORE) <= GLOSSARY.keys()
