"""Every public function leaves the model as it found it, on success and when the forward pass raises in the middle."""

from tempfile import TemporaryDirectory

import pytest
import torch

import bertology as b
from bertology import code_structure, edge_probing, syntax
from helpers.code_snippets import snippets
from helpers.edges import NOUNS
from helpers.trees import CATS, wordpiece_tokenizer
from helpers.zoo import BY_NAME, batch
from laws.laws import Broken, check_leaves_model_alone, raising_at, snapshot

OTHER = BY_NAME["bert"].build()
PARSED = syntax.align(wordpiece_tokenizer(), CATS)
CODE = code_structure.align_code(wordpiece_tokenizer(), snippets()[:2])


def encode(model):
    with TemporaryDirectory() as folder:
        edge_probing.encode(model, wordpiece_tokenizer(), NOUNS, f"{folder}/nouns", dtype=torch.float32)


MEASURES = {
    "hidden_states": lambda m: b.hidden_states(m, batch()),
    "attention_maps": lambda m: b.attention_maps(m, batch()),
    "head_outputs": lambda m: b.head_outputs(m, batch()),
    "head_outputs with gradients": lambda m: b.head_outputs(m, batch(), loss="auto"),
    "head_importance": lambda m: b.head_importance(m, [batch(), batch()]),
    "head_importance, own loss": lambda m: b.head_importance(
        m, batch(), loss=lambda o, x: torch.nn.functional.cross_entropy(o.logits, x["labels"], reduction="none")
    ),
    "head_importance by token": lambda m: b.head_importance(m, batch(), granularity="token"),
    "importance_through_training": lambda m: b.importance_through_training([(1, m)], batch()),
    "attention_entropy": lambda m: b.attention_entropy(m, batch()),
    "attention_patterns": lambda m: b.attention_patterns(m, batch(), tokens={"low": [3, 4]}),
    "attention_gradients": lambda m: b.attention_gradients(m, batch(), tokens={"low": [3, 4]}),
    "repeat_scores": lambda m: b.repeat_scores(m, batch()),
    "head_distances": lambda m: b.head_distances(m, batch()),
    "dependency_heads": lambda m: syntax.dependency_heads(m, PARSED),
    "attention_probe": lambda m: syntax.attention_probe(m, PARSED, PARSED, vectors="embeddings"),
    "cat_scores": lambda m: code_structure.cat_scores(m, CODE, random_weights=True),
    "leaf_types": lambda m: code_structure.leaf_types(m, CODE),
    "encode": encode,
    "accumulate": lambda m: b.accumulate(m, batch(), b.ImportanceAccumulator(), b.EntropyAccumulator()),
    "score": lambda m: b.score(m, batch(), metric="accuracy"),
    "pruning_curve": lambda m: b.pruning_curve(m, batch(), metric="accuracy", amount=3, reestimate=True),
    "pruning_curve by magnitude": lambda m: b.pruning_curve(m, batch(), metric="accuracy", amount=4, by="magnitude"),
    "compare_efficiency": lambda m: b.compare_efficiency(m, OTHER, batch(), batch_sizes=(2,), rounds=1, seconds=0),
    "dissect": b.dissect,
}
RUNS = [name for name in MEASURES if name != "dissect"]


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


@pytest.mark.parametrize("manager", [
    lambda m: b.gated(m, torch.ones(2, 4)),
    lambda m: b.ablated(m, {0: [1]}),
    lambda m: b.ablated(m, {0: [1]}, replace="mean"),
    lambda m: b.tap(b.dissect(m), "attention", read=lambda *_: None),
    lambda m: b.tap(b.dissect(m), "block", read=lambda *_: None),
])  # fmt: skip
def test_contexts_leave_no_hooks(family, manager):
    model = family.build()
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
    last.register_forward_pre_hook = None  # type: ignore[assignment]
    with pytest.raises(TypeError), b.tap(anatomy, "heads", read=lambda *_: None):
        raise AssertionError
    del last.register_forward_pre_hook
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
