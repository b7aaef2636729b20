"""Every public function leaves the model as it found it, on success and when the forward pass raises in the middle."""

from functools import partial
from tempfile import TemporaryDirectory

import pytest
import torch

import bertology as b
from bertology import code_structure, edge_probing, syntax
from bertology.metrics import GenerationMetric
from helpers.code_snippets import snippets
from helpers.coreference_documents import CAT
from helpers.edges import NOUNS
from helpers.generation import bart, texts
from helpers.public import accumulators, public_functions, required, takes_a_model
from helpers.trees import CATS, wordpiece_tokenizer
from helpers.zoo import BY_NAME, batch
from laws.laws import Broken, check_leaves_model_alone, raising_at, snapshot

OTHER = BY_NAME["bert"].build()
PARSED = syntax.align(wordpiece_tokenizer(), CATS)
DOCUMENTS = syntax.align(wordpiece_tokenizer(), [CAT])
CODE = code_structure.align_code(wordpiece_tokenizer(), snippets()[:2])
CONTEXTS = {
    "gated": lambda m: b.gated(m, torch.ones(2, 4)),
    "ablated": lambda m: b.ablated(m, {0: [1]}),
    "ablated by the mean": lambda m: b.ablated(m, {0: [1]}, replace="mean"),
    "masked_attention": lambda m: b.masked_attention(m, {"all": lambda query, key, tokens: key == query - 1}),
    "tap mixing": lambda m: b.tap(b.dissect(m), "mixing", read=lambda *_: None),
    "tap norms": lambda m: b.tap(b.dissect(m), "norms", read=lambda *_: None),
    "tap attention": lambda m: b.tap(b.dissect(m), "attention", read=lambda *_: None),
    "tap block": lambda m: b.tap(b.dissect(m), "block", read=lambda *_: None),
}
# These change the model, or write it to a file: tests/pruning.
CHANGE_THE_MODEL = {"prune_heads", "prune_neurons", "save_pruned", "load_pruned", "save_plain", "drop_blocks"}
# This one runs on a model that generates.
GENERATES = {"capture_generation"}
# What a measure is given whose arguments, other than the model and its batches, have defaults.
DATA = {b: batch(), syntax: PARSED, code_structure: CODE}
OF_BATCHES = ({"model", "batches"}, {"model", "inputs"})


def measure_of(function, data):
    return lambda model: function(model, data)


def encode(model):
    with TemporaryDirectory() as folder:
        edge_probing.encode(model, wordpiece_tokenizer(), NOUNS, f"{folder}/nouns", dtype=torch.float32)


def captured_to_a_folder(model):
    with TemporaryDirectory() as folder:
        b.capture(model, [batch(), batch()], hidden=True, maps=True, heads=True, save=folder)


def merge_a_shard(model):
    with TemporaryDirectory() as folder:
        b.accumulate(model, batch(), b.EntropyAccumulator(), shard=(0, 1), save=folder)
        b.merge_shards(folder, model=model)


