"""Good arguments for every public function and result: tests of bad inputs replace one of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import torch
import transformers

import bertology as bt
from bertology import code_structure, edge_probing, syntax
from bertology.corpora.treebank import Sentence
from helpers.edge_sources import InMemory
from helpers.trees import wordpiece_tokenizer

_numbers = count()
CONFIG = {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIG |= {"intermediate_size": 24, "max_position_embeddings": 64}


class GoodInputs:
    """One good object of each kind; made when it is first asked for, and `folder` for files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, content: str | bytes, name: str = "file.txt") -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def bert(self, kind: str = "BertModel", **more: Any) -> Any:
        torch.manual_seed(0)
        return getattr(transformers, kind)(transformers.BertConfig(**CONFIG | more)).eval()

    @cached_property
    def model(self) -> Any:
        return self.bert("BertForSequenceClassification")

    @cached_property
    def gpt2(self) -> Any:
        own = {"vocab_size": 99, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
        ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**own, **ends)).eval()

    @cached_property
    def t5(self) -> Any:
        own = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
        config = transformers.T5Config(**own, decoder_start_token_id=0)
        return transformers.T5ForConditionalGeneration(config).eval()

    @cached_property
    def reader(self) -> Any:
        """A model with the vocabulary of the tokenizer."""
        return self.bert(vocab_size=len(self.tokenizer))

    @cached_property
    def tokenizer(self) -> Any:
        return wordpiece_tokenizer()

    @cached_property
    def ids(self) -> torch.Tensor:
        return torch.tensor([[5, 6, 7, 8], [9, 4, 5, 6]])

    @cached_property
    def batch(self) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids, "labels": torch.tensor([0, 1])}

    @cached_property
    def flipped(self) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids.flip(1)}

    @cached_property
    def sentence(self) -> Sentence:
        return Sentence(("the", "cat", "sat"), (2, 3, 0), ("det", "nsubj", "root"), "cats")

    @cached_property
    def treebank(self) -> syntax.Treebank:
        return syntax.Treebank((self.sentence,) * 2)

    @cached_property
    def aligned(self) -> Any:
        return syntax.align(self.tokenizer, self.treebank)

    @cached_property
    def document(self) -> syntax.Document:
        mentions = syntax.Mention(0, 2, 1, 0, "nominal"), syntax.Mention(2, 3, 2, 0, "pronoun")
        return syntax.Document(("the", "cat", "sat"), mentions, "cats")

    @cached_property
    def documents(self) -> Any:
        return syntax.align(self.tokenizer, [self.document])

    @cached_property
    def vectors(self) -> syntax.StaticVectors:
        return syntax.StaticVectors(["the", "cat", "sat"], torch.ones(3, 4))

    @cached_property
    def tree(self) -> code_structure.CodeTree:
        return code_structure.parse_code("def cat(sat):\n    return sat\n", "python", name="cat")

    @cached_property
    def code(self) -> Any:
        return code_structure.align_code(self.tokenizer, [self.tree])

    @cached_property
    def task(self) -> edge_probing.EdgeTask:
        records = []
        for number in range(8):
            label = "nn" if number % 2 else "vb"
            target = edge_probing.Target((1, 2), (label,))
            records.append(edge_probing.Record(("the", "cat", "sat"), (target,), f"cats {number}"))
        return edge_probing.EdgeTask.of("cats", records)

    @cached_property
    def source(self) -> InMemory:
        torch.manual_seed(0)
        truths = tuple(torch.eye(2)[[number % 2]] for number in range(8))
        vectors = tuple(torch.randn(1, 3, 4) for _ in range(8))
        return InMemory(vectors, ((((0, 1),),),) * 8, truths, ("nn", "vb"), ("nn", "vb"))

    @cached_property
    def other(self) -> InMemory:
        """Other records than those of `source`."""
        return replace(self.source, vectors=tuple(x + 1 for x in self.source.vectors))

    @cached_property
    def settings(self) -> edge_probing.Training:
        return edge_probing.Training(lr=0.1, validate_every=4, max_validations=1, width=4, batch_size=4)

    @cached_property
    def probes(self) -> edge_probing.Probes:
        return edge_probing.cumulative_probes(self.source, (0,), self.settings)

    @cached_property
    def trained(self) -> edge_probing.Trained:
        return edge_probing.train_probes(self.source, self.source, copy.deepcopy(self.probes), self.settings)

    @cached_property
    def statistics(self) -> edge_probing.LayerStatistics:
        return edge_probing.layer_statistics(torch.tensor([0.1, 0.5, 0.9]))

    @cached_property
    def trajectories(self) -> edge_probing.LabelTrajectories:
        return edge_probing.label_trajectories(torch.full((3, 8, 2), 0.5), self.task)

    @cached_property
    def cat_scores(self) -> Any:
        return code_structure.cat_scores(self.reader, self.code, types="all").of("attention")

    @cached_property
    def comparison(self) -> Any:
        return code_structure.cat_scores(self.reader, self.code, types="all")

    @cached_property
    def relations(self) -> Any:
        return code_structure.relation_heads(self.reader, self.code)

    @cached_property
    def leaf_types(self) -> Any:
        return code_structure.leaf_types(self.reader, self.code)

    @cached_property
    def view(self) -> Any:
        return syntax.show_head(self.reader, self.tokenizer, self.sentence, (0, 1))

    @cached_property
    def importance(self) -> bt.HeadImportance:
        return bt.head_importance(self.model, self.batch)

    @cached_property
    def patterns(self) -> bt.AttentionPatterns:
        return bt.attention_patterns(self.model, self.batch)

    @cached_property
    def entropy(self) -> bt.AttentionEntropy:
        return bt.attention_entropy(self.model, self.batch)

    @cached_property
    def shards(self) -> Path:
        folder = self.folder / "shards"
        bt.accumulate(self.model, self.batch, bt.EntropyAccumulator(), shard=(0, 1), save=folder)
        return folder

    @cached_property
    def pruned(self) -> Path:
        model = self.copied()
        bt.prune_heads(model, [(0, 1)])
        bt.save_pruned(model, self.folder / "a pruned model")
        return self.folder / "a pruned model"

    def copied(self) -> Any:
        return copy.deepcopy(self.model)


