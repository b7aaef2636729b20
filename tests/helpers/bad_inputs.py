"""Bad inputs by hand: what a user passes by mistake, and the words that the error must hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

import bertology as bt
from bertology import code_structure as cs
from bertology import edge_probing as ep
from bertology import syntax as sy
from bertology.errors import BertologyError, DataError, LossError, UnknownAnatomy
from helpers.good_inputs import GoodInputs

Call = Callable[[GoodInputs], Any]


class Row(NamedTuple):
    """A bad input: the call, the class of the error, and words of its message."""

    name: str
    call: Call
    error: type[BertologyError]
    words: tuple[str, ...]


ROWS: list[Row] = []


def bad(name: str, call: Call, *words: str, error: type[BertologyError] = DataError) -> None:
    ROWS.append(Row(name, call, error, words))


def each(name: str, calls: dict[str, Callable[..., Any]], values: dict[str, tuple[Any, tuple[str, ...]]],
         error: type[BertologyError] = DataError) -> None:  # fmt: skip
    """Every call with every value."""
    for what, call in calls.items():
        for kind, (value, words) in values.items():
            bad(f"{name}: {what}, {kind}", lambda x, call=call, value=value: call(x, value), *words, error=error)


def made(value: Any, x: GoodInputs) -> Any:
    return value(x) if callable(value) and not isinstance(value, type) else value


# ---- models

MODEL_CALLS = {
    "entropy": lambda x, model: bt.attention_entropy(made(model, x), x.batch),
    "score": lambda x, model: bt.score(made(model, x), x.batch, metric="accuracy"),
    "maps": lambda x, model: bt.attention_maps(made(model, x), x.batch),
    "dependency_heads": lambda x, model: sy.dependency_heads(made(model, x), x.aligned),
}
WANTED = "wanted a model, such as AutoModel.from_pretrained returns"
each(
    "model",
    {**MODEL_CALLS, "dissect": lambda x, model: bt.dissect(made(model, x))},
    {
        "None": (None, (WANTED, "got None")),
        "a name": ("bert-base-uncased", (WANTED, "got str 'bert-base-uncased'")),
        "a class": (transformers.BertModel, (WANTED, "got the class BertModel itself")),
        "a tokenizer": (lambda x: x.tokenizer, (WANTED, "got ")),
        "a list": ([1], (WANTED, "got list")),
        "a config": (transformers.BertConfig(), (WANTED, "got BertConfig")),
    },
    UnknownAnatomy,
)
each(
    "model without heads",
    MODEL_CALLS,
    {"a linear layer": (lambda x: torch.nn.Linear(2, 2), ("no attention heads found in Linear",))},
    UnknownAnatomy,
)


def on_meta(x: GoodInputs) -> Any:
    with torch.device("meta"):
        return x.bert("BertForSequenceClassification")


each(
    "model on the meta device",
    {
        **{name: MODEL_CALLS[name] for name in ("entropy", "score", "maps")},
        "importance": lambda x, model: bt.head_importance(made(model, x), x.batch),
        "head_outputs": lambda x, model: bt.head_outputs(made(model, x), x.batch),
        "check_anatomy": lambda x, model: bt.check_anatomy(made(model, x), x.batch),
        "curve": lambda x, model: bt.pruning_curve(made(model, x), x.batch, metric="accuracy"),
        "efficiency": lambda x, model: bt.compare_efficiency(made(model, x), x.model, x.batch),
        "show_head": lambda x, model: sy.show_head(made(model, x), x.tokenizer, x.sentence, (0, 1)),
        "embedding_vectors": lambda x, model: sy.embedding_vectors(made(model, x)),
        "encode": lambda x, model: ep.encode(made(model, x), x.tokenizer, x.task, x.folder / "meta"),
    },
    {"bert": (on_meta, ("the weights of Bert", "meta device", "load them"))},
)

# ---- batches

BATCH_CALLS = {
    "entropy": lambda x, batch: bt.attention_entropy(x.model, made(batch, x)),
    "importance": lambda x, batch: bt.head_importance(x.model, made(batch, x)),
    "maps": lambda x, batch: bt.attention_maps(x.model, made(batch, x)),
    "ablation": lambda x, batch: bt.head_ablation(x.model, made(batch, x), metric="accuracy"),
    "efficiency": lambda x, batch: bt.compare_efficiency(x.model, x.copied(), made(batch, x), batch_sizes=(1,)),
}
STREAMS = {name: BATCH_CALLS[name] for name in ("entropy", "importance", "ablation")}
TWO = torch.tensor([0, 1])
each(
    "batches",
    BATCH_CALLS,
    {
        "None": (None, ("must be", "mapping", "got None")),
        "a text": ("a text", ("must be", "mapping", "got 'a text' (str)", "tokenizer")),
        "a number": (3, ("must be", "mapping", "got 3 (int)")),
        "no keys": ({}, ("needs input_ids or inputs_embeds", "no keys at all")),
        "only text": ({"text": ["a text"]}, ("needs input_ids or inputs_embeds", "got text")),
        "text as ids": ({"input_ids": "a text"}, ("input_ids must be a tensor", "got str", "return_tensors='pt'")),
        "lists": ({"input_ids": [[5, 6]]}, ("input_ids must be a tensor", "got list", "return_tensors='pt'")),
        "no example": ({"input_ids": torch.zeros(0, 4).long()}, ("input_ids is empty", "[0, 4]")),
        "no token": ({"input_ids": torch.zeros(2, 0).long()}, ("input_ids is empty", "[2, 0]")),
        "a text without a batch axis": (
            {"input_ids": torch.tensor([5, 6]), "labels": torch.tensor(1)},
            ("input_ids must be [batch, token], got [2]", "x[None]", "DataLoader"),
        ),
        "embeddings without a batch axis": (
            {"inputs_embeds": torch.ones(2, 16), "labels": torch.tensor(1)},
            ("inputs_embeds must be [batch, token, hidden], got [2, 16]", "x[None]"),
        ),
        "a token alone": ({"input_ids": torch.tensor(5)}, ("input_ids must be [batch, token], got []", "[None]")),
        "four axes": ({"input_ids": torch.ones(1, 1, 2, 3).long(), "labels": TWO[:1]}, ("[batch, token]", "[1, 1, 2, 3]")),
        "floats": ({"input_ids": torch.ones(2, 3), "labels": TWO}, ("input_ids must hold whole numbers", "got float32")),
        "booleans": ({"input_ids": torch.ones(2, 3).bool(), "labels": TWO}, ("input_ids must hold whole numbers", "got bool")),
        "on meta": ({"input_ids": torch.ones(2, 3, device="meta").long(), "labels": TWO}, ("input_ids is on the meta device",)),
        "a large token": ({"input_ids": torch.tensor([[5, 200], [4, 5]]), "labels": TWO}, ("token 200", "99 tokens, from 0 to 98")),
        "a negative token": ({"input_ids": torch.tensor([[5, -1], [4, 5]]), "labels": TWO}, ("token -1", "99 tokens, from 0 to 98")),
        "a long text": ({"input_ids": torch.ones(2, 80).long(), "labels": TWO}, ("80 tokens, the model takes 64", "truncation=True")),
        "a short mask": (
            {"input_ids": torch.ones(2, 4).long(), "attention_mask": torch.ones(2, 3), "labels": TWO},
            ("attention_mask must have the shape of input_ids, [2, 4], got [2, 3]",),
        ),
        "a mask of one text": (
            {"input_ids": torch.ones(2, 4).long(), "attention_mask": torch.ones(1, 4), "labels": TWO},
            ("attention_mask must have the shape of input_ids, [2, 4], got [1, 4]",),
        ),
        "a mask without batch": (
            {"input_ids": torch.ones(2, 4).long(), "attention_mask": torch.ones(4), "labels": TWO},
            ("attention_mask must have the shape of input_ids, [2, 4], got [4]",),
        ),
        "a mask as list": (
            {"input_ids": torch.ones(2, 4).long(), "attention_mask": [[1] * 4] * 2, "labels": TWO},
            ("attention_mask must be a tensor", "got list"),
        ),
        "a mask of NaN": (
            {"input_ids": torch.ones(2, 4).long(), "attention_mask": torch.full((2, 4), float("nan")), "labels": TWO},
            ("attention_mask holds NaN", "1 for real tokens"),
        ),
        "segments out of range": (
            {"input_ids": torch.ones(2, 4).long(), "token_type_ids": torch.full((2, 4), 2), "labels": TWO},
            ("token_type_ids must be from 0 to 1, got 2",),
        ),
        "segments of another shape": (
            {"input_ids": torch.ones(2, 4).long(), "token_type_ids": torch.zeros(2, 3).long(), "labels": TWO},
            ("token_type_ids must have the shape of input_ids",),
        ),
        "positions out of range": (
            {"input_ids": torch.ones(2, 4).long(), "position_ids": torch.full((2, 4), 64), "labels": TWO},
            ("position_ids must be from 0 to 63, got 64",),
        ),
        "annotations of None": (
            {"input_ids": torch.ones(2, 4).long(), "annotations": None, "labels": TWO},
            ("annotations must be a list with one entry per example, got NoneType",),
        ),
        "labels in a list": (
            {"input_ids": torch.ones(2, 4).long(), "labels": [0, 1]}, ("labels must be a tensor, got list", "torch.tensor")
        ),
        "a sparse tensor": ({"input_ids": torch.ones(2, 4).long().to_sparse(), "labels": TWO}, ("dense tensor", "to_dense()")),
        "a key that is a number": ({"input_ids": torch.ones(2, 4).long(), 0: TWO, "labels": TWO}, ("0",)),
        "ids and embeddings": (
            {"input_ids": torch.ones(2, 4).long(), "inputs_embeds": torch.ones(2, 4, 16), "labels": TWO},
            ("input_ids or inputs_embeds, got both",),
        ),
        "embeddings of another width": (
            {"inputs_embeds": torch.ones(2, 4, 7), "labels": TWO}, ("hidden = 16], got", "4, 7]")
        ),
        "images": ({"pixel_values": torch.ones(2, 3, 8, 8), "labels": TWO}, ("pixel_values", "takes", "input_ids")),
        "a mask of few keys": (
            {"input_ids": torch.ones(2, 4).long(), "attention_mask": torch.ones(2, 1, 3, 3), "labels": TWO},
            ("a value for each of the 4 keys, got [2, 1, 3, 3]",),
        ),
        "a mask in a dictionary": (
            {"input_ids": torch.ones(2, 4).long(), "attention_mask": {"full_attention": None}, "labels": TWO},
            ("attention_mask", "full_attention", "[batch, token]"),
        ),
        "annotations": (
            {"input_ids": torch.ones(2, 4).long(), "annotations": ["one"], "labels": TWO},
            ("annotations must have one entry per example", "1 entry for 2 examples"),
        ),
    },
)  # fmt: skip
each(
    "a stream",
    STREAMS,
    {
        "of nothing": ([], ("no batches", "got an empty one")),
        "of texts": (["a text"], ("a batch must be a mapping", "got str")),
        "of None": ([None], ("a batch must be a mapping", "got NoneType")),
        "of tensors": (torch.ones(2, 3).long(), ("a batch must be a mapping", "got Tensor")),
        "read before": (lambda x: iter(()), ("no batches", "got an empty one")),
        "a mask of zeros": (
            {"input_ids": torch.ones(2, 4).long(), "attention_mask": torch.zeros(2, 4), "labels": TWO},
            ("attention_mask marks no real token in example(s) [0, 1]",),
        ),
        "one example of padding": (
            {"input_ids": torch.ones(2, 4).long(), "attention_mask": torch.eye(2, 4)[[0, 0]] * TWO[:, None], "labels": TWO},
            ("attention_mask marks no real token in example(s) [0]",),
        ),
        "an infinite mask": (
            {"input_ids": torch.ones(2, 4).long(), "attention_mask": torch.full((2, 4), float("inf")), "labels": TWO},
            ("attention_mask must be 1 for real tokens and 0 for padding, got inf",),
        ),
        "a complex mask": (
            {"input_ids": torch.ones(2, 4).long(), "attention_mask": torch.ones(2, 4) * 1j, "labels": TWO},
            ("attention_mask must be 1 for real tokens and 0 for padding, got complex numbers",),
        ),
        "an additive mask": (
            {"input_ids": torch.ones(2, 4).long(), "attention_mask": torch.tensor([[0, 0, 0, -1e9]] * 2), "labels": TWO},
            ("attention_mask must be 1 for real tokens and 0 for padding, got -1",),
        ),
        "a second batch without inputs": (
            [{"input_ids": torch.ones(2, 4).long(), "labels": TWO}, {"labels": TWO}],
            ("needs input_ids or inputs_embeds", "got labels"),
        ),
    },
)  # fmt: skip
FULL = torch.ones(2, 1, 4, 4).bool()
each(
    "masks that do not show padding",
    {
        "entropy": lambda x, batch: bt.attention_entropy(x.model, batch),
        "patterns": lambda x, batch: bt.attention_patterns(x.model, batch),
        "means": lambda x, batch: bt.head_means(x.model, batch),
        "mean of outputs": lambda x, batch: bt.head_outputs(x.model, batch).mean(),
    },
    {"of four axes": ({"input_ids": torch.ones(2, 4).long(), "attention_mask": FULL}, ("attention", "mask"))},
)  # fmt: skip
bad("a model's own unknown argument", lambda x: bt.attention_entropy(x.gpt2, {**x.batch, "colour": 1, "input_ids": x.ids + 99}), "token", "99 tokens")  # fmt: skip
bad("decoder tokens", lambda x: bt.attention_entropy(x.t5, {"input_ids": x.ids, "decoder_input_ids": x.ids + 40}), "decoder_input_ids", "40 tokens")  # fmt: skip
bad("labels for a decoder", lambda x: bt.attention_entropy(x.t5, {"input_ids": x.ids, "labels": x.ids + 40}), "40 tokens")  # fmt: skip
bad("generator for a curve", lambda x: bt.pruning_curve(x.model, iter([x.batch]), metric="accuracy"), "several times", "not an iterator")  # fmt: skip
bad("generator for a series", lambda x: bt.importance_through_training([(0, x.model)], iter([x.batch])), "several times", "not an iterator")  # fmt: skip
bad("generator for means", lambda x: bt.head_ablation(x.model, iter([x.batch]), metric="accuracy", replace="mean"), "several times", "not an iterator")  # fmt: skip

# ---- metrics and scores

METRIC_CALLS = {
    "score": lambda x, metric: bt.score(x.model, x.batch, metric=metric),
    "ablation": lambda x, metric: bt.head_ablation(x.model, x.batch, metric=metric),
    "curve": lambda x, metric: bt.pruning_curve(x.model, x.batch, metric=metric, amount=8),
}
each(
    "metric",
    METRIC_CALLS,
    {
        "unknown": ("acuracy", ("no metric is called 'acuracy'", "accuracy")),
        "that gives None": (lambda logits, labels: None, ("must return one number", "got None")),
        "that gives a text": (lambda logits, labels: "0.5", ("must return one number", "got '0.5' (str)")),
        "that gives several": (lambda logits, labels: {"a": 1, "b": 2}, ("must return one number", "got 2: a, b")),
        "that gives none": (lambda logits, labels: {}, ("must return one number", "got 0")),
        "that gives a tensor": (lambda logits, labels: torch.ones(2), ("must return one number", "got a tensor [2]")),
        "that gives a list": (lambda logits, labels: [0.5], ("must return one number", "got list")),
        "that gives NaN": (lambda logits, labels: float("nan"), ("is NaN over 2",)),
    },
)  # fmt: skip
bad(
    "score without labels",
    lambda x: bt.score(x.model, {"input_ids": x.ids}, metric="accuracy"),
    "labels in every batch",
)
bad("importance without labels", lambda x: bt.head_importance(x.model, {"input_ids": x.ids}), "needs labels in every batch", error=LossError)  # fmt: skip
bad("score without logits", lambda x: bt.score(x.bert(), x.batch, metric="accuracy"), "logits from the model", "inverse_loss")  # fmt: skip
bad("importance without a task", lambda x: bt.head_importance(x.bert(), x.batch), "no loss is known for BertModel", error=LossError)  # fmt: skip
bad("granularity", lambda x: bt.head_importance(x.model, x.batch, granularity="word"), "'example' or 'token'", "got 'word'")  # fmt: skip
bad("loss of a wrong shape", lambda x: bt.head_importance(x.model, x.batch, loss=lambda out, batch: out.logits), "one value per example", "[2, 2]", error=LossError)  # fmt: skip
bad("loss that is a number", lambda x: bt.head_importance(x.model, x.batch, loss=lambda out, batch: 1.0), "one value per example", "got float", error=LossError)  # fmt: skip
bad("loss by a name", lambda x: bt.head_outputs(x.model, x.batch, loss="own"), "'auto'", "got 'own'")

# ---- options of measures

OPTIONS: dict[str, tuple[Call, tuple[str, ...]]] = {
    "rows=0": (lambda x: bt.attention_entropy(x.model, x.batch, rows=0), ("rows", "from 1 up", "got 0")),
    "rows=True": (lambda x: bt.attention_entropy(x.model, x.batch, rows=True), ("rows", "whole number", "got True")),
    "rows=1.5": (lambda x: bt.repeat_scores(x.model, x.batch, rows=1.5), ("rows", "whole number", "got 1.5")),
    "average": (lambda x: bt.attention_entropy(x.model, x.batch, average="text"), ("average", "'text'")),
    "sink_threshold=2": (lambda x: bt.attention_patterns(x.model, x.batch, sink_threshold=2), ("sink_threshold", "got 2")),
    "sink_threshold=nan": (lambda x: bt.attention_patterns(x.model, x.batch, sink_threshold=float("nan")), ("sink_threshold", "nan")),
    "smoothing=-1": (lambda x: bt.head_distances(x.model, x.batch, smoothing=-1), ("smoothing", "got -1")),
    "smoothing=nan": (lambda x: bt.head_distances(x.model, x.batch, smoothing=float("nan")), ("smoothing", "nan")),
    "reduce": (lambda x: bt.head_distances(x.model, x.batch, reduce="median"), ("reduce", "'median'")),
    "a class without ids": (lambda x: bt.attention_patterns(x.model, x.batch, tokens={"none": []}), ("class 'none'", "token ids")),
    "a class of floats": (lambda x: bt.attention_patterns(x.model, x.batch, tokens={"some": [0.5]}), ("class 'some' must be token ids", "0.5")),
    "a class called other": (lambda x: bt.attention_patterns(x.model, x.batch, tokens={"other": [5]}), ("'other' is taken",)),
    "strings without a tokenizer": (lambda x: bt.attention_patterns(x.model, x.batch, tokens={"dot": "."}), ("pass tokenizer=",)),
    "a string that is no token": (
        lambda x: bt.attention_patterns(x.model, x.batch, tokens={"zzz": "zzzz"}, tokenizer=x.tokenizer),
        ("'zzzz' is not a token of this tokenizer",),
    ),
    "a model as tokenizer": (
        lambda x: bt.attention_patterns(x.model, x.batch, tokens={"dot": "."}, tokenizer=x.model),
        ("tokenizer", "BertForSequenceClassification"),
    ),
    "a token outside": (lambda x: bt.attention_patterns(x.model, x.batch, tokens={"five": [-5]}), ("class 'five'", "-5")),
    "a class of bools": (lambda x: bt.attention_patterns(x.model, x.batch, tokens={"x": [True]}), ("class 'x'", "True")),
    "gradients without classes": (lambda x: bt.attention_gradients(x.model, x.batch, tokens={}), ("class",)),
    "head_behaviours nan": (lambda x: bt.head_behaviours(x.patterns, threshold=float("nan")), ("threshold", "nan")),
    "repeated_tokens, length 0": (lambda x: bt.repeated_tokens(range(5, 20), length=0), ("length", "0")),
    "repeated_tokens, times 1": (lambda x: bt.repeated_tokens(range(5, 20), length=3, times=1), ("times", "1")),
    "repeated_tokens, examples -1": (lambda x: bt.repeated_tokens(range(5, 20), length=3, examples=-1), ("examples", "-1")),
    "repeated_tokens, empty": (lambda x: bt.repeated_tokens([], length=3), ("length from 1 to 0, the number of ids",)),
    "repeated_tokens, too few": (lambda x: bt.repeated_tokens(range(5, 7), length=3), ("3", "2")),
    "repeated_tokens, seed": (lambda x: bt.repeated_tokens(range(5, 20), length=3, seed=-1), ("seed", "-1")),
    "seed of a random order": (
        lambda x: bt.pruning_curve(x.model, x.batch, metric="accuracy", by="random", seed=2**70), ("seed",)
    ),
    "seed of draws": (
        lambda x: bt.head_ablation(x.model, x.batch, metric="accuracy", replace="resample", seed=2**70), ("seed",)
    ),
    "by": (lambda x: bt.pruning_curve(x.model, x.batch, metric="accuracy", by="size"), ("by", "'size'", "'magnitude'")),
    "amount=0": (lambda x: bt.pruning_curve(x.model, x.batch, metric="accuracy", amount=0), ("amount", "0")),
    "amount=nan": (lambda x: bt.pruning_curve(x.model, x.batch, metric="accuracy", amount=float("nan")), ("amount", "nan")),
    "threshold=2": (lambda x: bt.pruning_curve(x.model, x.batch, metric="accuracy", threshold=2), ("threshold", "2")),
    "keep=-1": (lambda x: bt.pruning_curve(x.model, x.batch, metric="accuracy", keep=-1), ("keep", "-1")),
    "keep=1.5": (lambda x: bt.pruning_curve(x.model, x.batch, metric="accuracy", keep=1.5), ("keep", "1.5")),
    "normalize": (lambda x: bt.pruning_curve(x.model, x.batch, metric="accuracy", normalize="max"), ("normalize", "'max'")),
    "only": (lambda x: bt.pruning_curve(x.model, x.batch, metric="accuracy", only="decoder"), ("only", "'decoder'")),
    "scores of another model": (
        lambda x: bt.pruning_curve(x.model, x.batch, metric="accuracy", by=torch.ones(3, 4)), ("[2, 4]", "[3, 4]")
    ),
    "batch sizes": (lambda x: bt.compare_efficiency(x.model, x.copied(), x.batch, batch_sizes=(0,)), ("batch_sizes", "0")),
    "no batch sizes": (lambda x: bt.compare_efficiency(x.model, x.copied(), x.batch, batch_sizes=()), ("batch_sizes",)),
    "rounds": (lambda x: bt.compare_efficiency(x.model, x.copied(), x.batch, rounds=0), ("rounds", "0")),
    "seconds": (lambda x: bt.compare_efficiency(x.model, x.copied(), x.batch, batch_sizes=(1,), seconds=-1), ("seconds", "-1")),
    "before is after": (lambda x: bt.compare_efficiency(x.model, x.model, x.batch), ("one model", "deepcopy")),
    "checkpoint is a folder": (
        lambda x: bt.accumulate(x.model, x.batch, bt.EntropyAccumulator(), checkpoint=x.folder), ("checkpoint must be a file",)
    ),
    "checkpoint is damaged": (
        lambda x: bt.accumulate(x.model, x.batch, bt.EntropyAccumulator(), checkpoint=x.file("damaged", "sums")),
        ("cannot be read", "remove it"),
    ),
    "no accumulator but a class": (
        lambda x: bt.accumulate(x.model, x.batch, bt.EntropyAccumulator), ("takes accumulators", "call it, EntropyAccumulator()")
    ),
    "no accumulator but a name": (lambda x: bt.accumulate(x.model, x.batch, "entropy"), ("takes accumulators", "entropy")),
    "checkpoints that are no pairs": (lambda x: bt.importance_through_training([x.model], x.batch), ("pairs (step, model)",)),
    "no checkpoints": (lambda x: bt.importance_through_training([], x.batch), ("no checkpoints",)),
    "a step twice": (lambda x: bt.importance_through_training([(0, x.model)] * 2, x.batch), ("step 0 comes twice",)),
    "a checkpoint that is a number": (lambda x: bt.importance_through_training([(0, 5)], x.batch), ("model or a folder", "int")),
    "a folder that is missing": (
        lambda x: bt.importance_through_training([(0, str(x.folder / "no"))], x.batch), ("no", "folder")
    ),
    "load that returns no model": (
        lambda x: bt.importance_through_training([(0, "a")], x.batch, load=lambda folder: None), ("wanted a model", "got None")
    ),
}  # fmt: skip
for _name, (_call, _words) in OPTIONS.items():
    bad(_name, _call, *_words, error=BertologyError)

# ---- results

RESULTS: dict[str, tuple[Call, tuple[str, ...]]] = {
    "normalized": (lambda x: x.importance.normalized("max"), ("'layer' or 'all'", "'max'")),
    "stack that is not there": (lambda x: x.importance.stack("middle"), ("no stack 'middle'",)),
    "stack by a number": (lambda x: x.importance.stack(0), ("name", "0")),
    "plot of a field that is not there": (lambda x: x.importance.plot(field="size"), ("size",)),
    "plot with another option": (lambda x: x.importance.plot(colour=1), ("colour", "HeadImportance")),
    "save to None": (lambda x: x.importance.save(None), ("path", "None")),
    "save to a folder": (lambda x: x.importance.save(x.folder), ("folder",)),
    "save in a missing folder": (lambda x: x.importance.save(x.folder / "no" / "file"), ("no",)),
    "load of None": (lambda x: bt.Result.load(None), ("path", "None")),
    "load of a missing file": (lambda x: bt.Result.load(x.folder / "no.safetensors"), ("no.safetensors",)),
    "load of a folder": (lambda x: bt.Result.load(x.folder), ("wanted a file",)),
    "load of a text": (lambda x: bt.Result.load(x.file("text", "text.safetensors")), ("text.safetensors",)),
    "load of an empty file": (lambda x: bt.Result.load(x.file("", "empty.safetensors")), ("empty.safetensors",)),
    "entropy has no threshold": (lambda x: x.entropy.stack(None), ("name", "None")),
    "step of a series": (
        lambda x: bt.importance_through_training([(0, x.model)], x.batch).at(5), ("step 5 is not in this series",)
    ),
    "step that is a text": (lambda x: bt.importance_through_training([(0, x.model)], x.batch).at("5"), ("step", "'5'")),
    "correlation, normalize": (
        lambda x: bt.importance_through_training([(0, x.model)], x.batch).correlation("max"), ("'max'",)
    ),
    "mask, threshold": (
        lambda x: bt.pruning_curve(x.model, x.batch, metric="accuracy", amount=8).mask("high"), ("threshold", "'high'")
    ),
    "mask, threshold of 3": (
        lambda x: bt.pruning_curve(x.model, x.batch, metric="accuracy", amount=8).mask(3), ("threshold", "3")
    ),
    "heads_off, threshold": (
        lambda x: bt.pruning_curve(x.model, x.batch, metric="accuracy", amount=8).heads_off(-1), ("threshold", "-1")
    ),
    "between": (lambda x: bt.head_distances(x.model, x.batch).between("a", "b"), ("'a'",)),
    "clusters": (lambda x: bt.head_distances(x.model, x.batch).clusters(0), ("0",)),
    "clusters by a text": (lambda x: bt.head_distances(x.model, x.batch).clusters("two"), ("'two'",)),
    "embed": (lambda x: bt.head_distances(x.model, x.batch).embed(0), ("0",)),
    "attention_to": (lambda x: x.patterns.attention_to("commas"), ("commas",)),
    "attention_to None": (lambda x: x.patterns.attention_to(None), ("None",)),
    "gradient_to": (
        lambda x: bt.attention_gradients(x.model, x.batch, tokens={"five": [5]}).gradient_to("six"), ("six",)
    ),
    "correlation of ablations": (
        lambda x: bt.head_ablation(x.model, x.batch, metric="accuracy").correlation(None), ("other", "None")
    ),
    "correlation of what": (
        lambda x: (found := bt.head_ablation(x.model, x.batch, metric="accuracy")).correlation(found, of="f1"), ("of", "'f1'")
    ),
    "significance, test": (
        lambda x: bt.head_ablation(x.model, x.batch, metric="accuracy").significance(test="z"), ("'z'",)
    ),
    "values of several stacks": (
        lambda x: bt.attention_maps(x.t5, {"input_ids": x.ids, "decoder_input_ids": x.ids}).values, ("several stacks",)
    ),
    "gradients that were not asked for": (lambda x: bt.head_outputs(x.model, x.batch).gradients, ("loss='auto'",)),
    "resolve": (lambda x: bt.dissect(x.model).resolve([(0, 9)]), ("head 9 of layer 0 is out of range",)),
    "tap of no place": (lambda x: bt.tap(bt.dissect(x.model), "head", read=print).__enter__(), ("no place is called 'head'",)),
    "tap that does nothing": (lambda x: bt.tap(bt.dissect(x.model), "heads").__enter__(), ("read= and edit=",)),
    "tap that edits attention": (
        lambda x: bt.tap(bt.dissect(x.model), "attention", edit=print).__enter__(), ("read but not edited",)
    ),
    "tap, rows": (lambda x: bt.tap(bt.dissect(x.model), "attention", read=print, rows=0).__enter__(), ("rows",)),
    "axes that are a list": (lambda x: bt.axes(["layer"]), ("names", "list")),
    "stat of a number": (lambda x: bt.stat(3), ("axes", "3")),
}  # fmt: skip
for _name, (_call, _words) in RESULTS.items():
    bad(_name, _call, *_words, error=BertologyError)

# ---- syntax

SYNTAX: dict[str, tuple[Call, tuple[str, ...]]] = {
    "align, a slow tokenizer": (lambda x: sy.align(object(), x.treebank), ("object is a slow tokenizer", "load a fast one")),
    "align, a model": (lambda x: sy.align(x.model, x.treebank), ("tokenizer", "BertForSequenceClassification")),
    "align, texts": (lambda x: sy.align(x.tokenizer, ["the cat sat"]), ("sources", "'the cat sat'")),
    "align, nothing": (lambda x: sy.align(x.tokenizer, []), ("none of 0 texts",)),
    "align, batch_size": (lambda x: sy.align(x.tokenizer, x.treebank, batch_size=0), ("batch_size", "0")),
    "align, max_length": (lambda x: sy.align(x.tokenizer, x.treebank, max_length=2), ("longer than 2 tokens",)),
    "pieces, max_length": (lambda x: sy.pieces(x.tokenizer, [x.document], max_length=1), ("max_length=1",)),
    "pieces, at": (lambda x: sy.pieces(x.tokenizer, [x.document], at="line"), ("'sentence' or 'word'", "'line'")),
    "pieces, a model": (lambda x: sy.pieces(x.model, [x.document]), ("tokenizer", "BertForSequenceClassification")),
    "pieces, sentences": (lambda x: sy.pieces(x.tokenizer, x.treebank), ("documents", "Sentence")),
    "dependency_heads, plain batches": (lambda x: sy.dependency_heads(x.model, x.batch), ("align",)),
    "dependency_heads, documents": (lambda x: sy.dependency_heads(x.reader, x.documents), ("Document",)),
    "dependency_heads, rows": (lambda x: sy.dependency_heads(x.reader, x.aligned, rows="sum"), ("rows", "'sum'")),
    "coreference_heads, sentences": (lambda x: sy.coreference_heads(x.reader, x.aligned), ("Sentence",)),
    "coreference_heads, candidates": (
        lambda x: sy.coreference_heads(x.reader, x.documents, candidates="all"), ("candidates", "'all'")
    ),
    "antecedent_baselines, candidates": (lambda x: sy.antecedent_baselines([x.document], candidates="all"), ("'all'",)),
    "antecedent_baselines, sentences": (lambda x: sy.antecedent_baselines([x.sentence]), ("Sentence",)),
    "by_gender, sentences": (lambda x: sy.by_gender([x.sentence]), ("documents", "Sentence")),
    "best_tree, one axis": (lambda x: sy.best_tree(torch.ones(3)), ("[3]",)),
    "best_tree, NaN": (lambda x: sy.best_tree(torch.full((3, 4), float("nan"))), ("finite", "NaN")),
    "best_tree, empty": (lambda x: sy.best_tree(torch.ones(0, 0)), ("[0, 0]",)),
    "attention_probe, plain batches": (lambda x: sy.attention_probe(x.reader, [x.batch], [x.batch]), ("align", "list")),
    "attention_probe, epochs": (lambda x: sy.attention_probe(x.reader, x.aligned, x.aligned, epochs=0), ("epochs", "0")),
    "attention_probe, lr": (lambda x: sy.attention_probe(x.reader, x.aligned, x.aligned, lr=-1), ("lr", "-1")),
    "attention_probe, lr nan": (lambda x: sy.attention_probe(x.reader, x.aligned, x.aligned, lr=float("nan")), ("lr", "nan")),
    "attention_probe, decode": (lambda x: sy.attention_probe(x.reader, x.aligned, x.aligned, decode="max"), ("decode", "'max'")),
    "attention_probe, vectors": (lambda x: sy.attention_probe(x.reader, x.aligned, x.aligned, vectors="glove"), ("vectors", "'glove'")),
    "attention_probe, seed": (lambda x: sy.attention_probe(x.reader, x.aligned, x.aligned, seed=2**70), ("seed",)),
    "structural_probe, rank": (lambda x: sy.structural_probe(x.reader, x.aligned, x.aligned, rank=0), ("rank", "got 0")),
    "structural_probe, lr": (lambda x: sy.structural_probe(x.reader, x.aligned, x.aligned, lr=-1), ("lr", "-1")),
    "distance_probe, vectors": (lambda x: sy.distance_probe(x.aligned, x.aligned, vectors="glove"), ("vectors", "'glove'")),
    "randomized, seed": (lambda x: sy.randomized(x.reader, seed=2**70), ("seed",)),
    "show_head, a text": (lambda x: sy.show_head(x.reader, x.tokenizer, "the cat sat", (0, 1)), ("sentence", "'the cat sat'")),
    "show_head, a head": (lambda x: sy.show_head(x.reader, x.tokenizer, x.sentence, (7, 1)), ("layer 7 is out of range",)),
    "show_head, a number": (lambda x: sy.show_head(x.reader, x.tokenizer, x.sentence, 3), ("head", "3")),
    "show_head, direction": (
        lambda x: sy.show_head(x.reader, x.tokenizer, x.sentence, (0, 1), direction="up"), ("direction", "'up'")
    ),
    "head_arcs, threshold": (lambda x: sy.head_arcs(x.view, threshold=-1), ("threshold", "-1")),
    "head_arcs, path": (lambda x: sy.head_arcs(x.view, path=x.folder / "no" / "a.png"), ("no",)),
    "word_attention, two axes": (lambda x: sy.word_attention(torch.ones(3, 3), [sy.Aligned(None, (0, 1, 1))]), ("[3, 3]",)),
    "word_attention, no examples": (lambda x: sy.word_attention(torch.ones(0, 2, 3, 3), []), ("one example or more", "0 examples")),
    "word_attention, words": (lambda x: sy.word_attention(torch.ones(1, 2, 3, 3), [x.sentence]), ("aligned", "Sentence")),
    "sentence, words as a string": (lambda x: sy.Sentence("the", (2, 3, 0), ("a", "b", "c")), ("words", "'the'")),
    "sentence, a cycle": (lambda x: sy.Sentence(("a", "b"), (2, 1), ("x", "y")), ("cycle",)),
    "sentence, heads": (lambda x: sy.Sentence(("a", "b"), (5, 0), ("x", "y")), ("from 0 (the root) to 2", "5")),
    "sentence, no relations": (lambda x: sy.Sentence(("a", "b"), (2, 0), None), ("relations", "None")),
    "mention, a span": (lambda x: sy.Mention(3, 2, 2, 0, "nominal"), ("start 3 and end 2",)),
    "mention, kind": (lambda x: sy.Mention(0, 1, 0, 0, "verb"), ("'verb'",)),
    "mention, texts": (lambda x: sy.Mention("0", 1, 0, 0, "nominal"), ("start", "'0'")),
    "document, words as a string": (lambda x: sy.Document("the", ()), ("words", "'the'")),
    "document, mentions": (lambda x: sy.Document(("a",), ((0, 1),)), ("mentions", "tuple")),
    "vectors, a short table": (lambda x: sy.StaticVectors(["a", "b"], torch.ones(1, 4)), ("[1, 4]",)),
    "vectors, a flat table": (lambda x: sy.StaticVectors(["a"], torch.ones(4)), ("[4]",)),
    "dependency accumulator, a string": (lambda x: sy.DependencyAccumulator("nsubj"), ("relations", "'nsubj'")),
    "coreference accumulator": (lambda x: sy.CoreferenceAccumulator(candidates=3), ("candidates", "3")),
}  # fmt: skip
for _name, (_call, _words) in SYNTAX.items():
    bad(_name, _call, *_words, error=BertologyError)

# ---- edge probing

PROBING: dict[str, tuple[Call, tuple[str, ...]]] = {
    "record, words as a string": (lambda x: ep.Record("the cat", ()), ("words", "'the cat'")),
    "target, a span": (lambda x: ep.Target((2, 1), ("a",)), ("span1 is [2, 1]", "a later end")),
    "target, labels as a string": (lambda x: ep.Target((0, 1), "label"), ("labels", "'label'")),
    "target, a number": (lambda x: ep.Target(1, ("a",)), ("span1", "1")),
    "task, no records": (lambda x: ep.EdgeTask.of("none", []), ("none",)),
    "task, texts": (lambda x: ep.EdgeTask.of("texts", ["the cat"]), ("records", "'the cat'")),
    "task.first": (lambda x: x.task.first(0), ("0",)),
    "task.split": (lambda x: x.task.split(2.0), ("2.0",)),
    "task.with_labels": (lambda x: x.task.with_labels(("x",)), ("nn",)),
    "training, lr": (lambda x: ep.Training(lr=-1), ("lr", "-1")),
    "training, a text": (lambda x: ep.Training(lr="fast"), ("lr", "'fast'")),
    "training, batch_size": (lambda x: ep.Training(batch_size=0), ("batch_size", "0")),
    "training, dropout": (lambda x: ep.Training(dropout=2.0), ("dropout", "2.0")),
    "training, order": (lambda x: ep.Training(order=True), ("order", "True")),
    "training, choose_by": (lambda x: ep.Training(choose_by="size"), ("choose_by", "'size'")),
    "probes, layers": (lambda x: ep.Probes(torch.tensor([0, 1]), 4, 2, 1), ("layers",)),
    "probes, hidden": (lambda x: ep.Probes(torch.tensor([[True, False]]), 0, 2, 1), ("hidden", "0")),
    "encode, a text": (lambda x: ep.encode(x.reader, x.tokenizer, "the cat", x.folder / "a"), ("task", "'the cat'")),
    "encode, a file": (lambda x: ep.encode(x.reader, x.tokenizer, x.task, x.file("x", "occupied")), ("occupied",)),
    "encode, a model as tokenizer": (lambda x: ep.encode(x.reader, x.model, x.task, x.folder / "b"), ("tokenizer",)),
    "encode, batch_size": (lambda x: ep.encode(x.reader, x.tokenizer, x.task, x.folder / "c", batch_size=0), ("batch_size", "0")),
    "encode, dtype": (lambda x: ep.encode(x.reader, x.tokenizer, x.task, x.folder / "d", dtype=torch.int8), ("dtype", "int8")),
    "encode, lexical": (lambda x: ep.encode(x.reader, x.tokenizer, x.task, x.folder / "e", lexical="none"), ("lexical", "'none'")),
    "encode, max_length": (lambda x: ep.encode(x.reader, x.tokenizer, x.task, x.folder / "f", max_length=1), ("none of 8 texts can be used", "longer than 1 token")),
    "encode, a missing folder": (lambda x: ep.encode(x.reader, x.tokenizer, x.task, x.folder / "no" / "g"), ("no",)),
    "store, missing": (lambda x: ep.Store.open(x.folder / "missing"), ("holds no encoded task",)),
    "store, a file": (lambda x: ep.Store.open(x.file("x", "no store")), ("no store",)),
    "store, None": (lambda x: ep.Store.open(None), ("path", "None")),
    "probe_layers, a task": (lambda x: ep.probe_layers(x.task, x.task), ("train must be a Store, such as encode returns", "EdgeTask")),
    "probe_layers, no seeds": (lambda x: ep.probe_layers(x.source, x.source, seeds=(), settings=x.settings), ("seed",)),
    "probe_layers, a seed": (lambda x: ep.probe_layers(x.source, x.source, seeds=(-1,), settings=x.settings), ("seed", "-1")),
    "probe_layers, device": (
        lambda x: ep.probe_layers(x.source, x.source, settings=x.settings, device="gpu"), ("device", "gpu")
    ),
    "train_probes, checkpoint": (
        lambda x: ep.train_probes(x.source, x.source, x.probes, x.settings, checkpoint=x.folder), ("checkpoint",)
    ),
    "probabilities, batch_size": (lambda x: ep.probabilities(x.probes, x.source, batch_size=0), ("batch_size", "0")),
    "probabilities, records": (lambda x: ep.probabilities(x.probes, x.source, records=range(50)), ("from 0 to 7", "got 0 to 49")),
    "follow_targets, seed": (lambda x: ep.follow_targets(x.trained, x.source, x.task, seed=9), ("seed", "9")),
    "label_trajectories, shape": (lambda x: ep.label_trajectories(torch.ones(3, 2), x.task), ("[3, 2]",)),
    "label_trajectories, values": (lambda x: ep.label_trajectories(torch.full((3, 8, 2), 7.0), x.task), ("7",)),
    "bits_of, shapes": (lambda x: ep.bits_of(torch.zeros(2, 2), torch.zeros(3, 2)), ("[3, 2]",)),
    "code_lengths, portions": (
        lambda x: ep.code_lengths(x.source, x.other, settings=x.settings, portions=(0.5, 0.2)), ("portions",)
    ),
    "code_lengths, seed": (lambda x: ep.code_lengths(x.source, x.other, settings=x.settings, seed=-1), ("seed", "-1")),
    "online_code, portions": (lambda x: ep.online_code(lambda _: None, uniform=torch.ones(4), portions=()), ("portions",)),
    "layer_statistics, shape": (lambda x: ep.layer_statistics(torch.ones(2, 2, 2)), ("[2, 2, 2]",)),
    "layer_statistics, nothing": (lambda x: ep.layer_statistics(torch.ones(0)), ("[0]",)),
    "layer_statistics, mix": (lambda x: ep.layer_statistics(torch.ones(3), torch.ones(2)), ("mixing weights must be 0 or more and sum to 1",)),
    "layer_panels, columns": (lambda x: ep.layer_panels({"cats": x.statistics}, columns=0), ("columns", "0")),
    "layer_panels, nothing": (lambda x: ep.layer_panels({}), ("tasks",)),
    "layer_table, nothing": (lambda x: ep.layer_table({}), ("tasks",)),
    "layers_of_tasks, nothing": (lambda x: ep.layers_of_tasks({}), ("tasks",)),
    "order_agreement, one task": (lambda x: ep.order_agreement({"a": 1.0}, {"a": 2.0}), ("two or more tasks",)),
    "counted_labels, a string": (lambda x: ep.counted_labels("labels"), ("labels", "'labels'")),
    "counted_labels, rule": (lambda x: ep.counted_labels(("a", "b"), "most"), ("'most'",)),
    "control_tasks, seed": (lambda x: ep.control_tasks(x.task, seed=-1), ("seed", "-1")),
    "shuffled_labels, seed": (lambda x: ep.shuffled_labels(x.task, seed=-1), ("seed", "-1")),
    "proto_role_edges, texts": (lambda x: ep.proto_role_edges(["a"]), ("rows", "str")),
    "proto_role_edges, nothing": (lambda x: ep.proto_role_edges([]), ("proto-roles",)),
    "coreference_edges, window": (lambda x: ep.coreference_edges([x.document], window=0), ("window", "0")),
    "dependency_edges, nothing": (lambda x: ep.dependency_edges([]), ("dependencies",)),
    "write_edges, a missing folder": (lambda x: ep.write_edges(x.task, x.folder / "no" / "a.jsonl"), ("no",)),
    "write_edges, a folder": (lambda x: ep.write_edges(x.task, x.folder), ("cannot be written",)),
    "read_edges, labels": (lambda x: ep.read_edges(x.file("{}\n"), labels=x.folder / "no.txt"), ("line 1",)),
    "pos_edges, field": (lambda x: ep.pos_edges(x.file(""), field="tag"), ("'upos' or 'xpos'", "'tag'")),
    "entity_edges, scheme": (lambda x: ep.entity_edges(x.file(""), scheme="IO"), ("scheme", "'IO'")),
    "trajectories.of_label": (lambda x: x.trajectories.of_label("xx"), ("'xx'",)),
    "trajectories.sentence": (lambda x: x.trajectories.sentence(99), ("99",)),
    "layer scores, interval": (
        lambda x: ep.score_layers(x.trained, x.source).interval(level=2), ("level", "2")
    ),
}  # fmt: skip
for _name, (_call, _words) in PROBING.items():
    bad(_name, _call, *_words, error=BertologyError)

# ---- code

CODE: dict[str, tuple[Call, tuple[str, ...]]] = {
    "parse_code, language": (lambda x: cs.parse_code("x = 1", "klingon"), ("klingon",)),
    "parse_code, no code": (lambda x: cs.parse_code("", "python"), ("code",)),
    "parse_code, broken": (lambda x: cs.parse_code("x = 1", "python", broken="fix"), ("broken", "'fix'")),
    "parse_code, errors": (lambda x: cs.parse_code("def (", "python"), ("parse",)),
    "parse_code, language None": (lambda x: cs.parse_code("x = 1", None), ("language", "None")),
    "align_code, texts": (lambda x: cs.align_code(x.tokenizer, ["x = 1"]), ("trees", "'x = 1'")),
    "align_code, nothing": (lambda x: cs.align_code(x.tokenizer, []), ("none of 0",)),
    "align_code, a model": (lambda x: cs.align_code(x.model, [x.tree]), ("tokenizer",)),
    "align_code, batch_size": (lambda x: cs.align_code(x.tokenizer, [x.tree], batch_size=-1), ("batch_size", "-1")),
    "cat_scores, plain batches": (lambda x: cs.cat_scores(x.model, x.batch), ("align_code",)),
    "cat_scores, sentences": (lambda x: cs.cat_scores(x.reader, x.aligned), ("align_code",)),
    "cat_scores, types": (lambda x: cs.cat_scores(x.reader, x.code, types="some"), ("types", "'some'")),
    "cat_scores, top": (lambda x: cs.cat_scores(x.reader, x.code, top=0), ("top", "0")),
    "cat_scores, quantile": (lambda x: cs.cat_scores(x.reader, x.code, types="all", quantile=2), ("quantile", "2")),
    "cat_scores, seed": (lambda x: cs.cat_scores(x.reader, x.code, types="all", seed=-1), ("seed", "-1")),
    "cat_scores, offsets": (lambda x: cs.cat_scores(x.reader, x.code, types="all", offsets="some"), ("offsets", "'some'")),
    "cat_scores, means_from": (lambda x: cs.cat_scores(x.reader, x.code, types="all", means_from=x.aligned), ("align_code",)),
    "frequent_types, top": (lambda x: cs.frequent_types(cs.leaf_types(x.reader, x.code), top=0), ("top", "0")),
    "syntax_tree, too long": (lambda x: cs.syntax_tree(cs.parse_code("x = 1\n" * 50, "python")), ("150 leaves",)),
    "leaf_types, quantile": (lambda x: cs.leaf_types(x.reader, x.code, quantile=-1), ("quantile", "-1")),
    "attention_mask, quantile": (lambda x: cs.attention_mask(torch.ones(3, 3), quantile=float("nan")), ("quantile", "nan")),
    "attention_mask, one axis": (lambda x: cs.attention_mask(torch.ones(3)), ("[3]",)),
    "attention_mask, valid": (lambda x: cs.attention_mask(torch.ones(3, 3), valid=torch.ones(2, 2).bool()), ("valid", "[2, 2]")),
    "cat_counts, shapes": (lambda x: cs.cat_counts(torch.ones(3, 3), torch.ones(2, 2)), ("[2, 2]",)),
    "cat_mean, average": (lambda x: cs.cat_mean(torch.ones(2).long(), torch.ones(2).long(), average="all"), ("average", "'all'")),
    "cat_mean, shapes": (lambda x: cs.cat_mean(torch.ones(2).long(), torch.ones(3).long()), ("[3]",)),
    "distance_mask, one axis": (lambda x: cs.distance_mask(torch.ones(3)), ("[3]",)),
    "overlap, shapes": (lambda x: cs.overlap(cs.attention_mask(torch.ones(3, 3)), torch.ones(2, 2).bool()), ("[2, 2]",)),
    "positional, one axis": (lambda x: cs.positional(torch.ones(3)), ("[3]",)),
    "shuffled, one axis": (lambda x: cs.shuffled(torch.ones(3), snippet=0), ("[3]",)),
    "shuffled, snippet": (lambda x: cs.shuffled(torch.ones(3, 3), snippet=-1), ("snippet", "-1")),
    "restricted, a leaf outside": (lambda x: cs.restricted(torch.ones(3, 3), torch.tensor([7])), ("7",)),
    "restricted, floats": (lambda x: cs.restricted(torch.ones(3, 3), torch.tensor([0.5])), ("leaves",)),
    "token_map, shapes": (lambda x: cs.token_map(torch.ones(2, 3, 3), (0, 1), 2), ("[2, 3, 3]",)),
    "token_map, leaves": (lambda x: cs.token_map(torch.ones(2, 3, 3), (0, 1, 5), 2), ("5",)),
    "visible, leaves": (lambda x: cs.visible(-1), ("leaves", "-1")),
    "published_types": (lambda x: cs.published_types("klingon"), ("klingon",)),
    "rank_sum, strings": (lambda x: cs.rank_sum(["ab", "cd"]), ("rankings", "str")),
    "rank_sum, below": (lambda x: cs.rank_sum([("a", "b")], below=0), ("below", "0")),
    "leaves_of, a string": (lambda x: cs.leaves_of("abc", ("a",)), ("types", "'abc'")),
    "leaves_of, kept": (lambda x: cs.leaves_of(("a", "b"), "ab"), ("kept", "'ab'")),
    "related, relation": (lambda x: cs.related(x.tree, "same mood"), ("'same mood'",)),
    "relation_heads, relations": (lambda x: cs.relation_heads(x.reader, x.code, relations=("same mood",)), ("'same mood'",)),
    "relation_heads, nothing": (lambda x: cs.relation_heads(x.reader, x.code, relations=()), ("relations",)),
    "relation_scores, shapes": (lambda x: cs.relation_scores(torch.ones(3, 3), torch.ones(2, 2).bool()), ("[2, 2]",)),
    "leaf_attention, where": (lambda x: cs.leaf_attention(x.reader, x.tokenizer, x.tree, (9, 0)), ("9",)),
    "leaf_attention, a layer": (lambda x: cs.leaf_attention(x.reader, x.tokenizer, x.tree, -3), ("-3",)),
    "code_arcs, pairs": (lambda x: cs.code_arcs(x.reader, x.tokenizer, x.tree, (0, 1), pairs=0), ("pairs", "0")),
    "a table, level": (lambda x: sy.dependency_heads(x.reader, x.aligned).table(level=3), ("level", "3")),
    "find_loss of nothing": (lambda x: bt.losses.find_loss(None), ("wanted a model", "got None")),
    "accuracy of nothing": (lambda x: bt.metrics.accuracy(None, None), ("logits must be a tensor, got None",)),
    "pearson of lists": (lambda x: bt.metrics.pearson([1], [2]), ("logits must be a tensor, got list",)),
    "a picture of no format": (lambda x: x.entropy.plot(path=x.folder / "a.xyz"), ("a.xyz cannot be written",)),
    "cat_over_layers, nothing": (lambda x: cs.cat_over_layers({}), ("one result of cat_scores or more", "got none")),
    "cat_over_layers, level": (lambda x: cs.cat_over_layers({"python": x.comparison}, level=2), ("level", "2")),
    "cat_over_layers, nulls": (lambda x: cs.cat_over_layers({"python": x.comparison}, nulls=("none",)), ("'none'",)),
    "comparison.of": (lambda x: x.comparison.of("none"), ("none",)),
    "scores.interval": (lambda x: x.cat_scores.interval(level=-1), ("level", "-1")),
    "read_code, field": (lambda x: cs.read_code(x.file('{"code": "x"}', "a.jsonl"), "python", field="text"), ("'text'",)),
    "read_code, language": (lambda x: cs.read_code(x.file('{"code": "x"}', "a.jsonl")), ("pass language=",)),
    "read_code, no gzip": (lambda x: cs.read_code(x.file("x", "a.jsonl.gz"), "python"), ("a.jsonl.gz, line 1: not JSON",)),
}  # fmt: skip
for _name, (_call, _words) in CODE.items():
    bad(_name, _call, *_words, error=BertologyError)

# ---- parts, by themselves

PARTS: dict[str, tuple[Call, tuple[str, ...]]] = {
    "Head, strings": (lambda x: bt.Head("a", "b"), ("layer of a Head must be a whole number, got 'a' (str)",)),
    "Head, a fraction": (lambda x: bt.Head(1, 0.5), ("head of a Head must be a whole number, got 0.5 (float)",)),
    "Head, True": (lambda x: bt.Head(True, 1), ("layer of a Head must be a whole number, got True",)),
    "Head, stack": (lambda x: bt.Head(1, 1, 2), ("stack of a Head must be a string", "got 2")),
    "compute before zero": (lambda x: bt.EntropyAccumulator().compute(), ("EntropyAccumulator has no sums yet", "zero(")),
    "state before zero": (lambda x: bt.ImportanceAccumulator().state(), ("ImportanceAccumulator has no sums yet",)),
    "merge(None)": (lambda x: zeroed(x).merge(None), ("merge takes the state()", "got None")),
    "merge of an accumulator": (lambda x: zeroed(x).merge(zeroed(x)), ("merge takes the state()", "got EntropyAccumulator")),
    "merge of other sums": (lambda x: zeroed(x).merge({"a": 1}), ("merge takes the state()", "got a")),
    "merge of another model": (
        lambda x: zeroed(x).merge({name: torch.ones(7, 3) for name in zeroed(x).state()}), ("must be a tensor", "[7, 3]")
    ),
    "curves of a number": (lambda x: bt.plot.curves(3), ("results must be", "got 3 (int)")),
    "curves, labels": (lambda x: bt.plot.curves([curve_of(x)], labels=["a", "b"]), ("one for each of 1 curve, got 2",)),
    "draw of a number": (lambda x: bt.plot.draw(3), ("result", "got 3 (int)")),
    "heatmap of a list": (lambda x: bt.plot.heatmap([1], None), ("wanted a result of a measure", "got list")),
    "curve of an entropy": (lambda x: bt.plot.curve(x.entropy, None), ("PruningCurve", "got AttentionEntropy")),
    "head_map of a result": (lambda x: bt.plot.head_map(x.entropy, []), ("points must be a tensor", "AttentionEntropy")),
    "over_layers of a list": (lambda x: bt.plot.over_layers([1], [], unit="nats"), ("series must be a mapping", "list")),
    "LeafTypes.counts, outside": (lambda x: cs.leaf_types(x.reader, x.code).counts(99), ("row 99 is out of range",)),
    "Probes.select, outside": (lambda x: x.probes.select([99]), ("indices of probes", "99")),
    "Probes.select, a string": (lambda x: x.probes.select(["a"]), ("whole numbers", "'a'")),
    "Probes.select, nothing": (lambda x: x.probes.select([]), ("indices of probes", "none")),
    "most_changing, many": (lambda x: x.trajectories.most_changing(0), ("many", "0")),
    "embeddings of whole numbers": (
        lambda x: bt.attention_entropy(x.model, {"inputs_embeds": torch.ones(2, 4, 16).int()}), ("floating", "int32")
    ),
    "embeddings of another type": (
        lambda x: bt.attention_entropy(x.model, {"inputs_embeds": torch.ones(2, 4, 16).double()}), ("float32", "float64")
    ),
    "tokens of 16 bits": (
        lambda x: bt.attention_entropy(x.model, {"input_ids": torch.ones(2, 4).short()}), ("int64", "int16")
    ),
    "load_pruned, fewer layers": (lambda x: bt.load_pruned(fewer_layers(x)), ("by its config does not have", "layer.1")),
    "leaf_attention, True": (lambda x: cs.leaf_attention(x.reader, x.tokenizer, x.tree, True), ("True",)),
    "amount of a NaN of numpy": (
        lambda x: bt.pruning_curve(x.model, x.batch, metric="accuracy", amount=np.float32("nan")), ("amount", "nan")
    ),
    "dependency_edges, a path": (lambda x: ep.dependency_edges("a.conllu"), ("got 'a.conllu' (str)",)),
    "control_tasks, others": (lambda x: ep.control_tasks(x.task, "a"), ("EdgeTasks, such as the dev set", "'a'")),
    "names of a measure without any": (lambda x: zeroed(x).rename({"relation": ("a",)}), ("EntropyAccumulator", "rename()")),
    "roles of other gates": (
        lambda x: bt.fit_gates(x.model, x.batch, steps=1, seeds=(0,)).roles(), ("only soft gates have roles", "got 'l0'")
    ),
    "patching, parts": (
        lambda x: bt.activation_patching(x.model, x.batch, x.flipped, metric="loss", parts="neurons"),
        ("parts is 'heads', 'attentions', 'mlps' or 'blocks'", "got 'neurons'"),
    ),
    "neuron_curve, kinds": (
        lambda x: bt.neuron_curve(x.model, x.batch, metric="accuracy", kinds="heads"), ("'neurons' or 'both'", "'heads'")
    ),
    "head_scatter, field": (lambda x: scattered(x, "pairs"), ("draws a [layer, head] field", "'pairs' [layer, class]")),
    "head_scatter, no field": (lambda x: scattered(x, "none"), ("no [layer, head] field none",)),
    "read_json, a string of words": (
        lambda x: sy.read_json(x.file('[{"words": "Go", "heads": [0], "relns": ["root"]}]', "words.json")),
        ("words, heads and relns must be lists", "['Go', [0], ['root']]"),
    ),
    "read_winobias, the pronoun first": (
        lambda x: sy.read_winobias(x.file("1 [She] met [the guard].\n", "wino.txt")), ("first an entity and then a pronoun",)
    ),
    "attention of no width": (lambda x: bt.dissect(Plain()), ("layers.0 names neither a head width nor a head count",)),
}  # fmt: skip
for _name, (_call, _words) in PARTS.items():
    bad(_name, _call, *_words, error=BertologyError)


def fewer_layers(x: GoodInputs) -> Any:
    folder = x.folder / "fewer layers"
    shutil.copytree(x.pruned, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    return folder


def scattered(x: GoodInputs, field: str) -> Any:
    found = bt.attention_gradients(x.model, x.batch, tokens={"low": [3]})
    return bt.plot.head_scatter(found, found, names=("a", "b"), field=field)


class PlainAttention(torch.nn.Module):
    """Attention that does not say how many heads it has."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, torch.nn.Linear(8, 8))


