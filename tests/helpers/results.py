"""One result of each kind, measured on tiny models."""

import torch

import bertology
import bertology.code_structure
import bertology.edge_probing
import bertology.syntax
from bertology.code_structure.position_means import PositionAccumulator
from bertology.importance.ablation import one_off
from bertology.importance.many_gates import score_variants
from bertology.importance.part_ablation import ExampleLossAccumulator
from bertology.metrics import logit_difference
from helpers.edge_sources import random_source
from helpers.edges import NOUNS
from helpers.trees import CATS, wordpiece_tokenizer
from helpers.zoo import BY_NAME, batch


def of_syntax(model):
    syntax = bertology.syntax
    batches = syntax.align(wordpiece_tokenizer(), CATS)
    mentions = (syntax.Mention(0, 2, 1, 1, "nominal"), syntax.Mention(2, 3, 2, 1, "pronoun"))
    documents = syntax.align(wordpiece_tokenizer(), [syntax.Document(("the", "cat", "and"), mentions)])
    return [
        syntax.dependency_heads(model, batches),
        syntax.coreference_heads(model, documents),
        syntax.attention_probe(model, batches, batches, vectors="embeddings"),
        syntax.structural_probe(model, batches, batches, epochs=1, rank=5),
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


def of_neurons_and_blocks(model, inputs):
    """Of MLPs and whole blocks."""
    return [
        bertology.neuron_importance(model, inputs),
        bertology.neuron_activations(model, inputs),
        bertology.neuron_curve(model, inputs, metric="accuracy", amount=0.5, kinds="both"),
        bertology.block_ablation(model, inputs, metric="accuracy"),
        bertology.accumulate(model, inputs, ExampleLossAccumulator())[0],
        bertology.block_influence(model, inputs),
        bertology.mixing_ratio(model, inputs),
        bertology.prune_neurons(BY_NAME["bert"].build(), [(0, 1), (1, 2)]),
        bertology.drop_blocks(BY_NAME["bert"].build(), [0]),
    ]


def made():
    """One result of each kind; a new kind of result is one more line here."""
    model, inputs, other = BY_NAME["bert"].build(), batch(), batch(seed=2)
    return [
        bertology.hidden_states(model, inputs),
        bertology.attention_maps(model, inputs),
        bertology.attention_rollout(model, inputs),
        bertology.logit_lens(model, inputs),
        bertology.head_attribution(model, inputs),
        bertology.head_outputs(model, inputs, loss="auto"),
        bertology.head_importance(model, inputs),
        bertology.attention_entropy(model, inputs),
        bertology.attention_patterns(model, inputs),
        bertology.attention_gradients(model, inputs, tokens={"low": [3]}),
        bertology.repeat_scores(model, inputs),
        bertology.head_distances(model, inputs),
        bertology.layer_similarity(model, inputs),
        bertology.contextuality(model, inputs, tokens={"low": [3]}),
        *of_syntax(model),
        *of_edge_probing(),
        *of_code(model),
        *of_neurons_and_blocks(model, inputs),
        bertology.pruning_curve(model, inputs, metric="accuracy"),
        bertology.importance_through_training([(1, model)], inputs),
        bertology.compare_efficiency(BY_NAME["bert"].build(), model, inputs, batch_sizes=(1,), rounds=1, seconds=0),
        bertology.head_ablation(model, inputs, metric="accuracy"),
        bertology.head_ablation(model, inputs, metric="accuracy").significance("bootstrap", resamples=2),
        bertology.activation_patching(
            model, inputs, other, metric=logit_difference(1, 0), positions=[1], by_token=True
        ),
        bertology.attribution_patching(
            model, inputs, other, metric=logit_difference(1, 0), parts="blocks", positions=[1], by_token=True
        ),
        bertology.faithfulness(model, inputs, ["L0H1"], metric="inverse_loss", random_sets=2),
        bertology.head_agreement([bertology.head_importance(model, one) for one in (inputs, other)], 2),
        bertology.integrated_importance(model, inputs, steps=1),
        bertology.fit_gates(model, inputs, steps=1, method="soft"),
        bertology.sole_head_ablation(model, inputs, metric="accuracy"),
        bertology.edge_ablation(model, inputs, tokens={"low": [3]}, by_layer=True),
        bertology.head_means(model, inputs),
        bertology.prune_heads(BY_NAME["bert"].build(), {0: [1]}),
        bertology.score(model, inputs, metric="accuracy"),
        score_variants(
            model, inputs, one_off, metric="accuracy", replace="zero", loss=None, seed=0, checkpoint=None, progress=None
        ),
    ]