def _on_data(x: GoodInputs) -> dict[str, dict[str, Any]]:
    both = {"model": x.model, "batches": x.batch}
    accuracy = {**both, "metric": "accuracy"}
    five = {"five": [5]}
    return {
        "attention_entropy": both,
        "attention_gradients": {**both, "tokens": five},
        "attention_patterns": {**both, "tokens": five},
        "contextuality": {**both, "tokens": five},
        "edge_ablation": {**both, "tokens": five},
        "head_ablation": accuracy,
        "head_distances": both,
        "head_importance": both,
        "head_means": both,
        "block_ablation": accuracy,
        "block_influence": both,
        "layer_similarity": both,
        "mixing_ratio": both,
        "mlp_ablation": accuracy,
        "neuron_curve": {**accuracy, "amount": 0.5},
        "neuron_importance": both,
        "pruning_curve": {**accuracy, "amount": 4},
        "repeat_scores": both,
        "score": accuracy,
        "sole_head_ablation": accuracy,
        "accumulate": {"model": x.model, "batches": x.batch},
        "activation_patching": {"model": x.model, "clean": x.batch, "corrupted": x.flipped, "metric": "loss"},
        "faithfulness": {**both, "heads": [(0, 1)], "metric": "inverse_loss", "random_sets": 1},
        "head_agreement": {"results": [x.importance, x.importance], "size": 2},
        "integrated_importance": {**both, "steps": 1},
        "fit_gates": {**both, "steps": 1},
        "attribution_patching": {"model": x.model, "clean": x.batch, "corrupted": x.flipped, "metric": "loss"},
        "importance_through_training": {"checkpoints": [(0, x.model)], "batches": x.batch},
        "head_behaviours": {"patterns": x.patterns},
    }


