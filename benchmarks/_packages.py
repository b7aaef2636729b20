"""How other packages switch off one head: by hand, with captum, nnsight, pyvene and TransformerLens.

Each function takes a model, its projections after the heads (by path), its inputs and the places [(layer, head)], and
returns a function that runs the model once without each of these heads and returns its logits, stacked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

Places = Sequence[tuple[int, int]]
Run = Callable[[], Tensor]


def by_hand(model: nn.Module, paths: Sequence[str], inputs: dict[str, Tensor], places: Places, dim: int) -> Run:
    """A hook before the projection, written by hand."""

    def without(head: int, module: nn.Module, args: Any) -> tuple[Tensor]:
        x = args[0].clone()
        x[..., head * dim : (head + 1) * dim] = 0
        return (x,)

    @torch.no_grad()
    def run() -> Tensor:
        logits = []
        for layer, head in places:
            hook = model.get_submodule(paths[layer]).register_forward_pre_hook(partial(without, head))
            logits.append(model(**inputs).logits)
            hook.remove()
        return torch.stack(logits)

    return run


def with_captum(model: nn.Module, paths: Sequence[str], inputs: dict[str, Tensor], places: Places, dim: int) -> Run:
    """`FeatureAblation` of gates that hooks multiply with the heads; the logits are kept as it runs."""
    captum: Any = import_module("captum.attr")

    logits: list[Tensor] = []

    def forward(gates: Tensor) -> Tensor:
        def gate(number: int, head: int, module: nn.Module, args: Any) -> tuple[Tensor]:
            x = args[0].clone()
            x[..., head * dim : (head + 1) * dim] *= gates[0, number]
            return (x,)

        hooks = [
            model.get_submodule(paths[layer]).register_forward_pre_hook(partial(gate, number, head))
            for number, (layer, head) in enumerate(places)
        ]
        logits.append(model(**inputs).logits)
        for hook in hooks:
            hook.remove()
        return logits[-1].sum()[None]

    @torch.no_grad()
    def run() -> Tensor:
        logits.clear()
        captum.FeatureAblation(forward).attribute(torch.ones(1, len(places)), baselines=0)
        return torch.stack(logits[-len(places) :])

    return run


def with_nnsight(model: nn.Module, paths: Sequence[str], inputs: dict[str, Tensor], places: Places, dim: int) -> Run:
    """A trace for each head, which edits the input of the projection."""
    nnsight: Any = import_module("nnsight")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = nnsight.NNsight(model)

    @torch.no_grad()
    def run() -> Tensor:
        logits = []
        for layer, head in places:
            projection: Any = wrapped
            for part in paths[layer].split("."):
                # A submodule named "output" is called otherwise: that name is the module's output here.
                name = "E_output" if part == "output" else part
                projection = projection[int(part)] if part.isdigit() else getattr(projection, name)
            with wrapped.trace(**inputs):
                projection.input[:, :, head * dim : (head + 1) * dim] = 0
                saved = wrapped.output.logits.save()
            logits.append(saved)
        return torch.stack(logits)

    return run


def with_pyvene(model: nn.Module, paths: Sequence[str], inputs: dict[str, Tensor], places: Places, dim: int) -> Run:
    """An intervention for each head on the input of the projection."""
    pyvene: Any = import_module("pyvene")

    def without(head: int) -> Callable[[Tensor, Any], Tensor]:
        def change(base: Tensor, source: Any) -> Tensor:
            x = base.clone()
            x[..., head * dim : (head + 1) * dim] = 0
            return x

        return change

    @torch.no_grad()
    def run() -> Tensor:
        logits = []
        for layer, head in places:
            changed = pyvene.IntervenableModel(
                {"component": f"{paths[layer]}.input", "intervention": without(head)}, model=model
            )
            logits.append(changed(base=inputs)[1].logits)
        return torch.stack(logits)

    return run


PACKAGES = {"captum": with_captum, "nnsight": with_nnsight, "pyvene": with_pyvene}


def transformer_lens(layers: int, heads: int, dim: int, tokens: Tensor, places: Places) -> tuple[Run, Run]:
    """A plain pass, and passes without a head each, of a model of the same size in TransformerLens.

    It has its own implementation of the models, with random weights here: its loop is compared with its own pass.
    """
    bridge: Any = import_module("transformer_lens.model_bridge").TransformerBridge
    width, vocabulary = heads * dim, int(tokens.max()) + 1
    model = bridge.boot_native({
        "n_layers": layers, "d_model": width, "n_ctx": tokens.shape[1], "d_head": dim, "n_heads": heads,
        "d_mlp": 4 * width, "d_vocab": vocabulary, "d_vocab_out": 2, "act_fn": "gelu", "seed": 0,
    }).eval()  # fmt: skip

    def without(head: int, z: Tensor, hook: Any) -> Tensor:
        z[:, :, head] = 0
        return z

    @torch.no_grad()
    def plain() -> Tensor:
        found: Tensor = model(tokens)
        return found

    @torch.no_grad()
    def run() -> Tensor:
        hooks = [(f"blocks.{layer}.attn.hook_z", partial(without, head)) for layer, head in places]
        return torch.stack([model.run_with_hooks(tokens, fwd_hooks=[hook]) for hook in hooks])

    return plain, run
