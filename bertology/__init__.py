"""What do the heads and layers of a transformer do, and which of them does it need?

    model ── dissect ──> Anatomy ──┐
                                   ├── tap(read) ──> Accumulator.update ──> merge ──> compute ──> Result ──> save / plot
    batches ───────────────────────┘        │                                 ^
                                       tap(edit) = gate, ablate      another rank, another file, yesterday

| to look at            | take                                       | axes                                    |
|-----------------------|--------------------------------------------|-----------------------------------------|
| the residual stream   | `hidden_states`                            | [layer, batch, token, hidden]           |
| attention             | `attention_maps`                           | [layer, batch, head, query, key]        |
| attention, streamed   | `attention_entropy`, `attention_patterns`  | [layer, head]                           |
| over all layers       | `attention_rollout`, `attention_relevance` | [layer, batch, query, key]              |
| and the residual      | `mixing_ratio`                             | [layer]                                 |
| and its gradient      | `attention_gradients`                      | [layer, head, class]                    |
| repeated tokens       | `repeat_scores`                            | [layer, head]                           |
| heads that are alike  | `head_distances`                           | [head, head]                            |
| layers, read out      | `logit_lens`                               | [layer, batch, token]                   |
| layers, compared      | `layer_similarity`, `contextuality`        | [layer, layer], [layer]                 |
| heads and grammar     | `bertology.syntax`                         | [relation, direction, layer, head]      |
| layers and tasks      | `bertology.edge_probing`                   | [seed, layer]                           |
| heads and code        | `bertology.code_structure`                 | [layer, head]                           |
| heads                 | `head_outputs`, `head_importance`          | [layer, batch, token, head, dim]        |
| heads and a logit     | `head_attribution`                         | [layer, batch, head]                    |
| heads as they learn   | `importance_through_training`              | [step, layer, head]                     |
| a model with fewer    | `gated`, `ablated`, `pruning_curve`        | [layer, head]                           |
| edges cut             | `masked_attention`, `edge_ablation`        | [class, class]                          |
| effect of ablation    | `head_ablation`, `sole_head_ablation`      | [layer, head]                           |
| what carries an answer| `activation_patching`                      | [layer, head]                           |
| a set of heads        | `fit_gates`                                | [layer, head]                           |
| and its estimate      | `attribution_patching`                     | [layer, head]                           |
| a smaller model       | `prune_heads`, `save_pruned`, `load_pruned`|                                         |
| what pruning saves    | `compare_efficiency`                       | [model, size, round]                    |
| several measures      | `accumulate`                               |                                         |
| several captures      | `capture`, `capture_generation`            |                                         |

Axis glossary, one word for one axis: `layer head query key token batch dim hidden span label class`. `dim` is a head's
width, `hidden` the width of the residual stream, `key` always the attended-to position, `class` a class of tokens. Over
a data set, `example` counts its examples and `row` its labels, of which an example may have several. Layers and heads
are counted from 0.
"""

from difflib import get_close_matches
from typing import TYPE_CHECKING

from . import losses as losses  # these three are other names of modules in the rooms
from . import metrics as metrics
from . import pictures as pictures
from . import plot as plot  # registers the pictures of results
from .anatomy.dissect import dissect, register_names
from .anatomy.mlps import MlpAnatomy, Neuron, dissect_mlps
from .anatomy.names import Names
from .anatomy.sites import Anatomy, Head, HeadScore
from .data.make_batches import make_batches
from .errors import BertologyError
from .importance.ablation import HeadAblation, SoleHeadAblation, head_ablation, sole_head_ablation
from .importance.edge_ablation import EdgeAblation, edge_ablation
from .importance.faithfulness import Faithfulness, HeadAgreement, faithfulness, head_agreement
from .importance.head_importance import HeadImportance, ImportanceAccumulator, head_importance
from .importance.importance_through_training import ImportanceSeries, importance_through_training
from .importance.integrated_importance import IntegratedImportance, integrated_importance
from .importance.learned_gates import LearnedGates, fit_gates
from .importance.neuron_importance import NeuronImportance, NeuronImportanceAccumulator, neuron_importance
from .importance.part_ablation import PartAblation, block_ablation, mlp_ablation
from .importance.patching import activation_patching, attribution_patching
from .importance.patching_results import HeadPatching, LayerPatching
from .importance.score import Score, ScoreAccumulator, score
from .importance.significance import Significance
from .measures.behaviours import head_behaviours
from .measures.block_influence import BlockInfluence, BlockInfluenceAccumulator, block_influence
from .measures.captures import AttentionMaps, HeadOutputs, HiddenStates, attention_maps, head_outputs, hidden_states
from .measures.check_anatomy import check_anatomy
from .measures.contextuality import Contextuality, ContextualityAccumulator, contextuality
from .measures.entropy import AttentionEntropy, EntropyAccumulator, attention_entropy
from .measures.generation import GenerationCaptures, capture_generation
from .measures.gradients import AttentionGradients, GradientsAccumulator, attention_gradients
from .measures.head_attribution import HeadAttribution, head_attribution
from .measures.head_distances import DistancesAccumulator, HeadDistances, head_distances
from .measures.head_means import HeadMeans, MeansAccumulator, head_means
from .measures.layer_similarity import LayerSimilarity, SimilarityAccumulator, layer_similarity
from .measures.lens import LogitLens, logit_lens
from .measures.mixing_ratio import MixingRatio, MixingRatioAccumulator, mixing_ratio
from .measures.neurons import NeuronActivations, neuron_activations
from .measures.one_pass import Captures, capture
from .measures.patterns import AttentionPatterns, PatternsAccumulator, attention_patterns
from .measures.repeats import RepeatsAccumulator, RepeatScores, repeat_scores, repeated_tokens
from .measures.rollout import AttentionRollout, attention_relevance, attention_rollout
from .pruning.curve import PruningCurve, pruning_curve
from .pruning.drop_blocks import DroppedBlocks, drop_blocks
from .pruning.efficiency import Efficiency, compare_efficiency
from .pruning.load import load_pruned
from .pruning.neuron_curve import NeuronCurve, neuron_curve
from .pruning.prune import Pruned, prune_heads, save_pruned
from .pruning.prune_neurons import PrunedNeurons, prune_neurons
from .pruning.uniform import save_plain
from .results.axes import axes
from .results.result import Result
from .streaming.accumulate import accumulate
from .streaming.accumulator import Accumulator, stat
from .streaming.map_accumulator import MapAccumulator
from .streaming.shards import merge_shards, shard_batches
from .tap import tap
from .tap.gates import ablated, gated
from .tap.masked import masked_attention