def _on_one_batch(x: GoodInputs) -> dict[str, dict[str, Any]]:
    one = {"model": x.model, "inputs": x.batch}
    changed = x.copied()
    return {
        "attention_maps": one,
        "attention_relevance": one,
        "attention_rollout": one,
        "head_attribution": one,
        "capture": {**one, "hidden": True, "heads": True, "loss": "auto"},
        "capture_generation": {"model": x.gpt2, "inputs": {"input_ids": x.ids}, "max_new_tokens": 2, "maps": True},
        "head_outputs": {**one, "loss": "auto"},
        "logit_lens": one,
        "masked_attention": {"model": x.model, "cuts": {0: torch.zeros(3, 3, dtype=torch.bool)}},
        "hidden_states": one,
        "check_anatomy": one,
        "ablated": {"model": x.model, "heads": [(0, 1)]},
        "gated": {"model": x.model, "gates": torch.ones(2, 4)},
        "tap": {"anatomy": bt.dissect(x.model), "place": "heads", "read": print},
        "dissect": {"model": x.model},
        "dissect_mlps": {"model": x.model},
        "neuron_activations": one,
        "prune_neurons": {"model": changed, "neurons": [(0, 1)]},
        "save_plain": {"model": x.model, "path": x.folder / "plain"},
        "drop_blocks": {"model": x.copied(), "blocks": [1]},
        "compare_efficiency": {
            "before": x.model, "after": changed, "inputs": x.batch, "batch_sizes": (1,), "rounds": 1, "seconds": 0,
        },
        "prune_heads": {"model": changed, "heads": [(0, 1)]},
        "save_pruned": {"model": x.model, "path": x.folder / "pruned"},
        "load_pruned": {"path": x.pruned},
        "register_names": {"names": bt.Names("to_q", "to_k", "to_v", "to_out")},
        "merge_shards": {"folder": x.shards},
        "shard_batches": {"batches": [x.batch], "shard": (0, 1)},
        "make_batches": {"data": ["the cat", "sat"], "tokenizer": x.tokenizer},
        "repeated_tokens": {"vocabulary": range(5, 20), "length": 3},
    }  # fmt: skip


def _syntax(x: GoodInputs) -> dict[str, dict[str, Any]]:
    train = {"train": x.aligned, "test": x.aligned}
    uniform = torch.full((1, 2, 3, 3), 1 / 3)
    return {
        "align": {"tokenizer": x.tokenizer, "sources": x.treebank},
        "antecedent_baselines": {"documents": [x.document]},
        "attention_probe": {"model": x.reader, **train},
        "best_tree": {"scores": torch.ones(3, 3)},
        "by_gender": {"documents": [x.document]},
        "coreference_heads": {"model": x.reader, "batches": x.documents},
        "dependency_heads": {"model": x.reader, "batches": x.aligned},
        "distance_probe": {**train, "vectors": x.vectors},
        "structural_probe": {"model": x.reader, **train, "epochs": 1, "rank": 4},
        "embedding_vectors": {"model": x.reader},
        "head_arcs": {"view": x.view},
        "head_columns": {"view": x.view},
        "pieces": {"tokenizer": x.tokenizer, "documents": [x.document]},
        "randomized": {"model": x.reader},
        "read_conll_coref": {"path": x.file("")},
        "read_conllu": {"path": x.file("")},
        "read_depparse": {"path": x.file("")},
        "read_gap": {"path": x.file("")},
        "read_json": {"path": x.file("")},
        "read_vectors": {"path": x.file("")},
        "read_winobias": {"path": x.file("")},
        "show_head": {"model": x.reader, "tokenizer": x.tokenizer, "sentence": x.sentence, "head": (0, 1)},
        "word_attention": {"x": uniform, "aligned": [syntax.Aligned(None, (0, 1, 1))]},
    }


def _edge_probing(x: GoodInputs) -> dict[str, dict[str, Any]]:
    both = {"train": x.source, "dev": x.other}
    tasks = {"tasks": {"cats": x.statistics}}
    layers = {"one": {"a": 1.0, "b": 2.0}, "other": {"a": 1.0, "b": 3.0}}
    own = {"words": ("the", "cat"), "predicate": (1, 2), "argument": (0, 1), "scores": {"volition": 5.0}}
    file = x.file("")
    return {
        "bits_of": {"logits": torch.zeros(2, 2), "gold": torch.eye(2)},
        "bracket_pos_edges": {"path": file},
        "code_lengths": {**both, "settings": x.settings},
        "constituent_edges": {"path": file},
        "control_tasks": {"train": x.task},
        "coreference_edges": {"documents": [x.document]},
        "counted_labels": {"labels": ("a", "b")},
        "cumulative_probes": {"source": x.source, "settings": x.settings},
        "dependency_edges": {"treebank": x.treebank},
        "encode": {
            "model": x.reader,
            "tokenizer": x.tokenizer,
            "task": x.task,
            "path": x.folder / f"store {next(_numbers)}",
        },
        "entity_edges": {"path": file},
        "follow_targets": {"trained": x.trained, "source": x.source, "task": x.task},
        "gap_edges": {"path": file},
        "label_trajectories": {"probabilities": torch.full((3, 8, 2), 0.5), "task": x.task},
        "layer_panels": tasks,
        "layer_statistics": {"f1": torch.tensor([0.1, 0.5, 0.9])},
        "layer_table": tasks,
        "conll2009_edges": {"path": file},
        "dpr_edges": {"path": file},
        "layers_of_tasks": tasks,
        "online_code": {"fit": lambda _: None, "uniform": torch.ones(4)},
        "order_agreement": layers,
        "order_of": tasks,
        "pos_edges": {"path": file},
        "probabilities": {"probes": x.probes, "source": x.source},
        "probe_layers": {**both, "settings": x.settings},
        "proto_role_edges": {"rows": [edge_probing.ProtoRole(**own)]},
        "read_edges": {"path": file},
        "score_layers": {"trained": x.trained, "source": x.source},
        "semeval_edges": {"path": file},
        "sentence_strips": {"trajectories": x.trajectories.sentence(0)},
        "shared_types": {"train": x.task, "dev": x.task},
        "shuffled_labels": {"task": x.task},
        "spr1_edges": {"path": file},
        "spr2_edges": {"path": file, "treebank": x.folder},
        "srl_edges": {"path": file},
        "tacred_edges": {"path": file},
        "train_probes": {**both, "probes": x.probes, "settings": x.settings},
        "write_edges": {"task": x.task, "path": x.folder / "task.jsonl"},
    }