# Measures that need no more than the model and batches are found, and need no line here.
MEASURES = {
    name: measure_of(function, DATA[module])
    for module, name, function in public_functions(DATA)
    if required(function) in OF_BATCHES and name not in CHANGE_THE_MODEL | GENERATES | {"coreference_heads"}
}
MEASURES |= {
    "head_outputs with gradients": lambda m: b.head_outputs(m, batch(), loss="auto"),
    "head_importance of two batches": lambda m: b.head_importance(m, [batch(), batch()]),
    "head_importance, own loss": lambda m: b.head_importance(
        m, batch(), loss=lambda o, x: torch.nn.functional.cross_entropy(o.logits, x["labels"], reduction="none")
    ),
    "head_importance by token": lambda m: b.head_importance(m, batch(), granularity="token"),
    "importance_through_training": lambda m: b.importance_through_training([(1, m)], batch()),
    "attention_patterns of classes": lambda m: b.attention_patterns(m, batch(), tokens={"low": [3, 4]}),
    "edge_ablation": lambda m: b.edge_ablation(m, batch(), tokens={"low": [3, 4]}),
    "attention_patterns by norms": lambda m: b.attention_patterns(m, batch(), weighting="norm"),
    "attention_rollout by blocks": lambda m: b.attention_rollout(m, batch(labels=False), weighting="block"),
    "attention_gradients": lambda m: b.attention_gradients(m, batch(), tokens={"low": [3, 4]}),
    "coreference_heads": lambda m: syntax.coreference_heads(m, DOCUMENTS),
    "structural_probe": lambda m: syntax.structural_probe(m, PARSED, PARSED, epochs=1),
    "attention_probe": lambda m: syntax.attention_probe(m, PARSED, PARSED, vectors="embeddings"),
    "show_head": lambda m: syntax.show_head(m, wordpiece_tokenizer(), CATS[0], (0, 0)),
    "cat_scores with random weights": lambda m: code_structure.cat_scores(m, CODE, random_weights=True),
    "cat_scores with means of other snippets": lambda m: code_structure.cat_scores(m, CODE, means_from=CODE),
    "leaf_attention": lambda m: code_structure.leaf_attention(m, wordpiece_tokenizer(), snippets()[0], 0),
    "attention_and_distance": lambda m: code_structure.attention_and_distance(
        m, wordpiece_tokenizer(), snippets()[0], 0
    ),
    "code_arcs": lambda m: code_structure.code_arcs(m, wordpiece_tokenizer(), snippets()[0], 0),
    "encode": encode,
    "capture": lambda m: b.capture(m, batch(), hidden=True, maps=True, heads=True, positions=[0, -1]),
    "capture with gradients": lambda m: b.capture(m, batch(), hidden=True, maps=True, heads=True, loss="auto"),
    "capture to a folder": captured_to_a_folder,
    "merge_shards": merge_a_shard,
    "accumulate": lambda m: b.accumulate(m, batch(), b.ImportanceAccumulator(), b.EntropyAccumulator()),
    "score": lambda m: b.score(m, batch(), metric="accuracy"),
    "score by inverse loss": lambda m: b.score(m, batch(), metric="inverse_loss"),
    "pruning_curve": lambda m: b.pruning_curve(m, batch(), metric="accuracy", amount=3, reestimate=True),
    "pruning_curve by magnitude": lambda m: b.pruning_curve(m, batch(), metric="accuracy", amount=4, by="magnitude"),
    "head_ablation": lambda m: b.head_ablation(m, batch(), metric="accuracy"),
    "sole_head_ablation": lambda m: b.sole_head_ablation(m, batch(), metric="accuracy"),
    "activation_patching": lambda m: b.activation_patching(m, batch(), batch(seed=2), metric="loss"),
    "activation_patching of blocks": lambda m: b.activation_patching(
        m, batch(), batch(seed=2), metric="loss", parts="blocks"
    ),
    "faithfulness": lambda m: b.faithfulness(m, batch(), ["L0H1"], metric="inverse_loss", random_sets=2),
    "faithfulness of corrupted inputs": lambda m: b.faithfulness(
        m, batch(), ["L0H1"], metric="inverse_loss", corrupted=batch(seed=2)
    ),
    "fit_gates": lambda m: b.fit_gates(m, batch(), steps=2),
    "attribution_patching": lambda m: b.attribution_patching(m, batch(), batch(seed=2), metric="loss", steps=2),
    "mlp_ablation": lambda m: b.mlp_ablation(m, batch(), metric="accuracy"),
    "block_ablation": lambda m: b.block_ablation(m, batch(), metric="accuracy"),
    "neuron_curve": lambda m: b.neuron_curve(m, batch(), metric="accuracy", amount=0.4, kinds="both"),
    "compare_efficiency": lambda m: b.compare_efficiency(m, OTHER, batch(), batch_sizes=(2,), rounds=1, seconds=0),
}
# These read the model, and do not run it.
NO_RUN = {
    "dissect": b.dissect,
    "dissect_mlps": b.dissect_mlps,
    "make_batches": lambda m: b.make_batches(["the cat"], wordpiece_tokenizer(), model=m),
    "randomized": syntax.randomized,
    "embedding_vectors": syntax.embedding_vectors,
}
RUNS = list(MEASURES)
MEASURES |= NO_RUN


WRITTEN = GenerationMetric(lambda ours, theirs: float(len(ours)), max_new_tokens=3)


def test_what_is_generated_leaves_the_model_alone():
    check_leaves_model_alone(bart(), lambda m: b.score(m, texts(), metric=WRITTEN))