__all__ = [
    "Accumulator",
    "Anatomy",
    "AttentionEntropy",
    "AttentionGradients",
    "AttentionMaps",
    "AttentionPatterns",
    "AttentionRollout",
    "BertologyError",
    "BlockInfluence",
    "BlockInfluenceAccumulator",
    "Captures",
    "Contextuality",
    "ContextualityAccumulator",
    "DistancesAccumulator",
    "DroppedBlocks",
    "EdgeAblation",
    "Efficiency",
    "EntropyAccumulator",
    "Faithfulness",
    "GenerationCaptures",
    "GradientsAccumulator",
    "Head",
    "HeadAblation",
    "HeadAgreement",
    "HeadAttribution",
    "HeadDistances",
    "HeadImportance",
    "HeadMeans",
    "HeadOutputs",
    "HeadPatching",
    "HeadScore",
    "HiddenStates",
    "ImportanceAccumulator",
    "ImportanceSeries",
    "IntegratedImportance",
    "LayerPatching",
    "LayerSimilarity",
    "LearnedGates",
    "LogitLens",
    "MapAccumulator",
    "MeansAccumulator",
    "MixingRatio",
    "MixingRatioAccumulator",
    "MlpAnatomy",
    "Names",
    "Neuron",
    "NeuronActivations",
    "NeuronCurve",
    "NeuronImportance",
    "NeuronImportanceAccumulator",
    "PartAblation",
    "PatternsAccumulator",
    "Pruned",
    "PrunedNeurons",
    "PruningCurve",
    "RepeatScores",
    "RepeatsAccumulator",
    "Result",
    "Score",
    "ScoreAccumulator",
    "Significance",
    "SimilarityAccumulator",
    "SoleHeadAblation",
    "ablated",
    "accumulate",
    "activation_patching",
    "attention_entropy",
    "attention_gradients",
    "attention_maps",
    "attention_patterns",
    "attention_relevance",
    "attention_rollout",
    "attribution_patching",
    "axes",
    "block_ablation",
    "block_influence",
    "capture",
    "capture_generation",
    "check_anatomy",
    "compare_efficiency",
    "contextuality",
    "dissect",
    "dissect_mlps",
    "drop_blocks",
    "edge_ablation",
    "faithfulness",
    "fit_gates",
    "gated",
    "head_ablation",
    "head_agreement",
    "head_attribution",
    "head_behaviours",
    "head_distances",
    "head_importance",
    "head_means",
    "head_outputs",
    "hidden_states",
    "importance_through_training",
    "integrated_importance",
    "layer_similarity",
    "load_pruned",
    "logit_lens",
    "make_batches",
    "masked_attention",
    "merge_shards",
    "mixing_ratio",
    "mlp_ablation",
    "neuron_activations",
    "neuron_curve",
    "neuron_importance",
    "prune_heads",
    "prune_neurons",
    "pruning_curve",
    "register_names",
    "repeat_scores",
    "repeated_tokens",
    "save_plain",
    "save_pruned",
    "score",
    "shard_batches",
    "sole_head_ablation",
    "stat",
    "tap",
]
__version__ = "0.1.0"
# What people look for here under another name.
_ELSEWHERE = {
    "entropy": "use attention_entropy",
    "head_entropy": "use attention_entropy",
    "load": "Result.load(path) reads a result, load_pruned(path) a pruned model",
    "patching": "use activation_patching or attribution_patching",
    "prune": "use prune_heads or prune_neurons",
    "rollout": "use attention_rollout",
    "save": "result.save(path) writes a result, save_pruned(model, path) a pruned model",
}

if not TYPE_CHECKING:  # which would take every name for one that is there

    def __getattr__(name: str) -> object:
        """Say where to find what is not here."""
        near = [f"did you mean {one}?" for one in get_close_matches(name, __all__, 1)]
        then = f": {(_ELSEWHERE.get(name) or near[0])}" if name in _ELSEWHERE or near else ""
        raise AttributeError(f"module 'bertology' has no attribute {name!r}{then}")