class Plain(torch.nn.Module):
    """A layer of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([PlainAttention()])


def zeroed(x: GoodInputs) -> Any:
    return bt.EntropyAccumulator().zero(bt.dissect(x.model))


def curve_of(x: GoodInputs) -> Any:
    return bt.pruning_curve(x.model, x.batch, metric="accuracy", amount=4)


# ---- files

READERS: dict[str, Callable[..., Any]] = {
    "read_conllu": sy.read_conllu,
    "read_depparse": sy.read_depparse,
    "read_json": sy.read_json,
    "read_conll_coref": sy.read_conll_coref,
    "read_gap": sy.read_gap,
    "read_winobias": sy.read_winobias,
    "read_vectors": sy.read_vectors,
    "read_edges": ep.read_edges,
    "pos_edges": ep.pos_edges,
    "constituent_edges": ep.constituent_edges,
    "bracket_pos_edges": ep.bracket_pos_edges,
    "entity_edges": ep.entity_edges,
    "srl_edges": ep.srl_edges,
    "semeval_edges": ep.semeval_edges,
    "spr1_edges": ep.spr1_edges,
    "spr2_edges": lambda path: ep.spr2_edges(path, path),
    "tacred_edges": ep.tacred_edges,
    "dpr_edges": ep.dpr_edges,
    "conll2009_edges": ep.conll2009_edges,
    "gap_edges": ep.gap_edges,
    "read_code": cs.read_code,
}
FILES: dict[str, tuple[Call, tuple[str, ...]]] = {
    "missing": (lambda x: x.folder / "missing.txt", ("missing.txt does not exist", "wanted a file")),
    "a folder": (lambda x: empty_folder(x), ("is a folder: wanted a file",)),
    "empty": (lambda x: x.file("", "empty.txt"), ()),
    "bytes": (lambda x: x.file(b"\xff\xfe\x00\x81\n\n", "bytes.txt"), ("bytes.txt",)),
    "another format": (lambda x: x.file("{}[]\t!!\n(a\n", "other.txt"), ("other.txt",)),
}
for _reader, _read in READERS.items():
    for _name, (_file, _words) in FILES.items():
        bad(f"{_reader}, {_name}", lambda x, read=_read, file=_file: read(file(x)), *_words)
for _name in ("missing", "a folder", "bytes"):
    _file, _words = FILES[_name]
    bad(f"labels of read_edges, {_name}", lambda x, file=_file: ep.read_edges(good_edges(x), labels=file(x)), *_words)
    bad(f"trees of read_conll_coref, {_name}", lambda x, file=_file: sy.read_conll_coref(coref(x), trees=file(x)), *_words)  # fmt: skip


def empty_folder(x: GoodInputs) -> Any:
    (x.folder / "empty").mkdir(exist_ok=True)
    return x.folder / "empty"


def good_edges(x: GoodInputs) -> Any:
    return x.file('{"text": "Ann ate", "targets": [{"span1": [1, 2], "label": "A"}]}\n', "edges.jsonl")


def coref(x: GoodInputs) -> Any:
    return x.file("# begin document\n0\tThe\t(1\n1\tqueen\t1)\n2\tsleeps\t_\n# end document\n", "coref.conll")