def test_captured_generation_leaves_the_model_alone():
    prompt = {"input_ids": texts()[0]["input_ids"]}
    everything = {"hidden": True, "maps": True, "heads": True}
    measure = partial(b.capture_generation, inputs=prompt, max_new_tokens=3, **everything)
    check_leaves_model_alone(bart(), measure)
    model = bart()
    check_leaves_model_alone(model, measure, broken=model.model.decoder.layers[1].fc1)


def test_every_public_function_of_a_model_is_here():
    """This test fails where a new function was not added."""
    there = {name.split(",")[0].split(" ")[0] for name in [*MEASURES, *CHANGE_THE_MODEL, *GENERATES, *CONTEXTS]}
    missing = {name for _, name, function in public_functions() if takes_a_model(function)} - there
    assert missing == set(), f"add to MEASURES in tests/laws/test_laws.py: {sorted(missing)}"


def test_every_accumulator_is_run_here(monkeypatch):
    """This test fails where a measure was not exported, or was not added."""
    run = set()
    zero = b.Accumulator.zero

    def noted(accumulator, anatomy):
        run.add(type(accumulator))
        return zero(accumulator, anatomy)

    monkeypatch.setattr(b.Accumulator, "zero", noted)
    for name in RUNS:
        MEASURES[name](BY_NAME["bert"].build())
    b.score(bart(), texts(), metric=WRITTEN)
    b.mlp_ablation(bart(), texts(), metric=WRITTEN)
    missing = sorted(f"{one.__module__}.{one.__name__}" for one in accumulators() - run)
    assert missing == [], (
        f"export the function that runs it, or add it to MEASURES in tests/laws/test_laws.py: {missing}"
    )


@pytest.mark.parametrize("measure", MEASURES)
def test_leaves_the_model_alone(family, measure):
    check_leaves_model_alone(family.build(), MEASURES[measure])


@pytest.mark.parametrize("measure", RUNS)
@pytest.mark.parametrize("place", ["block", "projection", "attention"])
def test_leaves_the_model_alone_when_it_raises(family, measure, place):
    model = family.build()
    anatomy = b.dissect(model)
    broken = {
        "block": anatomy.stacks[0].blocks[-1],
        "projection": anatomy.sites[-1].projection,
        "attention": anatomy.sites[-1].attention,
    }[place]
    check_leaves_model_alone(model, MEASURES[measure], broken)
    # The same measure works on the same model as if nothing had happened.
    model.eval()
    MEASURES[measure](model)


def test_the_law_can_fail():
    def careless(model):
        model.eval()

    with pytest.raises(AssertionError, match="training is not as it was"):
        check_leaves_model_alone(BY_NAME["bert"].build(), careless)

    def leaky(model):
        model.register_forward_hook(lambda *_: None)

    with pytest.raises(AssertionError, match="hooks is not as it was"):
        check_leaves_model_alone(BY_NAME["bert"].build(), leaky)


@pytest.mark.parametrize("measure", RUNS)
def test_models_that_return_tuples_are_measured_all_the_same(measure):
    model = BY_NAME["bert"].build()
    model.config.return_dict = False
    check_leaves_model_alone(model, MEASURES[measure])
    assert model.config.return_dict is False


@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts_leave_no_hooks(family, name):
    model, manager = family.build(), CONTEXTS[name]
    before = snapshot(model)
    with pytest.raises(Broken), raising_at(b.dissect(model).sites[-1].projection), manager(model), torch.no_grad():
        model(**batch(labels=False))
    after = snapshot(model)
    for key in ("hooks", "configs", "training", "attention functions"):
        assert before[key] == after[key]


def test_registration_that_fails_half_way_leaves_no_hooks():
    model = BY_NAME["bert"].build()
    anatomy = b.dissect(model)
    last = anatomy.sites[-1].projection
    own, last._forward_pre_hooks = last._forward_pre_hooks, None  # type: ignore[assignment]
    with pytest.raises(TypeError), b.tap(anatomy, "heads", read=lambda *_: None):
        raise AssertionError
    last._forward_pre_hooks = own
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_a_reader_that_raises_leaves_no_hooks():
    model = BY_NAME["gpt2"].build()

    def read(*_):
        raise Broken

    before = snapshot(model)
    for place in ("inputs", "block", "last", "heads", "attention"):
        with pytest.raises(Broken), b.tap(b.dissect(model), place, read=read), torch.no_grad():
            model(**batch(labels=False))
    assert snapshot(model)["hooks"] == before["hooks"]
    assert snapshot(model)["configs"] == before["configs"]
