"""What each public function with a model says of one that torch.distributed wraps or divides, in two processes."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

import bertology as bt
from bertology.errors import BertologyError
from bertology.streaming.processes import sharing
from helpers.good_inputs import GoodInputs, good_arguments, good_arguments_of
from helpers.public import public_functions

FUNCTIONS = {name: function for _, name, function in public_functions()}
# Times differ from run to run; an anatomy holds the model itself, and an accumulation needs accumulators.
NO_RESULTS = {"compare_efficiency", "dissect", "dissect_mlps", "accumulate", "tap"}
# What is drawn for each batch differs if the same examples are in other batches: here each is a batch of its own.
DRAWN_BY_BATCH = {"layer_similarity", "fit_gates"}


class Doubled(GoodInputs):
    """Good inputs whose models compute in float64."""

    def bert(self, kind: str = "BertModel", **more: Any) -> Any:
        return super().bert(kind, **more).double()


def ddp(model: Any) -> Any:
    return nn.parallel.DistributedDataParallel(model)


def accelerated(model: Any) -> Any:
    import accelerate

    return accelerate.Accelerator(cpu=True).prepare(model)


def fully_sharded(model: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    model = copy.deepcopy(model)  # it changes the model itself
    for blocks in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
        for layer in blocks:
            fully_shard(layer)
    return fully_shard(model)


WRAPPED: dict[str, Callable[[Any], Any]] = {"ddp": ddp, "fully_shard": fully_sharded}


def names(x: GoodInputs) -> list[str]:
    """The public functions that take a model."""
    found = {name for name, given in good_arguments(x).items() if _has_model(given)}
    return sorted({"importance_through_training"} | found - NO_RESULTS)


def _has_model(given: dict[str, Any]) -> bool:
    return isinstance(given.get("model"), nn.Module)


def answers(rank: int, folder: Path) -> dict[str, dict[str, str]]:
    """{wrapper: {function: "same" as one process with the plain model, or the error}}"""
    x = Doubled(folder / str(rank))
    x.folder.mkdir()
    with sharing("none"):
        alone = {name: values(called(name, given_to(x, name))) for name in names(x)}
    found: dict[str, dict[str, str]] = {}
    for wrapper, wrap in WRAPPED.items():
        found[wrapper] = {}
        for name, wanted in alone.items():
            try:
                came = values(called(name, _share(name, given_to(x, name), wrap, rank)))
                found[wrapper][name] = difference(came, wanted) or "same"
            except BertologyError as error:
                found[wrapper][name] = f"refused: {error}"
    return found


def given_to(x: GoodInputs, name: str) -> dict[str, Any]:
    given = dict(good_arguments_of(name, x))
    if name in DRAWN_BY_BATCH:
        whole = given["batches"]
        given["batches"] = [row(whole, place) for place in range(len(whole["input_ids"]))]
    return given


def row(batch: dict[str, Any], place: int) -> dict[str, Any]:
    """One example as a batch."""
    return {key: x[place : place + 1] for key, x in batch.items()}


def _share(name: str, given: dict[str, Any], wrap: Callable[[Any], Any], rank: int) -> dict[str, Any]:
    """The arguments of one process: the model wrapped, and its part of the batches; process 1 may have none."""
    given = dict(given)
    if _has_model(given):
        given["model"] = wrap(given["model"])
    if name == "importance_through_training":
        given["checkpoints"] = [(step, wrap(model)) for step, model in given["checkpoints"]]
    if "batches" in given:
        whole = given["batches"]
        given["batches"] = [row(whole, rank)] if isinstance(whole, dict) else bt.shard_batches(whole)
    return given


def called(name: str, given: dict[str, Any]) -> Any:
    came = FUNCTIONS[name](**given)
    if not isinstance(came, AbstractContextManager):
        return came
    with came:
        if name not in ("ablated", "gated"):  # edits that are of another batch
            return None
        return given["model"](input_ids=torch.tensor([[5, 6, 7, 8]])).logits


def values(x: Any) -> Any:
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        x = {one.name: getattr(x, one.name) for one in dataclasses.fields(x) if one.name != "model_name"}
    if isinstance(x, dict):
        return {str(key): values(value) for key, value in x.items()}
    if isinstance(x, (tuple, list)):
        return [values(value) for value in x]
    if isinstance(x, nn.Module):
        return {name: weight.detach() for name, weight in getattr(x, "module", x).named_parameters()}
    return x.detach().clone() if isinstance(x, torch.Tensor) else x


def difference(came: Any, wanted: Any, where: str = "") -> str:
    """Where two values differ by more than rounding; empty if nowhere."""
    if isinstance(wanted, dict) and isinstance(came, dict) and came.keys() == wanted.keys():
        each = (difference(came[key], wanted[key], f"{where}.{key}") for key in wanted)
        return next(filter(None, each), "")
    if isinstance(wanted, list) and isinstance(came, list) and len(came) == len(wanted):
        each = (difference(x, y, f"{where}[{place}]") for place, (x, y) in enumerate(zip(came, wanted, strict=True)))
        return next(filter(None, each), "")
    if isinstance(wanted, (float, torch.Tensor)):
        x, y = torch.as_tensor(came), torch.as_tensor(wanted)
        if hasattr(x, "full_tensor"):
            return f"{where}: a part of a tensor that is divided among processes"
        equal = x.shape == y.shape and torch.allclose(x.double(), y.double(), rtol=1e-12, atol=1e-12, equal_nan=True)
        return "" if equal else f"{where}: {came}, wanted {wanted}"
    plain = isinstance(wanted, (str, int, bool, type(None)))
    return f"{where}: {came!r}, wanted {wanted!r}" if plain and came != wanted else ""


def others(rank: int, folder: Path) -> dict[str, Any]:
    """Further work on wrapped models: what one process does alone, tensor parallelism, and what is left behind."""
    x = Doubled(folder)
    divided = fully_sharded(x.model)
    share = [row(x.batch, rank)]
    found: dict[str, Any] = {}
    divided(**x.batch)  # in its first pass it settles what is divided again
    divided.reshard()
    settings = [state(module) for module in divided.modules()]
    found["importance"] = bt.head_importance(divided, share).scores.tolist()
    found["accelerate"] = bt.head_importance(accelerated(x.model), share if rank else []).examples
    found["left as it was"] = [state(module) for module in divided.modules()] == settings
    work = {
        "divided and alone": lambda: bt.attention_entropy(divided, share, merge="none"),
        "divided, and no batch": lambda: bt.attention_entropy(divided, [{"input_ids": 1}] if rank else share),
        "tensor parallelism": lambda: bt.dissect(tensor_parallel(rank, folder)),
    }
    for name, do in work.items():
        try:
            found[name] = repr(do())
        except BertologyError as error:
            found[name] = str(error)
    return found


def state(module: Any) -> Any:
    """Which weights of a module are divided, and when fully_shard divides them again."""
    kinds = [type(x.data).__name__ for x in module.parameters(recurse=False)]
    if not hasattr(module, "_get_fsdp_state"):
        return kinds, None
    inner = module._get_fsdp_state()
    groups = getattr(inner, "_fsdp_param_groups", None) or [inner._fsdp_param_group]
    return kinds, [(one.post_forward_mesh_info is None, one.reshard_after_backward) for one in groups]


def tensor_parallel(rank: int, folder: Path) -> Any:
    """A tiny Llama of which each of two processes runs some heads, as transformers loads it."""
    config = transformers.LlamaConfig(
        vocab_size=99, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4
    )
    if rank == 0:
        transformers.LlamaForCausalLM(config).save_pretrained(folder / "llama")
    torch.distributed.barrier()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "llama", tp_plan="auto")