def _code_structure(x: GoodInputs) -> dict[str, dict[str, Any]]:
    maps, distance = torch.full((2, 3, 3), 1 / 3), torch.ones(3, 3)
    one = {"model": x.reader, "tokenizer": x.tokenizer, "tree": x.tree, "where": (0, 1)}
    counts = torch.ones(2, 2, dtype=torch.long)
    heads = torch.ones(2, 2, 4, dtype=torch.long)
    return {
        "align_code": {"tokenizer": x.tokenizer, "trees": [x.tree]},
        "attention_and_distance": one,
        "attention_mask": {"attention": maps},
        "cat_counts": {"attention": maps, "distance": distance},
        "cat_mean": {"matched": counts, "either": counts},
        "cat_over_layers": {"comparisons": {"python": x.comparison}},
        "cat_scores": {"model": x.reader, "batches": x.code, "types": "all"},
        "code_arcs": one,
        "distance_mask": {"distance": distance},
        "frequent_types": {"found": x.leaf_types},
        "graph_edges": {"tree": x.tree},
        "leaf_attention": one,
        "leaf_distances": {"tree": x.tree},
        "leaf_types": {"model": x.reader, "batches": x.code},
        "leaves_of": {"types": ("a", "b"), "kept": ("a",)},
        "overlap": {"high": code_structure.attention_mask(maps), "near": distance > 0},
        "parse_code": {"code": "x = 1", "language": "python"},
        "positional": {"attention": maps},
        "published_types": {"language": "python"},
        "rank_sum": {"rankings": [("a", "b")]},
        "read_code": {"path": x.file('{"code": "x = 1", "language": "python"}', "code.jsonl")},
        "related": {"tree": x.tree, "relation": "same block"},
        "relation_heads": {"model": x.reader, "batches": x.code},
        "relation_maps": {"found": x.relations},
        "relation_scores": {"attention": maps, "related": distance > 0},
        "restricted": {"x": maps, "leaves": torch.tensor([0, 1])},
        "scores_of": {
            "matched": counts, "either": counts, "head_matched": heads, "head_either": heads, "names": ("a", "b"),
            "labels": ("0", "1"),
        },
        "shuffled": {"x": maps, "snippet": 0},
        "syntax_tree": {"tree": x.tree},
        "token_map": {"attention": maps, "leaf_of": (0, 1, 1), "leaves": 2},
        "visible": {"leaves": 3},
    }  # fmt: skip


ROOMS = (_on_data, _on_one_batch, _syntax, _edge_probing, _code_structure)


def good_arguments(x: GoodInputs) -> dict[str, dict[str, Any]]:
    """{public function: arguments that it takes}"""
    return {name: arguments for room in ROOMS for name, arguments in room(x).items()}


def good_arguments_of(name: str, x: GoodInputs) -> dict[str, Any]:
    """The arguments of one function, new ones each time; those of other rooms are not made."""
    if not _room_of:
        _room_of.update({one: room for room in ROOMS for one in room(x)})
    return _room_of[name](x)[name]


_room_of: dict[str, Callable[[GoodInputs], dict[str, dict[str, Any]]]] = {}
